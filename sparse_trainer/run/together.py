"""A run in several processes, started by torchrun or accelerate launch: all train, the first alone writes and speaks.

An error in one process ends all of them, and is told once. What processes tell each other here goes over the CPU,
beside the messages of a training: it may wait for hours, and a process that fails while others train disturbs none.
"""

import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import timedelta
from functools import cache
from typing import Any, Final, TypeVar

import torch.distributed as dist

from sparse_trainer.errors import ArgumentError, ProcessError, SparseTrainerError
from sparse_trainer.training.agreement import several_processes

_T = TypeVar("_T")
_WORK: Final = timedelta(days=7)
"""How long a process waits for others that are at work."""
_FAILED: Final = timedelta(seconds=60)
"""How long one that has failed waits for the others, which may have failed likewise."""


def is_first() -> bool:
    """Tell whether this process writes and speaks."""
    return not several_processes() or dist.get_rank() == 0


def check_alone(what: str) -> None:
    """Raise `ArgumentError` in one of several processes, where each would do the whole work of `what`."""
    count = int(os.environ.get("WORLD_SIZE", "1"))
    if count > 1:
        raise ArgumentError(
            what,
            f"is the work of one process, and {count} were started.",
            "Start it without torchrun or accelerate launch.",
        )


@contextmanager
def together() -> Iterator[None]:
    """Leave a `with` block well in all processes or in none.

    Raises:
        SparseTrainerError: That of this process, else that of another.
        ProcessError: Another process has ended, or this one has failed alone while others train.
    """
    if not several_processes():
        yield
        return
    group, failure = _talk(), None
    try:
        yield
    except SparseTrainerError as error:
        failure = error
    try:
        dist.monitored_barrier(group, timeout=_WORK if failure is None else _FAILED)
    except RuntimeError as error:
        if failure is None:
            raise ProcessError("run", "another process has ended.", "See what it said.") from error
        where = f"process {dist.get_rank()}: {failure.where}"
        raise ProcessError(where, failure.what, failure.remedy) from failure
    failures: list[Any] = [None] * dist.get_world_size()
    dist.all_gather_object(failures, failure, group=group)
    for each in (failure, *failures):
        if each is not None:
            raise each


def from_first(work: Callable[[], _T]) -> _T:
    """Return what the first process finds out; the others wait for it."""
    if not several_processes():
        return work()
    found: list[Any] = [None]
    with together():
        if is_first():
            found = [work()]
    dist.broadcast_object_list(found, src=0, group=_talk())
    result: _T = found[0]
    return result


@cache
def _talk() -> Any:
    """Return the group of processes that talk over the CPU, whatever a training uses."""
    return dist.new_group(backend="gloo", timeout=_WORK)
