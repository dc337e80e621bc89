"""What plans say of a model's time: asked, expected by the table, measured."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import final

from torch import Tensor

from patchers.units import Group
from sparse_trainer.budget.latency.timing import Timing
from sparse_trainer.budget.latency.trial import Pair
from sparse_trainer.plan.parts import Speed

# Shape legend: U = units of a group.


@final
@dataclass(frozen=True)
class Timed:
    """A target in time as a request holds it, for the plan."""

    timing: Timing

    def unit_of(self, group: Group) -> int:
        """Return nanoseconds of one unit."""
        return self.timing.time.unit_of(group)

    def speed(self, keep: Mapping[str, Tensor]) -> Speed:
        """Return what a plan says of the time with these units, by the table."""
        counts = {name: int(keep_U.sum()) for name, keep_U in keep.items()}
        return speed_record(self.timing, self.timing.time.seconds(counts), None)


def speed_record(timing: Timing, expected: float, pair: Pair | None) -> Speed:
    """Return what a plan says of the time of a finished model.

    Args:
        expected: Its seconds by the table.
        pair: What it took beside the dense one, where that was measured.
    """
    target, dense = timing.target, timing.time.dense
    return Speed(
        speedup_asked=target.speedup,
        milliseconds_asked=target.milliseconds,
        speedup_expected=dense / expected,
        speedup_measured=None if pair is None else pair.speedup,
        milliseconds={
            "dense": 1e3 * (dense if pair is None else pair.dense),
            "compact": 1e3 * (expected if pair is None else pair.pruned),
        },
        noise=None if pair is None else pair.noise,
        conditions=timing.conditions,
    )
