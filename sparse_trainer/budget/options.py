"""What must remain of a model: the options that fine-pruning and one-shot pruning share, checked in one place."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Final

from patchers.units import CHANNELS, HEADS, HIDDEN, KINDS, Group, Kind
from sparse_trainer.budget.cost import COSTS
from sparse_trainer.budget.standardize import STANDARDIZERS
from sparse_trainer.budget.time_target import LATENCY, TimeTarget
from sparse_trainer.errors import ArgumentError, BudgetError, one_of
from sparse_trainer.fields import AUTO, Multiple, PerKind, check_positive, check_types

TOGETHER: Final = (
    "Layers and widths share one time by `search='dp'` in one shot, and by `scoring='l0'` in training."
)
"""What to do about layers and what is in them under a budget of time."""
SCOPES: Final = ("global", "layer", "uniform")


@dataclass(frozen=True, kw_only=True)
class Budget:
    """How much of which units must remain, and how it is counted.

    Raises:
        ArgumentError: a value cannot be meant; the option is named.
    """

    density: PerKind = 0.5
    """Fraction of the prunable cost to keep, in (0, 1]; or one fraction per kind, counted in units of that kind."""
    target: str = "params"
    """What a density counts: params, macs (per token) or units; or latency, which `time` says all of."""
    time: TimeTarget | None = None
    """How fast the model has to be, instead of a density."""
    scope: str = "global"
    """global (over the whole model), layer (each layer meets it) or uniform (equal widths)."""
    units: tuple[str, ...] | None = None
    """Kinds of unit to prune; None = the kinds in `density`, else `default_units`."""
    default_units: tuple[Kind, ...] = (HEADS, CHANNELS)
    """Kinds of unit to prune where the user names none: those that suit the criterion."""
    multiple_of: Multiple | None = None
    """Kept counts are multiples of this, or the whole group: a number of channels, or one number per kind. Kinds that
    are not named, and "auto": what their kernels read."""
    min_keep: PerKind = 1
    """Units that every group keeps, or one number per kind; branches and layers have no such floor."""
    standardize: str | None = None
    """Normaliser that makes scores comparable; None = the one that suits the criterion."""
    sequence_length: int = 128
    """Tokens per sequence, for the target macs."""
    include: tuple[str, ...] = ()
    """Patterns of the only groups to prune; none = all."""
    exclude: tuple[str, ...] = ()
    """Patterns of groups that stay dense."""

    def __post_init__(self) -> None:
        check_types(self, Budget)
        one_of("target", self.target, (*COSTS, LATENCY))
        self._check_time()
        one_of("scope", self.scope, SCOPES)
        one_of("standardize", self.standardize, (None, *STANDARDIZERS))
        _check_density(self.density)
        self._check_units()
        if self.multiple_of == AUTO:
            object.__setattr__(self, "multiple_of", None)
        if self.multiple_of is not None:
            _check_per_kind("multiple_of", self.multiple_of, least=1)
        _check_per_kind("min_keep", self.min_keep, least=0)
        check_positive("sequence_length", self.sequence_length)

    def _check_time(self) -> None:
        """Raise `ArgumentError` for a budget in time that another one contradicts."""
        if (self.time is None) == (self.target == LATENCY):
            asked = "latency says nothing of how fast" if self.time is None else f"{self.target} is no time"
            raise ArgumentError(
                "target", f"{asked}.", "Give target='latency' and `speedup` or `milliseconds`."
            )
        if self.time is None:
            return
        if self.is_per_kind:
            raise ArgumentError(
                "density", "counts units, and the target is a time.", f"Drop `density`, or {self.time.asked}."
            )
        if HIDDEN in (self.units or ()):
            raise ArgumentError(
                "units", "what hidden features take is not measured.", "Give other units, or `target='macs'`."
            )

    def _check_units(self) -> None:
        for kind in self.units or ():
            if kind in ("vocab", "vocabulary"):
                raise ArgumentError(
                    "units",
                    f"{kind!r} has no scores: a corpus says which tokens stay.",
                    "Use `sparse-trainer trim-vocabulary`, or the section `vocabulary` of a recipe.",
                )
            one_of("units", kind, KINDS)
        if not self.kinds:
            raise ArgumentError(
                "units", "names no kind.", f"Name some of {', '.join(KINDS)}, or leave it out."
            )
        missing = set(self.kinds) - set(self.density) if self.is_per_kind else ()
        if missing:
            raise ArgumentError(
                "density", f"says nothing of {sorted(missing)}.", "Name every kind in `units`, or drop it."
            )

    @property
    def kinds(self) -> tuple[Kind, ...]:
        """Kinds of unit to prune."""
        named = self.units if self.units is not None else self.density if self.is_per_kind else None
        return self.default_units if named is None else tuple(kind for kind in KINDS if kind in named)

    @property
    def is_per_kind(self) -> bool:
        """Whether each kind has a density of its own, which counts units."""
        return isinstance(self.density, Mapping)

    @property
    def density_asked(self) -> float | dict[str, float]:
        """The density as plans and cards quote it."""
        return dict(self.density) if self.is_per_kind else float(self.density)

    def density_of(self, kind: Kind) -> float:
        """Return the fraction asked of a kind."""
        return float(self.density.get(kind, 1.0) if self.is_per_kind else self.density)

    def floor_of(self, kind: Kind) -> int:
        """Return how many units of a kind every group keeps."""
        if not kind.floor:
            return 0
        return int(self.min_keep.get(kind, 1) if isinstance(self.min_keep, Mapping) else self.min_keep)

    def step_of(self, group: Group) -> int:
        """Return how many units of a group stay or go together.

        Raises:
            ArgumentError: the kernels of the group do not take the multiples asked for.
        """
        bare = None if self.multiple_of is None else {CHANNELS: self.multiple_of}
        asked = self.multiple_of if isinstance(self.multiple_of, Mapping) else bare
        step = min(int((asked or {}).get(group.kind, group.multiple_of)), group.num_units)
        if not group.fits(step):
            raise ArgumentError(
                "multiple_of",
                f"{step} for {group.kind}, but the kernels of {group.name} take multiples of {group.least_multiple}.",
                f"Leave it out, or give {group.multiple_of}; or call model.set_experts_implementation('eager') first, "
                "and load the result with experts_implementation='eager'.",
            )
        return step

    def check_disjoint(self) -> None:
        """Raise `ArgumentError` where one density would count units twice: on their own, and inside others."""
        kinds = set() if self.is_per_kind else set(self.kinds)
        for outer in kinds:
            inner = kinds.intersection(outer.contains)
            if not inner:
                continue
            remedy = f"Give one density per kind, e.g. `density={{{outer!r}: 0.75, {min(inner)!r}: 0.5}}`."
            raise ArgumentError(
                "units",
                f"{outer} contain {', '.join(sorted(inner))}: one density would count them twice.",
                remedy if self.time is None else f"Name either {outer} or what is in them. {TOGETHER}",
            )


def check_reachable(asked: float, least: float, where: str = "") -> None:
    """Raise `BudgetError`, with the feasible range, for a density below what floors keep.

    Args:
        asked: The density of a budget, in (0, 1].
        least: The share of the cost that floors keep.
        where: What of the model the budget is for, to follow the density in the message.
    """
    if asked < least - 1e-9:
        raise BudgetError(
            "density",
            f"{asked:g} is not reachable{where}: `min_keep`, `multiple_of` and one layer of every stack and sort "
            f"keep at least {least:.4g}.",
            f"Ask for a density in [{least:.4g}, 1], or lower `min_keep` or `multiple_of`.",
        )


def keeps_all(density: object) -> bool:
    """Tell a density under which nothing goes: 1, or 1 of every kind that is named.

    >>> keeps_all(1.0), keeps_all({"heads": 1, "channels": 0.5})
    (True, False)
    """
    return all(value == 1 for value in (density.values() if isinstance(density, Mapping) else (density,)))


def _check_density(density: object) -> None:
    values = density if isinstance(density, Mapping) else {"": density}
    if not values:
        raise ArgumentError("density", "no kind is named.", "Give a number, or kinds like {heads: 0.75}.")
    for kind, value in values.items():
        if kind:
            one_of("density", kind, KINDS)
        where = f"`density`.{kind}" if kind else "density"
        if isinstance(value, bool) or not isinstance(value, float | int) or not 0 < value <= 1:
            raise ArgumentError(where, f"{value!r} is not in (0, 1].", "Give the fraction to keep, e.g. 0.5.")


def _check_per_kind(where: str, value: object, *, least: int) -> None:
    """Raise `ArgumentError` unless a value is a count, or one per kind."""
    numbers = value if isinstance(value, Mapping) else {CHANNELS if where == "multiple_of" else HEADS: value}
    for kind, number in numbers.items():
        one_of(where, kind, KINDS)
        if isinstance(number, bool) or not isinstance(number, int) or number < least:
            raise ArgumentError(
                where,
                f"{number!r} for {kind} is not a whole number >= {least}.",
                f"Give e.g. {max(1, least)}.",
            )
