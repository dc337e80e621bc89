"""Several budgets that one training meets in turn (ZipLM, arXiv 2302.04089: a family of models in one gradual run)."""

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import pairwise
from typing import final

from sparse_trainer.budget.options import Budget
from sparse_trainer.errors import ArgumentError

_CLOSE = 1e-9
"""What a fraction of training may be off by, for rounding."""


@final
@dataclass(frozen=True, kw_only=True)
class Stages:
    """What is asked of each stage: one of the two.

    Raises:
        ArgumentError: values that do not go from larger models to smaller ones; the option is named.
    """

    speedups: tuple[float, ...] = ()
    """How many times faster than dense, increasing, above 1."""
    densities: tuple[float, ...] = ()
    """Fraction of the prunable cost that stays, decreasing, in (0, 1)."""

    def __post_init__(self) -> None:
        if bool(self.speedups) == bool(self.densities):
            raise ArgumentError(
                "speedups, densities",
                "are two families." if self.speedups else "name no stage.",
                "Give one of them, e.g. `speedups=[1.5, 2, 3]`.",
            )
        for value in self.speedups:
            if not 1 < value < math.inf:
                raise ArgumentError(
                    "speedups",
                    f"{value!r} is not above 1.",
                    "Give how many times faster each model is, e.g. 1.5.",
                )
        for value in self.densities:
            if not 0 < value < 1:
                raise ArgumentError(
                    "densities", f"{value!r} is not in (0, 1).", "Give the fractions to keep, e.g. 0.5."
                )
        _check_order("speedups", self.speedups, "larger")
        _check_order("densities", [-value for value in self.densities], "smaller")

    @property
    def names(self) -> tuple[str, ...]:
        """What each stage is called.

        >>> Stages(speedups=(1.5, 2.0)).names, Stages(densities=(0.5,)).names
        (('speedup-1.5', 'speedup-2'), ('density-0.5',))
        """
        kind = "speedup" if self.speedups else "density"
        return tuple(f"{kind}-{value:g}" for value in self.speedups or self.densities)

    def budgets(self, budget: Budget) -> tuple[Budget, ...]:
        """Return the budget of each stage.

        Args:
            budget: That of the last one, with all that they share.
        """
        if self.densities:
            return tuple(replace(budget, density=density) for density in self.densities)
        assert budget.time is not None
        return tuple(replace(budget, time=replace(budget.time, speedup=value)) for value in self.speedups)


def _check_order(option: str, values: Sequence[float], wanted: str) -> None:
    for before, after in pairwise(values):
        if after <= before:
            raise ArgumentError(
                option,
                f"{abs(after):g} comes after {abs(before):g}: each stage goes on from the one before.",
                f"Give each one {wanted} than the one before.",
            )


@final
@dataclass(frozen=True, kw_only=True)
class StagedSchedule:
    """Budgets that are met in turn: stages of one length, in each of which the budget falls, then holds.

    With one stage it is `CubicSchedule`. Where the cool-down is all that the dense start leaves, budgets fall at once.
    """

    warmup: float
    """Fraction of training, at its start, in which all is kept."""
    cooldown: float
    """Fraction of training in which structures hold, at the ends of the stages, shared out evenly."""
    count: int
    """Stages."""

    def stage(self, progress: float) -> int:
        """Return the stage that `progress` belongs to, counted from 0; the end of a stage is still part of it.

        >>> [StagedSchedule(warmup=0.2, cooldown=0.4, count=2).stage(p) for p in (0.1, 0.5, 0.6, 0.61, 1.0)]
        [0, 0, 0, 1, 1]
        """
        place = (progress - self.warmup) / self._length
        return min(self.count - 1, max(0, math.ceil(place - _CLOSE) - 1))

    def remaining(self, progress: float) -> float:
        """Return the part of the way still to go from the budget of the stage before (dense, in the first).

        >>> schedule = StagedSchedule(warmup=0.2, cooldown=0.4, count=2)
        >>> [round(schedule.remaining(p), 3) for p in (0.1, 0.3, 0.4, 0.6, 0.7, 0.8)]
        [1.0, 0.125, 0.0, 0.0, 0.125, 0.0]
        >>> [StagedSchedule(warmup=0.5, cooldown=0.5, count=1).remaining(p) for p in (0.5, 0.51)]
        [1.0, 0.0]
        """
        start = self.warmup + self.stage(progress) * self._length
        span = self._length - self.cooldown / self.count
        if span <= _CLOSE:
            return 1.0 if progress <= start + _CLOSE else 0.0
        gone = (progress - start) / span
        return 0.0 if gone >= 1.0 - _CLOSE else (1.0 - max(0.0, gone)) ** 3

    def held(self, progress: float) -> int | None:
        """Return the stage whose structure is fixed at `progress`, None on the way to one."""
        return self.stage(progress) if self.remaining(progress) == 0.0 else None

    def frozen(self, progress: float) -> bool:
        """Tell whether the last structure is fixed at `progress`."""
        return self.held(progress) == self.count - 1

    def ends(self, step: int, total_steps: int) -> int | None:
        """Return the stage that ends with an optimizer step, counted from 1; None where none does.

        >>> schedule = StagedSchedule(warmup=0.1, cooldown=0.4, count=2)
        >>> [step for step in range(1, 11) if schedule.ends(step, 10) is not None]
        [5, 10]
        """
        here = self.stage(step / total_steps)
        is_last = step == total_steps or self.stage((step + 1) / total_steps) > here
        return here if is_last and self.held(step / total_steps) == here else None

    def check_steps(self, total_steps: int) -> None:
        """Raise `ArgumentError` for a training in which a stage would hold for less than a step."""
        if total_steps * self.cooldown / self.count < 1.0 - _CLOSE:
            if self.warmup + self.cooldown > 1.0 - _CLOSE:
                raise ArgumentError(
                    "pruning_warmup_ratio",
                    f"{self.warmup:g} of {total_steps} optimizer steps leaves no step for each budget after the dense "
                    f"start, of {self.count}.",
                    f"Train for {math.ceil(self.count / self.cooldown - _CLOSE)} steps or more, or lower it.",
                )
            least = math.ceil(self.count / self.cooldown) if self.cooldown > 0 else None
            raise ArgumentError(
                "cooldown_ratio",
                f"{self.cooldown:g} of {total_steps} optimizer steps leaves {self.count} stages no step each in which "
                "they hold.",
                "Raise `cooldown_ratio`."
                if least is None
                else f"Train for {least} steps or more, or raise it.",
            )

    @property
    def _length(self) -> float:
        """Fraction of training of one stage."""
        return (1.0 - self.warmup) / self.count
