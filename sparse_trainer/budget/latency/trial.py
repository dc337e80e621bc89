"""How fast a model really is with some units gone: two models, timed in turn."""

from dataclasses import dataclass
from typing import final

from transformers import PreTrainedModel

from sparse_trainer.budget.latency.calls import Caller, compiling
from sparse_trainer.budget.latency.clock import time_calls
from sparse_trainer.budget.time_target import TimeTarget
from sparse_trainer.inputs.evaluating import evaluating

TOLERANCE = 0.05
"""What a measured time may be off by, relative to the one asked for."""
_AIM = TOLERANCE / 2
"""What a trial may be off by: timed again later, the same model comes out a hundredth or two away from it."""
_ROUNDS = 7
_SECONDS = 10.0


@final
@dataclass(frozen=True, kw_only=True)
class Pair:
    """What two models took, in turn."""

    dense: float
    """Seconds of one forward pass."""
    pruned: float
    noise: float
    """Uncertainty of the less certain one, relative to it."""

    @property
    def speedup(self) -> float:
        """How many times faster the pruned model is."""
        return self.dense / self.pruned

    def excess(self, target: TimeTarget) -> float:
        """Return the part by which the pruned model takes longer than asked; below 0 where it is faster.

        >>> round(Pair(dense=1.0, pruned=0.55, noise=0.0).excess(TimeTarget(speedup=2)), 3)
        0.1
        """
        return self.pruned / target.seconds(self.dense) - 1.0

    def misses(self, target: TimeTarget) -> bool:
        """Tell whether the time is off by more than half of what is allowed, and more than noise explains."""
        return abs(self.excess(target)) > max(_AIM, self.noise)


def time_pair(
    dense: PreTrainedModel, pruned: PreTrainedModel, target: TimeTarget, *, seconds: float = _SECONDS
) -> Pair:
    """Time two models in turn under the conditions of a target."""
    caller = Caller(target)
    with evaluating(dense, pruned), compiling(target):
        calls = [caller.of_model(dense), caller.of_model(pruned)]
        times = time_calls(calls, dense.device, rounds=_ROUNDS, enough=0.01, seconds=seconds)
    return Pair(dense=times.seconds[0], pruned=times.seconds[1], noise=times.noise)
