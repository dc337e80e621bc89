"""Figures of a run: how its training went, and quality against latency."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from sparse_trainer.files.figures import BEFORE, GONE, KEPT, MORE, look, panels, save_picture
from sparse_trainer.run.report import Comparison, spell_metric

Log = Sequence[Mapping[str, Any]]
"""What a Trainer logged: mappings of names to numbers, with `step`."""
CURVES_FILES = {"curves": "curves.png"}
"""What a file shows -> its name in the folder of the model."""
_EVALUATED = "eval_"
_CLOCKS = ("runtime", "samples_per_second", "steps_per_second")
_LOSSES = ("loss", "distillation_loss", "penalty", "eval_loss")
_COLOURS = (KEPT, GONE, *MORE)


def lines_of(log: Log) -> dict[str, dict[str, list[tuple[float, float]]]]:
    """Return the curves of a training: title of a panel -> name of a line -> steps and values.

    >>> lines_of([{"loss": 2.0, "density": 0.9, "step": 10}, {"eval_accuracy": 0.5, "step": 10}])
    {'loss': {'loss': [(10, 2.0)]}, 'density': {'density': [(10, 0.9)]}, 'accuracy': {'eval_accuracy': [(10, 0.5)]}}
    """
    metrics = dict.fromkeys(
        name for entry in log for name in entry if name.startswith(_EVALUATED) and name not in _LOSSES
    )
    wanted = {"loss": _LOSSES, "density": ("density", "density_target"), "threshold": ("threshold",)}
    for name in metrics:
        title = name.removeprefix(_EVALUATED)
        if title not in _CLOCKS:
            wanted[title] = (name,)
    found = {}
    for title, names in wanted.items():
        lines = {name: [(entry["step"], entry[name]) for entry in log if name in entry] for name in names}
        found[title] = {name: points for name, points in lines.items() if points}
    return {title: lines for title, lines in found.items() if lines}


@look()
def curves_figure(log: Log, title: str = "") -> Any:
    """Return a figure of the losses, densities, thresholds and metrics that a training logged over its steps."""
    found = lines_of(log)
    figure, axes = panels([1.5] * len(found), title)
    steps = [step for lines in found.values() for points in lines.values() for step, _ in points]
    for axis, (name, lines) in zip(axes, found.items(), strict=False):
        for (line, points), colour in zip(lines.items(), _COLOURS, strict=False):
            marker = "o" if line.startswith(_EVALUATED) or len(points) == 1 else None
            dashes = "--" if line.endswith("_target") else "-"
            axis.plot(
                *zip(*points, strict=True), dashes, color=colour, marker=marker, markersize=3, label=line
            )
        axis.set_title(name)
        axis.grid(color=BEFORE, alpha=0.25)
        axis.set_xlim(0, 1.02 * max(steps))
        if len(lines) > 1:
            axis.legend(ncols=len(lines), loc="lower right", bbox_to_anchor=(1.0, 1.0), borderpad=0)
    if found:
        axes[-1].set_xlabel("step")
    return figure


def write_curves(log: Log, folder: Path, title: str) -> None:
    """Write the picture of a training into a folder, where something was logged."""
    if lines_of(log):
        save_picture(curves_figure(log, title), folder / CURVES_FILES["curves"])


@look()
def tradeoff_figure(comparison: Comparison, metric: str, title: str = "") -> Any:
    """Return a figure of a metric against latency, one panel per batch size, a point per model with its quartiles."""
    models = {name: m for name, m in comparison.models.items() if metric in (m.metrics or {})}
    batches = list(next(iter(models.values())).latencies)
    figure, axes = panels([1.7] * len(batches), title)
    for axis, batch in zip(axes, batches, strict=False):
        for (name, measured), colour in zip(models.items(), _COLOURS, strict=False):
            latency, value = measured.latencies[batch], (measured.metrics or {})[metric]
            around = [[1e3 * (latency.median - latency.low)], [1e3 * (latency.high - latency.median)]]
            x = 1e3 * latency.median
            axis.errorbar([x], [value], xerr=around, fmt="o", color=colour, capsize=3)
            text = f"{name}: {spell_metric(metric, value)}, {x:.1f} ms"
            axis.annotate(text, (x, value), xytext=(5, 5), textcoords="offset points", fontsize=7)
        axis.set_title(f"batch {batch}")
        axis.set_ylabel(metric)
        axis.set_xlim(0, 1.4e3 * max(measured.latencies[batch].high for measured in models.values()))
        axis.margins(y=0.4)
        axis.grid(color=BEFORE, alpha=0.25)
    if batches:
        axes[-1].set_xlabel("milliseconds per call (whiskers: quartiles)")
    return figure
