"""Scores that say nothing: where all are equal, position decides who stays."""

import logging
from collections.abc import Collection, Mapping

import torch
from torch import Tensor

from patchers.units import Kind

logger = logging.getLogger(__name__)

# Shape legend: U = units of a group, G = groups.


def tied(scores: Mapping[str, Tensor], kinds: Mapping[str, Kind]) -> Tensor:
    """Return which groups have one score for all their units, booleans of shape [G]; the host waits for nothing.

    Of a group of one unit its kind is asked: whether all branches, or all layers, have one score.

    >>> from patchers.units import FFN
    >>> scores = {"a.heads": torch.zeros(3), "b.heads": torch.arange(3), "a.ffn": torch.ones(1), "b.ffn": torch.ones(1)}
    >>> tied(scores, {"a.ffn": FFN, "b.ffn": FFN})
    tensor([ True, False,  True,  True])
    """
    alone: dict[Kind, list[Tensor]] = {}
    for name, score_U in scores.items():
        if score_U.numel() == 1:
            alone.setdefault(kinds[name], []).append(score_U.flatten())
    pools = {kind: torch.cat(parts) for kind, parts in alone.items()}
    return torch.stack(
        [
            _all_equal(score_U if score_U.numel() > 1 else pools[kinds[name]])
            for name, score_U in scores.items()
        ]
    )


def _all_equal(score_U: Tensor) -> Tensor:
    if score_U.numel() < 2:
        return torch.zeros((), dtype=torch.bool, device=score_U.device)
    return (score_U == score_U.flatten()[0]).all()


def warn_of_ties(names: Collection[str], tied_G: Tensor, scored_by: str) -> bool:
    """Say which groups are cut by position, and tell whether there are any."""
    found = [name for name, is_tied in zip(names, tied_G.tolist(), strict=True) if is_tied]
    if not found:
        return False
    which = "every group" if len(found) == len(names) else f"{len(found)} groups ({', '.join(found[:3])})"
    logger.warning(
        "%s: the scores of %s are all equal, so that position alone decides which units stay. Do the batches have "
        "labels that count (not all -100), and does the loss depend on these units?",
        scored_by,
        which,
    )
    return True


def warn_of_whole_groups(keep: Mapping[str, Tensor], kinds: Mapping[str, Kind], standardize: str) -> None:
    """Say which groups keep every unit under a budget that is shared by all: their scores may not be comparable."""
    large: dict[Kind, list[str]] = {}
    for name, keep_U in keep.items():
        if keep_U.numel() > _MANY:
            large.setdefault(kinds[name], []).append(name)
    for kind, names in large.items():
        whole = [name for name in names if bool(keep[name].all())]
        if whole and len(whole) < len(names):
            logger.warning(
                "standardize=%r: %d of %d groups of %s keep every unit (%s), and others pay for them. If the widths "
                "look wrong, compare scores by another standardize, or set scope='layer' or 'uniform'.",
                standardize,
                len(whole),
                len(names),
                kind,
                ", ".join(whole[:3]),
            )


_MANY = 16
"""Groups of fewer units keep all of them by chance."""
