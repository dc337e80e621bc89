"""A picture of a bench: forward passes, and prompts and new tokens, one panel for each batch size and length."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from sparse_trainer.files.figures import BEFORE, INK, KEPT, LABEL, look, panels, save_picture
from sparse_trainer.run.latency import Latency, Spread
from sparse_trainer.run.side_by_side import BenchResult


@dataclass(frozen=True, kw_only=True)
class _Bar:
    """One model in one runtime."""

    model: str
    runtime: str
    time: Latency
    faster: Spread | None
    """How many times faster than the baseline."""


@look()
def draw_bench(result: BenchResult, path: Path, baseline: str | None) -> None:
    """Write bars of the medians as PNG, with quartiles, and how many times faster than the baseline each is."""
    parts = list(_panels(result))
    figure, axes = panels([0.5 + 0.28 * len(bars) for _, bars in parts], "speed")
    for axis, (title, bars) in zip(axes, parts, strict=False):
        _draw(axis, bars, baseline)
        axis.set_title(title)
    axes[-1].set_xlabel("milliseconds: median and quartiles; times as fast as the baseline")
    save_picture(figure, path)


def _panels(result: BenchResult) -> Iterator[tuple[str, list[_Bar]]]:
    """Yield panels with their titles."""
    for rows, length in dict.fromkeys((each.rows, each.length) for each in result.forward):
        yield (
            _size("forward pass", rows, length),
            [
                _Bar(model=each.model, runtime=each.runtime, time=each.latency, faster=each.speedup)
                for each in result.forward
                if (each.rows, each.length) == (rows, length)
            ],
        )
    for rows, length in dict.fromkeys((each.rows, each.length) for each in result.generation):
        here = [each for each in result.generation if (each.rows, each.length) == (rows, length)]
        for place, told in enumerate(("prompt", "a token more, all rows, after a prompt")):
            yield (
                _size(told, rows, length),
                [
                    _Bar(
                        model=each.model,
                        runtime=each.runtime,
                        time=(each.generated.prefill, each.generated.decode)[place],
                        faster=each.faster and each.faster[place],
                    )
                    for each in here
                ],
            )


def _size(told: str, rows: int, length: int | None) -> str:
    return f"{told}: batch {rows}" + (f", {length} tokens" if length else "")


def _draw(axis: Any, part: Sequence[_Bar], baseline: str | None) -> None:
    times = [each.time for each in part]
    middles = [1e3 * time.median for time in times]
    below = [1e3 * (time.median - time.low) for time in times]
    above = [1e3 * (time.high - time.median) for time in times]
    colors = [BEFORE if each.model == baseline else KEPT for each in part]
    places = range(len(part))
    axis.barh(places, middles, xerr=[below, above], color=colors, ecolor=INK, capsize=2)
    axis.set_yticks(places, [f"{Path(each.model).name} ({each.runtime})" for each in part])
    axis.invert_yaxis()
    axis.margins(x=0.15)
    for place, each in zip(places, part, strict=True):
        if each.faster is not None and each.model != baseline:
            text = f" {each.faster.median:.2f}x"
            axis.annotate(text, (1e3 * each.time.high, place), va="center", fontsize=LABEL, color=INK)
