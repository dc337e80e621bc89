"""What a user can ask of weight masks, in the words of nn_pruning."""

from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from typing import Any, Final

from sparse_trainer.errors import ArgumentError, nearest
from sparse_trainer.masking.rules import BY_FRACTION, METHODS, Method
from sparse_trainer.schedule import CubicSchedule

DISABLED: Final = "disabled"
SHAPES: Final = ("block", "1d", "1d_alt", "joint")
AMPERE: Final = (DISABLED, "topK", "threshold", "sigmoid_threshold", "magnitude", "annealing")
INITS: Final = ("constant", "uniform", "kaiming")
_SPELLINGS: Final = {"sigmoied_threshold": "sigmoid_threshold", "topk": "topK", "default": "block"}

_STRUCTURED: Final = {
    "dense_pruning_method": "sigmoid_threshold:1d_alt",
    "attention_pruning_method": "sigmoid_threshold",
    "attention_output_with_dense": False,
    "initial_threshold": 0.0,
    "final_threshold": 0.1,
    "regularization": "l1",
    "regularization_final_lambda": 20.0,
}
# Lagunas et al., arXiv 2109.04838: 32 x 32 blocks, or whole heads of 64 x 768, on attention; channels in the FFNs.
PRESETS: Final[Mapping[str, Mapping[str, Any]]] = {
    "hybrid": {**_STRUCTURED, "attention_block_rows": 32, "attention_block_cols": 32},
    "struct": {
        **_STRUCTURED,
        "attention_block_rows": 0,
        "attention_block_cols": 0,
        "attention_lambda": 0.00156,
    },
}
# Old field, the new one that says the same of gates.
_RIVALS: Final = (
    ("final_threshold", "density"),
    ("mask_scores_learning_rate", "score_learning_rate"),
    ("initial_warmup", "warmup_ratio"),
    ("final_warmup", "cooldown_ratio"),
)
_OF_GATES: Final = (
    "scoring",
    "density",
    "target",
    "scope",
    "units",
    "multiple_of",
    "min_keep",
    "standardize",
)


@dataclass(frozen=True, kw_only=True)
class PartOptions:
    """How one kind of matrix is masked."""

    method: Method
    shape: str
    """block, 1d, 1d_alt or joint."""
    rows: int
    """Rows of a block; 0 = those of a head."""
    cols: int
    """Columns of a block; 0 = all."""
    initial: float
    """Threshold, or fraction to keep, before pruning starts."""
    final: float


@dataclass(kw_only=True)
class MaskArguments:
    """Options of weight masks. Naming a pruning method, or a preset, asks for masks instead of gates."""

    preset: str | None = field(
        default=None, metadata={"help": "hybrid or struct: fills in the mask options that were left alone."}
    )
    dense_pruning_method: str | None = field(
        default=None,
        metadata={
            "help": "Masks on feed-forward matrices: topK, threshold, sigmoid_threshold, magnitude, l0 or disabled, "
            "with :1d or :1d_alt where it is not by blocks."
        },
    )
    attention_pruning_method: str | None = field(
        default=None, metadata={"help": "Masks on attention: as for dense, with :1d or :joint."}
    )
    attention_output_with_dense: bool = field(
        default=True, metadata={"help": "Mask the output matrix of attention like the dense ones."}
    )
    ampere_pruning_method: str = field(
        default=DISABLED,
        metadata={"help": "2 of 4 weights: by score (topK), magnitude or annealing; disabled = no."},
    )
    dense_block_rows: int = field(default=1, metadata={"help": "Rows of a block of a dense matrix."})
    dense_block_cols: int = field(default=1, metadata={"help": "Columns of a block; 0 = all."})
    attention_block_rows: int = field(
        default=1,
        metadata={"help": "Rows of a block of q, k and v; 0 = a head's. The output matrix swaps both."},
    )
    attention_block_cols: int = field(default=1, metadata={"help": "Columns of a block; 0 = all."})
    initial_threshold: float | None = field(
        default=None, metadata={"help": "At first; default: 1 where it is the fraction to keep, else 0."}
    )
    final_threshold: float | None = field(
        default=None,
        metadata={"help": "In the end; default: 0.5 where it is the fraction to keep, else 0.1."},
    )
    initial_warmup: float | None = field(
        default=None, metadata={"help": "Dense start, in warmup_steps; default: warmup_ratio of training."}
    )
    final_warmup: float | None = field(
        default=None,
        metadata={"help": "Final stretch, in warmup_steps; default: cooldown_ratio of training."},
    )
    initial_ampere_temperature: float = field(default=0.0, metadata={"help": "annealing: at first."})
    final_ampere_temperature: float = field(default=20.0, metadata={"help": "annealing: in the end."})
    mask_init: str = field(
        default="constant", metadata={"help": "Scores start constant, uniform or kaiming."}
    )
    mask_scale: float | None = field(
        default=None, metadata={"help": "The constant, or the bound of uniform; default 0, for l0 2.197."}
    )
    mask_scores_learning_rate: float = field(default=1e-2, metadata={"help": "Learning rate of mask scores."})
    bias_mask: bool = field(
        default=True, metadata={"help": "An output without any weight loses its bias as well."}
    )
    linear_min_parameters: float = field(
        default=0.005, metadata={"help": "Fraction of a matrix that thresholds leave in any case."}
    )
    regularization: str = field(default=DISABLED, metadata={"help": "Of the scores: l1, l0 or disabled."})
    regularization_final_lambda: float = field(default=0.0, metadata={"help": "Its weight in the end."})
    attention_lambda: float = field(default=1.0, metadata={"help": "Its share for attention."})
    dense_lambda: float = field(default=1.0, metadata={"help": "Its share for dense matrices."})
    decoder_attention_lambda: float | None = field(
        default=None, metadata={"help": "Its share for attention of a decoder behind an encoder."}
    )
    decoder_dense_lambda: float | None = field(
        default=None, metadata={"help": "Its share for dense matrices of such a decoder."}
    )

    @property
    def uses_masks(self) -> bool:
        """Whether masks are asked for instead of gates."""
        methods = (self.dense_pruning_method, self.attention_pruning_method, self.preset)
        return any(method is not None for method in methods) or self.ampere_pruning_method != DISABLED

    def mask_option(self, name: str) -> Any:
        """Return an option, or what the preset says where the user said nothing."""
        value = getattr(self, name)
        untouched = value == _default_of(type(self), name)
        return PRESETS[self.preset].get(name, value) if untouched and self.preset is not None else value

    def part(self, name: str) -> PartOptions | None:
        """Return how `dense` or `attention` matrices are masked, None = not at all."""
        method, shape = parse_method(f"{name}_pruning_method", self.mask_option(f"{name}_pruning_method"))
        if method == DISABLED:
            return None
        known: Method = next(m for m in METHODS if m == method)
        by_fraction = known in BY_FRACTION
        initial, final = self.mask_option("initial_threshold"), self.mask_option("final_threshold")
        return PartOptions(
            method=known,
            shape=shape,
            rows=self.mask_option(f"{name}_block_rows"),
            cols=self.mask_option(f"{name}_block_cols"),
            initial=float(by_fraction) if initial is None else initial,
            final=(0.5 if by_fraction else 0.1) if final is None else final,
        )

    def mask_schedule(self, total_steps: int, warmup_steps: int) -> CubicSchedule | None:
        """Return the schedule in units of `warmup_steps`, None where it was asked for as fractions of training.

        Raises:
            ArgumentError: the stretches leave no step to prune in.
        """
        if self.initial_warmup is None and self.final_warmup is None:
            return None
        first = 1.0 if self.initial_warmup is None else self.initial_warmup
        last = 2.0 if self.final_warmup is None else self.final_warmup
        if (first + last) * warmup_steps >= total_steps:
            raise ArgumentError(
                "initial_warmup + final_warmup",
                f"({first:g} + {last:g}) x {warmup_steps} warmup_steps leave none of {total_steps} steps to prune in.",
                "Train longer, or lower them or warmup_steps.",
            )
        return CubicSchedule(
            warmup=first * warmup_steps / total_steps, cooldown=last * warmup_steps / total_steps
        )

    def check_masks(self) -> None:
        """Raise `ArgumentError` for values that make no sense; also after `setattr`."""
        _one_of("preset", self.preset, (None, *PRESETS))
        for name, known in (("regularization", (DISABLED, "l1", "l0")), ("mask_init", INITS)):
            _one_of(name, getattr(self, name), known)
        _one_of("ampere_pruning_method", _spelled(self.ampere_pruning_method), AMPERE)
        if not self.uses_masks:
            self._check_idle()
            return
        parts = {name: self.part(name) for name in ("dense", "attention")}
        for name, part in parts.items():
            if part is not None:
                _check_part(name, part)
        self._check_rivals()
        self._check_regularization([part.method for part in parts.values() if part is not None])

    def _check_idle(self) -> None:
        """Refuse options of masks that nobody asked for."""
        for f in fields(MaskArguments):
            if getattr(self, f.name) != f.default:
                raise ArgumentError(
                    f.name,
                    "is an option of weight masks, and no mask is asked for.",
                    "Set dense_pruning_method, attention_pruning_method or preset too.",
                )

    def _check_rivals(self) -> None:
        touched = {f.name for f in fields(self) if getattr(self, f.name) != _default_of(type(self), f.name)}
        for old, new in _RIVALS:
            if {old, new} <= touched:
                raise ArgumentError(
                    f"{old}, {new}",
                    "say the same thing, of masks and of gates.",
                    f"Drop {new}: masks are asked for.",
                )
        asker = next(
            n for n in ("preset", "dense_pruning_method", "attention_pruning_method", "ampere_pruning_method")
            if n in touched
        )  # fmt: skip
        rival = next((name for name in _OF_GATES if name in touched), None)
        if rival is not None:
            raise ArgumentError(
                f"{asker}, {rival}", f"{asker} asks for masks, {rival} for gates.", "Drop one of the two."
            )

    def _check_regularization(self, methods: list[Method]) -> None:
        kind, weight = self.mask_option("regularization"), self.mask_option("regularization_final_lambda")
        if kind != DISABLED and not weight > 0:
            raise ArgumentError(
                "regularization_final_lambda", f"{weight!r} makes {kind} do nothing.", "Raise it."
            )
        if "l0" in methods and kind == DISABLED:
            raise ArgumentError(
                "regularization",
                "the method l0 prunes by its penalty alone.",
                "Set it to 'l0', with a lambda.",
            )
        if kind != DISABLED and set(methods) <= {"magnitude"}:
            raise ArgumentError("regularization", "magnitude has no scores to keep small.", "Disable it.")


def parse_method(where: str, text: str | None) -> tuple[str, str]:
    """Return method and shape of `method:shape`, in today's spelling.

    >>> parse_method("dense_pruning_method", "sigmoied_threshold:1d_alt")
    ('sigmoid_threshold', '1d_alt')
    """
    method, _, shape = (text or DISABLED).partition(":")
    method, shape = _spelled(method), _spelled(shape or "block")
    _one_of(where, method, (*METHODS, DISABLED))
    _one_of(where, shape, SHAPES)
    only = {"1d_alt": "dense", "joint": "attention"}.get(shape)
    if only is not None and not where.startswith(only):
        raise ArgumentError(
            where,
            f"{shape} is for {only} matrices.",
            "Mask attention by blocks; attention_block_rows=0 with attention_block_cols=0 makes them whole heads."
            if only == "dense"
            else "joint means one score for q, k and v.",
        )
    return method, shape


def _spelled(name: str) -> str:
    return _SPELLINGS.get(name, name)


def _check_part(name: str, part: PartOptions) -> None:
    for option, size in (("rows", part.rows), ("cols", part.cols)):
        if size < 0:
            raise ArgumentError(f"{name}_block_{option}", f"{size} is negative.", "Give a size, or 0.")
    for option, value in (("initial_threshold", part.initial), ("final_threshold", part.final)):
        if part.method in BY_FRACTION and not 0 < value <= 1:
            raise ArgumentError(option, f"{value!r}: {part.method} keeps a fraction in (0, 1].", "Mend it.")
        if part.method == "sigmoid_threshold" and not 0 <= value < 1:
            raise ArgumentError(
                option, f"{value!r} is not in [0, 1), where a sigmoid can be above it.", "Mend it."
            )


def _one_of(where: str, value: object, known: tuple[object, ...]) -> None:
    if value not in known:
        raise ArgumentError(where, f"unknown value {value!r}.", nearest(str(value), map(str, known)))


def _default_of(cls: type, name: str) -> Any:
    found = next(f for f in fields(cls) if f.name == name)
    factory: Any = found.default_factory
    return factory() if callable(factory) else found.default
