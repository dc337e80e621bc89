"""What a user can ask of fine-pruning, checked once, before any work is done."""

from dataclasses import dataclass, field, fields
from typing import Final

from patchers.units import CHANNELS, HEADS, Kind
from sparse_trainer.budget.options import Budget, keeps_all
from sparse_trainer.criteria.calibration.registry import WIDTH_CRITERIA
from sparse_trainer.criteria.training.registry import CRITERIA
from sparse_trainer.errors import ArgumentError, nearest, one_of
from sparse_trainer.fields import PerKind, check_types, understands_old_names
from sparse_trainer.training.arguments.cheaper import CheaperArguments
from sparse_trainer.training.arguments.checks import check_ranges, check_units
from sparse_trainer.training.arguments.l0 import L0Arguments
from sparse_trainer.training.arguments.masks import MaskArguments
from sparse_trainer.training.schedule import CubicSchedule, LinearSchedule, Schedule

_OPTIONS_OF: Final = dict.fromkeys(WIDTH_CRITERIA, "calibration_") | {
    "l0": "l0_",
    "layer_gate": "gate_",
    "magnitude": "magnitude_",
    "random": "pruning_seed",
    "taylor": "taylor_",
}
"""Criterion -> how the names of its options begin."""


# Renamed, so that HfArgumentParser reads them beside any TrainingArguments: `seed` is Trainer's, `warmup_ratio` that of
# sentence-transformers.
@understands_old_names(seed="pruning_seed", warmup_ratio="pruning_warmup_ratio")
@dataclass(kw_only=True)
class SparseTrainingArguments(L0Arguments, MaskArguments, CheaperArguments):
    """How to prune while fine-tuning. `HfArgumentParser` reads it; so does the `pruning` section of a recipe."""

    scoring: str = field(
        default="movement",
        metadata={
            "help": "Criterion: movement, layer_gate, l0, taylor, magnitude, random; or one of one-shot pruning, "
            "such as wanda, taken once before training."
        },
    )
    target: str = field(
        default="params", metadata={"help": "What density counts: params, macs (per token) or units."}
    )
    density: PerKind = field(
        default=0.5,
        metadata={
            "help": 'Fraction of the prunable part to keep, in (0, 1]; or of the units of each kind: {"heads": 0.75}.'
        },
    )
    units: list[str] | None = field(
        default=None,
        metadata={
            "help": "Kinds of unit to prune; default: the kinds in density, else those of the criterion."
        },
    )
    scope: str = field(
        default="global",
        metadata={
            "help": "global (over the whole model), layer (each layer meets it) or uniform (equal widths)."
        },
    )
    multiple_of: PerKind | None = field(
        default=None,
        metadata={
            "help": "Kept channels are multiples of this; or one number per kind. Default: 8 in experts, else 1."
        },
    )
    min_keep: PerKind = field(
        default=1, metadata={"help": "Heads and channels that every layer keeps; or one number per kind."}
    )
    exclude: list[str] = field(
        default_factory=list,
        metadata={"help": "Patterns of group names that stay dense, e.g. layer.0 or *.heads."},
    )
    include: list[str] = field(
        default_factory=list,
        metadata={
            "help": "Patterns of the only groups to prune, e.g. language_model or vision_tower; none = all."
        },
    )
    standardize: str | None = field(
        default=None,
        metadata={
            "help": "Makes scores comparable: none, cost, share, zscore_layer, zscore_global; default: by criterion."
        },
    )
    sequence_length: int = field(default=128, metadata={"help": "Tokens per sequence, for target macs."})
    pruning_warmup_ratio: float = field(
        default=0.1, metadata={"help": "Fraction of training, at its start, in which all is kept."}
    )
    cooldown_ratio: float = field(
        default=0.3, metadata={"help": "Fraction of training, at the end, with the final structure."}
    )
    score_learning_rate: float = field(default=1e-2, metadata={"help": "Learning rate of learned scores."})
    update_every: int = field(default=1, metadata={"help": "Optimizer steps between two selections."})
    taylor_order: int = field(default=1, metadata={"help": "taylor: 1 = |g|, 2 = g^2 per step (Fisher)."})
    taylor_decay: float = field(
        default=0.99, metadata={"help": "taylor: decay of the running saliency per step."}
    )
    magnitude_norm: int = field(default=2, metadata={"help": "magnitude: 1 or 2."})
    gate_epsilon: float = field(
        default=0.1, metadata={"help": "layer_gate: epsilon of the gates at the start."}
    )
    gate_epsilon_final: float = field(default=1e-4, metadata={"help": "layer_gate: epsilon at the end."})
    gate_penalty: float = field(default=10.0, metadata={"help": "layer_gate: weight of the budget penalty."})
    calibration_samples: int = field(
        default=128,
        metadata={
            "help": "Training rows on which criteria of one-shot pruning, such as wanda, score units first."
        },
    )
    pruning_seed: int = field(default=42, metadata={"help": "Seed of what random and l0 draw."})
    distil_teacher_name_or_path: str | None = field(
        default=None, metadata={"help": "Teacher: a path or hub id, or 'self' = the model before pruning."}
    )
    distil_alpha_ce: float = field(
        default=0.1, metadata={"help": "Weight of the task loss beside a teacher."}
    )
    distil_alpha_teacher: float = field(default=0.9, metadata={"help": "Weight of the logits distillation."})
    distil_temperature: float = field(
        default=2.0, metadata={"help": "Temperature of the logits distillation."}
    )
    final_finetune: bool = field(
        default=False,
        metadata={"help": "Of nn_pruning: a run of its own here, with model.fill in its recipe."},
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
        one_of("scoring", self.scoring, CRITERIA)
        one_of("taylor_order", self.taylor_order, (1, 2))
        one_of("magnitude_norm", self.magnitude_norm, (1, 2))
        check_units(self)
        check_ranges(self)
        self.check_l0()
        self.check_protection(self._closable, self.method_name)
        if self.uses_masks and self.learns_layer_map:
            raise ArgumentError(
                "distil_layer_map", "'learned' goes with gates only.", "Take 'fixed' beside masks."
            )

    @property
    def method_name(self) -> str:
        """What plans and cards call the method."""
        if not self.uses_masks:
            return self.scoring
        return self.preset or f"masks: {self.dense_pruning_method}, {self.attention_pruning_method}"

    @property
    def method(self) -> str:
        """What plans and cards say of how was pruned: the method, and its options that are not the default."""
        prefix = _OPTIONS_OF.get("" if self.uses_masks else self.scoring)
        changed = [
            f"{f.name}={getattr(self, f.name)}"
            for f in fields(self)
            if prefix is not None and f.name.startswith(prefix) and getattr(self, f.name) != f.default
        ]
        return f"{self.method_name}({', '.join(changed)})" if changed else self.method_name

    @property
    def prunes_nothing(self) -> bool:
        """Whether all stays as it is: a mistake, except to try something else."""
        return not self.uses_masks and not self.cheaper_layers and keeps_all(self.density)

    @property
    def kinds(self) -> tuple[Kind, ...]:
        """Kinds of unit that are pruned."""
        return self.budget.kinds

    @property
    def _closable(self) -> tuple[Kind, ...]:
        """Kinds of unit that gates, or masks, close."""
        if not self.uses_masks:
            return self.kinds
        dense, attention = (self.part(name) is not None for name in ("dense", "attention"))
        heads = attention or (dense and self.mask_option("attention_output_with_dense"))
        return tuple(kind for kind in self.kinds if {HEADS: heads, CHANNELS: dense}.get(kind, False))

    @property
    def budget(self) -> Budget:
        """What must remain."""
        return Budget(
            density=self.density,
            target=self.target,
            scope=self.scope,
            units=None if self.units is None else tuple(self.units),
            default_units=CRITERIA[self.scoring].kinds,
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
        if self.scoring == "l0":
            return LinearSchedule(
                warmup=self.pruning_warmup_ratio, cooldown=self.cooldown_ratio, ramp=self.l0_warmup
            )
        return CubicSchedule(warmup=self.pruning_warmup_ratio, cooldown=self.cooldown_ratio)
