"""What a model can read: which inputs, of how many dimensions, how long, and which tokens."""

import inspect
from typing import Any, Final

from torch import nn

from patchers.discovery.tables.names import POSITIONS
from sparse_trainer.errors import ArgumentError
from sparse_trainer.inputs.labels import unwrapped

DIMENSIONS: Final = {"input_ids": 2, "input_values": 2, "input_features": 3, "pixel_values": 4}
"""Dimensions of a batch of each main input; a row has one less."""
_TOKEN_FIELDS: Final = ("_token_id", "_token_index")
"""How config fields end that name a token: placeholders of images may lie beyond the embeddings."""


def inputs_named(model: Any) -> tuple[set[str], bool]:
    """Return the names of the inputs that a model reads, and whether it takes others as well."""
    parameters = inspect.signature(model.forward).parameters
    named = {n for n, p in parameters.items() if p.kind is not p.VAR_KEYWORD}
    return named, len(named) < len(parameters)


def vocabulary_of(model: Any) -> tuple[int, tuple[int, ...]] | None:
    """Return how many tokens a model knows, and placeholders that may lie beyond them; None where it does not tell."""
    try:
        embeddings = unwrapped(model).get_input_embeddings()  # type: ignore[operator]
    except NotImplementedError:
        return None
    if not isinstance(embeddings, nn.Embedding):
        return None
    fields = model.config.to_dict().items()
    named = (value for name, value in fields if name.endswith(_TOKEN_FIELDS) and isinstance(value, int))
    return embeddings.num_embeddings, tuple(token for token in named if token >= embeddings.num_embeddings)


def positions_of(config: Any) -> int | None:
    """Return the longest sequence that a model has positions for, where its config tells."""
    text = config.get_text_config()
    fields = text.to_dict()
    positions = fields.get(text.attribute_map.get(POSITIONS, POSITIONS))
    if not isinstance(positions, int) or positions <= 0:
        return None
    # RoBERTa counts positions from the padding id + 1.
    offset = (fields.get("pad_token_id") or 0) + 1 if "roberta" in config.model_type else 0
    return positions - offset


def check_positions(where: str, length: int | None, positions: int | None) -> None:
    """Raise `ArgumentError` for sequences that are longer than a model has positions for; None = not known."""
    if length is not None and positions is not None and length > positions:
        raise ArgumentError(
            where,
            f"{length} tokens, and the model has positions for {positions}.",
            f"Give {positions} or less.",
        )
