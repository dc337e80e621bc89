"""What a run or a model has to show: the comparison table, changed shapes, kept units per layer."""

import itertools
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from sparse_trainer.plan.document import Plan
from sparse_trainer.run.latency import Conditions, Latency

MISSING = "-"
"""Shown where a number was not measured."""
PERPLEXITY = "perplexity"
_LATENCY = "latency"
NO_SHARES = (PERPLEXITY, "loss", "error")
"""Ends of names of metrics that are not shown as percentages."""


@dataclass(frozen=True, kw_only=True)
class Measured:
    """What was measured of one model."""

    metrics: Mapping[str, float] | None
    """Metric name -> value; None = the model was never fine-tuned."""
    parameters: int
    file_bytes: int
    """Size of the weight files on disk."""
    latencies: Mapping[int, Latency]
    """Batch size -> latency."""


@dataclass(frozen=True, kw_only=True)
class Comparison:
    """Models side by side; the first one is the baseline."""

    models: Mapping[str, Measured]
    conditions: Conditions

    @property
    def headline(self) -> str | None:
        """The first metric that the last model was measured by; None where it was by none."""
        return next(iter(list(self.models.values())[-1].metrics or {}), None)

    def rows(self) -> list[list[str]]:
        """Return the table: a header, then one row per quantity, one column per model, and the ratio to the first."""
        baseline, *others = self.models
        rows = [["", baseline, *others, *(f"{name} / {baseline}" for name in others)]]
        measured = list(self.models.values())
        for metric in dict.fromkeys(name for m in measured for name in m.metrics or {}):
            values = [(m.metrics or {}).get(metric) for m in measured]
            change = _ratio if metric.endswith(NO_SHARES) else _points
            rows.append(
                [
                    metric,
                    *(spell_metric(metric, v) for v in values),
                    *(change(v, values[0]) for v in values[1:]),
                ]
            )
        rows.append(_row("parameters", [m.parameters for m in measured], "{:,.0f}"))
        rows.append(_row("file size", [m.file_bytes / 1e6 for m in measured], "{:.1f} MB"))
        for batch in measured[0].latencies:
            first, *rest = (m.latencies[batch] for m in measured)
            spelled = (f"{latency.median * 1e3:.1f} ms" for latency in (first, *rest))
            rows.append(
                [f"latency, batch {batch}", *spelled, *(str(latency.over(first)) for latency in rest)]
            )
        return rows

    def card_rows(self) -> dict[str, dict[str, str]]:
        """Return the table as rows of a model card, less the parameters, which every card has.

        A latency says how it compares with that of the baseline, round by round, with quartiles.
        """
        baseline, *others = self.models
        found = {}
        for title, first, *cells in self.rows()[1:]:
            values, ratios = cells[: len(others)], cells[len(others) :]
            if title.startswith(_LATENCY):
                values = [
                    f"{value}, {ratio} of {baseline}" for value, ratio in zip(values, ratios, strict=True)
                ]
            if title != "parameters":
                found[title] = {baseline: first, **dict(zip(others, values, strict=True))}
        return found

    def to_json(self) -> dict[str, Any]:
        """Return plain types for JSON."""
        return {
            "models": {name: _measured_json(measured) for name, measured in self.models.items()},
            "conditions": asdict(self.conditions),
        }


def _row(title: str, values: Sequence[float], form: str) -> list[str]:
    return [title, *(form.format(v) for v in values), *(f"{v / values[0]:.2f}x" for v in values[1:])]


def markdown(rows: Sequence[Sequence[str]]) -> str:
    """Return a table in Markdown; the first row is the header.

    >>> print(markdown([["", "dense"], ["accuracy", "91.0 %"]]))
    |  | dense |
    | --- | --- |
    | accuracy | 91.0 % |
    """
    lines = ["| " + " | ".join(row) + " |" for row in rows]
    return "\n".join([lines[0], "|" + " --- |" * len(rows[0]), *lines[1:]])


def shape_lines(plan: Plan) -> list[str]:
    """Return one line per weight matrix that changed: `[3072, 768] => [552, 768] layer.0.intermediate.dense.weight`."""
    changed = {
        name: shapes for name, shapes in plan.shapes.items() if shapes[0] != shapes[1] and len(shapes[0]) > 1
    }
    return [f"{_shape(before)} => {_shape(after)} {name}" for name, (before, after) in changed.items()]


def kept_lines(plan: Plan, width: int = 24) -> list[str]:
    """Return one bar per group: kind, layer, how many of its units are kept; nothing where weights alone went.

    Layers one after the other that keep as much share a line.
    """
    if plan.zeros and not plan.is_cut:
        return []
    lines = []
    for kind, groups in plan.by_name().items():
        counted = [
            (len(group["keep"]), group["size"], group["layer"] - place) for place, group in enumerate(groups)
        ]
        at = 0
        for (kept, size, _), alike in itertools.groupby(counted):
            count = len(list(alike))
            layers, at = [group["layer"] for group in groups[at : at + count]], at + count
            where = f"{layers[0]}" if len(layers) == 1 else f"{layers[0]}-{layers[-1]}"
            lines.append(f"{kind:>9} {where:>5} {'█' * round(kept / size * width):<{width}} {kept}/{size}")
    return lines


def zero_lines(plan: Plan) -> list[str]:
    """Return how many weights are zero, and that this alone is not faster; nothing where whole units went."""
    zero, size = plan.zeros_in_all
    if not size:
        return []
    return [
        f"{zero:,} of {size:,} weights in {len(plan.zeros)} linears are zero ({100 * zero / size:.2f} %): by itself "
        "neither smaller nor faster"
    ]


def _shape(shape: Sequence[int] | None) -> str:
    return "removed" if shape is None else f"[{', '.join(map(str, shape))}]"


def spell_metric(name: str, value: float | None) -> str:
    """Return a value as tables show it: a percentage, or a number.

    >>> spell_metric("accuracy", 0.912), spell_metric("perplexity", 8.5), spell_metric("f1", None)
    ('91.2 %', '8.50', '-')
    """
    if value is None:
        return MISSING
    return f"{value:.2f}" if name.endswith(NO_SHARES) else f"{100 * value:.1f} %"


def _points(value: float | None, baseline: float | None) -> str:
    return MISSING if value is None or baseline is None else f"{100 * (value - baseline):+.1f} points"


def _ratio(value: float | None, baseline: float | None) -> str:
    return MISSING if value is None or baseline is None else f"{value / baseline:.2f}x"


def _measured_json(measured: Measured) -> dict[str, Any]:
    latencies = {str(batch): latency.to_json() for batch, latency in measured.latencies.items()}
    return {**asdict(measured), "latencies": latencies}
