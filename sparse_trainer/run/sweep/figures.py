"""What the runs of a sweep measured, side by side: rows of a table, points of a picture, the Pareto front."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from sparse_trainer.run.stages import DENSE

Cells = dict[str, Any]


@dataclass(frozen=True, kw_only=True)
class Figures:
    """The figures of one finished run: those of its result, and of the dense model that it is compared with."""

    result: Mapping[str, Any]
    """As `RunResult.to_json` writes it."""

    @property
    def _models(self) -> Mapping[str, Any]:
        models: Mapping[str, Any] = self.result["models"]
        return models

    @property
    def _dense(self) -> Mapping[str, Any] | None:
        """The baseline; None of a run without pruning, whose dense model is its result."""
        return self._models[DENSE] if len(self._models) > 1 else None

    @property
    def _own(self) -> Mapping[str, Any]:
        """The model that the run made."""
        own: Mapping[str, Any] = list(self._models.values())[-1]
        return own

    @property
    def metrics(self) -> Mapping[str, float]:
        """Metrics of the result, the headline first."""
        return self._own["metrics"] or {}

    @property
    def parameters(self) -> int:
        """Of the result."""
        return int(self._own["parameters"])

    @property
    def dense_metrics(self) -> Mapping[str, float]:
        """Those of the dense model, where it has any."""
        return {} if self._dense is None else self._dense["metrics"] or {}

    @property
    def speedups(self) -> Mapping[str, float]:
        """Batch size -> how many times faster the result is than the dense model."""
        if self._dense is None:
            return {}
        own, dense = self._own["latencies"], self._dense["latencies"]
        return {batch: dense[batch]["median"] / own[batch]["median"] for batch in own}

    def cells(self) -> Cells:
        """Return all as columns of a table: seconds, bytes, fractions; `dense_` is in front of the baseline's."""
        cells: Cells = {**self.metrics}
        cells |= {f"dense_{name}": value for name, value in self.dense_metrics.items()}
        cells["density_reached"] = self.result["density_reached"]
        cells |= {f"speedup_batch_{batch}": value for batch, value in self.speedups.items()}
        for prefix, model in (("", self._own), ("dense_", self._dense)):
            if model is not None:
                cells[f"{prefix}parameters"] = model["parameters"]
                cells[f"{prefix}file_bytes"] = model["file_bytes"]
                for batch, latency in model["latencies"].items():
                    cells[f"{prefix}latency_batch_{batch}"] = latency["median"]
        conditions = self.result["conditions"]
        return cells | {key: conditions[key] for key in ("device", "dtype", "threads", "sequence_length")}


def front(points: Sequence[tuple[float, float]]) -> list[int]:
    """Return which points no other one beats: their places, from the slowest to the fastest.

    Args:
        points: Of each, speed and quality; more is better of both.

    >>> front([(1.0, 0.9), (1.5, 0.7), (1.4, 0.8), (1.3, 0.6)])
    [0, 2, 1]
    """
    best, found = float("-inf"), []
    for place in sorted(range(len(points)), key=lambda place: points[place], reverse=True):
        if points[place][1] > best:
            best = points[place][1]
            found.append(place)
    return found[::-1]


def columns(rows: Iterable[Cells]) -> list[str]:
    """Return the names of all columns, in the order of their first row."""
    return list(dict.fromkeys(name for row in rows for name in row))
