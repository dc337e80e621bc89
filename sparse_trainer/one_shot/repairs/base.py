"""Closed-form repair of a consumer that lost some of its input features: what every repair offers.

y = W x + b is the consumer, K the kept and P the removed features of x, C = E[x x^T], m the mean.
"""

from dataclasses import dataclass
from typing import ClassVar, Final, Protocol

from torch import Tensor

from sparse_trainer.statistics.moments import Moments, MomentSums

# Shape legend: O = outputs, I = input features, K = kept features.

DAMPING: Final = 0.1
"""Unless another is asked for."""


@dataclass(frozen=True, kw_only=True)
class Repaired:
    """What a consumer becomes."""

    weight_OK: Tensor
    """Columns of the kept features."""
    shift_O: Tensor | None = None
    """What the bias gains; None = nothing."""


@dataclass(frozen=True, kw_only=True)
class Consumer:
    """A linear that is about to lose input features, and what calibration says of these."""

    name: str
    """For messages."""
    weight_OI: Tensor
    has_bias: bool
    moments: MomentSums
    keep_I: Tensor
    """Input features that stay, and those of no unit."""
    unit_I: Tensor
    """Number of the unit of every input feature; features of no unit are units of their own."""


class Repair(Protocol):
    """Refits a consumer so that it says with the kept features what it said with all.

    A frozen dataclass, whose fields are the options of `prune` that it reads: `damping`, `reconstruct_bias`. It serves
    the kinds of unit that its request exists for.
    """

    repairs_runs: ClassVar[bool]
    """Whether it also fits what stands in front of removed layers (`one_shot.repairs.runs`)."""
    request: ClassVar[Moments]
    """What it has to know of the consumer's inputs."""

    @property
    def adds_bias(self) -> bool:
        """Whether it writes into the bias of every consumer, so that those without get one."""

    def refit(self, consumer: Consumer) -> Repaired:
        """Return what the consumer becomes.

        Raises:
            DataError: fewer tokens than unknowns.
            NonFiniteError: the moments cannot be solved.
        """
