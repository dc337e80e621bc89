"""`report.html`: what a run did and measured, in one file that a browser shows without a network."""

import importlib.resources
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import jinja2
from markupsafe import Markup

from sparse_trainer.cut.decision import Decision
from sparse_trainer.files.figures import svg_of
from sparse_trainer.files.writing import write_text
from sparse_trainer.plan.document import Plan, Sizes
from sparse_trainer.plan.widths import share_kept, title_of, widths_figure
from sparse_trainer.run.curves import Log, curves_figure, lines_of, tradeoff_figure
from sparse_trainer.run.pictures import scores_figure
from sparse_trainer.run.report import Comparison, zero_lines

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


def write_page(folder: Path, page: Page) -> None:
    """Write `report.html` into a folder."""
    write_text(folder / PAGE_FILE, render(page))


def render(page: Page) -> str:
    """Return the page as HTML: all styles and pictures are in it."""
    environment = jinja2.Environment(undefined=jinja2.StrictUndefined, autoescape=True, trim_blocks=True)
    template = importlib.resources.files("sparse_trainer.run").joinpath(_TEMPLATE).read_text(encoding="utf-8")
    plan, rows = page.plan, _rows(page)
    return environment.from_string(template).render(
        page=page,
        title=title_of(plan),
        rows=rows,
        tiles=[(row[0], row[-1], " → ".join(row[1:-1])) for row in rows[1:] if len(row) > 2],
        figures=_figures(page),
        kinds=[
            share_kept(kind, sum(len(g["keep"]) for g in groups), sum(g["size"] for g in groups))
            for kind, groups in plan.by_name().items()
        ],
        zeros=zero_lines(plan),
        latencies=_latencies(page.comparison),
        conditions="" if page.comparison is None else str(page.comparison.conditions),
        facts=_facts(plan),
    )


def _rows(page: Page) -> list[list[str]]:
    """Return the table of the run; of a plan alone, what it says of sizes."""
    sizes = {"parameters": page.plan.params, "multiply-accumulates per token": page.plan.macs}
    if page.comparison is None:
        return [["", "dense", "pruned", "pruned / dense"], *(_size(*one) for one in sizes.items())]
    rows = page.comparison.rows()
    if len(page.comparison.models) == 2:
        rows.append(_size("multiply-accumulates per token", page.plan.macs))
    return rows


def _size(name: str, sizes: Sizes) -> list[str]:
    dense, compact = sizes["dense"], sizes["compact"]
    return [name, f"{dense:,}", f"{compact:,}", f"{compact / max(dense, 1):.2f}x"]


def _figures(page: Page) -> Mapping[str, Markup]:
    """Return the pictures that there is something to show in: heading -> SVG."""
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
    # Text in it was escaped by matplotlib.
    return {heading: Markup(svg_of(figure)) for heading, figure in found.items()}


def _latencies(comparison: Comparison | None) -> list[list[str]]:
    if comparison is None:
        return []
    rows = [["model", "batch", "median", "first quartile", "third quartile"]]
    for name, measured in comparison.models.items():
        for batch, latency in measured.latencies.items():
            seconds = (latency.median, latency.low, latency.high)
            rows.append([name, str(batch), *(f"{1e3 * value:.2f} ms" for value in seconds)])
    return rows


def _facts(plan: Plan) -> Mapping[str, object]:
    """Return what the plan says beside its units."""
    facts: dict[str, object] = {
        "architecture": plan.architecture,
        "model type": plan.model_type,
        "method": plan.method,
        "budget counts": plan.target,
        "scope": plan.scope,
        "density asked": plan.density_asked,
        "density reached": plan.density_reached,
        "groups": len(plan.groups),
    }
    for number, done in enumerate(plan.recoveries, start=1):
        facts[f"recovery {number}"] = (
            f"{done['train']} on {done['data']}, {done['steps']} steps, perplexity "
            f"{done['perplexity_before']:.2f} → {done['perplexity_after']:.2f}"
        )
    return {name: value for name, value in facts.items() if value is not None}
