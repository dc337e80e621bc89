"""What the parts of fine-pruning are asked for: typed, checked, made of the flat `SparseTrainingArguments`."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Final

from patchers.units import Kind
from sparse_trainer.budget.options import Budget
from sparse_trainer.budget.schedule import Schedule
from sparse_trainer.budget.stages import Stages
from sparse_trainer.criteria.training.base import TrainingCriterion
from sparse_trainer.criteria.training.one_shot import OneShot
from sparse_trainer.errors import ArgumentError
from sparse_trainer.one_shot.repairs.base import Repair
from sparse_trainer.training.protect import Protection

LAYERS: Final = ("relu", "no_norm")
"""Cheaper layers: ReLU for GELU, NoNorm for LayerNorm."""


@dataclass(frozen=True, kw_only=True)
class GateOptions:
    """How gates are scored and closed."""

    scoring: str
    """The criterion as the user wrote it."""
    method: str
    """What plans and cards call it: with the options that are not the default."""
    criterion: TrainingCriterion
    budget: Budget
    schedule: Schedule
    stages: Stages | None
    """Budgets that are met in turn, of which `budget` is the last; None = there is one."""
    score_learning_rate: float
    """Of learned scores, unless the criterion has a rate of its own."""
    scale_learning_rate: float | None
    """Of the scales beside the gates; None = there are none."""
    start: OneShot | None
    """Where learned scores start; None = where the criterion lets them."""
    repair: Repair | None
    """What refits the readers of units that are closed, all at once; None = they learn to do without."""
    protection: Protection | None

    @property
    def kinds(self) -> tuple[Kind, ...]:
        """Kinds of unit that are closed."""
        return self.budget.kinds


@dataclass(frozen=True, kw_only=True)
class DistillationOptions:
    """What a student learns from a teacher, and how much."""

    teacher: str | None
    """A path, a hub id, or `self`: the model before pruning."""
    alpha_task: float
    """Weight of the task loss beside a teacher."""
    alpha_logits: float
    """Weight of the divergence between the answers."""
    alpha_hidden: float
    """Weight of the distance between the hidden states."""
    temperature: float
    layer_map: str
    """Which layers are compared: `fixed` (each with its own) or `learned`."""
    in_order: bool
    """Learned map: a later layer never learns from an earlier one."""
    tail_layers: int | None = None
    """Fixed map: only so many layers are compared, counted from the end, so that stacks may differ in height."""

    @property
    def learns_layer_map(self) -> bool:
        """Whether hidden states are compared by a map that is found while training."""
        return self.layer_map == "learned" and self.alpha_hidden > 0


@dataclass(frozen=True, kw_only=True)
class BlendingOptions:
    """Which cheaper layers are blended in, and how fast."""

    layers: tuple[str, ...]
    """`relu`, `no_norm` or both; none = nothing is asked for."""
    decay: float
    """Of the running statistics behind `no_norm`, per step."""
    until: float
    """Fraction of training after which only the cheaper layers count."""
    steps: Mapping[str, tuple[str, int | None]]
    """By layer: the flat option in steps that says so instead, and its value."""

    def blend_steps(self, total_steps: int) -> dict[str, float]:
        """Return the optimizer steps after which only the cheaper layer counts, by its name.

        Raises:
            ArgumentError: training ends before.
        """
        found: dict[str, float] = {}
        for layer in self.layers:
            option, given = self.steps[layer]
            if given is not None and given > total_steps:
                raise ArgumentError(
                    option,
                    f"{given} steps, but training has {total_steps}: the original layers would never be gone.",
                    "Train longer, lower it, or leave it out: then `cheaper_until` of training counts.",
                )
            found[layer] = self.until * total_steps if given is None else given
        return found
