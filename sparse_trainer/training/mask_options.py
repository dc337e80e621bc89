"""How weights are masked, and the words for it."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Final, Literal

from patchers.units import CHANNELS, HEADS, Kind
from sparse_trainer.budget.schedule import CubicSchedule, Schedule
from sparse_trainer.errors import ArgumentError, one_of
from sparse_trainer.training.mask_selection import METHODS, Method
from sparse_trainer.training.protect import Protection

Part = Literal["attention", "dense"]
PARTS: Final[tuple[Part, ...]] = ("dense", "attention")

DISABLED: Final = "disabled"
SHAPES: Final = ("block", "1d", "1d_alt", "joint")
_SPELLINGS: Final = {"sigmoied_threshold": "sigmoid_threshold", "topk": "topK", "default": "block"}


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


@dataclass(frozen=True, kw_only=True)
class Regularization:
    """A penalty that keeps scores small, and how it is shared out over the parts of a model."""

    kind: str
    """l1, l0 or disabled."""
    weight: float
    """In the end; it rises from 0 with the schedule."""
    shares: Mapping[Part, float]
    decoder_shares: Mapping[Part, float | None]
    """Of a decoder behind an encoder; None = as elsewhere."""

    def share(self, part: Part, in_decoder: bool) -> float:
        """Return the weight of one part of the model among the others."""
        of_decoder = self.decoder_shares[part] if in_decoder else None
        return self.shares[part] if of_decoder is None else of_decoder


@dataclass(frozen=True, kw_only=True)
class MaskOptions:
    """How weights are masked."""

    method: str
    """What plans and cards call it."""
    parts: Mapping[Part, PartOptions]
    """How each kind of matrix is masked; what is not masked is missing."""
    output_with_dense: bool
    """Whether the output matrix of attention is masked like the dense ones."""
    ampere: str
    """How 2 of 4 weights are found, or disabled."""
    temperatures: tuple[float, float]
    """Of annealing, at first and in the end."""
    init: str
    """How scores start: constant, uniform or kaiming."""
    scale: float | None
    """The constant, or the bound of uniform; None = the usual one of the method."""
    learning_rate: float
    masks_bias: bool
    """Whether an output without any weight loses its bias as well."""
    least: float
    """Fraction of a matrix that thresholds leave in any case."""
    regularization: Regularization
    schedule: Schedule
    stretches: tuple[float | None, float | None]
    """Dense start and final stretch in multiples of `warmup_steps`, instead of the schedule's; None = not asked for."""
    seed: int
    protection: Protection | None

    @property
    def kinds(self) -> tuple[Kind, ...]:
        """Kinds of unit whose matrices are masked."""
        heads = "attention" in self.parts or ("dense" in self.parts and self.output_with_dense)
        return (*((HEADS,) if heads else ()), *((CHANNELS,) if "dense" in self.parts else ()))

    def schedule_over(self, total_steps: int, warmup_steps: int) -> Schedule:
        """Return the schedule of a training, whose stretches may be given in units of `warmup_steps`.

        Raises:
            ArgumentError: the stretches leave no step to prune in.
        """
        if self.stretches == (None, None):
            return self.schedule
        first, last = (
            usual if given is None else given for given, usual in zip(self.stretches, (1.0, 2.0), strict=True)
        )
        if (first + last) * warmup_steps >= total_steps:
            raise ArgumentError(
                "initial_warmup + final_warmup",
                f"({first:g} + {last:g}) x {warmup_steps} warmup_steps leave none of {total_steps} steps to prune in.",
                "Train longer, or lower them or warmup_steps.",
            )
        return CubicSchedule(
            warmup=first * warmup_steps / total_steps, cooldown=last * warmup_steps / total_steps
        )


def parse_method(where: str, text: str | None) -> tuple[str, str]:
    """Return method and shape of `method:shape`, in today's spelling.

    >>> parse_method("dense_pruning_method", "sigmoied_threshold:1d_alt")
    ('sigmoid_threshold', '1d_alt')
    """
    method, _, shape = (text or DISABLED).partition(":")
    method, shape = spelled(method), spelled(shape or "block")
    one_of(where, method, (*METHODS, DISABLED))
    one_of(where, shape, SHAPES)
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


def spelled(name: str) -> str:
    """Return a word of nn_pruning in today's spelling.

    >>> spelled("topk")
    'topK'
    """
    return _SPELLINGS.get(name, name)
