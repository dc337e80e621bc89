"""Runs in processes of their own: their order, their ends, and that none is left behind."""

import os
import signal
import sys
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest

from sparse_trainer.errors import CheckpointError
from sparse_trainer.run.sweep import processes
from sparse_trainer.run.sweep.grid import combinations
from sparse_trainer.run.sweep.planned import PlannedRun
from sparse_trainer.run.sweep.processes import Ended, RunProcess, places, run_all, sole_use


def runs(folder: Path, count: int) -> list[PlannedRun]:
    """Return runs of a recipe that is not there."""
    return [
        PlannedRun(
            combination=combination,
            recipe="",
            arguments=("--json", "--", "no-such-recipe"),
            folder=folder / combination.name,
            result=folder / combination.name / "pruned",
            dense=None,
            begun="new",
        )
        for combination in combinations([f"training.seed={','.join(map(str, range(count)))}"])
    ]


class Short:
    """In place of a process: it is over when it was looked at some times."""

    def __init__(self, looks: int, when_over: Callable[[], object] = lambda: None) -> None:
        self.looks, self.when_over, self.was_killed = looks, when_over, False

    @property
    def is_over(self) -> bool:
        self.looks -= 1
        if self.looks == 0:
            self.when_over()
        return self.looks <= 0

    def ended(self) -> Ended:
        return Ended(result={}, error=None)

    def stop(self) -> None:
        """Go on."""

    def kill(self) -> None:
        self.was_killed = True


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(processes, "POLL", 0.01)


def test_as_many_run_at_a_time_as_asked_in_order_each_at_its_place(tmp_path: Path) -> None:
    started: list[tuple[str, int]] = []
    ended: list[str] = []

    def start(run: PlannedRun, place: int) -> RunProcess:
        started.append((run.name, place))
        assert len(started) - len(ended) <= 2
        return Short(5 if run.name == "seed=0" else 2)  # type: ignore[return-value]

    run_all(runs(tmp_path, 4), 2, start, lambda run, how: ended.append(run.name))
    assert started == [("seed=0", 0), ("seed=1", 1), ("seed=2", 1), ("seed=3", 1)]
    assert sorted(ended) == ["seed=0", "seed=1", "seed=2", "seed=3"]


def test_a_run_waits_for_the_one_that_makes_its_dense_model(tmp_path: Path) -> None:
    one, other = tmp_path / "one", tmp_path / "other"
    planned = [replace(run, dense=one if i < 3 else other) for i, run in enumerate(runs(tmp_path, 4))]
    log: list[str] = []

    def start(run: PlannedRun, place: int) -> RunProcess:
        log.append(f"start {run.name}")
        # The first one fails before its dense model is there.
        made = run.dense if run.name != "seed=0" else None
        return Short(3, lambda: made and made.mkdir(exist_ok=True))  # type: ignore[return-value]

    run_all(planned, 3, start, lambda run, how: log.append(f"end {run.name}"))
    assert log[:2] == ["start seed=0", "start seed=3"]
    assert log.index("start seed=1") > log.index("end seed=0")
    assert log.index("start seed=2") > log.index("end seed=1")


def test_whatever_ends_the_sweep_ends_its_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(processes, "GRACE", 0.05)
    started: list[Short] = []

    def start(run: PlannedRun, place: int) -> RunProcess:
        started.append(Short(10**9))
        if len(started) == 2:
            raise KeyboardInterrupt
        return started[-1]  # type: ignore[return-value]

    with pytest.raises(KeyboardInterrupt):
        run_all(runs(tmp_path, 3), 2, start, lambda *_: None)
    assert started[0].was_killed


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGHUP])
def test_signals_from_outside_end_the_runs(number: int, tmp_path: Path) -> None:
    process = Short(10, lambda: os.kill(os.getpid(), number))

    def ended(*_: object) -> None:
        time.sleep(1)

    before = signal.signal(signal.SIGTERM, processes._hung_up)
    try:
        with pytest.raises(SystemExit) as caught:
            run_all(runs(tmp_path, 2), 1, lambda *_: process, ended)  # type: ignore[arg-type,return-value]
    finally:
        signal.signal(signal.SIGTERM, before)
    assert caught.value.code == 128 + number
    assert signal.getsignal(signal.SIGHUP) is signal.SIG_DFL


def test_threads_are_shared_and_gpus_taken_in_turn(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    monkeypatch.setattr("torch.get_num_threads", lambda: 8)
    monkeypatch.setattr("torch.cuda.device_count", lambda: 0)
    assert places(1) == [{}]
    assert places(3) == [{"OMP_NUM_THREADS": "2"}] * 3
    monkeypatch.setattr("torch.cuda.device_count", lambda: 2)
    assert [place["CUDA_VISIBLE_DEVICES"] for place in places(3)] == ["0", "1", "0"]
    assert places(1) == [{"CUDA_VISIBLE_DEVICES": "0"}]
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "5,7")
    assert [place["CUDA_VISIBLE_DEVICES"] for place in places(3)] == ["5", "7", "5"]
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    monkeypatch.setattr("torch.cuda.device_count", lambda: 0)
    assert places(1) == [{}]


def test_a_folder_is_used_by_one_sweep_at_a_time(tmp_path: Path) -> None:
    with (
        sole_use(tmp_path),
        pytest.raises(CheckpointError, match="in use by another sweep"),
        sole_use(tmp_path),
    ):
        pass
    with sole_use(tmp_path) as handle:
        assert handle is not None


def script(folder: Path, monkeypatch: pytest.MonkeyPatch, *lines: str) -> None:
    """Let Python run these lines in place of our command."""
    file = folder / "script.py"
    file.write_text("\n".join(["import json, os, signal, subprocess, sys, time", *lines]))
    monkeypatch.setattr(processes, "COMMAND", (sys.executable, str(file)))


RESULT = {"models": {}, "seconds": 1.5}
TOLD = {"error": {"type": "DataError", "where": "data", "problem": "is empty.", "remedy": "Give rows."}}
ENDS: dict[str, tuple[tuple[str, ...], Ended]] = {
    "well": ((f"print('noise', json.dumps({RESULT}, indent=2), sep=chr(10))",), Ended(result=RESULT, error=None)),
    "with an error": (
        (f"print(json.dumps({TOLD}, indent=2))", "sys.exit(2)"),
        Ended(result=None, error="data: is empty. Give rows."),
    ),
    "killed": (
        ("print('{', 'out of luck\\n', file=sys.stderr, flush=True)", "os.kill(os.getpid(), 9)"),
        Ended(result=None, error="was ended by SIGKILL: { out of luck"),
    ),
    "silent": (("sys.exit(3)",), Ended(result=None, error="ended with exit code 3: it said nothing")),
    "in the middle of a bar": (
        ("sys.stderr.write('10%\\r50%\\r')", "sys.exit(1)"),
        Ended(result=None, error="ended with exit code 1: 50%"),
    ),
}  # fmt: skip


@pytest.mark.parametrize("way", ENDS)
def test_a_run_tells_how_it_ended_and_leaves_its_log_alone(
    way: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    lines, expected = ENDS[way]
    script(tmp_path, monkeypatch, *lines)
    run = runs(tmp_path, 2)[0]
    process = RunProcess(run, (), {}, None)
    while not process.is_over:
        time.sleep(0.05)
    assert process.ended() == expected
    assert [path.name for path in run.folder.iterdir()] == ["run.log"]


def test_a_run_gets_its_arguments_variables_and_the_lock(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The lock lives as long as the run, also without the sweep."""
    line = "print(sys.argv[1:], os.environ['ASKED'], flush=True)"
    script(tmp_path, monkeypatch, line, "time.sleep(600)")
    run = runs(tmp_path, 2)[0]
    with sole_use(tmp_path) as keep:
        process = RunProcess(run, ("--plugin", "x.py"), {"ASKED": "yes"}, keep)
    while not (said := (run.folder / processes.OUTPUT_FILE).read_text()):
        assert not process.is_over
        time.sleep(0.05)
    assert said == "['--plugin', 'x.py', '--json', '--', 'no-such-recipe'] yes\n"
    with pytest.raises(CheckpointError, match="or by a run of it"), sole_use(tmp_path):
        pass
    process.stop()
    process.kill()
    with sole_use(tmp_path):
        pass


def test_a_stopped_run_takes_along_what_it_has_started(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It may be deaf, and may have children: all are in its group."""
    script(
        tmp_path,
        monkeypatch,
        "signal.signal(signal.SIGTERM, signal.SIG_IGN)",
        "child = subprocess.Popen([sys.executable, '-c', 'import time; time.sleep(600)'])",
        f"open({str(tmp_path / 'pids')!r}, 'w').write(f'{{os.getpid()}} {{child.pid}}\\n')",
        "time.sleep(600)",
    )
    run = runs(tmp_path, 2)[0]
    process = RunProcess(run, (), {}, None)
    while not ((tmp_path / "pids").is_file() and (tmp_path / "pids").read_text().endswith("\n")):
        assert not process.is_over
        time.sleep(0.05)
    process.stop()
    time.sleep(0.2)
    assert not process.is_over
    process.kill()
    for pid in map(int, (tmp_path / "pids").read_text().split()):
        assert is_gone(pid)
    assert [path.name for path in run.folder.iterdir()] == ["run.log"]


def is_gone(pid: int) -> bool:
    """Wait until a process is no more, or a zombie that nobody fetches."""
    end = time.monotonic() + 10
    while time.monotonic() < end:
        try:
            state = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
        except FileNotFoundError:
            return True
        if state == "Z":
            return True
        time.sleep(0.05)
    return False
