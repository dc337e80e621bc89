"""Labels: which of them a loss counts, at which positions, and what a decoder reads of them."""

from collections.abc import Mapping
from typing import Any, Final, Protocol, runtime_checkable

from torch import Tensor, nn
from transformers import PreTrainedModel
from transformers.loss.loss_utils import LOSS_MAPPING, ForCausalLMLoss
from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING_NAMES
from transformers.utils.generic import find_labels

from patchers.discovery.source_code import shifts_labels_itself
from sparse_trainer.errors import DataError

# Shape legend: B = sequences, T = tokens.

IGNORED: Final = -100
"""Label of positions that do not count, as in transformers."""
_NO_INPUT: Final = ("num_items_in_batch",)
"""What Trainer adds to a batch for the loss alone."""
_DECODER_INPUTS: Final = ("decoder_input_ids", "decoder_inputs_embeds")
_SHIFTS: Final = {
    "ProphetNetForCausalLM": False,
    "XLMWithLMHeadModel": False,
    "IdeficsForVisionText2Text": True,
}
"""Classes whose loss lies deeper than their own source and is not what their name says (transformers 5.24)."""


@runtime_checkable
class _Wrapper(Protocol):
    """Models of peft."""

    def get_base_model(self) -> nn.Module: ...


@runtime_checkable
class _MakesDecoderInputs(Protocol):
    """Encoder-decoders that tell how they make decoder inputs of labels."""

    def prepare_decoder_input_ids_from_labels(self, labels: Tensor) -> Tensor: ...


def unwrapped(model: nn.Module) -> nn.Module:
    """Return the model that peft has wrapped, or the model itself."""
    return model.get_base_model() if isinstance(model, _Wrapper) else model


def is_encoder_decoder(model: nn.Module) -> bool:
    """Tell whether a model has an encoder and a decoder."""
    model = unwrapped(model)
    return isinstance(model, PreTrainedModel) and bool(model.config.is_encoder_decoder)


def shifts_labels(model: nn.Module) -> bool:
    """Tell whether a model is judged at each position by the label of the next.

    Whether a class computes its loss by hand shows in its source: decoders that are cut out of an encoder-decoder
    (BartForCausalLM) do not shift. Else the loss says so that transformers gives it (image-text models, too), or the
    task that it is listed under. Encoder-decoders shift the decoder's inputs instead.
    """
    model = unwrapped(model)
    if is_encoder_decoder(model):
        return False
    itself = _SHIFTS.get(type(model).__name__, shifts_labels_itself(type(model).forward))
    if itself is not None:
        return itself
    by_loss = isinstance(model, PreTrainedModel) and LOSS_MAPPING.get(str(model.loss_type)) is ForCausalLMLoss
    return by_loss or type(model).__name__ in MODEL_FOR_CAUSAL_LM_MAPPING_NAMES.values()


def label_names_of(model: nn.Module) -> tuple[str, ...]:
    """Return the inputs of a model that are labels by some name: `labels`, or where a span begins and ends."""
    return tuple(find_labels(type(unwrapped(model))))


def is_read_shifted(model: nn.Module, inputs: Mapping[str, Any]) -> bool:
    """Tell whether a decoder reads, in this batch, the labels moved on by one position, since nothing else is given."""
    given = any(inputs.get(name) is not None for name in _DECODER_INPUTS)
    return inputs.get("labels") is not None and not given and is_encoder_decoder(model)


def without_labels(model: nn.Module, inputs: Mapping[str, Any]) -> dict[str, Any]:
    """Return a batch without its labels; a decoder beside an encoder still reads those before each position.

    Where a model does not tell how it makes decoder inputs of labels, the labels stay: it makes them inside.
    """
    others = {n: v for n, v in inputs.items() if n not in (*label_names_of(model), *_NO_INPUT)}
    if not is_read_shifted(model, inputs):
        return others
    decoder = unwrapped(model)
    if isinstance(decoder, _MakesDecoderInputs):
        try:
            shifted = decoder.prepare_decoder_input_ids_from_labels(labels=inputs["labels"])
        except (AttributeError, ValueError) as error:
            raise DataError(
                "labels", f"{type(decoder).__name__} cannot make decoder inputs of them ({error}).",
                "Set decoder_start_token_id and pad_token_id in its config, or give decoder_input_ids.",
            ) from error  # fmt: skip
        return {**others, "decoder_input_ids": shifted}
    return {**others, "labels": inputs["labels"]}
