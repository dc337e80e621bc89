"""Criteria side by side on one model and its data: what each cut of the same size costs, in pairs of sequences."""

import time
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Final

from transformers import PreTrainedModel

from patchers.units import WIDTH_KINDS, unit_name
from sparse_trainer.criteria.calibration.mixture import name_of
from sparse_trainer.errors import ArgumentError
from sparse_trainer.files.figures import INK, KEPT, look, panels, save_picture
from sparse_trainer.one_shot.checks import check_prunable
from sparse_trainer.one_shot.options import PruneOptions
from sparse_trainer.one_shot.prune import prune_by
from sparse_trainer.plan.document import Plan
from sparse_trainer.plan.widths import number_layers, title_of
from sparse_trainer.run.judge import DIVERGENCE, LOSS, Judge, Judged, Measure
from sparse_trainer.run.pictures import write_csv
from sparse_trainer.statistics.calibration import Batches
from sparse_trainer.statistics.collect import collect
from sparse_trainer.tasks.language.text import ratio_of_sums

TABLE: Final = "compare.csv"
"""By this file a folder is known."""
PICTURE: Final = "compare.png"


@dataclass(frozen=True, kw_only=True)
class CriterionOutcome:
    """What a cut by one criterion costs on sequences that it has not seen."""

    criterion: str
    loss: float
    """Mean loss per label, in nats, or mean divergence from the dense model, as `CriteriaComparison.measure` says."""
    rise: float
    """The same, less that of the dense model."""
    rise_stderr: float | None
    """Standard error of the rise, in pairs of sequences; None of a single one."""
    behind: float
    """Loss less that of the best criterion."""
    behind_stderr: float | None
    density: float | None
    """What stays of the cost that is counted."""
    seconds: float
    """Scoring, choosing, cutting and repair; the calibration pass, which all share, is not in it."""


@dataclass(frozen=True, kw_only=True)
class CriteriaComparison:
    """Criteria, the best first."""

    measure: Measure
    """What the sequences are judged by: the model's own loss, or without labels the divergence from the dense model."""
    dense_loss: float
    sequences: int
    labels: int
    """How much counts in them: labels, or without any texts or tokens."""
    outcomes: tuple[CriterionOutcome, ...]
    plans: Mapping[str, Plan]
    """The plan of each cut, by criterion."""

    def to_json(self) -> dict[str, Any]:
        """Return plain types for JSON, without the plans."""
        return {
            "measure": self.measure,
            "dense_loss": self.dense_loss,
            "sequences": self.sequences,
            "labels": self.labels,
            "criteria": [asdict(outcome) for outcome in self.outcomes],
        }


def compare_criteria(
    model: PreTrainedModel,
    calibration: Iterable[Mapping[str, Any]],
    held_out: Iterable[Mapping[str, Any]],
    prunings: Sequence[PruneOptions],
) -> CriteriaComparison:
    """Return what every way of pruning costs; the model stays as it is. All share one calibration pass.

    Args:
        held_out: Batches that no criterion looks at, judged by the model's loss where there are labels, or these can be
            made of the tokens, else by how far what the model says moves.
        prunings: Options of `prune` that differ in their criterion.

    Raises:
        ArgumentError: No criterion, one twice, or one that makes passes of its own.
        DataError: There is no loss on the sequences held out.
        SparseTrainerError: The model cannot be pruned in one of these ways.
    """
    named = named_prunings(prunings)
    structures = [check_prunable(options, model)[1] for options in named.values()]
    requests = [request for options in named.values() for request in options.requests]
    pooling = prunings[0].pooled
    batches = Batches(model, calibration, pooling)
    statistics = collect(model, structures[0], batches, requests)
    judge = Judge(model, held_out, pooling)
    dense = judge.dense
    found: dict[str, tuple[Judged, Plan, float]] = {}
    for name, options in named.items():
        start = time.perf_counter()
        pruned, plan = prune_by(options, model, statistics=statistics, check=False)
        seconds = time.perf_counter() - start
        found[name] = judge(pruned), plan, seconds
        del pruned
    best = min(found, key=lambda name: sum(loss for loss, _ in found[name][0]))
    outcomes = [
        _outcome(name, losses, dense, found[best][0], plan.density_reached, seconds)
        for name, (losses, plan, seconds) in found.items()
    ]
    return CriteriaComparison(
        measure=judge.measure,
        dense_loss=ratio_of_sums(dense)[0],
        sequences=len(dense),
        labels=sum(count for _, count in dense),
        outcomes=tuple(sorted(outcomes, key=lambda outcome: outcome.loss)),
        plans={name: plan for name, (_, plan, _) in found.items()},
    )


def named_prunings(prunings: Sequence[PruneOptions]) -> dict[str, PruneOptions]:
    """Return ways of pruning by their criterion.

    Raises:
        ArgumentError: No criterion, one twice, one that makes passes of its own, or of other units than the others.
    """
    if not prunings:
        raise ArgumentError("criteria", "there is none.", "Name some, e.g. wanda,obs,fisher.")
    named: dict[str, PruneOptions] = {}
    for options in prunings:
        name = name_of(options.criterion)
        if name in named:
            raise ArgumentError("criteria", f"{name} stands there twice.", "Name each once.")
        alone = options.elements is not None or options.searches or options.search is not None
        if alone or options.steps > 1 or options.sequential or options.by_block or options.repairs_runs:
            raise ArgumentError(
                "criteria",
                f"{options.method} makes passes of its own over the text, and here all share one.",
                "Take criteria and repairs of heads and channels that look at the model once.",
            )
        named[name] = options
    _check_same_units(named)
    return named


def _check_same_units(named: Mapping[str, PruneOptions]) -> None:
    """Raise `ArgumentError` for criteria that prune other units than the first: their cuts have other sizes."""
    first, *others = named
    for name in others:
        kinds = [" and ".join(named[each].budget.kinds) for each in (first, name)]
        if kinds[0] != kinds[1]:
            raise ArgumentError(
                "criteria",
                f"{first} prunes {kinds[0]}, and {name} {kinds[1]}: what is left is not of one size.",
                "Take criteria of the same units; `sparse-trainer layers` shows those of depth.",
            )


def _outcome(
    name: str, losses: Judged, dense: Judged, best: Judged, density: float | None, seconds: float
) -> CriterionOutcome:
    def less(others: Judged) -> tuple[float, float | None]:
        pairs = zip(losses, others, strict=True)
        return ratio_of_sums(tuple((mine - other, count) for (mine, count), (other, _) in pairs))

    (rise, rise_error), (behind, behind_error) = less(dense), less(best)
    return CriterionOutcome(
        criterion=name,
        loss=ratio_of_sums(losses)[0],
        rise=rise,
        rise_stderr=rise_error,
        behind=behind,
        behind_stderr=behind_error,
        density=density,
        seconds=round(seconds, 1),
    )


def write_comparison(
    found: CriteriaComparison, directory: str | Path, *, draw: bool = True
) -> dict[str, Path]:
    """Write a table, and a picture of losses and widths, into a folder; return what each file shows -> its path."""
    folder = Path(directory)
    folder.mkdir(parents=True, exist_ok=True)
    (folder / PICTURE).unlink(missing_ok=True)
    rows = [["" if value is None else value for value in asdict(one).values()] for one in found.outcomes]
    write_csv(folder / TABLE, list(CriterionOutcome.__annotations__), rows)
    if draw:
        _draw(found, folder / PICTURE)
    return {"table": folder / TABLE} | ({"losses and widths": folder / PICTURE} if draw else {})


_TITLES: Final[Mapping[Measure, str]] = {
    LOSS: "rise of the loss per label, in nats",
    DIVERGENCE: "divergence from the dense model",
}


@look()
def _draw(found: CriteriaComparison, path: Path) -> None:
    kinds = [kind for kind in WIDTH_KINDS if any(kind in plan.by_kind() for plan in found.plans.values())]
    names = [outcome.criterion for outcome in found.outcomes]
    first = next(iter(found.plans.values()))
    figure, axes = panels([0.4 + 0.25 * len(names), *[1.9] * len(kinds)], title_of(first, "criteria"))
    axes[0].barh(
        names,
        [outcome.rise for outcome in found.outcomes],
        xerr=[outcome.rise_stderr or 0.0 for outcome in found.outcomes],
        color=KEPT,
        ecolor=INK,
        capsize=2,
    )
    axes[0].invert_yaxis()
    axes[0].set_title(_TITLES[found.measure])
    axes[0].axvline(0, color=INK, linewidth=0.8)
    for axis, kind in zip(axes[1:], kinds, strict=True):
        for name in names:
            groups = found.plans[name].by_kind().get(kind, [])
            axis.plot([len(group["keep"]) for group in groups], marker=".", label=name)
        known = next(plan.by_kind()[kind] for plan in found.plans.values() if kind in plan.by_kind())
        axis.set_ylim(0, 1.05 * max(group["size"] for group in known))
        axis.yaxis.get_major_locator().set_params(integer=True)
        number_layers(axis.xaxis, known)
        is_shared = any(plan.kv_groups for plan in found.plans.values())
        axis.set_title(f"{unit_name(kind, is_shared=is_shared)} that stay, layer by layer")
        axis.legend(ncols=4, loc="lower left")  # widths stand above it
    axes[-1].set_xlabel("layer" if kinds else "")
    save_picture(figure, path)
