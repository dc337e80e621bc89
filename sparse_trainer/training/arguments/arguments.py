"""What a user can ask of fine-pruning, checked once, before any work is done."""

from dataclasses import dataclass, fields

from patchers.units import KINDS, Kind
from sparse_trainer.budget.options import Budget, keeps_all
from sparse_trainer.budget.schedule import CubicSchedule, Schedule
from sparse_trainer.budget.stages import StagedSchedule
from sparse_trainer.budget.time_target import LATENCY, TimeTarget
from sparse_trainer.criteria.training.base import OwnSchedule, TrainingCriterion
from sparse_trainer.errors import ArgumentError, nearest
from sparse_trainer.fields import (
    changed_fields,
    check_positive,
    check_types,
    option,
    understands_old_names,
)
from sparse_trainer.training.arguments.cheaper import CheaperArguments
from sparse_trainer.training.arguments.checks import (
    check_distillation_options,
    check_one_budget,
    check_schedule,
    check_staged,
    check_units,
)
from sparse_trainer.training.arguments.common import CommonArguments
from sparse_trainer.training.arguments.frozen import FrozenArguments
from sparse_trainer.training.arguments.l0 import L0Arguments
from sparse_trainer.training.arguments.mask_checks import check_mask_options
from sparse_trainer.training.arguments.masks import MaskArguments
from sparse_trainer.training.arguments.repair import RepairArguments
from sparse_trainer.training.arguments.scoring import check_scoring, criterion_asked, method_of
from sparse_trainer.training.arguments.stages import StageArguments
from sparse_trainer.training.arguments.time import TimeArguments
from sparse_trainer.training.mask_options import MaskOptions
from sparse_trainer.training.options import DistillationOptions, GateOptions


# Renamed, so that HfArgumentParser reads them beside any TrainingArguments: `seed` is Trainer's, `warmup_ratio` that of
# sentence-transformers.
@understands_old_names(seed="pruning_seed", warmup_ratio="pruning_warmup_ratio")
@dataclass(kw_only=True)
class SparseTrainingArguments(
    CheaperArguments,
    MaskArguments,
    FrozenArguments,
    L0Arguments,
    RepairArguments,
    StageArguments,
    TimeArguments,
    CommonArguments,
):
    """How to prune while fine-tuning. `HfArgumentParser` reads it; so does the `pruning` section of a recipe."""

    # What HfArgumentParser writes over these options in the help of a script.
    _argument_group_name = "pruning"

    final_finetune: bool = option(
        False, "Of nn_pruning: a run of its own here, with model.fill in its recipe."
    )

    def __post_init__(self) -> None:
        self.check()

    def check(self) -> None:
        """Raise `ArgumentError` for what cannot be meant. Called again before use: fields may have been set since."""
        unknown = set(vars(self)) - {f.name for f in fields(self)}
        if unknown:
            raise ArgumentError(
                min(unknown), "no such option.", nearest(min(unknown), (f.name for f in fields(self)))
            )
        if self.final_finetune:
            raise ArgumentError(
                "final_finetune",
                "fine-tunes a finished model with its zeros filled: nothing is pruned.",
                "In a recipe say pruning: null and model.fill: true; else call sparse_trainer.cut.fill.fill.",
            )
        check_types(self, SparseTrainingArguments)
        self.check_masks()
        self.check_cheaper()
        check_scoring(self.scoring, vars(self), changed_fields(self))
        self._check_numbers()
        self.check_frozen(
            self.criterion, self.scoring, masks=self.uses_masks, cheaper=bool(self.cheaper_layers)
        )
        self.check_stages(changed_fields(self), vars(self))
        time = self._time
        self.check_time(time, changed_fields(self), vars(self))
        options = self.driver_options
        if isinstance(options, GateOptions):
            check_units(options, self.blending)
            self.check_scaled(options.kinds)
            self.check_repair(options.criterion, self.scoring, options.kinds, changed_fields(self))
            check_staged(options)
            self.check_start(options.criterion, self.scoring, options.kinds)
        else:
            check_mask_options(options, changed_fields(self))
            check_one_budget(self.stages)
        if self.uses_masks and self.distillation.learns_layer_map:
            raise ArgumentError(
                "distil_layer_map", "'learned' goes with gates only.", "Take 'fixed' beside masks."
            )
        self.check_protection(options.kinds, self.method_name)

    def _check_numbers(self) -> None:
        check_distillation_options(self.distillation)
        check_schedule(self.pruning_warmup_ratio, 0.0 if self.reconstruct else self.cooldown_ratio)
        for name in ("score_learning_rate", "update_every", "calibration_samples"):
            check_positive(name, getattr(self, name))

    @property
    def method_name(self) -> str:
        """What messages call the method."""
        options = self.driver_options
        return options.method if isinstance(options, MaskOptions) else self.scoring

    @property
    def prunes_nothing(self) -> bool:
        """Whether all stays as it is: a mistake, except to try something else."""
        changes = self.uses_masks or self.cheaper_layers or self.learn_scales
        return not changes and keeps_all(self.budget.density)

    @property
    def kinds(self) -> tuple[Kind, ...]:
        """Kinds of unit that are pruned."""
        return self.budget.kinds

    @property
    def criterion(self) -> TrainingCriterion:
        """What scores units behind gates."""
        return criterion_asked(self.scoring, vars(self))

    @property
    def _time(self) -> TimeTarget | None:
        """How fast the model has to be in the end, where that is asked."""
        last = self.speedups[-1] if self.speedups else self.speedup
        return self.time_target(last, self.target, self.sequence_length)

    @property
    def budget(self) -> Budget:
        """What must remain in the end."""
        time = self._time
        return Budget(
            density=self.densities[-1] if self.densities else self.density,
            target=self.target if time is None else LATENCY,
            time=time,
            scope=self.scope,
            units=None if self.units is None else tuple(self.units),
            default_units=tuple(kind for kind in KINDS if kind in self.criterion.default_units),
            multiple_of=self.multiple_of,
            min_keep=self.min_keep,
            standardize=self.standardize,
            sequence_length=self.sequence_length,
            include=tuple(self.include),
            exclude=tuple(self.exclude),
        )

    @property
    def schedule(self) -> Schedule:
        """How the budget tightens."""
        own, warmup, cooldown = self.criterion, self.pruning_warmup_ratio, self.cooldown_ratio
        if isinstance(own, OwnSchedule):
            return own.make_schedule(warmup, cooldown)
        count = 1 if self.stages is None else len(self.stages.names)
        if self.reconstruct is not None:
            return StagedSchedule(warmup=warmup, cooldown=1.0 - warmup, count=count)
        if self.stages is not None:
            return StagedSchedule(warmup=warmup, cooldown=cooldown, count=count)
        return CubicSchedule(warmup=warmup, cooldown=cooldown)

    @property
    def distillation(self) -> DistillationOptions:
        """What is learned from a teacher."""
        return DistillationOptions(
            teacher=self.distil_teacher_name_or_path,
            alpha_task=self.distil_alpha_ce,
            alpha_logits=self.distil_alpha_teacher,
            alpha_hidden=self.distil_alpha_hidden,
            temperature=self.distil_temperature,
            layer_map=self.distil_layer_map,
            in_order=self.distil_in_order,
        )

    @property
    def _method(self) -> str:
        """What plans and cards call the criterion and its repair."""
        method = method_of(self.scoring, vars(self), changed_fields(self))
        if self.reconstruct is None:
            return method
        return f"{method}, repaired by {self.reconstruct}{self.repairing.changes}"

    @property
    def driver_options(self) -> GateOptions | MaskOptions:
        """What closes units: gates, or weight masks where they are asked for."""
        masks = self.mask_options(schedule=self.schedule, seed=self.pruning_seed, protection=self.protection)
        return masks or GateOptions(
            scoring=self.scoring,
            method=self._method,
            criterion=self.criterion,
            budget=self.budget,
            schedule=self.schedule,
            stages=self.stages,
            score_learning_rate=self.score_learning_rate,
            scale_learning_rate=self.scale_learning_rate if self.learn_scales else None,
            start=self.start,
            repair=self.repairing.repair,
            protection=self.protection,
        )
