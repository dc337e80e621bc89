"""Processes that are killed on the way: what is on the disk then must be whole."""

import os
import signal
import sys
import traceback
import warnings
from collections.abc import Callable

_EVENTS = ("open", "os.", "shutil.", "fcntl.", "tempfile.", "ctypes.dlsym")


def forked(work: Callable[[], object]) -> int:
    """Do work in a child process, which shares nothing back; return its process id."""
    with warnings.catch_warnings():
        # Python 3.12 warns of threads, which no child here needs.
        warnings.simplefilter("ignore", DeprecationWarning)
        child = os.fork()
    if child == 0:
        code = 1
        try:
            work()
            code = 0
        finally:
            if code:
                traceback.print_exc()
            os._exit(code)
    return child


def ends_well(child: int) -> bool:
    """Wait for a child; False where it was killed."""
    code = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
    assert code in (0, -signal.SIGKILL)
    return code == 0


def killed_at(point: int, work: Callable[[], object]) -> bool:
    """Do work in a child process, which is killed before its n-th call to the disk; False: it came through."""

    def doomed() -> None:
        left = point

        def count(event: str, _: object) -> None:
            nonlocal left
            if event.startswith(_EVENTS) and event != "os.kill":
                left -= 1
                if left < 0:
                    os.kill(os.getpid(), signal.SIGKILL)

        sys.addaudithook(count)
        work()

    return not ends_well(forked(doomed))
