"""Heads that a generation config names by layer and number: Whisper reads times of words off their attention."""

import logging
from collections.abc import Mapping
from typing import Any

from torch import Tensor

from patchers.units import ATTENTION, HEADS, LAYERS, Group, Structure

_FIELD = "alignment_heads"
_CROSS = ("encoder_attn", "cross_attn", "crossattention", "EncDecAttention")
"""Names of the attention of a decoder to its encoder."""
logger = logging.getLogger(__name__)


def renumber_alignment(model: Any, structure: Structure, keep: Mapping[str, Tensor]) -> None:
    """Number the alignment heads of a generation config as they are after a cut; those that are gone are dropped.

    Args:
        structure: What there was before the cut.
        keep: Booleans per unit, shape [U], by group name.
    """
    config = vars(model).get("generation_config")
    pairs = None if config is None else vars(config).get(_FIELD)
    if not pairs:
        return
    heads = {g.layer: g for g in structure.of([HEADS]) if any(name in g.consumer for name in _CROSS)}
    closed = {name for name, keep_U in keep.items() if not bool(keep_U.any())}
    layers = [g for g in structure.of([LAYERS]) if "decoder" in g.stack]
    gone = {g.layer for g in layers if g.name in closed}
    gone |= {g.layer for g in structure.of([ATTENTION]) if g.name in closed and g.inner in _names(heads)}
    missing = sorted(g.layer for g in layers if g.name in closed)
    left = [
        [layer - sum(place < layer for place in missing), _number(heads.get(layer), head, keep)]
        for layer, head in pairs
        if layer not in gone and _stays(heads.get(layer), head, keep)
    ]
    if left == [list(pair) for pair in pairs]:
        return
    logger.warning(
        "%s: %d of the %d alignment heads of its generation config are left, numbered anew.%s",
        type(model).__name__, len(left), len(pairs), "" if left else " Times of words are not available any more.",
    )  # fmt: skip
    if left:
        setattr(config, _FIELD, left)
    else:
        delattr(config, _FIELD)


def _names(groups: Mapping[int, Group]) -> set[str]:
    return {group.name for group in groups.values()}


def _stays(group: Group | None, head: int, keep: Mapping[str, Tensor]) -> bool:
    return group is None or group.name not in keep or bool(keep[group.name][head])


def _number(group: Group | None, head: int, keep: Mapping[str, Tensor]) -> int:
    return head if group is None or group.name not in keep else int(keep[group.name][:head].sum())
