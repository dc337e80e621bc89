"""Measure latency, models side by side, so that a slow moment of the machine hits all of them alike."""

from __future__ import annotations

import platform
import statistics
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from typing import Any

import torch
from torch import Tensor
from transformers import PreTrainedModel

from sparse_trainer.budget.latency.clock import synchronize
from sparse_trainer.errors import ArgumentError, one_of, shown
from sparse_trainer.fields import check_counts
from sparse_trainer.inputs.bars import bar
from sparse_trainer.inputs.evaluating import evaluating
from sparse_trainer.inputs.limits import check_positions, positions_of
from sparse_trainer.inputs.timed import has_length, timed_inputs

DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}
WARMUP_ROUNDS = 3
"""Untimed calls before the timed ones: the first calls choose kernels and fill caches."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Conditions:
    """What a latency depends on besides the model."""

    device: str
    dtype: str
    threads: int
    sequence_length: int | None
    """Tokens per sequence; None = pictures or spectrograms of the size that the models read."""
    rounds: int
    torch: str


@dataclass(frozen=True, kw_only=True, slots=True)
class Spread:
    """A ratio of two latencies, round by round: its middle half."""

    median: float
    low: float
    """First quartile."""
    high: float
    """Third quartile."""

    def __str__(self) -> str:
        """Return it as tables show it.

        >>> str(Spread(median=1.5, low=1.25, high=2.0))
        '1.50x (1.25 to 2.00)'
        """
        return f"{self.median:.2f}x ({self.low:.2f} to {self.high:.2f})"


@dataclass(frozen=True, kw_only=True, slots=True)
class Latency:
    """Seconds per call: the middle half of the timed rounds."""

    median: float
    low: float
    """First quartile."""
    high: float
    """Third quartile."""
    rounds: tuple[float, ...] = field(default=(), compare=False)
    """All of them, in order: round for round beside those of the other models."""

    def over(self, other: Latency) -> Spread:
        """Return this latency over that of another model in the same rounds: what slows both down falls out of it."""
        pairs = zip(self.rounds or (self.median,), other.rounds or (other.median,), strict=True)
        low, median, high = _quartiles([own / theirs for own, theirs in pairs])
        return Spread(median=median, low=low, high=high)

    def to_json(self) -> dict[str, float]:
        """Return plain types for JSON, without the rounds."""
        return {"median": self.median, "low": self.low, "high": self.high}


@dataclass(frozen=True, kw_only=True, slots=True)
class Bench:
    """Latencies of some models under the same conditions."""

    conditions: Conditions
    latencies: dict[str, dict[int, Latency]]
    """Model name -> batch size -> latency."""

    def speedups(self, name: str, baseline: str) -> dict[int, Spread]:
        """Return how many times faster `name` is than `baseline`, per batch size, over the rounds."""
        return {
            batch: self.latencies[baseline][batch].over(latency)
            for batch, latency in self.latencies[name].items()
        }

    def to_json(self) -> dict[str, Any]:
        """Return plain types for JSON; batch sizes become text."""
        return asdict(self) | {
            "latencies": {
                name: {str(batch): latency.to_json() for batch, latency in sizes.items()}
                for name, sizes in self.latencies.items()
            }
        }


def bench(
    models: Mapping[str, PreTrainedModel],
    *,
    batch_sizes: Sequence[int] = (1, 16),
    sequence_length: int = 128,
    rounds: int = 20,
    threads: int | None = None,
    runtimes: Mapping[str, Callable[[PreTrainedModel], Callable[..., Any]]] | None = None,
) -> Bench:
    """Time a forward pass of every model, in turn within each round.

    Args:
        models: In evaluation mode or not; it is restored.
        sequence_length: Tokens per sequence, of encoder and decoder each, none of them padding, or those that a
            wave becomes; models of pictures have their own size.
        threads: CPU threads; None = as torch is set.
        runtimes: Name -> what makes a model ready to be called; each model is timed in each, under `run_name`. None =
            models are called as they are, and keep their names.

    Raises:
        ArgumentError: Models on different devices or of different dtypes, a count below 1, or sequences beyond the
            positions of a model.
    """
    check_bench(batch_sizes=batch_sizes, sequence_length=sequence_length, rounds=rounds, threads=threads)
    for model in models.values():
        check_positions("sequence_length", sequence_length, positions_of(model.config))
    device, dtype = common_place(models)
    with cpu_threads(threads), evaluating(*models.values()):
        calls = _calls(models, runtimes)
        latencies: dict[str, dict[int, Latency]] = {name: {} for name in calls}
        for batch_size in batch_sizes:
            seconds = _timed(calls, batch_size, sequence_length, rounds, device)
            for name, values in seconds.items():
                latencies[name][batch_size] = summarize(values)
        conditions = Conditions(
            device=device_name(device),
            dtype=str(dtype).removeprefix("torch."),
            threads=torch.get_num_threads(),
            sequence_length=sequence_length if any(map(has_length, models.values())) else None,
            rounds=rounds,
            torch=torch.__version__,
        )
    return Bench(conditions=conditions, latencies=latencies)


def run_name(model: str, runtime: str) -> str:
    """Return what the latencies of a model in one of several runtimes are called."""
    return f"{model} ({runtime})"


def _calls(
    models: Mapping[str, PreTrainedModel],
    runtimes: Mapping[str, Callable[[PreTrainedModel], Callable[..., Any]]] | None,
) -> dict[str, tuple[PreTrainedModel, Callable[..., Any]]]:
    """Return what is timed, by name: each model, and how it is called."""
    if runtimes is None:
        return {name: (model, model) for name, model in models.items()}
    return {
        run_name(name, runtime): (model, ready(model))
        for runtime, ready in runtimes.items()
        for name, model in models.items()
    }


def check_bench(
    *, batch_sizes: Sequence[int], sequence_length: int, rounds: int, threads: int | None = None
) -> None:
    """Raise `ArgumentError` for what cannot be timed with any model: ask before one is loaded."""
    if not batch_sizes:
        raise ArgumentError("batch_sizes", "names no batch size.", "Give e.g. 1.")
    check_counts(
        batch_sizes=min(batch_sizes), sequence_length=sequence_length, rounds=rounds, threads=threads
    )


def summarize(seconds: Sequence[float]) -> Latency:
    """Return median and quartiles.

    >>> summarize([4.0, 1.0, 2.0, 3.0, 5.0]).to_json()
    {'median': 3.0, 'low': 2.0, 'high': 4.0}
    """
    low, median, high = _quartiles(seconds)
    return Latency(median=median, low=low, high=high, rounds=tuple(seconds))


def _quartiles(values: Sequence[float]) -> tuple[float, float, float]:
    if len(values) == 1:
        return values[0], values[0], values[0]
    low, median, high = statistics.quantiles(values, n=4, method="inclusive")
    return low, median, high


def device_name(device: torch.device) -> str:
    """Name the device as a reader of the numbers needs it."""
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    return f"{device.type} ({platform.machine()})"


def find_device(name: str) -> torch.device:
    """Return a device that is there.

    Raises:
        ArgumentError: No such device.
    """
    try:
        device = torch.device(name)
        # A device without numbers cannot answer, and one that lacks its module fails in many ways.
        torch.ones(1, device=device).item()
    except Exception as error:
        reason = next(iter(str(error).strip().splitlines()), type(error).__name__)
        raise ArgumentError(
            "device", f"{shown(name)} cannot be used ({reason}).", "Use cpu, or cuda where there is one."
        ) from error
    return device


def find_dtype(name: str) -> torch.dtype:
    """Return a floating-point type by name.

    Raises:
        ArgumentError: No such type.

    >>> find_dtype("bfloat16")
    torch.bfloat16
    """
    return DTYPES[one_of("dtype", name, DTYPES)]


def common_place(models: Mapping[str, PreTrainedModel]) -> tuple[torch.device, torch.dtype]:
    """Return the one device and dtype of all models, or refuse to compare them."""
    places = {name: (model.device, model.dtype) for name, model in models.items()}
    if len(set(places.values())) != 1:
        told = ", ".join(f"{name} on {device} in {dtype}" for name, (device, dtype) in places.items())
        raise ArgumentError(
            "bench", f"latencies cannot be compared: {told}.", "Move all models to one place first."
        )
    return next(iter(places.values()))


def _timed(
    calls: Mapping[str, tuple[PreTrainedModel, Callable[..., Any]]],
    batch_size: int,
    sequence_length: int,
    rounds: int,
    device: torch.device,
) -> dict[str, list[float]]:
    """Return the seconds of every timed call; each round starts with another model."""
    inputs = {name: timed_inputs(model, batch_size, sequence_length) for name, (model, _) in calls.items()}
    seconds: dict[str, list[float]] = {name: [] for name in calls}
    names = list(calls)
    for number in bar(range(WARMUP_ROUNDS + rounds), f"timing, batch {batch_size}"):
        turn = number % len(names)
        for name in names[turn:] + names[:turn]:
            elapsed = _call_seconds(calls[name][1], inputs[name], device)
            if number >= WARMUP_ROUNDS:
                seconds[name].append(elapsed)
    return seconds


@torch.inference_mode()
def _call_seconds(call: Callable[..., Any], inputs: Mapping[str, Tensor], device: torch.device) -> float:
    synchronize(device)
    start = time.perf_counter()
    call(**inputs)
    synchronize(device)
    return time.perf_counter() - start


@contextmanager
def cpu_threads(threads: int | None) -> Iterator[None]:
    """Set the threads of torch for the time of a `with` block; None = leave them."""
    before = torch.get_num_threads()
    torch.set_num_threads(before if threads is None else threads)
    try:
        yield
    finally:
        torch.set_num_threads(before)
