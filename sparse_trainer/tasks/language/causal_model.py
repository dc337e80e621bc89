"""What can be trained as a causal language model, and on which data."""

from transformers import PreTrainedModel

from sparse_trainer.errors import RecipeError, UnsupportedModelError
from sparse_trainer.inputs.labels import shifts_labels
from sparse_trainer.inputs.limits import positions_of
from sparse_trainer.tasks.base import Prepared


def check_causal(model: PreTrainedModel, data: Prepared) -> None:
    """Refuse a model that does not foretell each token from those before it, or that is too short for the data.

    Raises:
        UnsupportedModelError: It looks ahead, or its loss does not shift the labels.
        RecipeError: A sequence of the data is longer than the model has positions for.
    """
    check_foretells(model)
    _check_positions(model, data)


def check_foretells(model: PreTrainedModel) -> None:
    """Raise `UnsupportedModelError` for a model that looks ahead, or whose loss does not shift the labels."""
    # Encoders have the field and say False: every token sees what it is to foretell.
    looks_ahead = model.config.to_dict().get("is_decoder") is False
    if looks_ahead or not shifts_labels(model):
        why = "looks ahead" if looks_ahead else "takes labels that are shifted already"
        raise UnsupportedModelError(
            type(model).__name__,
            f"{why}, and is no causal language model here.",
            "Give a decoder, such as Llama.",
        )


def _check_positions(model: PreTrainedModel, data: Prepared) -> None:
    positions = positions_of(model.config)
    longest = max(len(ids) for split in (data.train, data.validation) for ids in split["input_ids"])
    if positions is not None and longest > positions:
        raise RecipeError(
            "data.max_length", f"sequences of {longest} tokens, and the model has positions for {positions}.",
            f"Give {positions} or less.",
        )  # fmt: skip
