"""Measure latency, models side by side, so that a slow moment of the machine hits all of them alike."""

from __future__ import annotations

import platform
import statistics
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from typing import Any, TypeVar

import torch
from transformers import PreTrainedModel

from sparse_trainer.budget.latency.clock import synchronize
from sparse_trainer.errors import ArgumentError, one_of, shown
from sparse_trainer.fields import check_counts
from sparse_trainer.inputs.bars import bar
from sparse_trainer.inputs.evaluating import evaluating
from sparse_trainer.inputs.limits import check_positions, positions_of
from sparse_trainer.inputs.timed import has_length, timed_inputs

_K = TypeVar("_K")
_T = TypeVar("_T")

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

    def __str__(self) -> str:
        """Return them in a line."""
        length = self.sequence_length
        inputs = "inputs of the models' own size" if length is None else f"sequences of {length} tokens"
        return (
            f"latency on {self.device}, {self.dtype}, {self.threads} threads, {inputs}, "
            f"median of {self.rounds} rounds, torch {self.torch}"
        )


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
) -> Bench:
    """Time a forward pass of every model, in turn within each round.

    Args:
        models: In evaluation mode or not; it is restored.
        sequence_length: Tokens per sequence, of encoder and decoder each, none of them padding, or those that a
            wave becomes; models of pictures have their own size.
        threads: CPU threads; None = as torch is set.

    Raises:
        ArgumentError: Models on different devices or of different dtypes, a count below 1, or sequences beyond the
            positions of a model.
    """
    check_bench(batch_sizes=batch_sizes, sequence_length=sequence_length, rounds=rounds, threads=threads)
    for model in models.values():
        check_positions("sequence_length", sequence_length, positions_of(model.config))
    device, dtype = common_place(models)
    with cpu_threads(threads), evaluating(*models.values()):
        latencies: dict[str, dict[int, Latency]] = {name: {} for name in models}
        for batch_size in batch_sizes:
            calls = {
                name: timed(forward(model, model, batch_size, sequence_length), device)
                for name, model in models.items()
            }
            for name, seconds in take_turns(calls, rounds, f"timing, batch {batch_size}").items():
                latencies[name][batch_size] = summarize(seconds)
        has_lengths = any(map(has_length, models.values()))
        conditions = conditions_of(device, dtype, rounds, sequence_length if has_lengths else None)
    return Bench(conditions=conditions, latencies=latencies)


def forward(model: PreTrainedModel, call: Callable[..., Any], rows: int, length: int) -> Callable[[], object]:
    """Return a forward pass over so many rows, made by `call`: the model itself, or what takes the same inputs."""
    inputs = timed_inputs(model, rows, length)

    @torch.inference_mode()
    def run() -> object:
        return call(**inputs)

    return run


def timed(action: Callable[[], object], device: torch.device) -> Callable[[], float]:
    """Return what does something and tells its seconds of wall time, the device waited for on both sides."""

    def run() -> float:
        synchronize(device)
        start = time.perf_counter()
        action()
        synchronize(device)
        return time.perf_counter() - start

    return run


def take_turns(calls: Mapping[_K, Callable[[], _T]], rounds: int, told: str = "timing") -> dict[_K, list[_T]]:
    """Return what all calls return in each round but the first few; each round starts with another one.

    Args:
        told: What the bar says.
    """
    found: dict[_K, list[_T]] = {name: [] for name in calls}
    names = list(calls)
    for number in bar(range(WARMUP_ROUNDS + rounds), told):
        turn = number % len(names)
        for name in names[turn:] + names[:turn]:
            value = calls[name]()
            if number >= WARMUP_ROUNDS:
                found[name].append(value)
    return found


def conditions_of(
    device: torch.device, dtype: torch.dtype, rounds: int, sequence_length: int | None
) -> Conditions:
    """Return what is measured under now."""
    return Conditions(
        device=device_name(device),
        dtype=str(dtype).removeprefix("torch."),
        threads=torch.get_num_threads(),
        sequence_length=sequence_length,
        rounds=rounds,
        torch=torch.__version__,
    )


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


@contextmanager
def cpu_threads(threads: int | None) -> Iterator[None]:
    """Set the threads of torch for the time of a `with` block; None = leave them."""
    before = torch.get_num_threads()
    torch.set_num_threads(before if threads is None else threads)
    try:
        yield
    finally:
        torch.set_num_threads(before)
