"""Which weights stay by their scores: exact counts."""

from collections.abc import Mapping

import torch
from torch import Tensor

from sparse_trainer.budget.masks import largest, largest_of_rows, n_of_m
from sparse_trainer.one_shot.elements.base import Ask

# Shape legend: O x I = a weight, outputs by inputs.


def kept_of(size: int, density: float) -> int:
    """Return how many of so many weights stay: rounded up, so that zeros are never more than asked.

    >>> kept_of(10, 0.55), kept_of(100, 0.29), kept_of(3, 0.01)
    (6, 29, 1)
    """
    count = density * size
    # 0.29 * 100 is 28.999999999999996, 0.07 * 100 is 7.000000000000001.
    return int(count) + (count - int(count) > 1e-6 * max(1.0, count))


def keep_best(scores: Mapping[str, Tensor], ask: Ask) -> dict[str, Tensor]:
    """Return which weights stay, as booleans of shape [O, I], by path.

    >>> keep_best({"up": torch.tensor([[3.0, 1.0], [2.0, 0.0]])}, Ask(density=0.5, compare="row", pattern=None))
    {'up': tensor([[ True, False],
            [ True, False]])}
    """
    if ask.pattern is None and ask.compare == "global":
        return _of_all(scores, ask.density)
    return {path: _of_one(score_OI, ask) for path, score_OI in scores.items()}


def _of_one(score_OI: Tensor, ask: Ask) -> Tensor:
    if ask.pattern is not None:
        return n_of_m(score_OI, ask.pattern.n, ask.pattern.m)
    if ask.compare == "row":
        return largest_of_rows(score_OI, kept_of(score_OI.shape[1], ask.density))
    return largest(score_OI, kept_of(score_OI.numel(), ask.density))


def _of_all(scores: Mapping[str, Tensor], density: float) -> dict[str, Tensor]:
    flat = torch.cat([score_OI.flatten() for score_OI in scores.values()])
    keep = largest(flat, kept_of(flat.numel(), density))
    parts = keep.split([score_OI.numel() for score_OI in scores.values()])
    return {
        path: part.view_as(score_OI) for (path, score_OI), part in zip(scores.items(), parts, strict=True)
    }
