"""How the command line ends where no command foresaw it: streams that take nothing, and what happens during imports."""

import errno
import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from sparse_trainer.cli.commands import Command
from sparse_trainer.cli.endings import code_of
from sparse_trainer.cli.front import main

PROGRAM = f"{sys.executable} -m sparse_trainer"
FULL = Path("/dev/full")
in_a_shell = pytest.mark.skipif(os.name != "posix", reason="closes streams as a shell of POSIX does")


def in_shell(line: str, **environment: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        line, shell=True, env=os.environ | environment, capture_output=True, text=True, check=False
    )


@in_a_shell
@pytest.mark.parametrize("called", ["", "--version", "recipes --json", "recipes --help"])
def test_a_closed_stdout_is_no_error(called: str) -> None:
    done = in_shell(f"{PROGRAM} {called} >&-")
    assert (done.returncode, done.stderr) == (0, "")


@in_a_shell
@pytest.mark.parametrize("called", ["recipes", "recipes --help"])
def test_results_come_without_a_stderr(called: str) -> None:
    done = in_shell(f"{PROGRAM} {called} 2>&-")
    assert done.returncode == 0
    assert "recipes" in done.stdout or "boolq-bert" in done.stdout


@in_a_shell
@pytest.mark.skipif(not FULL.exists(), reason="has no full device")
@pytest.mark.parametrize("called", ["", "recipes --json", "recipes --help", "prun --json"])
def test_a_full_disk_is_told_in_a_line(called: str) -> None:
    done = in_shell(f"{PROGRAM} {called} > {FULL}")
    assert done.returncode == 2
    assert done.stderr.splitlines()[-1] == (
        f"error: disk: {os.strerror(errno.ENOSPC)}. Make room, or write elsewhere."
    )
    assert all(line.startswith("error: ") for line in done.stderr.splitlines())


def test_a_full_disk_is_an_object_too_and_names_the_file(capsys: pytest.CaptureFixture[str]) -> None:
    full = OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), "out/model.safetensors")
    assert code_of(full, ["prune", "--json"]) == 2
    told = json.loads(capsys.readouterr().out)["error"]
    assert told["type"] == "DiskError"
    assert told["problem"].endswith(": out/model.safetensors.")


@pytest.mark.parametrize("encoding", ["ascii", "latin-1"])
def test_help_is_there_where_an_encoding_lacks_its_letters(encoding: str) -> None:
    done = subprocess.run(
        [sys.executable, "-m", "sparse_trainer", "recipes", "--help"],
        env=os.environ | {"PYTHONIOENCODING": encoding, "COLUMNS": "24"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert (done.returncode, done.stderr) == (0, "")
    assert "Usage" in done.stdout


@pytest.mark.parametrize(
    ("error", "code", "said"),
    [
        (KeyboardInterrupt(), 128 + signal.SIGINT, "interrupted\n"),
        (ImportError("a library is broken"), 1, "error: unexpected error: ImportError: a library is broken."),
    ],
)
def test_what_stops_the_import_of_a_command_is_told_in_a_line(
    error: BaseException,
    code: int,
    said: str,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    def stopped(self: Command) -> None:
        raise error

    monkeypatch.setattr(Command, "load", stopped)
    monkeypatch.setattr(sys, "argv", ["sparse-trainer", "prune"])
    with pytest.raises(SystemExit) as caught:
        main()
    assert caught.value.code == code
    shown = capsys.readouterr().err
    assert shown.startswith(said)
    assert shown.count("\n") == 1


def test_an_empty_no_color_is_none(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(sys, "argv", ["sparse-trainer"])
    monkeypatch.setenv("TERM", "xterm")
    monkeypatch.setattr(sys.stdout, "isatty", lambda: True)
    shown = {}
    for value in ("", "1"):
        monkeypatch.setenv("NO_COLOR", value)
        with pytest.raises(SystemExit):
            main()
        shown[value] = "\033[1m" in capsys.readouterr().out
    assert shown == {"": True, "1": False}
