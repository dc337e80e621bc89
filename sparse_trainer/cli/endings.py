"""How the command line ends where no command foresaw it, and what it needs of the streams it speaks through."""

import errno
import io
import os
import signal
import sys
from collections.abc import Sequence

from sparse_trainer.cli.console import complain, say

DEBUG = "SPARSE_TRAINER_DEBUG"
"""Environment variable: set, an unexpected error shows where it came from."""
INTERRUPTED = 128 + signal.SIGINT
_FULL = (errno.ENOSPC, getattr(errno, "EDQUOT", errno.ENOSPC))


def ready_streams() -> None:
    """Let commands print without a thought of where to.

    A stream that the caller closed takes what it is given; a letter that the encoding of a stream lacks, as of the
    frames of tables, becomes a question mark.
    """
    # Held open to the end of the process, as the streams they stand for are.
    if sys.stdout is None:
        sys.stdout = open(os.devnull, "w", encoding="utf-8")  # noqa: SIM115
    if sys.stderr is None:
        sys.stderr = open(os.devnull, "w", encoding="utf-8")  # noqa: SIM115
    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(errors="replace")


def code_of(error: BaseException, arguments: Sequence[str]) -> int:
    """Say what stopped a command that nobody foresaw, and return the exit code."""
    if isinstance(error, BrokenPipeError):
        return _without_stdout(1)
    if isinstance(error, KeyboardInterrupt):
        say("interrupted")
        return INTERRUPTED
    if isinstance(error, OSError) and error.errno in _FULL:
        what = f"{error.strerror}{f': {error.filename}' if error.filename else ''}."
        return _complained("DiskError", "disk", what, "Make room, or write elsewhere.", arguments, 2)
    if os.environ.get(DEBUG):
        import traceback  # not for --version

        traceback.print_exception(error)
    remedy = f"Set {DEBUG}=1 to see where it came from, and report it with what you called."
    problem = f"{type(error).__name__}: {error}."
    return _complained("InternalError", "unexpected error", problem, remedy, arguments, 1)


def _complained(kind: str, where: str, problem: str, remedy: str, arguments: Sequence[str], code: int) -> int:
    """Say why nothing was done; stdout may be the very thing that is full."""
    try:
        complain(kind, where, problem, remedy, arguments)
        sys.stdout.flush()
    except OSError:
        return _without_stdout(code)
    return code


def _without_stdout(code: int) -> int:
    """Let go of a stdout that takes nothing any more, as after `| head`; its last flush would complain again."""
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    return code
