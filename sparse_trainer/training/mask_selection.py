"""From scores to masks: which blocks of one matrix stay. Exact counts, no host sync."""

from typing import Final, Literal

import numpy as np
import torch
from torch import Tensor

# Shape legend: R x C = blocks, O x I = weights.

Method = Literal["topK", "threshold", "sigmoid_threshold", "magnitude", "l0"]
METHODS: Final[tuple[Method, ...]] = ("topK", "threshold", "sigmoid_threshold", "magnitude", "l0")
BY_FRACTION: Final[tuple[Method, ...]] = ("topK", "magnitude")
"""Methods whose threshold is the fraction to keep."""


def top(score: Tensor, fraction: float) -> Tensor:
    """Return True for the largest scores: this fraction of them, rounded down, and one at least.

    >>> top(torch.tensor([0.3, 0.1, 0.2, 0.4]), 0.5)
    tensor([ True, False, False,  True])
    """
    # 0.29 * 100 is 28.999999999999996.
    count = max(1, int(fraction * score.numel() + 1e-6))
    if count >= score.numel():
        return torch.ones_like(score, dtype=torch.bool)
    if score.device.type == "cpu":
        keep = _from_cutoff(score.detach(), count)
        if int(keep.count_nonzero()) == count:
            return keep
    # Where ties leave too many, or the host should not wait for the device.
    best = score.flatten().topk(count, sorted=False).indices
    keep = torch.zeros(score.numel(), dtype=torch.bool, device=score.device)
    return keep.index_fill_(0, best, True).view_as(score)


def _from_cutoff(score: Tensor, count: int) -> Tensor:
    """Return True for the `count` largest scores and what ties with them.

    numpy's partition takes a tenth of the time of `topk` (2.4 million scores on one core with AVX-512: 4 and 60 ms).
    """
    values = score if score.dtype in (torch.float32, torch.float64) else score.float()
    place = values.numel() - count
    return values >= float(np.partition(values.flatten().numpy(), place)[place])


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


def n_of_m(score_OI: Tensor, n: int = 2, m: int = 4) -> Tensor:
    """Return True for the `n` largest of each `m` consecutive inputs of a row: what sparse tensor cores read.

    >>> n_of_m(torch.tensor([[3.0, 1.0, 2.0, 0.0]]))
    tensor([[ True, False,  True, False]])
    """
    score_GM = score_OI.reshape(-1, m)
    best = score_GM.topk(n, dim=1, sorted=False).indices
    return torch.zeros_like(score_GM, dtype=torch.bool).scatter_(1, best, True).view_as(score_OI)


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
