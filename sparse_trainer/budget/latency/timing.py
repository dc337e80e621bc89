"""What is asked of one model's time, and what the model takes."""

from dataclasses import dataclass
from typing import final

from sparse_trainer.budget.latency.model_time import ModelTime
from sparse_trainer.budget.time_target import TimeTarget
from sparse_trainer.errors import BudgetError


@final
@dataclass(frozen=True, kw_only=True)
class Timing:
    """A target in time, and the table by which it is met.

    Raises:
        BudgetError: the model meets it as it is, or takes no time at all.
    """

    target: TimeTarget
    time: ModelTime
    conditions: str
    measures: bool
    """Whether models can be timed here: not where the table is another device's."""

    def __post_init__(self) -> None:
        dense = self.time.dense
        if dense <= 0:
            raise BudgetError(
                "latency_table", "says that the model takes no time.", "Give the times of its parts."
            )
        if self.goal >= dense:
            raise BudgetError(
                "milliseconds",
                f"{self.target.asked}, and the model takes {1e3 * dense:.4g} ms as it is ({self.conditions}).",
                "Ask for less, or leave the model whole.",
            )

    @property
    def goal(self) -> float:
        """Seconds that the finished model may take, by the table."""
        return self.target.seconds(self.time.dense)
