"""From scores to masks: which blocks of one matrix stay. Exact counts, no host sync."""

from typing import Final, Literal

import torch
from torch import Tensor

from sparse_trainer.budget.masks import top

# Shape legend: R x C = blocks, O x I = weights.

Method = Literal["topK", "threshold", "sigmoid_threshold", "magnitude", "l0"]
METHODS: Final[tuple[Method, ...]] = ("topK", "threshold", "sigmoid_threshold", "magnitude", "l0")
BY_FRACTION: Final[tuple[Method, ...]] = ("topK", "magnitude")
"""Methods whose threshold is the fraction to keep."""


def above(score: Tensor, threshold: float, least: float) -> Tensor:
    """Return True for the scores above a threshold, or for the fraction `least` where those are fewer.

    >>> above(torch.tensor([0.3, 0.1, 0.2]), 0.25, 0.0), above(torch.tensor([0.3, 0.1, 0.2]), 9.0, 0.005)
    (tensor([ True, False, False]), tensor([ True, False, False]))
    """
    keep = score > threshold
    if least == 0:
        return keep
    count = int(least * score.numel()) + 1
    return torch.where(keep.sum() < count, top(score, count / score.numel()), keep)


def keep_by_method(method: Method, score: Tensor, threshold: float, least: float) -> Tensor:
    """Return True for what a method keeps.

    Args:
        score: Learned; of `magnitude`, the norms of the weights.
        threshold: The fraction to keep, a score, or a probability: as the method has it. `l0` has none.
        least: Fraction that stays whatever the threshold says, where it is no fraction itself.
    """
    if method in BY_FRACTION:
        return top(score, threshold)
    if method == "threshold":
        return above(score, threshold, least)
    # The hard form of a hard-concrete number: z without noise is 1/2 where the score is 0.
    return above(torch.sigmoid(score), 0.5 if method == "l0" else threshold, least)
