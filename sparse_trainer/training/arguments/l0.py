"""What a user can ask of `scoring="l0"`, of CoFi's layer map beside it, and of a second run after a first."""

from collections.abc import Collection
from dataclasses import dataclass

from patchers.units import HEADS, KINDS, Kind
from sparse_trainer.errors import ArgumentError, one_of
from sparse_trainer.fields import option
from sparse_trainer.training.protect import Protection

_PROTECTED: tuple[Kind, ...] = (HEADS,)


@dataclass(kw_only=True)
class L0Arguments:
    """Options of the hard-concrete gates and their Lagrangian, of the layer map, and of what is protected."""

    l0_learning_rate: float = option(0.1, "l0: learning rate of the gates.")
    l0_multiplier_rate: float = option(
        0.3, "l0: step of the Lagrange multipliers, up the violation of the budget."
    )
    l0_warmup: float = option(
        0.5, "l0: part of the time between dense start and cool-down in which the budget falls, linearly."
    )

    distil_layer_map: str = option(
        "fixed", "Which layers distil_alpha_hidden compares: fixed (each with its own) or learned."
    )
    distil_in_order: bool = option(True, "learned map: a later layer never learns from an earlier one.")
    distil_alpha_hidden: float = option(0.0, "Weight of the hidden-state distillation.")

    protect_plan: str | None = option(
        None, "Plan of an earlier run (file or folder), whose survivors may not close."
    )
    rewind_model_name_or_path: str | None = option(
        None, "nn_pruning's word for protect_plan: a folder with the plan in it."
    )
    protect_kinds: list[str] = option(
        list(map(str, _PROTECTED)), "Kinds whose survivors protect_plan protects."
    )

    @property
    def protection(self) -> Protection | None:
        """Whose survivors may not close, in whichever words."""
        plan = self.protect_plan or self.rewind_model_name_or_path
        return None if plan is None else Protection(plan=plan, kinds=tuple(self.protect_kinds))

    def check_protection(self, pruned: Collection[Kind], method: str) -> None:
        """Raise `ArgumentError` where the protection asked for would come to nothing.

        Args:
            pruned: Kinds of unit that are pruned.
            method: What prunes them, for the message.
        """
        for name in ("protect_plan", "rewind_model_name_or_path"):
            if getattr(self, name) == "":
                raise ArgumentError(name, "is empty.", "Name a plan, or leave it out.")
        if self.protect_plan is not None and self.rewind_model_name_or_path is not None:
            raise ArgumentError(
                "protect_plan, rewind_model_name_or_path",
                f"{self.protect_plan!r} and {self.rewind_model_name_or_path!r}: one plan at most is protected.",
                "Drop one of the two.",
            )
        for kind in self.protect_kinds:
            one_of("protect_kinds", kind, KINDS)
        if self.protection is None:
            if list(self.protect_kinds) != list(_PROTECTED):
                raise ArgumentError(
                    "protect_kinds",
                    "says whose survivors are protected, but not those of which run.",
                    "Give its plan as `protect_plan`.",
                )
            return
        idle = [kind for kind in self.protect_kinds if kind not in pruned]
        if idle or not self.protect_kinds:
            what = "names no kind, so that protect_plan protects nothing."
            if idle:
                what = f"{', '.join(idle)}: {method} prunes {' and '.join(pruned) or 'no such units'} only."
            remedy = f"Name {' or '.join(pruned)}, or drop protect_plan." if pruned else "Drop protect_plan."
            raise ArgumentError("protect_kinds", what, remedy)
