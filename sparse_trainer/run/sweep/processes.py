"""Runs in processes of their own, some at a time: a crash of one ends nothing else, and no one outlives the sweep."""

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from types import FrameType
from typing import Any, NoReturn

import torch

from sparse_trainer.errors import CheckpointError
from sparse_trainer.files.writing import writing
from sparse_trainer.run.sweep.planned import PlannedRun

if sys.platform != "win32":
    import fcntl

COMMAND = (sys.executable, "-m", "sparse_trainer", "run")
POLL = 0.1
"""Seconds between looks at the processes."""
GRACE = 20.0
"""Seconds that a process has to sweep up when it is stopped."""
OUTPUT_FILE = ".run.out"
"""In the folder of a run while it goes on: its standard output."""
_TAIL = 4096
"""Bytes of a log in which the last line is looked for."""


@dataclass(frozen=True, kw_only=True)
class Ended:
    """How the process of a run ended."""

    result: dict[str, Any] | None
    """What it measured; None where it failed."""
    error: str | None
    """Why it failed, in one line."""


class RunProcess:
    """The process of one run: `sparse-trainer run … --json`, which writes what it says into the log of the run.

    Args:
        options: Further options of the command.
        environment: Variables that it gets instead of ours.
        keep: An open file that it holds open as long as it lives.
    """

    def __init__(
        self, run: PlannedRun, options: Sequence[str], environment: Mapping[str, str], keep: int | None
    ) -> None:
        self._run, self._output = run, run.folder / OUTPUT_FILE
        with writing(run.folder):
            run.folder.mkdir(parents=True, exist_ok=True)
        with run.log.open("ab") as log, self._output.open("wb") as output:
            self._process = subprocess.Popen(
                [*COMMAND, *options, *run.arguments],
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=log,
                env={**os.environ, **environment},
                pass_fds=() if keep is None else (keep,),
                # Ctrl-C goes to the sweep alone, which then stops each run with all of its processes.
                start_new_session=True,
            )

    @property
    def is_over(self) -> bool:
        """Whether it has ended."""
        return self._process.poll() is not None

    def ended(self) -> Ended:
        """Return how it ended."""
        code = self._process.wait()
        found = _answer(self._output.read_text(encoding="utf-8", errors="replace"))
        self._output.unlink()
        told = found.get("error")
        if code == 0 and found and told is None:
            return Ended(result=found, error=None)
        if told is not None:
            return Ended(result=None, error=f"{told['where']}: {told['problem']} {told['remedy']}")
        return Ended(result=None, error=f"{_reason(code)}: {_last_line(self._run.log)}")

    def stop(self) -> None:
        """Ask it, and all that it has started, to sweep up and end."""
        if sys.platform == "win32":
            self._process.terminate()
        else:
            self._signal(signal.SIGTERM)

    def kill(self) -> None:
        """End what is left of it at once."""
        if sys.platform == "win32":
            self._process.kill()
        else:
            self._signal(signal.SIGKILL)
        self._process.wait()
        self._output.unlink(missing_ok=True)

    def _signal(self, number: int) -> None:
        with suppress(ProcessLookupError):
            os.killpg(self._process.pid, number)


def run_all(
    runs: Sequence[PlannedRun],
    jobs: int,
    start: Callable[[PlannedRun, int], RunProcess],
    ended: Callable[[PlannedRun, Ended], None],
) -> None:
    """Run all, so many at a time, in order; a run waits for another one that is making the dense model it needs.

    Args:
        start: Starts a run at a place from 0 to `jobs` - 1, which no other run has at that time.
        ended: Is told of each run that has ended.
    """
    waiting, running = list(runs), dict[int, tuple[PlannedRun, RunProcess]]()
    with _hang_up_ends():
        try:
            while waiting or running:
                for place in [place for place in range(jobs) if place not in running]:
                    run = _next(waiting, [other for other, _ in running.values()])
                    if run is not None:
                        waiting.remove(run)
                        running[place] = run, start(run, place)
                for place, (run, process) in list(running.items()):
                    if process.is_over:
                        del running[place]
                        ended(run, process.ended())
                time.sleep(POLL if running else 0.0)
        finally:
            _stop([process for _, process in running.values()])


def places(jobs: int) -> list[dict[str, str]]:
    """Return the variables for each of so many processes at a time: a GPU in turn, a share of the threads."""
    asked = os.environ.get("CUDA_VISIBLE_DEVICES")
    gpus = asked.split(",") if asked else [str(number) for number in range(torch.cuda.device_count())]
    threads = {} if jobs == 1 else {"OMP_NUM_THREADS": str(max(1, torch.get_num_threads() // jobs))}
    return [
        {**threads, **({"CUDA_VISIBLE_DEVICES": gpus[place % len(gpus)]} if gpus else {})}
        for place in range(jobs)
    ]


@contextmanager
def sole_use(folder: Path) -> Iterator[int | None]:
    """Keep other sweeps out of a folder as long as this one, or a run that it started, is alive.

    Yields:
        What every run has to hold open; None where the system has no such locks.

    Raises:
        CheckpointError: Another sweep is at work there.
    """
    if sys.platform == "win32":
        yield None
        return
    handle = os.open(folder, os.O_RDONLY)
    try:
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            raise CheckpointError(
                str(folder), "is in use by another sweep, or by a run of it.", "Wait for it, or stop it."
            ) from error
        except OSError:  # a file system without locks
            yield None
        else:
            yield handle
    finally:
        os.close(handle)


def _next(waiting: Sequence[PlannedRun], running: Sequence[PlannedRun]) -> PlannedRun | None:
    """Return the first run for which no other one is making a dense model."""
    in_making = {run.dense for run in running if run.dense is not None and not run.dense.is_dir()}
    return next((run for run in waiting if run.dense not in in_making), None)


@contextmanager
def _hang_up_ends() -> Iterator[None]:
    """Let a terminal that is closed end the sweep, and so its runs, which have no terminal; unless nohup keeps it."""
    if sys.platform == "win32" or signal.getsignal(signal.SIGHUP) is not signal.SIG_DFL:
        yield
        return
    signal.signal(signal.SIGHUP, _hung_up)
    try:
        yield
    finally:
        signal.signal(signal.SIGHUP, signal.SIG_DFL)


def _hung_up(number: int, frame: FrameType | None) -> NoReturn:
    raise SystemExit(128 + number)


def _stop(processes: Sequence[RunProcess]) -> None:
    """End processes: they sweep up what they were writing; those that do not come to an end are killed."""
    for process in processes:
        process.stop()
    try:
        end = time.monotonic() + GRACE
        while any(not process.is_over for process in processes) and time.monotonic() < end:
            time.sleep(POLL)
    finally:
        for process in processes:
            process.kill()


def _answer(said: str) -> dict[str, Any]:
    """Return the object that a command printed at the end, after what libraries may have; {} where there is none.

    >>> _answer('loading\\n{\\n  "a": {\\n    "b": 1\\n  }\\n}\\n'), _answer('{\\n "a"'), _answer("")
    ({'a': {'b': 1}}, {}, {})
    """
    start = f"\n{said}".rfind("\n{\n")
    try:
        found = json.loads(said[start:]) if start >= 0 else {}
    except ValueError:
        return {}
    return found if isinstance(found, dict) else {}


def _reason(code: int) -> str:
    """Say how a process ended that left no word.

    >>> _reason(-9), _reason(1)
    ('was ended by SIGKILL', 'ended with exit code 1')
    """
    return f"was ended by {signal.Signals(-code).name}" if code < 0 else f"ended with exit code {code}"


def _last_line(log: Path) -> str:
    """Return the last line of a log that is not empty."""
    with log.open("rb") as file:
        file.seek(max(0, log.stat().st_size - _TAIL))
        lines = file.read().decode("utf-8", errors="replace").replace("\r", "\n").split("\n")
    return next((line.strip() for line in reversed(lines) if line.strip()), "it said nothing")
