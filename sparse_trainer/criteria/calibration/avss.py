"""AVSS (arXiv 2411.02117): variance of a layer's activations over their sparsity.

The published rule for which layers go, "the lowest 25 %", can be read as a number of layers, or as a share of the sum
of all scores; `rule` chooses. The paper looks at what a layer returns. That is the residual stream, whose variance
grows with depth whatever the layers do, so that the first layers would always go first; what a layer adds to the stream
is the default here, and the published form `of="output"`.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar, Final, Literal, final, get_args

import torch
from torch import Tensor

from patchers.units import LAYERS, Kind
from sparse_trainer.criteria.calibration.base import Evidence
from sparse_trainer.errors import one_of
from sparse_trainer.statistics.block_states import BlockStates
from sparse_trainer.statistics.requests import Statistic

# Shape legend: H = hidden features.

Of = Literal["branch", "output"]
Rule = Literal["count", "mass"]
_LEAST: Final = 1e-6
"""Of a sparsity: a layer without a single small activation has a score, too."""


@final
@dataclass(frozen=True, kw_only=True)
class Avss:
    """Variance over features of the mean activation, divided by the share of activations that are nearly 0."""

    kinds: ClassVar[tuple[Kind, ...]] = (LAYERS,)
    standardize: ClassVar[str] = "none"
    of: Of = "branch"
    """branch: what a layer adds to the hidden states; output: what it returns, as published."""
    rule: Rule = "count"
    """What a density of 0.75 leaves: count = 75 % of the layers; mass = 75 % of the sum of all scores."""

    def __post_init__(self) -> None:
        one_of("avss.of", self.of, get_args(Of))
        one_of("avss.rule", self.rule, get_args(Rule))

    def requests(self) -> tuple[Statistic[Any], ...]:
        """Return the comparison of states before and behind blocks."""
        return (BlockStates(),)

    def scores(self, evidence: Evidence) -> dict[str, Tensor]:
        """Return one number per layer."""
        found = {}
        for name, means in evidence.of(BlockStates()).items():
            branch = self.of == "branch"
            mean_H, sparsity = (
                (means.change_H, means.sparsity) if branch else (means.output_H, means.output_sparsity)
            )
            found[name] = (mean_H.var(correction=0) / (sparsity + _LEAST)).unsqueeze(0)
        return found

    def density(self, scores: Mapping[str, Tensor], asked: float) -> float:
        """Return the share of layers that stays: with `mass`, all but those with 1 - `asked` of the sum of scores."""
        if self.rule == "count":
            return asked
        ascending = torch.cat([score_U.flatten().double().cpu() for score_U in scores.values()]).sort().values
        going = int((ascending.cumsum(0) / ascending.sum() <= 1.0 - asked).sum())
        return 1.0 - going / len(ascending)
