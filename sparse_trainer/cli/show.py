"""Results as a reader in a terminal sees them: rich tables and lines of text."""

from collections.abc import Mapping
from pathlib import Path

from rich.console import RenderableType

from sparse_trainer.cli.tables import table
from sparse_trainer.folders.card import speed_text
from sparse_trainer.plan.document import Plan
from sparse_trainer.run.generation_speed import Generated
from sparse_trainer.run.latency import Bench, Conditions, run_name
from sparse_trainer.run.outcome import RunResult
from sparse_trainer.run.report import kept_lines, zero_lines
from sparse_trainer.run.weights import Weight


def run_lines(result: RunResult) -> list[RenderableType]:
    """Return everything a run has to show; the lines that load the result come last."""
    shown: list[RenderableType] = []
    if result.plan is not None:
        kept = [*kept_lines(result.plan), *zero_lines(result.plan)]
        shown += ["", *kept, ""]
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


def cut_lines(folder: Path, plan: Plan) -> list[RenderableType]:
    """Return what a cut changed."""
    return [
        f"parameters {plan.params['dense']:,} => {plan.params['compact']:,}",
        f"MACs per token {plan.macs['dense']:,} => {plan.macs['compact']:,}",
        f"written to {folder}",
    ]


def pruned_lines(folder: Path, plan: Plan, files: Mapping[str, Path]) -> list[RenderableType]:
    """Return what one-shot pruning changed, and what it wrote."""
    kept = [*kept_lines(plan), *zero_lines(plan)]
    return ["", *kept, "", *cut_lines(folder, plan), *_densities(plan), *_files(files)]


def bench_table(result: Bench, baseline: str | None) -> list[RenderableType]:
    """Return latencies, and the speed-up over the baseline, with its quartiles, where there is one."""
    rows = [["model", "batch", "median", "interquartile range", *(["speed-up"] if baseline else [])]]
    for name, sizes in result.latencies.items():
        speedups = result.speedups(name, _baseline_of(name, baseline, result)) if baseline else {}
        for batch, latency in sizes.items():
            spread = f"{latency.low * 1e3:.2f} to {latency.high * 1e3:.2f} ms"
            faster = [str(speedups[batch])] if baseline else []
            rows.append([name, str(batch), f"{latency.median * 1e3:.2f} ms", spread, *faster])
    return [table(rows, None), _conditions(result.conditions)]


def _baseline_of(name: str, baseline: str, result: Bench) -> str:
    """Return what the latencies of a name are compared with: the baseline, in the same runtime where there are some."""
    if baseline in result.latencies:
        return baseline
    runtime = name.rpartition(" (")[2].removesuffix(")")
    return run_name(baseline, runtime)


def weight_table(weights: Mapping[str, Weight]) -> RenderableType:
    """Return what models weigh before they run."""
    rows = [["model", "parameters", "MACs per token", "weight files", "load, cold", "load, warm"]]
    for name, each in weights.items():
        size = "-" if each.file_bytes is None else f"{each.file_bytes / 1e6:.1f} MB"
        loads = (f"{seconds:.2f} s" for seconds in (each.load_cold, each.load_warm))
        rows.append([name, f"{each.parameters:,}", f"{each.macs:,}", size, *loads])
    return table(rows, None)


def generation_table(
    generated: Mapping[str, Mapping[int, Generated]], baseline: str | None
) -> RenderableType:
    """Return how fast models read a prompt and write, and how many times faster than the baseline."""
    extra = ["speed-up", "speed-up"] if baseline else []
    rows = [["model", "batch", "prompt", *extra[:1], "tokens per second", *extra[1:]]]
    for name, sizes in generated.items():
        for batch, each in sizes.items():
            prompt, said = f"{each.prefill.median * 1e3:.2f} ms", f"{batch / each.decode.median:.1f}"
            if baseline:
                other = generated[baseline][batch]
                faster = str(other.prefill.over(each.prefill)), str(other.decode.over(each.decode))
                rows.append([name, str(batch), prompt, faster[0], said, faster[1]])
            else:
                rows.append([name, str(batch), prompt, said])
    return table(rows, None)


def _densities(plan: Plan) -> list[str]:
    """Return what was asked and what was reached, where somebody asked."""
    speed = [] if plan.speed is None else [speed_text(plan.speed)]
    if plan.density_reached is None:
        return speed
    asked = "" if plan.density_asked is None else f"asked {plan.density_asked}, "
    return [f"density {asked}reached {plan.density_reached:.4f}", *speed]


def _files(files: Mapping[str, Path]) -> list[str]:
    return [f"{what}: {path}" for what, path in files.items()]


def _conditions(conditions: Conditions) -> str:
    length = conditions.sequence_length
    inputs = "inputs of the models' own size" if length is None else f"sequences of {length} tokens"
    return (
        f"latency on {conditions.device}, {conditions.dtype}, {conditions.threads} threads, "
        f"{inputs}, median of {conditions.rounds} rounds, torch {conditions.torch}"
    )
