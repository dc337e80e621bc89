"""Padding of calibration rows: whether it would count, and rows without it, in every column."""

from collections.abc import Mapping
from typing import Final

from torch import Tensor

# Shape legend: B = sequences, T = tokens.

_TEXT: Final = (
    "input_ids", "inputs_embeds", "attention_mask", "labels", "position_ids", "token_type_ids", "task_type_ids",
    "mm_token_type_ids", "bbox", "langs", "lang_ids", "global_attention_mask", "input_shape_ids",
    "input_pronunciation_ids", "visual_pos_masks", "xpath_tags_seq", "xpath_subs_seq",
)  # fmt: skip
_SOUNDS: Final = ("input_values", "input_features")
"""Main inputs that are no tokens, with a mask over their own steps."""
_POSITIONS: Final = ("start_positions", "end_positions")
"""Columns that count tokens from the start of a row."""


def stands_alone(inputs: Mapping[str, Tensor], main: str, *, is_span: bool = False) -> bool:
    """Tell whether padding would count unless rows are read one by one, without it.

    In front of a text, losses take it for what comes before the first token, and positions count it. Convolutions make
    frames of sound, which no mask is over inside the blocks. The loss of a span compares it with every position.

    Args:
        main: The name of the model's main input.
        is_span: Whether the model compares all positions without being asked to, by labels, for a span.

    >>> import torch
    >>> stands_alone({"attention_mask": torch.tensor([[0, 1, 1], [1, 1, 1]])}, "input_ids")
    True
    >>> stands_alone({"attention_mask": torch.tensor([[1, 1, 0], [1, 1, 1]])}, "input_ids")
    False
    """
    mask_BT = inputs.get("attention_mask")
    if mask_BT is None or mask_BT.dim() != 2:
        return False
    if main in _SOUNDS:
        sound = inputs.get(main)
        return sound is not None and mask_BT.shape == sound.shape[:2] and bool((mask_BT == 0).any())
    anywhere = is_span or any(name in inputs for name in _POSITIONS)
    return bool(((mask_BT if anywhere else mask_BT[:, 0]) == 0).any())


def without_padding(row: Mapping[str, Tensor], main: str, *, is_encoder_decoder: bool) -> dict[str, Tensor]:
    """Return a batch of one row without its padding.

    Args:
        main: The name of the model's main input.
        is_encoder_decoder: The labels are the decoder's: the mask says nothing of them.

    >>> import torch
    >>> mask_BT = torch.tensor([[0, 1, 1]])
    >>> row = {"input_ids": torch.tensor([[0, 5, 6]]), "attention_mask": mask_BT, "end_positions": torch.tensor([2])}
    >>> without_padding(row, "input_ids", is_encoder_decoder=False)["end_positions"]
    tensor([1])
    """
    mask_BT = row.get("attention_mask")
    if mask_BT is None or mask_BT.dim() != 2 or len(mask_BT) != 1:
        return dict(row)
    real_T = mask_BT[0] != 0
    cut = _per_token(row, mask_BT, main, is_encoder_decoder)
    left = {name: value[:, real_T] if name in cut else value for name, value in row.items()}
    num_ahead = real_T.long().argmax()
    return left | {name: (row[name] - num_ahead).clamp_min(0) for name in _POSITIONS if name in row}


def _per_token(
    inputs: Mapping[str, Tensor], mask_BT: Tensor, main: str, is_encoder_decoder: bool
) -> set[str]:
    """Return the columns with one entry for each entry of the mask."""
    known = {*_TEXT, *({main} & set(_SOUNDS))}
    labels = inputs.get("labels")
    # The labels of classes may be as many as there are tokens, and the decoder has tokens of its own.
    if is_encoder_decoder or main in _SOUNDS or (labels is not None and labels.is_floating_point()):
        known.remove("labels")
    return {name for name in known & set(inputs) if inputs[name].shape[:2] == mask_BT.shape}
