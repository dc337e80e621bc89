"""The picture of a sweep: quality over speed, the dense model, and the runs that no other run beats."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from sparse_trainer.files.figures import BEFORE, GONE, KEPT, LABEL, look, panels, save_picture
from sparse_trainer.run.recipes.early_stopping import is_lower_better
from sparse_trainer.run.sweep.figures import Figures, front

MOST_LABELS = 24
"""Runs whose names are written beside their points; of more, only those of the front."""
_HEIGHT = 4.2


@look()
def speed_figure(runs: Mapping[str, Figures], title: str = "") -> Any:
    """Return a figure of one panel per batch size; None where no run has both a quality and a speed.

    The dense model stands at speed 1: a point for each of the runs' own, which differ where their seeds do.
    """
    shown = {name: run for name, run in runs.items() if run.metrics and run.speedups}
    if not shown:
        return None
    first = next(iter(shown.values()))
    metric, batches = next(iter(first.metrics)), list(first.speedups)
    figure, axes = panels([_HEIGHT] * len(batches), title)
    for axis, batch in zip(axes, batches, strict=True):
        points = {
            name: (run.speedups[batch], run.metrics[metric])
            for name, run in shown.items()
            if batch in run.speedups and metric in run.metrics
        }
        dense = sorted({run.dense_metrics[metric] for run in shown.values() if metric in run.dense_metrics})
        _draw(axis, points, dense, less=is_lower_better(metric))
        axis.set_title(f"batch {batch}")
        axis.set_ylabel(metric)
    axes[-1].set_xlabel("times faster than the dense model")
    return figure


def write_picture(runs: Mapping[str, Figures], path: Path, title: str = "") -> bool:
    """Write `speed_figure` as PNG; return False where there is none."""
    figure = speed_figure(runs, title)
    if figure is not None:
        save_picture(figure, path)
    return figure is not None


def _draw(axis: Any, points: Mapping[str, tuple[float, float]], dense: list[float], *, less: bool) -> None:
    """Draw the points of one batch size."""
    sign = -1.0 if less else 1.0
    everything = [*points.values(), *((1.0, value) for value in dense)]
    best = [everything[place] for place in front([(x, sign * y) for x, y in everything])]
    axis.plot(*zip(*best, strict=True), color=BEFORE, zorder=1, label="Pareto front")
    axis.scatter(*zip(*points.values(), strict=True), color=KEPT, s=24, zorder=2, label="pruned")
    if dense:
        axis.scatter([1.0] * len(dense), dense, color=GONE, marker="s", s=24, zorder=2, label="dense")
    for name, point in points.items():
        if len(points) <= MOST_LABELS or point in best:
            axis.annotate(name, point, xytext=(4, 4), textcoords="offset points", fontsize=LABEL - 1)
    axis.margins(x=0.2, y=0.15)
    axis.grid(color=BEFORE, alpha=0.4)
    axis.legend()
