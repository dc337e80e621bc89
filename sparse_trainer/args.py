"""What a user can ask of fine-pruning, checked once, before any work is done."""

from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from typing import Any

from patchers.groups import KINDS, Kind
from sparse_trainer.budget.budget import SCOPES, Budget, Scope
from sparse_trainer.budget.cost import TARGETS, Target
from sparse_trainer.budget.standardize import STANDARDIZERS
from sparse_trainer.cheaper.arguments import CheaperArguments
from sparse_trainer.criteria import CRITERIA
from sparse_trainer.criteria.l0_arguments import L0Arguments
from sparse_trainer.errors import ArgumentError, nearest
from sparse_trainer.masking import MaskArguments
from sparse_trainer.schedule import CubicSchedule, LinearSchedule, Schedule

_CONTAINED = {
    "layers": {"attention", "ffn", "heads", "channels", "experts"},
    "attention": {"heads"},
    "ffn": {"channels"},
    "experts": {"channels"},
    "hidden": {"layers", "attention", "ffn", "heads", "channels", "experts"},
}
_OF_HIDDEN = ("l0", "movement", "taylor", "magnitude", "random")
"""Criteria that score hidden features."""


@dataclass(kw_only=True)
class SparseTrainingArguments(L0Arguments, MaskArguments, CheaperArguments):
    """How to prune while fine-tuning. `HfArgumentParser` reads it; so does the `pruning` section of a recipe."""

    scoring: str = field(
        default="movement",
        metadata={"help": "Criterion: movement, layer_gate, l0, taylor, magnitude or random."},
    )
    target: str = field(
        default="params", metadata={"help": "What density counts: params, macs (per token) or units."}
    )
    density: Any = field(
        default=0.5,
        metadata={
            "help": "Fraction of the prunable part to keep, in (0, 1]; or of the units of each kind: {heads: 0.75}."
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
    multiple_of: Any = field(
        default=1, metadata={"help": "Kept channels are multiples of this; or one number per kind."}
    )
    min_keep: Any = field(
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
            "help": "Makes scores comparable: none, cost, zscore_layer, zscore_global; default: by criterion."
        },
    )
    sequence_length: int = field(default=128, metadata={"help": "Tokens per sequence, for target macs."})
    warmup_ratio: float = field(default=0.1, metadata={"help": "Fraction of training that stays dense."})
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
    seed: int = field(default=42, metadata={"help": "random: seed of the scores."})
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
                "In a recipe say pruning: null and model.fill: true; else call sparse_trainer.fill.fill, and train.",
            )
        self.check_masks()
        self.check_cheaper()
        _one_of("scoring", self.scoring, CRITERIA)
        _one_of("target", self.target, TARGETS)
        _one_of("scope", self.scope, SCOPES)
        if self.standardize is not None:
            _one_of("standardize", self.standardize, STANDARDIZERS)
        self._check_density()
        for kind in self.units or ():
            _one_of("units", kind, KINDS)
        self._check_nesting()
        for name in ("multiple_of", "min_keep"):
            _per_kind(name, getattr(self, name), least=0 if name == "min_keep" else 1)
        _between("warmup_ratio", self.warmup_ratio, 0, 1)
        _between("cooldown_ratio", self.cooldown_ratio, 0, 1)
        if self.warmup_ratio + self.cooldown_ratio >= 1:
            raise ArgumentError(
                "warmup_ratio + cooldown_ratio",
                f"{self.warmup_ratio} + {self.cooldown_ratio} leaves no time to prune.",
                "Make the sum smaller than 1.",
            )
        self.check_l0()
        if self.uses_masks and self.learns_layer_map:
            raise ArgumentError(
                "distil_layer_map", "'learned' goes with gates only.", "Take 'fixed' beside masks."
            )
        _one_of("taylor_order", self.taylor_order, (1, 2))
        _one_of("magnitude_norm", self.magnitude_norm, (1, 2))
        for name in (
            "score_learning_rate",
            "update_every",
            "calibration_samples",
            "distil_temperature",
            "gate_epsilon",
            "sequence_length",
        ):
            if not getattr(self, name) > 0:
                raise ArgumentError(
                    name, f"{getattr(self, name)!r} is not positive.", "Give a positive number."
                )

    @property
    def method_name(self) -> str:
        """What plans and cards call the method."""
        if not self.uses_masks:
            return self.scoring
        return self.preset or f"masks: {self.dense_pruning_method}, {self.attention_pruning_method}"

    @property
    def kinds(self) -> tuple[Kind, ...]:
        """Kinds of unit that are pruned."""
        if self.units is not None:
            return tuple(kind for kind in KINDS if kind in self.units)
        if isinstance(self.density, Mapping):
            return tuple(kind for kind in KINDS if kind in self.density)
        return CRITERIA[self.scoring].kinds

    @property
    def budget(self) -> Budget:
        """What must remain."""
        scope: Scope = next(scope for scope in SCOPES if scope == self.scope)
        return Budget(
            density=self.density,
            scope=scope,
            multiple_of=_per_kind("multiple_of", self.multiple_of, least=1, only="channels"),
            min_keep={**_per_kind("min_keep", self.min_keep, least=0), "attention": 0, "ffn": 0, "layers": 0},
        )

    @property
    def cost_target(self) -> Target:
        """What density counts."""
        return next(target for target in TARGETS if target == self.target)

    @property
    def schedule(self) -> Schedule:
        """How the budget tightens."""
        if self.scoring == "l0":
            return LinearSchedule(warmup=self.warmup_ratio, cooldown=self.cooldown_ratio, ramp=self.l0_warmup)
        return CubicSchedule(warmup=self.warmup_ratio, cooldown=self.cooldown_ratio)

    def _check_density(self) -> None:
        values = self.density if isinstance(self.density, Mapping) else {"": self.density}
        if not values:
            raise ArgumentError("density", "no kind is named.", "Give a number, or kinds like {heads: 0.75}.")
        for kind, value in values.items():
            if kind:
                _one_of("density", kind, KINDS)
            where = f"density.{kind}" if kind else "density"
            if isinstance(value, bool) or not isinstance(value, float | int) or not 0 < value <= 1:
                raise ArgumentError(
                    where, f"{value!r} is not in (0, 1].", "Give the fraction to keep, e.g. 0.5."
                )

    def _check_nesting(self) -> None:
        kinds = set(self.kinds)
        if "hidden" in kinds and (self.uses_masks or self.scoring not in _OF_HIDDEN):
            raise ArgumentError(
                "units",
                f"{self.method_name} does not score hidden features.",
                f"Take {', '.join(_OF_HIDDEN)}.",
            )
        if "hidden" in kinds and "no_norm" in self.cheaper_layers:
            raise ArgumentError(
                "cheaper",
                "no_norm takes the norms away that hidden features are gated at.",
                "Take 'hidden' out of units, or change the norms in a run of its own afterwards.",
            )
        if isinstance(self.density, Mapping):
            missing = kinds - set(self.density)
            if missing:
                raise ArgumentError(
                    "density",
                    f"says nothing of {sorted(missing)}.",
                    "Name every kind in units, or drop units.",
                )
            return
        for outer in kinds:
            inner = _CONTAINED.get(outer, set()) & kinds
            # l0 expects the product of nested gates and counts what lies in both once.
            counted_once = self.scoring == "l0" and self.scope == "global" and "experts" not in kinds
            if inner and not counted_once:
                raise ArgumentError(
                    "units",
                    f"{outer} contain {', '.join(sorted(inner))}: one density would count them twice.",
                    f"Give one density per kind, e.g. density={{{outer!r}: 0.75, {min(inner)!r}: 0.5}}.",
                )


def _one_of(where: str, value: object, known: Any) -> None:
    if value not in known:
        raise ArgumentError(where, f"unknown value {value!r}.", nearest(str(value), map(str, known)))


def _between(where: str, value: float, low: float, high: float) -> None:
    if not low <= value < high:
        raise ArgumentError(where, f"{value!r} is not in [{low}, {high}).", "Give a fraction of training.")


def _per_kind(where: str, value: object, *, least: int, only: Kind | None = None) -> dict[Kind, int]:
    """Spread a number, or a mapping of kinds, over all kinds; a bare number may mean one kind only."""
    if isinstance(value, Mapping):
        for kind in value:
            _one_of(where, kind, KINDS)
        numbers = {kind: value.get(kind, 1) for kind in KINDS}
    else:
        numbers = {kind: value if only in (None, kind) else 1 for kind in KINDS}
    for kind, number in numbers.items():
        if isinstance(number, bool) or not isinstance(number, int) or number < least:
            raise ArgumentError(where, f"{number!r} for {kind} is not a whole number >= {least}.", "Mend it.")
    return numbers
