"""How the budget tightens over training: cubic or linear, from a dense start to a fixed structure."""

from dataclasses import dataclass
from typing import Protocol


class Schedule(Protocol):
    """How a budget tightens."""

    @property
    def warmup(self) -> float:
        """Fraction of training in which all is kept."""

    @property
    def cooldown(self) -> float:
        """Fraction of training, at its end, with the final structure."""

    def remaining(self, progress: float) -> float:
        """Return the part of the way still to go, 1 = dense."""

    def frozen(self, progress: float) -> bool:
        """Tell whether the structure is fixed at `progress`."""


@dataclass(frozen=True, kw_only=True)
class CubicSchedule:
    """`value = final + (initial - final) (1 - p)^3` (Zhu & Gupta, arXiv 1710.01878).

    p is the progress between the two stretches. Progress is a fraction of all steps, so that a learning-rate warm-up
    of 0 does not break it.
    """

    warmup: float
    """Fraction of training with the initial value."""
    cooldown: float
    """Fraction of training, at its end, with the final value and a structure that no longer changes."""

    def remaining(self, progress: float) -> float:
        """Return the part of the way still to go: 1 at the start, 0 from the cool-down on.

        >>> CubicSchedule(warmup=0.2, cooldown=0.3).remaining(0.45)
        0.125
        """
        span = 1.0 - self.warmup - self.cooldown
        if progress >= 1.0 - self.cooldown - 1e-12:
            return 0.0
        return (1.0 - min(1.0, max(0.0, (progress - self.warmup) / span))) ** 3 if span > 0 else 1.0

    def frozen(self, progress: float) -> bool:
        """Tell whether the structure is fixed at `progress`."""
        return self.remaining(progress) == 0.0


@dataclass(frozen=True, kw_only=True)
class LinearSchedule:
    """Falls linearly, then waits at the final value for the cool-down: time for a Lagrangian to settle."""

    warmup: float
    """Fraction of training with the initial value."""
    cooldown: float
    """Fraction of training, at its end, with a structure that no longer changes."""
    ramp: float
    """Part of the time between the two in which the value falls."""

    def remaining(self, progress: float) -> float:
        """Return the part of the way still to go: 1 at the start, 0 from the end of the ramp on.

        >>> LinearSchedule(warmup=0.2, cooldown=0.3, ramp=0.5).remaining(0.325)
        0.5
        """
        span = self.ramp * (1.0 - self.warmup - self.cooldown)
        gone = (progress - self.warmup) / span if span > 0 else float(progress >= self.warmup)
        return 0.0 if self.frozen(progress) else 1.0 - min(1.0, max(0.0, gone))

    def frozen(self, progress: float) -> bool:
        """Tell whether the structure is fixed at `progress`."""
        return progress >= 1.0 - self.cooldown - 1e-12
