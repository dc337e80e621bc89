"""Padding of calibration rows: moved behind what is real, or taken off, in every column that has one entry a token."""

from collections.abc import Mapping
from typing import Final

import torch
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


def padding_last(inputs: Mapping[str, Tensor], main: str, *, is_encoder_decoder: bool) -> dict[str, Tensor]:
    """Return a batch with the padding behind the text, where a loss does not take it for what comes before the text.

    Args:
        main: The name of the model's main input.
        is_encoder_decoder: The labels are the decoder's: the mask says nothing of them.

    >>> mask_BT = torch.tensor([[0, 0, 1], [1, 1, 1]])
    >>> batch = {"input_ids": torch.tensor([[0, 0, 7], [4, 5, 6]]), "attention_mask": mask_BT}
    >>> padding_last(batch, "input_ids", is_encoder_decoder=False)["input_ids"]
    tensor([[7, 0, 0],
            [4, 5, 6]])
    """
    mask_BT = inputs.get("attention_mask")
    if mask_BT is None or mask_BT.dim() != 2 or bool((mask_BT[:, 0] != 0).all()):
        return dict(inputs)
    num_ahead_B = (mask_BT != 0).long().argmax(1)
    size = mask_BT.shape[1]
    from_BT = (torch.arange(size, device=mask_BT.device) + num_ahead_B.unsqueeze(1)) % size
    row_B1 = torch.arange(len(mask_BT), device=mask_BT.device).unsqueeze(1)
    moved = dict(inputs)
    for name in _per_token(inputs, mask_BT, main, is_encoder_decoder):
        moved[name] = inputs[name][row_B1, from_BT]
    for name in set(_POSITIONS) & set(inputs):
        positions = inputs[name]
        moved[name] = (positions - num_ahead_B.view(-1, *[1] * (positions.dim() - 1))).clamp_min(0)
    return moved


def without_padding(row: Mapping[str, Tensor], main: str, *, is_encoder_decoder: bool) -> dict[str, Tensor]:
    """Return a batch of one row without its padding."""
    mask_BT = row.get("attention_mask")
    if mask_BT is None or mask_BT.dim() != 2 or len(mask_BT) != 1:
        return dict(row)
    real_T = mask_BT[0] != 0
    cut = _per_token(row, mask_BT, main, is_encoder_decoder)
    return {name: value[:, real_T] if name in cut else value for name, value in row.items()}


def stands_alone(inputs: Mapping[str, Tensor], main: str) -> bool:
    """Tell whether padding would count unless rows are read one by one.

    Convolutions make frames of sound, which no mask is over inside the blocks. The loss of a span compares it
    with every position there is.
    """
    mask_BT, read = inputs.get("attention_mask"), inputs.get(main)
    if mask_BT is None or read is None or mask_BT.shape != read.shape[:2]:
        return False
    told = main not in _SOUNDS and not any(name in inputs for name in _POSITIONS)
    return not told and bool((mask_BT == 0).any())


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
