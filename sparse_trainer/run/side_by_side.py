"""Models in several runtimes, side by side: every batch size with every length, all in turn within each round."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any, Final, Protocol

import torch

from sparse_trainer.run.generation_speed import Generated
from sparse_trainer.run.latency import Conditions, Latency, Spread, summarize, take_turns, timed
from sparse_trainer.run.weights import Weight

LAST_LOGITS: Final = "gguf"
"""The runtime that computes logits of the last token only, so that its prompts are less work than those of others."""
Name = tuple[str, str]
"""A model, and the runtime that it is timed in."""


class Ready(Protocol):
    """A model in a runtime, ready to be timed."""

    @property
    def reads_length(self) -> bool:
        """Whether the number of tokens can be chosen: pictures have their own size."""

    def forward(self, rows: int, length: int) -> Callable[[], object]:
        """Return a forward pass."""

    def generate(self, rows: int, length: int, new_tokens: int) -> Callable[[], tuple[float, float]] | None:
        """Return what tells the seconds of a prompt, and per token after it; None where it is not timed."""


@dataclass(frozen=True, kw_only=True, slots=True)
class ForwardTime:
    """What a forward pass takes."""

    model: str
    runtime: str
    rows: int
    length: int | None
    """Tokens of each row; None = inputs of the model's own size."""
    latency: Latency
    speedup: Spread | None
    """How many times faster than the baseline in the same runtime."""
    beside: Spread | None
    """How many times faster than the same model in the first runtime; None where that does the same work no more."""

    @property
    def per_second(self) -> float:
        """Tokens, or inputs of the model's own size, per second."""
        return self.rows * (self.length or 1) / self.latency.median

    def to_json(self) -> dict[str, Any]:
        """Return plain types for JSON."""
        return {
            "model": self.model,
            "runtime": self.runtime,
            "batch": self.rows,
            "sequence_length": self.length,
            **self.latency.to_json(),
            "per_second": self.per_second,
            "speedup": self.speedup and asdict(self.speedup),
            "speedup_over_first_runtime": self.beside and asdict(self.beside),
        }


@dataclass(frozen=True, kw_only=True, slots=True)
class GenerationTime:
    """What a prompt takes, and the tokens after it."""

    model: str
    runtime: str
    rows: int
    length: int
    """Tokens of each prompt."""
    generated: Generated
    faster: tuple[Spread, Spread] | None
    """How many times faster than the baseline in the same runtime, at the prompt and after it."""

    @property
    def read_per_second(self) -> float:
        """Tokens of all prompts per second."""
        return self.rows * self.length / self.generated.prefill.median

    @property
    def per_second(self) -> float:
        """New tokens of all rows per second."""
        return self.rows / self.generated.decode.median

    def to_json(self) -> dict[str, Any]:
        """Return plain types for JSON."""
        prompt, after = self.faster or (None, None)
        return {
            "model": self.model,
            "runtime": self.runtime,
            "batch": self.rows,
            "sequence_length": self.length,
            **self.generated.to_json(),
            "prefill_per_second": self.read_per_second,
            "per_second": self.per_second,
            "prefill_speedup": prompt and asdict(prompt),
            "decode_speedup": after and asdict(after),
        }


@dataclass(frozen=True, kw_only=True, slots=True)
class BenchResult:
    """What came out."""

    conditions: Conditions
    weights: Mapping[str, Weight]
    memory: Mapping[Name, int | None]
    """Bytes at the peak, by model and runtime; None where the system does not tell."""
    forward: Sequence[ForwardTime]
    generation: Sequence[GenerationTime]
    notes: Sequence[str]

    def to_json(self) -> dict[str, Any]:
        """Return plain types for JSON."""
        told = self.conditions
        return {
            "conditions": {
                name: getattr(told, name) for name in ("device", "dtype", "threads", "rounds", "torch")
            },
            "weights": {name: each.to_json() for name, each in self.weights.items()},
            "peak_memory": [
                {"model": model, "runtime": runtime, "bytes": size}
                for (model, runtime), size in self.memory.items()
            ],
            "latencies": [each.to_json() for each in self.forward],
            "generation": [each.to_json() for each in self.generation],
            "notes": list(self.notes),
        }


def time_forward(
    ready: Mapping[Name, Ready],
    *,
    batch_sizes: Sequence[int],
    lengths: Sequence[int],
    rounds: int,
    device: torch.device,
    baseline: str | None,
) -> list[ForwardTime]:
    """Return what forward passes take; models without lengths are timed once for all of them."""
    has_lengths = any(each.reads_length for each in ready.values())
    found = []
    for length in lengths if has_lengths else lengths[:1]:
        for rows in batch_sizes:
            calls = {name: timed(each.forward(rows, length), device) for name, each in ready.items()}
            turns = take_turns(calls, rounds, f"timing, {rows} x {length}")
            times = {name: summarize(seconds) for name, seconds in turns.items()}
            found += [
                ForwardTime(
                    model=model,
                    runtime=runtime,
                    rows=rows,
                    length=length if has_lengths else None,
                    latency=latency,
                    speedup=None if baseline is None else times[baseline, runtime].over(latency),
                    beside=_beside(times, model, runtime),
                )
                for (model, runtime), latency in times.items()
            ]
    return found


def _beside(times: Mapping[Name, Latency], model: str, runtime: str) -> Spread | None:
    """Return how many times faster a model is than in the first runtime; None of itself and of gguf."""
    first = next(iter(times))[1]
    if runtime == first or LAST_LOGITS in (runtime, first):
        return None
    return times[model, first].over(times[model, runtime])


def time_generation(
    ready: Mapping[Name, Ready],
    *,
    batch_sizes: Sequence[int],
    lengths: Sequence[int],
    new_tokens: int,
    rounds: int,
    baseline: str | None,
) -> list[GenerationTime]:
    """Return what generation takes in those runtimes where it is timed."""
    found = []
    for length in lengths:
        for rows in batch_sizes:
            calls = {name: each.generate(rows, length, new_tokens) for name, each in ready.items()}
            known = {name: call for name, call in calls.items() if call is not None}
            turns = take_turns(known, rounds, f"generating, {rows} x {length} + {new_tokens}")
            times = {name: Generated.of(pairs) for name, pairs in turns.items()}
            found += [
                GenerationTime(
                    model=model,
                    runtime=runtime,
                    rows=rows,
                    length=length,
                    generated=each,
                    faster=None if baseline is None else each.faster_than(times[baseline, runtime]),
                )
                for (model, runtime), each in times.items()
            ]
    return found
