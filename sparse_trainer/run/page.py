"""`report.html`: what a run did and measured, in one file that a browser shows without a network."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from sparse_trainer.cut.decision import Decision
from sparse_trainer.files.writing import write_text
from sparse_trainer.plan.document import Plan
from sparse_trainer.plan.parts import Sizes
from sparse_trainer.plan.widths import share_kept, title_of, widths_figure
from sparse_trainer.run.curves import Log, curves_figure, lines_of, tradeoff_figure
from sparse_trainer.run.pictures import scores_figure
from sparse_trainer.run.report import Comparison, spell_metric, zero_lines
from sparse_trainer.run.templates import filled, svg_pictures

PAGE_FILE = "report.html"
_TEMPLATE = "page.html.jinja"


@dataclass(frozen=True, kw_only=True)
class Page:
    """What a page is made of."""

    name: str
    """Of the run: the recipe, or the model that was pruned."""
    plan: Plan
    comparison: Comparison | None = None
    """None where nothing was measured."""
    recipe: str | None = None
    """As YAML, overrides included."""
    log: Log = ()
    """Of the training that pruned."""
    decisions: Sequence[Decision] = ()
    """Of one-shot pruning: scores and kept units of each round."""
    metrics: Mapping[str, Mapping[str, float]] = field(default_factory=dict)
    """Where no models were compared: what was measured, name -> `dense` and `pruned`."""
    conditions: str = ""
    """What these were measured on."""
    settings: Mapping[str, object] = field(default_factory=dict)
    """How the model was made, where no recipe says it: name -> value."""


def write_page(folder: Path, page: Page) -> None:
    """Write `report.html` into a folder."""
    write_text(folder / PAGE_FILE, render(page))


def render(page: Page) -> str:
    """Return the page as HTML: all styles and pictures are in it."""
    plan, rows = page.plan, _rows(page)
    return filled(
        _TEMPLATE,
        page=page,
        name=page.name,
        title=title_of(plan),
        rows=rows,
        tiles=[(row[0], row[-1], " → ".join(row[1:-1])) for row in rows[1:] if len(row) > 2],
        figures=svg_pictures(_figures(page)),
        kinds=[
            share_kept(kind, sum(len(g["keep"]) for g in groups), sum(g["size"] for g in groups))
            for kind, groups in plan.by_name().items()
        ],
        zeros=zero_lines(plan),
        latencies=_latencies(page.comparison),
        conditions="" if page.comparison is None else str(page.comparison.conditions),
        recoveries=_recoveries(plan),
        facts=_facts(plan) | dict(page.settings),
    )


def _rows(page: Page) -> list[list[str]]:
    """Return the table of the run; of a plan alone, what it says of sizes."""
    sizes = {"parameters": page.plan.params, "multiply-accumulates per token": page.plan.macs}
    if page.comparison is None:
        metrics = (_metric(name, **values) for name, values in page.metrics.items())
        header = ["", "dense", "pruned", "pruned / dense"]
        return [header, *metrics, *(_size(*one) for one in sizes.items())]
    rows = page.comparison.rows()
    if len(page.comparison.models) == 2:
        rows.append(_size("multiply-accumulates per token", page.plan.macs))
    return rows


def _size(name: str, sizes: Sizes) -> list[str]:
    dense, compact = sizes["dense"], sizes["compact"]
    return [name, f"{dense:,}", f"{compact:,}", f"{compact / max(dense, 1):.2f}x"]


def _metric(name: str, *, dense: float, pruned: float) -> list[str]:
    return [name, spell_metric(name, dense), spell_metric(name, pruned), f"{pruned / dense:.2f}x"]


def _figures(page: Page) -> dict[str, Any]:
    """Return the pictures that there is something to show in: heading -> figure."""
    found: dict[str, Any] = {}
    kinds = page.plan.by_name()
    if kinds and (page.plan.is_cut or not page.plan.zeros):
        found["Widths and depth"] = widths_figure(kinds)
    if page.decisions:
        found["Scores"] = scores_figure(page.decisions[-1])
    if lines_of(page.log):
        found["Training"] = curves_figure(page.log)
    metric = None if page.comparison is None else page.comparison.headline
    if page.comparison is not None and metric is not None:
        found["Quality against latency"] = tradeoff_figure(page.comparison, metric)
    return found


def _latencies(comparison: Comparison | None) -> list[list[str]]:
    if comparison is None:
        return []
    rows = [["model", "batch", "median", "first quartile", "third quartile"]]
    for name, measured in comparison.models.items():
        for batch, latency in measured.latencies.items():
            seconds = (latency.median, latency.low, latency.high)
            rows.append([name, str(batch), *(f"{1e3 * value:.2f} ms" for value in seconds)])
    return rows


def _recoveries(plan: Plan) -> list[list[str]]:
    if not plan.recoveries:
        return []
    rows = [["trained", "data", "teacher", "steps", "tokens, at most", "perplexity before", "after"]]
    for done in plan.recoveries:
        perplexities = (done["perplexity_before"], done["perplexity_after"])
        counts = (done["steps"], done["tokens"])
        rows.append(
            [
                done["train"],
                done["data"],
                done["teacher"] or "none",
                *(f"{count:,}" for count in counts),
                *(f"{value:.2f}" for value in perplexities),
            ]
        )
    return rows


def _facts(plan: Plan) -> dict[str, object]:
    """Return what the plan says beside its units."""
    facts: dict[str, object] = {
        "model": plan.model or None,
        "architecture": plan.architecture,
        "model type": plan.model_type,
        "method": plan.method,
        "budget counts": plan.target,
        "scope": plan.scope,
        "density asked": plan.density_asked,
        "density reached": plan.density_reached,
        "groups": len(plan.groups),
    }
    return {name: value for name, value in facts.items() if value is not None}
