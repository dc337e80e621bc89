"""Layer gates on a frozen model: learn, in a few steps, which layers or branches to do without.

After FoldGPT (arXiv 2407.00928), which replaces static layer scores by learnable gates under a FLOPs constraint that
polarise. Its formulas were not available to us; this is our reading. A layer returns x + g (y - x), or a branch g times
its output. All that learns is one score s per gate. In each forward pass the gates are

    g = sigmoid((s + logistic noise - t) / temperature), with t such that the costs of what is open are the budget,

as in the relaxed Bernoulli gates of L0 (Louizos et al., ICLR 2018), here under an exact budget instead of a penalty.
Without noise, gates polarise badly: to close a tenth of every layer costs far less loss than to close a tenth of the
layers, so that the best soft gates are all half open. With it nearly every gate is open or closed in each pass, and a
gate learns how much its layer is missed when it, and others, are away.
"""

from dataclasses import dataclass
from typing import Any, ClassVar, Final, final

import torch
from torch import Tensor

from patchers.units import ATTENTION, FFN, LAYERS, Kind, Structure
from sparse_trainer.criteria.calibration.base import Evidence, Trials
from sparse_trainer.errors import ArgumentError
from sparse_trainer.fields import check_counts, check_positive, check_seed
from sparse_trainer.statistics.requests import Statistic

# Shape legend: U = gates of a model.

_HALVINGS: Final = 50
_REACH: Final = 30.0
"""In temperatures, where a sigmoid is 0 or 1 in float32."""


@final
@dataclass(frozen=True, kw_only=True)
class LearnedGate:
    """Gates that learn together on the calibration set while every weight stays as it is."""

    kinds: ClassVar[tuple[Kind, ...]] = (ATTENTION, FFN, LAYERS)
    standardize: ClassVar[str] = "none"
    steps: int = 100
    """Optimizer steps."""
    batch_size: int = 1
    """Sequences of the calibration set per step, run one after the other, each with noise of its own."""
    learning_rate: float = 0.2
    """Of gradient descent with momentum 0.9, the gradient of all scores normalised to length 1; falls linearly to 0."""
    temperature: float = 0.5
    """Of the gates, beside noise of scale 1: the lower, the fewer are half open in a pass."""
    seed: int = 0
    """Of the order of the sequences and of the noise."""

    def __post_init__(self) -> None:
        check_counts(**{"layer_gate.steps": self.steps, "layer_gate.batch_size": self.batch_size})
        check_positive("layer_gate.learning_rate", self.learning_rate)
        check_positive("layer_gate.temperature", self.temperature)
        check_seed(self.seed)

    def requests(self) -> tuple[Statistic[Any], ...]:
        """Return nothing: all is learned in passes of its own."""
        return ()

    def scores(self, evidence: Evidence) -> dict[str, Tensor]:
        """Raise `ArgumentError`: gates learn together, on the model itself."""
        raise ArgumentError(
            "criterion", "layer_gate learns on whole models: it has no scores to be mixed or shared out by.",
            "Let it stand alone, or take block_influence.",
        )  # fmt: skip

    def search(self, structure: Structure, trials: Trials, count: int) -> dict[str, Tensor]:
        """Return the learned score of every gate."""
        return dict(trials.learned_gates(self))

    def draw(self, score_U: Tensor, uniform_U: Tensor, cost_U: Tensor, kept: float) -> Tensor:
        """Return the values of all gates, shape [U], under the budget; uniform numbers of 0.5 are no noise."""
        return _within(score_U + uniform_U.logit(), cost_U, kept, self.temperature)


def _within(score_U: Tensor, cost_U: Tensor, kept: float, temperature: float) -> Tensor:
    """Return sigmoid((score - t) / temperature) with t such that the sum of cost times it is `kept`.

    t is found by bisection; its gradient is that of the implicit function.

    >>> score_U = torch.tensor([0.0, 1.0, 2.0])
    >>> _within(score_U, torch.ones(3), 2.0, 0.1).mul(1000).round().tolist()
    [7.0, 993.0, 1000.0]
    """
    known_U = score_U.detach()
    low, high = known_U.min() - _REACH * temperature, known_U.max() + _REACH * temperature
    for _ in range(_HALVINGS):
        middle = (low + high) / 2
        too_much = (cost_U * ((known_U - middle) / temperature).sigmoid()).sum() > kept
        low, high = torch.where(too_much, middle, low), torch.where(too_much, high, middle)
    threshold = (low + high) / 2
    open_U = ((score_U - threshold) / temperature).sigmoid()
    slope = (cost_U * open_U * (1 - open_U)).sum().detach() / temperature
    spent = (cost_U * open_U).sum()
    threshold = threshold + (spent - spent.detach()) / slope.clamp_min(torch.finfo(slope.dtype).tiny)
    return ((score_U - threshold) / temperature).sigmoid()
