"""What is asked of one model's time, and what the model takes."""

from dataclasses import dataclass
from typing import final

from sparse_trainer.budget.latency.model_time import ModelTime
from sparse_trainer.budget.time_target import TimeTarget


@final
@dataclass(frozen=True, kw_only=True)
class Timing:
    """A target in time, and the table by which it is met."""

    target: TimeTarget
    time: ModelTime
    conditions: str
    measures: bool
    """Whether models can be timed here: not where the table is another device's."""

    @property
    def goal(self) -> float:
        """Seconds that the finished model may take, by the table."""
        return self.target.seconds(self.time.dense)
