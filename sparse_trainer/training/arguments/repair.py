"""What a user can ask of a training that cuts once: after a dense start one choice, and a repair in closed form."""

from collections.abc import Collection
from dataclasses import dataclass

from patchers.units import Kind
from sparse_trainer.criteria.training.base import TrainingCriterion
from sparse_trainer.criteria.training.one_shot import OneShot
from sparse_trainer.errors import ArgumentError
from sparse_trainer.fields import option
from sparse_trainer.one_shot.repairs.base import DAMPING
from sparse_trainer.one_shot.repairs.options import RepairOptions


@dataclass(kw_only=True)
class RepairArguments:
    """Options of the repair by which a budget falls at once."""

    reconstruct: str | None = option(
        None,
        "Criteria of one-shot pruning: units are scored and closed at once when the dense start ends, and what reads"
        " them is refitted, by least_squares, bias or scale; training goes on from there.",
    )
    damping: float = option(DAMPING, "Of the repair, relative to the mean of the moments' diagonal.")

    @property
    def repairing(self) -> RepairOptions:
        """What refits, if anything does."""
        return RepairOptions(method=self.reconstruct, damping=self.damping)

    def check_repair(
        self, criterion: TrainingCriterion, scoring: str, kinds: Collection[Kind], changed: Collection[str]
    ) -> None:
        """Raise `ArgumentError` for a repair that cannot be meant beside the other options.

        Args:
            criterion, scoring: What scores units, and its name.
            kinds: Kinds of unit that are pruned.
            changed: Options that differ from their defaults.
        """
        if self.repairing.repair is None:
            return
        if not isinstance(criterion, OneShot):
            raise ArgumentError(
                "reconstruct",
                f"{scoring} scores while the budget falls; a repair is for one choice at one moment.",
                "Score by a criterion of one-shot pruning, e.g. kfac_obs; or drop it.",
            )
        whole = next((kind for kind in kinds if not kind.is_width), None)
        if whole is not None:
            raise ArgumentError(
                "reconstruct",
                f"nothing is refitted in training where {whole} go.",
                "Prune heads and channels; or prune in one shot (sparse-trainer prune), and train afterwards.",
            )
        if "cooldown_ratio" in changed:
            raise ArgumentError(
                "cooldown_ratio",
                "the budget falls at once when the dense start ends: all after it is the cool-down.",
                "Drop it, and say by `pruning_warmup_ratio` when that is.",
            )
