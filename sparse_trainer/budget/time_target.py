"""What is asked of a model's time: how much faster, or how many milliseconds, and under which conditions."""

import math
from dataclasses import dataclass
from typing import Final

from sparse_trainer.errors import ArgumentError, one_of
from sparse_trainer.fields import check_counts

LATENCY: Final = "latency"
"""Name of the target that counts seconds."""
PREFILL: Final = "prefill"
DECODE: Final = "decode"
EAGER: Final = "eager"
COMPILE: Final = "compile"
FOREIGN: Final = ".csv"
"""How the name of a file ends that has the times of another device."""
PHASES: Final = (PREFILL, DECODE)
RUNTIMES: Final = (EAGER, COMPILE)
_MOST: Final = 1000.0


@dataclass(frozen=True, kw_only=True)
class TimeTarget:
    """How fast a model has to be, and what is timed.

    Raises:
        ArgumentError: a value cannot be meant; the option is named.
    """

    speedup: float | None = None
    """How many times faster than the model is now; this, or `milliseconds`."""
    milliseconds: float | None = None
    """Time of one forward pass."""
    batch: int = 1
    """Sequences per forward pass."""
    sequence_length: int = 128
    """Tokens per sequence; in the phase `decode`, tokens that the cache holds."""
    phase: str = PREFILL
    """prefill (all tokens of a sequence at once) or decode (one more token, with a cache)."""
    runtime: str = EAGER
    """eager, or compile (`torch.compile`)."""
    table: str | None = None
    """A file of times: a table of ours (.json), or of another device (.csv); None = measured, and kept for later."""

    def __post_init__(self) -> None:
        if (self.speedup is None) == (self.milliseconds is None):
            both = self.speedup is not None
            raise ArgumentError(
                "speedup, milliseconds" if both else "target",
                "are two targets." if both else "latency says nothing of how fast.",
                "Drop one of the two." if both else "Give `speedup=1.5`, or `milliseconds=10`.",
            )
        if self.speedup is not None and not 1 < self.speedup <= _MOST:
            raise ArgumentError(
                "speedup",
                f"{self.speedup!r} is not in (1, {_MOST:g}].",
                "Give e.g. 1.5: that many times faster.",
            )
        if self.milliseconds is not None and not (self.milliseconds > 0 and math.isfinite(self.milliseconds)):
            raise ArgumentError(
                "milliseconds", f"{self.milliseconds!r} is no time.", "Give a positive number, e.g. 10."
            )
        check_counts(latency_batch=self.batch, sequence_length=self.sequence_length)
        one_of("latency_phase", self.phase, PHASES)
        one_of("latency_runtime", self.runtime, RUNTIMES)

    @property
    def is_foreign(self) -> bool:
        """Whether the times are those of another device, so that nothing can be timed here."""
        return self.table is not None and self.table.lower().endswith(FOREIGN)

    @property
    def asked(self) -> str:
        """Name what is asked for, in a message.

        >>> TimeTarget(speedup=2).asked, TimeTarget(milliseconds=10).asked
        ('speedup=2', 'milliseconds=10')
        """
        return (
            f"speedup={self.speedup:g}" if self.speedup is not None else f"milliseconds={self.milliseconds:g}"
        )

    def seconds(self, dense: float) -> float:
        """Return the time that one forward pass may take, given that of the model as it is.

        >>> TimeTarget(speedup=2).seconds(0.5), TimeTarget(milliseconds=10).seconds(0.5)
        (0.25, 0.01)
        """
        if self.speedup is not None:
            return dense / self.speedup
        assert self.milliseconds is not None
        return self.milliseconds / 1e3
