"""What of the options of one-shot pruning contradicts something else."""

from collections.abc import Collection, Mapping
from typing import Final

from patchers.units import ATTENTION, FFN, LAYERS, Kind
from sparse_trainer.budget.options import Budget
from sparse_trainer.budget.standardize import ACROSS_LAYERS
from sparse_trainer.budget.time_target import LATENCY, TimeTarget
from sparse_trainer.criteria.calibration.base import ChoosesRun, Searches, WidthCriterion
from sparse_trainer.criteria.calibration.mixture import (
    NOT_MIXED,
    CriterionLike,
    Mixture,
    criterion_of,
    name_of,
    searches,
)
from sparse_trainer.criteria.calibration.scorable import criteria_for, scored_kinds
from sparse_trainer.errors import ArgumentError, shown
from sparse_trainer.one_shot.elements.options import ElementOptions
from sparse_trainer.one_shot.search.options import SearchOptions

_OF_WEIGHTS: Final = frozenset(
    ("criterion", "density", "units", "protect", "include", "by_block", "pattern", "compare")
)
"""Options that masks over single weights read."""
_OF_TIME: Final = ("latency_batch", "latency_phase", "latency_runtime", "latency_table")
"""Options of a budget in time."""
_DEEP_REMEDIES: Final = {
    "density": "Give one number",
    "scope": "Leave it at global",
    "target": "Take params or macs",
    "search": "Take dp",
}
"""Of a search for widths and layers."""


def check_of_weights(asked: ElementOptions, changed: Collection[str]) -> None:
    """Refuse options of whole units beside single weights, and a pattern that another density contradicts.

    Args:
        changed: Options that are not at their default.
    """
    for name in sorted(set(changed) - _OF_WEIGHTS):
        raise ArgumentError(
            name, "is for whole units, not for single weights.", "Drop it, or give other units."
        )
    if asked.pattern is not None and "density" in changed and asked.density != asked.ask.density:
        raise ArgumentError(
            "density",
            f"{asked.density:g}, but {asked.pattern} keeps {asked.ask.density:g}.",
            "Drop one of the two.",
        )


def check_floors(budget: Budget, max_prune: float) -> None:
    """Refuse floors of layers and branches: each is the only unit of its place, and would never reach one."""
    floors = budget.min_keep if isinstance(budget.min_keep, Mapping) else {}
    for kind in budget.kinds:
        if kind.is_whole and floors.get(kind, 1) > 1:
            raise ArgumentError(
                "min_keep",
                f"{kind} are whole: each has one unit.",
                f"Say by `density` how many {kind} stay.",
            )
    if max_prune < 1 and all(kind.is_whole for kind in budget.kinds):
        raise ArgumentError(
            "max_prune",
            f"{budget.kinds[0]} are whole: each goes or stays.",
            "Drop it; `density` says how many stay.",
        )


def check_search(search: SearchOptions | None, budget: Budget, changed: Collection[str]) -> None:
    """Refuse options of a search without one, and what a search cannot go with."""
    if search is None:
        for name in ("levels", "search_tokens", "time_limit", "search_bfloat16"):
            if name in changed:
                raise ArgumentError(name, "is of a search.", "Set `search='dp'`, or drop it.")
        return
    for name, why in (
        ("allocation", "the search shares the widths out"),
        ("standardize", "a search compares losses, not scores"),
        ("by_block", "a search runs the whole model"),
    ):
        if name in changed:
            raise ArgumentError(name, f"{why}.", f"Drop `{name}`, or `search`.")
    if "steps" in changed:
        raise ArgumentError("steps", "a search finds the widths at once.", "Leave it at 1.")
    _check_deep_search(search, budget)


def _check_deep_search(search: SearchOptions, budget: Budget) -> None:
    """Refuse whole branches and layers where a search does not look for them."""
    branch = next((kind for kind in budget.kinds if kind in (ATTENTION, FFN)), None)
    if branch is not None:
        raise ArgumentError(
            "search",
            f"finds whole {branch} where no width is left.",
            "Give heads and channels, with `min_keep=0`.",
        )
    if LAYERS not in budget.kinds:
        return
    if not any(kind.is_width for kind in budget.kinds):
        raise ArgumentError(
            "search", "finds widths beside layers.", "Give heads or channels as well, or drop `search`."
        )
    for name, wanted, why in (
        ("density", not budget.is_per_kind, "layers and widths share one budget"),
        ("scope", budget.scope == "global", "layers go anywhere in the model"),
        ("target", budget.target != "units", "a layer counts as much as a channel"),
        ("search", search.method == "dp", "switches change no layers"),
    ):
        if not wanted:
            raise ArgumentError(name, f"{why}.", f"{_DEEP_REMEDIES[name]}, or take layers out of `units`.")


def check_time(
    time: TimeTarget | None, target: str, density: float | Mapping[str, float], changed: Collection[str]
) -> None:
    """Refuse a budget in time beside another, options of one where there is none, and what cannot be timed."""
    if time is None:
        idle = next((name for name in _OF_TIME if name in changed), None)
        if idle is not None:
            raise ArgumentError(idle, "nothing is timed.", "Give `speedup` or `milliseconds`, or drop it.")
        return
    if target != LATENCY and "target" in changed:
        raise ArgumentError("target", f"{target} beside {time.asked}.", "Drop it, or `target='latency'`.")
    if "density" in changed:
        raise ArgumentError("density", f"{shown(density)} beside {time.asked}.", "Drop one of the two.")
    if "by_block" in changed and time.table is None:
        raise ArgumentError(
            "by_block",
            "the model stays on the CPU, and would be timed there.",
            "Drop it, or give `latency_table`.",
        )


def check_criterion(
    where: str, asked: CriterionLike, normalize: str, kinds: Collection[Kind], *, by_block: bool
) -> None:
    """Refuse a criterion that cannot be meant, that scores no such units, or that needs more than it would see.

    Args:
        where: The option that names it.
        kinds: Units that it has to score.
    """
    if not isinstance(asked, str | Mapping | WidthCriterion):
        raise ArgumentError(
            where, f"{shown(asked)} is no criterion.", "Give a name, an instance or names with weights."
        )
    try:
        criterion = criterion_of(asked, normalize)
        requests, scored = criterion.requests(), scored_kinds(criterion)
    except TypeError as error:
        raise ArgumentError(where, str(error), "Give a name, an instance or names with weights.") from error
    unscored = [kind for kind in kinds if kind not in scored]
    if unscored:
        raise ArgumentError(
            where,
            f"{name_of(asked)} does not score {unscored[0]}.",
            f"Take {', '.join(criteria_for(kinds))}; or other units.",
        )
    if searches(criterion) and (where == "allocation" or isinstance(criterion, Mixture)):
        raise ArgumentError(
            where,
            f"{name_of(asked)}: {NOT_MIXED}",
            "Let it be the only criterion, or take block_influence.",
        )
    if not by_block:
        return
    if isinstance(criterion, ChoosesRun | Searches):
        raise ArgumentError(
            where,
            f"{name_of(asked)} looks at more than one block at a time.",
            "Drop `by_block`, or take block_influence.",
        )
    if any(request.loss is not None for request in requests):
        raise ArgumentError(
            where, "it needs gradients, through the whole model.", "Drop `by_block`, or take wanda or obs."
        )  # fmt: skip
    if isinstance(asked, Mapping) and normalize in ACROSS_LAYERS:
        raise ArgumentError(
            where, f"{normalize!r} compares all layers.", "Take `normalize='zscore_layer'` with `by_block`."
        )  # fmt: skip
