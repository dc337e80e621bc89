"""Time calls side by side, in rounds, so that a slow moment of the machine hits all of them alike."""

import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final, Protocol

import numpy as np
import torch

from sparse_trainer.inputs.bars import bar

WARMUP_ROUNDS: Final = 2
"""Untimed rounds: the first calls choose kernels and fill caches."""
LOUD: Final = 0.10
"""Uncertainty of a time, relative to it, above which the user is told."""


class Repeatable(Protocol):
    """Something that can be called many times over."""

    def __call__(self) -> object:
        """Do what is timed."""

    def reset(self) -> None:
        """Undo what the last call left behind, off the clock."""


@dataclass(frozen=True, kw_only=True)
class Times:
    """What rounds of calls took."""

    seconds: tuple[float, ...]
    """Of each call, typical."""
    noise: float
    """Uncertainty of the least certain of them, relative to it."""
    rounds: int


def typical(rounds_RC: Sequence[Sequence[float]]) -> tuple[list[float], list[float]]:
    """Return the typical seconds of each call, and how uncertain each is, relative to it.

    Of every round the share of each call counts, so that a slow round says as much as a fast one: the median of the
    shares, times the median round. The uncertainty is the standard error of that median, from the middle half.

    >>> typical([[1.0, 3.0], [2.0, 6.0], [1.0, 3.0]])
    ([1.0, 3.0], [0.0, 0.0])
    """
    table_RC = np.asarray(rounds_RC)
    round_R = table_RC.sum(axis=1)
    share_RC = table_RC / round_R[:, None]
    low_C, median_C, high_C = np.quantile(share_RC, (0.25, 0.5, 0.75), axis=0)
    # The middle half of normal values is 1.35 deviations wide; a median strays 1.25 times as far as a mean.
    noise_C = 0.93 * (high_C - low_C) / median_C / np.sqrt(len(table_RC))
    return (median_C * float(np.median(round_R))).tolist(), noise_C.tolist()


def time_calls(
    calls: Sequence[Repeatable],
    device: torch.device,
    *,
    rounds: int,
    enough: float = 0.02,
    seconds: float = 20.0,
) -> Times:
    """Time calls in turn, each round from another one on, until they are certain enough or the time is up.

    Args:
        rounds: Rounds at least.
        enough: Uncertainty, relative, that is good enough.
        seconds: Seconds after which no further round begins, unless the times are still louder than `LOUD`: then
            twice as many.
    """
    taken: list[list[float]] = []
    begin = time.perf_counter()
    with torch.inference_mode():
        for _ in range(WARMUP_ROUNDS):
            for call in bar(calls, "warming up"):
                _seconds(call, device)
        while True:
            turn = len(taken) % len(calls)
            order = [*range(turn, len(calls)), *range(turn)]
            by_call = {place: _seconds(calls[place], device) for place in order}
            taken.append([by_call[place] for place in range(len(calls))])
            if len(taken) < rounds:
                continue
            typical_C, noise_C = typical(taken)
            noise = max(noise_C)
            allowed = seconds if noise <= LOUD else 2 * seconds
            if noise <= enough or time.perf_counter() - begin >= allowed:
                return Times(seconds=tuple(typical_C), noise=noise, rounds=len(taken))


def _seconds(call: Repeatable, device: torch.device) -> float:
    # Of one thread it is known how long it ran: what other programs take of its core is not the model's.
    alone = device.type == "cpu" and torch.get_num_threads() == 1
    clock = time.thread_time if alone else time.perf_counter
    synchronize(device)
    start = clock()
    call()
    synchronize(device)
    elapsed = clock() - start
    call.reset()
    return elapsed


def synchronize(device: torch.device) -> None:
    """Wait for an accelerator."""
    if device.type != "cpu":
        torch.accelerator.synchronize(device)
