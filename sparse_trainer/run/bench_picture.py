"""A picture of a bench: what forward passes take, one panel for each batch size and length."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from sparse_trainer.files.figures import BEFORE, INK, KEPT, LABEL, look, panels, save_picture
from sparse_trainer.run.side_by_side import ForwardTime


@look()
def draw_bench(times: Sequence[ForwardTime], path: Path, baseline: str | None) -> None:
    """Write bars of the medians as PNG, with quartiles, and how many times faster than the baseline each is."""
    sizes = list(dict.fromkeys((each.rows, each.length) for each in times))
    parts = [[each for each in times if (each.rows, each.length) == size] for size in sizes]
    figure, axes = panels([0.5 + 0.28 * len(part) for part in parts], "forward pass")
    for axis, part, (rows, length) in zip(axes, parts, sizes, strict=False):
        _draw(axis, part, baseline)
        axis.set_title(f"batch {rows}" + (f", {length} tokens" if length else ""))
    axes[-1].set_xlabel("milliseconds: median and quartiles; times as fast as the baseline")
    save_picture(figure, path)


def _draw(axis: Any, part: Sequence[ForwardTime], baseline: str | None) -> None:
    times = [each.latency for each in part]
    middles = [1e3 * time.median for time in times]
    below = [1e3 * (time.median - time.low) for time in times]
    above = [1e3 * (time.high - time.median) for time in times]
    colors = [BEFORE if each.model == baseline else KEPT for each in part]
    places = range(len(part))
    axis.barh(places, middles, xerr=[below, above], color=colors, ecolor=INK, capsize=2)
    axis.set_yticks(places, [_short(each) for each in part])
    axis.invert_yaxis()
    axis.margins(x=0.15)
    for place, each in zip(places, part, strict=True):
        if each.speedup is not None and each.model != baseline:
            text = f" {each.speedup.median:.2f}x"
            axis.annotate(text, (1e3 * each.latency.high, place), va="center", fontsize=LABEL, color=INK)


def _short(each: ForwardTime) -> str:
    return f"{Path(each.model).name} ({each.runtime})"
