"""Exchange two folders in one step, where the system can (Linux, macOS)."""

import ctypes
import os
import sys
from collections.abc import Callable
from pathlib import Path

_AT_FDCWD = -100
_RENAME_EXCHANGE = 2
"""Of Linux; RENAME_SWAP of macOS has the same number."""


def exchange(one: Path, other: Path) -> bool:
    """Give each of two folders the name of the other, in one step that no crash can cut in two.

    Returns:
        False where the system or the file system cannot, or says no: then nothing has changed.
    """
    rename = _system_call()
    return rename is not None and rename(os.fsencode(one), os.fsencode(other)) == 0


def _system_call() -> Callable[[bytes, bytes], int] | None:
    """Return the call of the system: 0 = done. None where there is none (Windows, old C libraries)."""
    if sys.platform == "win32":
        return None
    library = ctypes.CDLL(None)
    try:
        if sys.platform == "darwin":
            swap = library.renamex_np
            return lambda one, other: int(swap(one, other, _RENAME_EXCHANGE))
        rename = library.renameat2
    except AttributeError:
        return None
    return lambda one, other: int(rename(_AT_FDCWD, one, _AT_FDCWD, other, _RENAME_EXCHANGE))
