"""One-shot pruning under a budget of time: a table first, a selection, a trial, and corrections."""

import logging
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Final, Self, final

import torch
from torch import Tensor
from transformers import PreTrainedModel

from patchers.units import Group, Structure
from sparse_trainer.budget.latency.calls import narrowed
from sparse_trainer.budget.latency.clock import LOUD
from sparse_trainer.budget.latency.conditions import TimingConditions
from sparse_trainer.budget.latency.model_time import Counts
from sparse_trainer.budget.latency.selector import TimedSelector
from sparse_trainer.budget.latency.store import known_table, timing_by, timing_of
from sparse_trainer.budget.latency.timing import Timing
from sparse_trainer.budget.latency.trial import TOLERANCE, Pair, time_pair
from sparse_trainer.budget.options import Budget
from sparse_trainer.budget.time_target import TimeTarget
from sparse_trainer.cut.speed import speed_record
from sparse_trainer.plan.parts import Speed

Choose = Callable[[TimedSelector], dict[str, Tensor]]
"""Returns the units that stay under a selector, as `choose` does."""
_CORRECTIONS: Final = 3
logger = logging.getLogger(__name__)


@final
@dataclass(kw_only=True)
class TimedPruning:
    """What a pruning in time knows: what the model takes, what it may take, what it was measured to take."""

    timing: Timing
    """Of the model before the first step."""
    dense: PreTrainedModel
    """That model; it shares its weights with the one that is cut."""
    expected: float | None = None
    """Seconds of the finished model by the table."""
    pair: Pair | None = None

    @classmethod
    def of(cls, model: Any, found: Structure, target: TimeTarget) -> Self:
        """Return the times of a model, measured or read.

        Args:
            found: All groups of the model.
        """
        return cls(timing=timing_of(model, found, target), dense=narrowed(model, found, {}))

    @classmethod
    def without_measuring(
        cls, shape: Any, found: Structure, target: TimeTarget, device: torch.device
    ) -> Self | None:
        """Return the times of a model that is not loaded yet, None where they have to be measured.

        Args:
            shape: The model on the meta device.
            device: Where it will lie.

        Raises:
            ArgumentError, CheckpointError, DataError: the file that the target names cannot be used.
        """
        knows_dtype = shape.config.dtype is not None
        conditions = TimingConditions.of(shape, target, device) if knows_dtype else None
        table = known_table(shape, found, target, conditions)
        return None if table is None else cls(timing=timing_by(table, shape, found, target), dense=shape)

    @property
    def target(self) -> TimeTarget:
        """How fast the model has to be."""
        return self.timing.target

    def selector(
        self, groups: tuple[Group, ...], budget: Budget, done: float, others: Counts
    ) -> TimedSelector:
        """Return what selects under the time of this moment.

        Args:
            done: Part of the way to the budget that lies behind after this round.
            others: Units that are left of all groups.
        """
        time, goal = self.timing.time, self.timing.goal
        return TimedSelector(groups, budget, time, time.dense + (goal - time.dense) * done, others)

    def tried(
        self, model: Any, found: Structure, selector: TimedSelector, choose: Choose, *, again: bool = True
    ) -> dict[str, Tensor]:
        """Return the units that stay, chosen once more where a trial shows that the time is missed.

        Args:
            model: As it is before the last cut.
            found: All groups in it.
            selector: Of the last round.
            again: Whether to choose a second time: not where that takes long.
        """
        keep = choose(selector)
        self.expected = selector.seconds(keep)
        if not self.timing.measures:
            self._tell_expected(self.expected)
            return keep
        self.pair = self._trial(model, found, keep)
        if again and self.pair.misses(self.target):
            keep = self._corrected(model, found, selector, choose, keep)
        self._tell()
        return keep

    def _trial(self, model: Any, found: Structure, keep: Mapping[str, Tensor]) -> Pair:
        """Time the model as it was at first, and a copy without the units that go."""
        return time_pair(self.dense, narrowed(model, found, keep), self.target)

    def _corrected(
        self,
        model: Any,
        found: Structure,
        selector: TimedSelector,
        choose: Choose,
        before: dict[str, Tensor],
    ) -> dict[str, Tensor]:
        """Return the best of the first choice and of up to `_CORRECTIONS` that make up for what the last was off by."""
        pair, keep = self.pair, before
        for _ in range(_CORRECTIONS):
            assert self.pair is not None
            assert pair is not None
            if not self.pair.misses(self.target):
                break
            logger.info("%.3g times faster by a trial: choosing once more", pair.speedup)
            selector = selector.aiming(selector.goal / (1.0 + pair.excess(self.target)))
            other = choose(selector)
            pair = self._trial(model, found, other)
            if abs(pair.excess(self.target)) < abs(self.pair.excess(self.target)):
                self.pair, self.expected, keep = pair, selector.seconds(other), other
        return keep

    def _tell_expected(self, expected: float) -> None:
        """Say what whole layers, or other units too large for it, miss by the table of another device."""
        excess = expected / self.timing.goal - 1.0
        if abs(excess) > TOLERANCE:
            logger.warning(
                "%s is missed by %.0f %%: %.4g ms by the table instead of %.4g ms.",
                self.target.asked, 100 * excess, 1e3 * expected, 1e3 * self.timing.goal,
            )  # fmt: skip

    def _tell(self) -> None:
        assert self.pair is not None
        if self.pair.noise > LOUD:
            logger.warning(
                "The speed-up is uncertain by %.0f %%: something else keeps the machine busy.",
                100 * self.pair.noise,
            )
        excess = self.pair.excess(self.target)
        if abs(excess) > TOLERANCE:
            logger.warning(
                "%s is missed by %.0f %%: measured %.4g ms instead of %.4g ms, %.3g times faster than dense.",
                self.target.asked,
                100 * excess,
                1e3 * self.pair.pruned,
                1e3 * self.target.seconds(self.pair.dense),
                self.pair.speedup,
            )

    def record(self) -> Speed | None:
        """Return what a plan says of the time; None where nothing could go."""
        return None if self.expected is None else speed_record(self.timing, self.expected, self.pair)
