"""Named ways to make scores comparable across layers and kinds of unit."""

import functools
from collections.abc import Callable, Collection, Mapping

import torch
from torch import Tensor

from patchers.units import Kind

# Shape legend: U = units of a group.

Scores = Mapping[str, Tensor]
Costs = Mapping[str, int]
"""Cost of one unit, by group name."""
Kinds = Mapping[str, Kind]
"""Kind of unit, by group name."""
Standardizer = Callable[[Scores, Costs, Kinds], dict[str, Tensor]]


def _by_layer(way: Standardizer) -> Standardizer:
    """Let a way that looks at one layer at a time look at whole branches and layers of a kind together.

    Each of those is the only unit of its layer, beside which there is nothing to compare it with.

    >>> from patchers.units import LAYERS
    >>> found = rank_layer({"0": torch.tensor([5.0]), "1": torch.tensor([7.0])}, {}, {"0": LAYERS, "1": LAYERS})
    >>> [score_U.tolist() for score_U in found.values()]
    [[0.25], [0.75]]
    """

    @functools.wraps(way)
    def together(scores: Scores, costs: Costs, kinds: Kinds) -> dict[str, Tensor]:
        whole: dict[Kind, list[str]] = {}
        for name in scores:
            if name in kinds and kinds[name].is_whole:
                whole.setdefault(kinds[name], []).append(name)
        alone = set().union(*whole.values())
        found = way({name: score_U for name, score_U in scores.items() if name not in alone}, costs, kinds)
        for names in whole.values():
            pooled_U = way({"": torch.cat([scores[name] for name in names])}, {"": 1}, {})[""]
            found |= dict(zip(names, pooled_U.split([len(scores[name]) for name in names]), strict=True))
        return {name: found[name] for name in scores}

    return together


def as_they_are(scores: Scores, costs: Costs, kinds: Kinds) -> dict[str, Tensor]:
    """Leave the scores alone."""
    return dict(scores)


def per_cost(scores: Scores, costs: Costs, kinds: Kinds) -> dict[str, Tensor]:
    """Divide by the cost of a unit: the greedy order of a knapsack, for additive, non-negative scores.

    >>> per_cost({"a": torch.tensor([4.0, 2.0])}, {"a": 2}, {})
    {'a': tensor([2., 1.])}
    """
    return {name: score_U / costs[name] for name, score_U in scores.items()}


def share(scores: Scores, costs: Costs, kinds: Kinds) -> dict[str, Tensor]:
    """Divide by the sum over the group, then by the cost: what part of a layer's work a unit does, for its price.

    For additive, non-negative scores whose scale differs from layer to layer. Unlike z-scores it also ranks groups of
    few units: three alike KV groups have a third each, and none of them is below the average.

    >>> share({"a": torch.tensor([3.0, 1.0])}, {"a": 2}, {})
    {'a': tensor([0.3750, 0.1250])}
    """
    return per_cost({name: _over_sum(score_U) for name, score_U in scores.items()}, costs, kinds)


def _over_sum(score_U: Tensor) -> Tensor:
    return score_U / score_U.sum().clamp_min(torch.finfo(score_U.dtype).tiny)


@_by_layer
def zscore_layer(scores: Scores, costs: Costs, kinds: Kinds) -> dict[str, Tensor]:
    """Give the scores of every group mean 0 and standard deviation 1, outliers aside; equal scores become 0.

    One score of several hundred times the others would stretch the deviation until no unit of its layer stood below the
    mean, and the layer escaped the budget. So mean and deviation are those of the scores brought inside a fence.

    >>> plain = torch.arange(32.0)
    >>> outlier = torch.cat([plain, torch.tensor([1e6])])
    >>> bool(zscore_layer({"a": outlier}, {}, {})["a"][0] < -0.5)
    True
    """
    return {name: _zscore(score_U, _fenced(score_U)) for name, score_U in scores.items()}


def zscore_global(scores: Scores, costs: Costs, kinds: Kinds) -> dict[str, Tensor]:
    """Give all scores of a kind together mean 0 and standard deviation 1, outliers aside."""
    by_kind: dict[Kind, list[Tensor]] = {}
    for name, score_U in scores.items():
        by_kind.setdefault(kinds[name], []).append(score_U)
    pooled = {kind: _fenced(torch.cat(parts)) for kind, parts in by_kind.items()}
    return {name: _zscore(score_U, pooled[kinds[name]]) for name, score_U in scores.items()}


@_by_layer
def median_layer(scores: Scores, costs: Costs, kinds: Kinds) -> dict[str, Tensor]:
    """Measure the scores of every group from their median, in median deviations: outliers have no say at all.

    >>> median_layer({"a": torch.tensor([1.0, 2.0, 3.0, 1e9])}, {}, {})["a"][:3]
    tensor([-0.6745,  0.0000,  0.6745])
    """
    found = {}
    for name, score_U in scores.items():
        middle, spread = _middle(score_U)
        # Where most scores are equal, the others are told apart by the deviation.
        sample = torch.where(spread > 0, spread, score_U.std(correction=0))
        found[name] = (score_U - middle) / sample.clamp_min(torch.finfo(score_U.dtype).tiny)
    return found


@_by_layer
def log_layer(scores: Scores, costs: Costs, kinds: Kinds) -> dict[str, Tensor]:
    """Give the logarithms of the scores of every group mean 0 and standard deviation 1, for scores over many decades.

    Scores of 0 or less count as the smallest one above.

    >>> log_layer({"a": torch.tensor([0.0, 1.0, 100.0])}, {}, {})["a"]
    tensor([-0.7071, -0.7071,  1.4142])
    """
    logs = {}
    for name, score_U in scores.items():
        positive_U = score_U.masked_fill(score_U <= 0, torch.inf)
        least = positive_U.min()
        logs[name] = score_U.clamp_min(torch.where(least.isfinite(), least, torch.ones_like(least))).log()
    return zscore_layer(logs, costs, kinds)


@_by_layer
def rank_layer(scores: Scores, costs: Costs, kinds: Kinds) -> dict[str, Tensor]:
    """Put the place in the order of its group, in (0, 1), for every score: all groups lose equal shares of their units.

    >>> rank_layer({"a": torch.tensor([5.0, -1.0, 9.0, 0.0])}, {}, {})
    {'a': tensor([0.6250, 0.1250, 0.8750, 0.3750])}
    """
    return {
        name: (score_U.argsort(stable=True).argsort().to(score_U.dtype) + 0.5) / len(score_U)
        for name, score_U in scores.items()
    }


_FENCE = 10.0
"""How many deviations from the median, of the median deviation of a normal sample, a score counts as it is."""


def _fenced(score_U: Tensor) -> Tensor:
    """Bring outliers to the fence; nothing changes where there are none, or where most scores are equal."""
    middle, spread = _middle(score_U)
    reach = torch.where(spread > 0, _FENCE * spread, torch.inf)
    return score_U.clamp(middle - reach, middle + reach)


def _middle(score_U: Tensor) -> tuple[Tensor, Tensor]:
    """Return the median, and the median deviation in standard deviations of a normal sample."""
    middle = score_U.median()
    return middle, 1.4826 * (score_U - middle).abs().median()


def _zscore(score_U: Tensor, sample: Tensor) -> Tensor:
    return (score_U - sample.mean()) / sample.std(correction=0).clamp_min(torch.finfo(sample.dtype).tiny)


STANDARDIZERS: dict[str, Standardizer] = {
    "none": as_they_are,
    "cost": per_cost,
    "share": share,
    "zscore_layer": zscore_layer,
    "zscore_global": zscore_global,
    "median_layer": median_layer,
    "log_layer": log_layer,
    "rank_layer": rank_layer,
}

ACROSS_LAYERS = ("zscore_global",)
"""Those that look at the scores of all layers at once."""


def fitting(own: str, kinds: Collection[str]) -> str:
    """Return how scores are made comparable where the user does not say: the criterion's way, with one exception.

    A z-score says nothing in a layer of few units: of three KV groups one is always far below the average. So where
    kinds compete for one budget, parts of a layer's whole score are compared instead.

    >>> fitting("zscore_layer", ["heads", "channels"]), fitting("zscore_layer", ["channels"])
    ('share', 'zscore_layer')
    """
    return "share" if own == "zscore_layer" and len(kinds) > 1 else own
