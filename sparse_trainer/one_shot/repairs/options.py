"""What a user can ask of the repair: which one, and how it goes through the model."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

from patchers.units import Kind
from sparse_trainer.errors import ArgumentError, one_of
from sparse_trainer.one_shot.repairs.base import DAMPING, Repair
from sparse_trainer.one_shot.repairs.registry import REPAIRS, make_repair, options_read


@dataclass(frozen=True, kw_only=True)
class RepairOptions:
    """How the consumers of units that go are refitted.

    Raises:
        ArgumentError: a value cannot be meant, or nothing reads it.
    """

    method: str | None
    """One of `REPAIRS`; None = nothing is refitted."""
    damping: float = DAMPING
    """Relative to the mean of the moments' diagonal."""
    moves_bias: bool | None = None
    """Whether least squares may move biases; None = where there is one."""
    sequential: bool = False
    """Layer by layer against inputs from the already pruned layers before."""
    refit_behind: bool = False
    """Layer by layer to the states that the whole model has there."""

    def __post_init__(self) -> None:
        if self.method is not None:
            one_of("reconstruct", self.method, REPAIRS)
        if not (math.isfinite(self.damping) and self.damping >= 0):
            raise ArgumentError(
                "damping", f"{self.damping} is negative or endless.", "Give 0.1, or 0 for none."
            )
        if self.damping != DAMPING and not (self.method and "damping" in options_read(self.method)):
            raise ArgumentError(
                "damping",
                "nothing is solved that it damps.",
                "Set `reconstruct='least_squares'`, or drop it.",
            )
        if self.moves_bias is not None and self.repair is None:
            raise ArgumentError(
                "reconstruct_bias", "there is nothing to repair.", "Set `reconstruct`, or drop it."
            )
        if self.sequential and self.repair is None:
            raise ArgumentError("sequential", "there is nothing to repair.", "Set `reconstruct`.")
        self._check_behind()
        if self.moves_bias and self.repair is not None and not self.repair.adds_bias:
            raise ArgumentError(
                "reconstruct_bias", f"{self.method!r} moves no bias.", "Use 'least_squares' or 'bias'."
            )

    def _check_behind(self) -> None:
        if self.refit_behind and not (self.repair is not None and self.repair.repairs_runs):
            raise ArgumentError(
                "refit_behind",
                "nothing is refitted to states of the whole model.",
                "Set `reconstruct='least_squares'`, or drop it.",
            )
        if self.refit_behind and self.sequential:
            raise ArgumentError(
                "sequential",
                "`refit_behind` repairs one layer after the other anyway.",
                "Drop one of the two.",
            )

    def check_kinds(self, kinds: Sequence[Kind]) -> None:
        """Refuse repairs that know no cut in depth, and ways of working that know no repair of one.

        Raises:
            ArgumentError: layers or branches are among the units that go.
        """
        whole = next((kind for kind in kinds if not kind.is_width), None)
        if self.repair is None or whole is None:
            return
        if not self.repair.repairs_runs:
            raise ArgumentError(
                "reconstruct",
                f"{self.method!r} repairs no removed {whole}.",
                "Use 'least_squares', or set none.",
            )
        if self.sequential:
            raise ArgumentError(
                "sequential",
                "is for widths; removed layers are repaired one after the other anyway.",
                "Drop it, or take `refit_behind`.",
            )

    @cached_property
    def repair(self) -> Repair | None:
        """What refits, if anything does."""
        if self.method is None:
            return None
        return make_repair(self.method, damping=self.damping, reconstruct_bias=self.moves_bias)

    @property
    def changes(self) -> str:
        """What of it is not as it is by default, in brackets; empty where all is."""
        changed = {
            "damping": None if self.damping == DAMPING else self.damping,
            "bias": self.moves_bias,
            "sequential": self.sequential or None,
            "refit_behind": self.refit_behind or None,
        }
        named = ", ".join(f"{name}={value}" for name, value in changed.items() if value is not None)
        return f" ({named})" if named else ""
