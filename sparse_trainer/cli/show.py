"""Results as a reader in a terminal sees them: rich tables and lines of text."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from rich.console import Console, RenderableType
from rich.markup import escape
from rich.progress import BarColumn, DownloadColumn, Progress, TextColumn, TransferSpeedColumn
from rich.table import Table

from sparse_trainer.architectures import verdicts
from sparse_trainer.architectures.matrix import Matrix
from sparse_trainer.cli.inspection import Inspection
from sparse_trainer.plan.document import Plan
from sparse_trainer.run.latency import Bench, Conditions
from sparse_trainer.run.outcome import RunResult
from sparse_trainer.run.report import kept_lines, shape_lines


def run_lines(result: RunResult) -> list[RenderableType]:
    """Return everything a run has to show; the lines that load the result come last."""
    shown: list[RenderableType] = []
    if result.plan is not None:
        shown += ["", *shape_lines(result.plan), "", *kept_lines(result.plan), ""]
    shown.append(table(result.comparison.rows(), f"recipe {result.recipe}"))
    shown.append(_conditions(result.comparison.conditions))
    if result.plan is not None:
        shown += _densities(result.plan)
    if result.reloaded is not None:
        shown.append(
            f"reloaded in a new process with transformers alone: {result.reloaded.same_predictions} of "
            f"{result.reloaded.samples} predictions equal, largest difference of logits "
            f"{result.reloaded.largest_difference:.1e}"
        )
    shown += _files(result.files)
    shown += [f"done in {result.seconds / 60:.1f} minutes", "", *result.load_lines]
    return shown


def recipe_table(recipes: Mapping[str, str]) -> Table:
    """Return the names of recipes with their descriptions."""
    return table([["recipe", "description"], *([name, text] for name, text in recipes.items())], None, "left")


def environment_table(found: Mapping[str, Any]) -> Table:
    """Return versions and hardware as a table, to be pasted into a report."""
    rows = [[name, version or "not installed"] for name, version in found["packages"].items()]
    cpu = found["cpu"]
    rows += [
        ["python", found["python"]],
        ["system", found["system"]],
        ["cpu", f"{cpu['kind']}, {cpu['cores']} cores, {cpu['threads']} threads"],
        ["gpu", ", ".join(found["gpus"]) or ("mps" if found["mps"] else "none")],
        ["cuda", found["cuda"] or "none"],
    ]
    return table([["what", "found"], *rows], None, "left")


def inspection_tables(result: Inspection) -> list[RenderableType]:
    """Return totals per kind, the groups per layer, and what stays untouched."""
    totals = [["kind", "groups", "units", "parameters", "MACs per token"]]
    totals += [[kind, *(f"{number:,}" for number in sums.values())] for kind, sums in result.totals().items()]
    groups = [["group", "units", "parameters", "MACs per token"]]
    groups += [[g.name, f"{g.units:,}", f"{g.parameters:,}", f"{g.macs:,}"] for g in result.groups]
    untouched = [["untouched", "reason"], *([path, why] for path, why in result.untouched.items())]
    return [
        f"{result.model}, forms {', '.join(result.forms)}: {result.parameters:,} parameters, "
        f"{result.macs:,} MACs per token at {result.sequence_length} tokens",
        table(groups, "groups"),
        table(totals, "per kind (kinds contain each other: they do not add up)"),
        table(untouched, None, "left"),
    ]


def cut_lines(folder: Path, plan: Plan) -> list[RenderableType]:
    """Return what a cut changed."""
    return [
        *shape_lines(plan),
        f"parameters {plan.params['dense']:,} => {plan.params['compact']:,}",
        f"MACs per token {plan.macs['dense']:,} => {plan.macs['compact']:,}",
        f"written to {folder}",
    ]


def pruned_lines(folder: Path, plan: Plan, files: Mapping[str, Path]) -> list[RenderableType]:
    """Return what one-shot pruning changed, and what it wrote."""
    return ["", *kept_lines(plan), "", *cut_lines(folder, plan), *_densities(plan), *_files(files)]


def bench_table(result: Bench, baseline: str | None) -> list[RenderableType]:
    """Return latencies, and the speed-up over the baseline where there is one."""
    rows = [["model", "batch", "median", "interquartile range", *(["speed-up"] if baseline else [])]]
    for name, sizes in result.latencies.items():
        speedups = result.speedups(name, baseline) if baseline else {}
        for batch, latency in sizes.items():
            spread = f"{latency.low * 1e3:.2f} to {latency.high * 1e3:.2f} ms"
            faster = [f"{speedups[batch]:.2f}x"] if baseline else []
            rows.append([name, str(batch), f"{latency.median * 1e3:.2f} ms", spread, *faster])
    return [table(rows, None), _conditions(result.conditions)]


def architecture_table(matrix: Matrix) -> list[RenderableType]:
    """Return a row per model type, and the counts."""
    rows = [["type", "prunable", "checks", "exports", "fails, left alone, or why not"]]
    for name, report in matrix.reports.items():
        if report.reason:
            verdict = "nothing to prune" if report.is_built else "not built here"
            rows.append([name, verdict, "", "", verdicts.one_line(report.reason)])
        else:
            said = filter(None, (verdicts.failures(report), verdicts.remarks(report)))
            cells = verdicts.units(report), verdicts.checks(report), verdicts.exports(report)
            rows.append([name, *cells, "; ".join(said)])
    return [table([[escape(cell) for cell in row] for row in rows], None, "left"), matrix.summary()]


def table(rows: Sequence[Sequence[str]], title: str | None, justify: str = "right") -> Table:
    """Return a rich table; the first row is the header, the first column stands left."""
    shown = Table(title=title, title_justify="left")
    for number, name in enumerate(rows[0]):
        shown.add_column(name, justify="right" if number and justify == "right" else "left", overflow="fold")
    for row in rows[1:]:
        shown.add_row(*row)
    return shown


def _densities(plan: Plan) -> list[str]:
    """Return what was asked and what was reached, where somebody asked."""
    if plan.density_reached is None:
        return []
    asked = "" if plan.density_asked is None else f"asked {plan.density_asked}, "
    return [f"density {asked}reached {plan.density_reached:.4f}"]


def _files(files: Mapping[str, Path]) -> list[str]:
    return [f"{what}: {path}" for what, path in files.items()]


def _conditions(conditions: Conditions) -> str:
    length = conditions.sequence_length
    inputs = "inputs of the models' own size" if length is None else f"sequences of {length} tokens"
    return (
        f"latency on {conditions.device}, {conditions.dtype}, {conditions.threads} threads, "
        f"{inputs}, median of {conditions.rounds} rounds, torch {conditions.torch}"
    )


def file_progress() -> Progress:
    """Return a bar on stderr for bytes written to files; it goes when it is done."""
    columns = (TextColumn("{task.description}"), BarColumn(), DownloadColumn(), TransferSpeedColumn())
    return Progress(*columns, console=Console(stderr=True), transient=True)
