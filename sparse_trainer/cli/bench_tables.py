"""A bench as a reader in a terminal sees it."""

from collections.abc import Mapping, Sequence

from rich.console import RenderableType

from sparse_trainer.cli.tables import table
from sparse_trainer.run.side_by_side import BenchResult, ForwardTime, GenerationTime, Name
from sparse_trainer.run.weights import Weight


def bench_lines(result: BenchResult) -> list[RenderableType]:
    """Return tables of sizes, latencies and generation, the conditions, and what to know of the numbers."""
    told = result.conditions
    conditions = (
        f"on {told.device}, {told.dtype}, {told.threads} threads, medians of {told.rounds} rounds, "
        f"torch {told.torch}; speed-ups round by round, with quartiles"
    )
    shown = [_sizes(result.weights), _forward(result.forward)]
    if result.generation:
        shown.append(_generation(result.generation))
    if result.memory:
        shown.append(_memory(result.memory))
    return [*shown, conditions, *result.notes]


def _sizes(weights: Mapping[str, Weight]) -> RenderableType:
    rows = [["model", "parameters", "MACs per token", "weight files", "load, cold", "load, warm"]]
    for name, each in weights.items():
        macs = "-" if each.macs is None else f"{each.macs:,}"
        size = "-" if each.file_bytes is None else f"{each.file_bytes / 1e6:.1f} MB"
        loads = (f"{seconds:.2f} s" for seconds in (each.load_cold, each.load_warm))
        rows.append([name, f"{each.parameters:,}", macs, size, *loads])
    return table(rows, None)


def _forward(times: Sequence[ForwardTime]) -> RenderableType:
    has_lengths = any(each.length for each in times)
    is_compared = any(each.speedup for each in times)
    is_beside = any(each.beside for each in times)
    unit = "tokens per second" if has_lengths else "inputs per second"
    extra = [*(["speed-up"] * is_compared), *([f"over {times[0].runtime}"] * is_beside)]
    rows = [["model", "batch", "tokens", "median", "quartiles", unit, *extra]]
    for each in times:
        latency = each.latency
        rows.append(
            [
                _called(each.model, each.runtime),
                str(each.rows),
                str(each.length or "-"),
                f"{latency.median * 1e3:.2f} ms",
                f"{latency.low * 1e3:.2f} to {latency.high * 1e3:.2f} ms",
                f"{each.per_second:,.0f}",
                *([str(each.speedup)] if is_compared else []),
                *([str(each.beside or "-")] if is_beside else []),
            ]
        )
    return table(rows, "a forward pass")


def _generation(times: Sequence[GenerationTime]) -> RenderableType:
    is_compared = any(each.faster for each in times)
    extra = ["speed-up"] * is_compared
    rows = [
        ["model", "batch", "tokens", "prompt", "tokens per second", *extra, "new tokens per second", *extra]
    ]
    for each in times:
        prompt, after = ([str(one)] for one in each.faster) if each.faster else ([], [])
        read = f"{each.generated.prefill.median * 1e3:.2f} ms"
        speed = f"{each.read_per_second:,.0f}"
        head = [_called(each.model, each.runtime), str(each.rows), str(each.length), read, speed]
        rows.append([*head, *prompt, f"{each.per_second:,.1f}", *after])
    return table(rows, "generation with a cache")


def _memory(memory: Mapping[Name, int | None]) -> RenderableType:
    rows = [["model", "memory at the peak"]]
    for (model, runtime), size in memory.items():
        rows.append([_called(model, runtime), "-" if size is None else f"{size / 1e6:,.0f} MB"])
    return table(rows, "loaded and run once, beyond what libraries hold")


def _called(model: str, runtime: str) -> str:
    return f"{model} ({runtime})"
