"""What a user can ask of the time of a model that is fine-pruned."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from sparse_trainer.budget.time_target import EAGER, LATENCY, PREFILL, TimeTarget
from sparse_trainer.errors import ArgumentError
from sparse_trainer.fields import option

_CONDITIONS = ("latency_batch", "latency_phase", "latency_runtime", "latency_table")


@dataclass(kw_only=True)
class TimeArguments:
    """Options of a budget in time, instead of a density."""

    speedup: float | None = option(
        None, "How many times faster the model has to be, instead of density; or milliseconds."
    )
    milliseconds: float | None = option(None, "What one forward pass may take.")
    latency_batch: int = option(
        1, "Of a budget in time: sequences per forward pass, of sequence_length tokens each."
    )
    latency_phase: str = option(
        PREFILL,
        "prefill (all tokens at once) or decode (one more token, sequence_length of them in the cache).",
    )
    latency_runtime: str = option(EAGER, "eager or compile.")
    latency_table: str | None = option(
        None, "File of times: a table of ours, or a CSV file of another device; default: measured, and kept."
    )

    def time_target(self, speedup: float | None, target: str, sequence_length: int) -> TimeTarget | None:
        """Return how fast the model has to be, where that is asked.

        Args:
            speedup: Of several, the last one.
            target: What a density would count.

        Raises:
            ArgumentError: a value cannot be meant.
        """
        if speedup is None and self.milliseconds is None and target != LATENCY:
            return None
        return TimeTarget(
            speedup=speedup,
            milliseconds=self.milliseconds,
            batch=self.latency_batch,
            sequence_length=sequence_length,
            phase=self.latency_phase,
            runtime=self.latency_runtime,
            table=self.latency_table,
        )

    def check_time(self, time: TimeTarget | None, changed: frozenset[str], given: Mapping[str, Any]) -> None:
        """Raise `ArgumentError` for a budget in time beside another one, or its options without one.

        Args:
            changed: Options that differ from their defaults.
            given: All options.
        """
        if time is None:
            idle = next((name for name in _CONDITIONS if name in changed), None)
            if idle is not None:
                raise ArgumentError(
                    idle, "nothing is timed.", "Give `speedup` or `milliseconds`, or drop it."
                )
            return
        if "target" in changed and given["target"] != LATENCY:
            raise ArgumentError("target", f"{given['target']} beside {time.asked}.", "Drop one of the two.")
        if "density" in changed:
            raise ArgumentError(
                "density",
                f"{given['density']} beside {time.asked}.",
                "Drop one of the two (density=0.5, its default, says nothing here).",
            )
