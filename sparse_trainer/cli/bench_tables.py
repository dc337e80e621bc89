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
    names = short_names(list(dict.fromkeys([*result.weights, *(each.model for each in result.forward)])))
    shown = [_sizes(result.weights, names), _forward(result.forward, names)]
    if result.generation:
        shown.append(_generation(result.generation, names))
    if result.memory:
        shown.append(_memory(result.memory, names))
    return [*shown, conditions, *result.notes]


def short_names(models: Sequence[str]) -> dict[str, str]:
    """Return what models are called in a table: the last parts of their paths that tell them apart.

    >>> short_names(["/models/a/pruned", "/models/b/pruned", "org/dense"])
    {'/models/a/pruned': 'a/pruned', '/models/b/pruned': 'b/pruned', 'org/dense': 'dense'}
    """

    def last(model: str, count: int) -> str:
        return "/".join(model.rstrip("/").split("/")[-count:])

    found = {}
    for model in models:
        others = [other for other in models if other != model]
        counts = range(1, model.count("/") + 2)
        apart = (n for n in counts if all(last(other, n) != last(model, n) for other in others))
        found[model] = last(model, next(apart, len(model)))
    return found


def _sizes(weights: Mapping[str, Weight], names: Mapping[str, str]) -> RenderableType:
    rows = [["model", "parameters", "MACs per token", "weight files", "load, cold", "load, warm"]]
    for name, each in weights.items():
        macs = "-" if each.macs is None else f"{each.macs:,}"
        size = "-" if each.file_bytes is None else f"{each.file_bytes / 1e6:.1f} MB"
        loads = (f"{seconds:.2f} s" for seconds in (each.load_cold, each.load_warm))
        rows.append([names[name], f"{each.parameters:,}", macs, size, *loads])
    return table(rows, None)


def _forward(times: Sequence[ForwardTime], names: Mapping[str, str]) -> RenderableType:
    has_lengths = any(each.length for each in times)
    is_compared = any(each.speedup for each in times)
    is_beside = any(each.beside for each in times)
    unit = "tokens per second" if has_lengths else "inputs per second"
    extra = [*(["speed-up"] * is_compared), *([f"over {times[0].runtime}"] * is_beside)]
    rows = [["model", "batch", "tokens", "median", unit, *extra]]
    for each in times:
        rows.append(
            [
                f"{names[each.model]} ({each.runtime})",
                str(each.rows),
                str(each.length or "-"),
                f"{each.latency.median * 1e3:.2f} ms",
                f"{each.per_second:,.0f}",
                *([str(each.speedup)] if is_compared else []),
                *([str(each.beside or "-")] if is_beside else []),
            ]
        )
    return table(rows, "a forward pass")


def _generation(times: Sequence[GenerationTime], names: Mapping[str, str]) -> RenderableType:
    is_compared = any(each.faster for each in times)
    extra = ["speed-up"] * is_compared
    rows = [
        ["model", "batch", "tokens", "prompt", "tokens per second", *extra, "new tokens per second", *extra]
    ]
    for each in times:
        prompt, after = ([str(one)] for one in each.faster) if each.faster else ([], [])
        read = f"{each.generated.prefill.median * 1e3:.2f} ms"
        speed = f"{each.read_per_second:,.0f}"
        head = [f"{names[each.model]} ({each.runtime})", str(each.rows), str(each.length), read, speed]
        rows.append([*head, *prompt, f"{each.per_second:,.1f}", *after])
    return table(rows, "generation with a cache")


def _memory(memory: Mapping[Name, int | None], names: Mapping[str, str]) -> RenderableType:
    rows = [["model", "memory at the peak"]]
    for (model, runtime), size in memory.items():
        rows.append([f"{names[model]} ({runtime})", "-" if size is None else f"{size / 1e6:,.0f} MB"])
    return table(rows, "loaded and run once, beyond what libraries hold")
