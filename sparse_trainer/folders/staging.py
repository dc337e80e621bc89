"""Where a folder is made before it takes its place: a hidden folder beside it, known as ours, swept after a crash.

`.NAME.1a2b3c4d/` beside `NAME` holds `new` (what is being written, and after an exchange what stood at NAME before),
`old-0` (what stood there, where the system cannot exchange folders) and a file that the process which writes keeps
locked as long as it lives. So a staging folder without a lock on that file was left by a process that is gone.
"""

import errno
import logging
import os
import re
import shutil
import sys
import uuid
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import IO

from sparse_trainer.files.writing import sync_names

if sys.platform != "win32":
    import fcntl

_LOCK = ".sparse-trainer.lock"
_TRIES = 100
logger = logging.getLogger(__name__)


@contextmanager
def staging_folder(target: Path) -> Iterator[Path]:
    """Make a staging folder beside `target`, whose parent is there, and take it away in the end.

    Raises:
        OSError: The system does not let us.
    """
    place, lock = _open(target)
    try:
        yield place
    finally:
        _close(place, lock)


def sweep(target: Path) -> None:
    """Take away the staging folders beside `target` that dead processes have left.

    Where one was killed between taking the old folder away and putting the new one there, the old one comes back.
    """
    if not target.parent.is_dir():
        return
    name = re.compile(rf"\.{re.escape(target.name)}\.[0-9a-f]{{8}}")
    for place in [path for path in target.parent.iterdir() if name.fullmatch(path.name)]:
        # Killed before it held anything. Whoever is about to open it makes another one instead.
        with suppress(OSError):
            place.rmdir()
        with suppress(OSError), (place / _LOCK).open("r+b") as lock:
            if _lock(lock) and _is_at(lock, place / _LOCK):
                _restore(place, target)
                _close(place, lock)


@contextmanager
def locked(target: Path) -> Iterator[bool]:
    """Wait until no other process of ours replaces the folder at `target`, and keep the others waiting.

    Yields:
        False where the folder is gone, or is another one now: nothing is kept then, and it is worth another try.
    """
    try:
        handle = os.open(target, os.O_RDONLY)
    except FileNotFoundError:
        yield False
        return
    try:
        if sys.platform != "win32":
            # Without locks here, whoever comes last wins.
            with suppress(OSError):
                fcntl.flock(handle, fcntl.LOCK_EX)
        yield target.exists() and os.path.samestat(os.fstat(handle), target.stat())
    finally:
        os.close(handle)


def old_folder(place: Path, number: int) -> Path:
    """Return where in a staging folder a folder goes whose place is taken."""
    return place / f"old-{number}"


def _restore(place: Path, target: Path) -> None:
    """Give the old folder its place again if nothing else is there."""
    for old in sorted(place.glob("old-*")):
        if not os.path.lexists(target):
            old.rename(target)
            sync_names(target.parent)
            logger.warning(
                "%s is the earlier folder again: a process was killed while it replaced it.", target
            )


def _open(target: Path) -> tuple[Path, IO[bytes]]:
    for _ in range(_TRIES):
        place = target.with_name(f".{target.name}.{uuid.uuid4().hex[:8]}")
        place.mkdir()
        # Another process may sweep it away before it is locked.
        with suppress(FileNotFoundError):
            lock = (place / _LOCK).open("wb")
            if _holds(lock) and _is_at(lock, place / _LOCK):
                return place, lock
            lock.close()
    raise FileNotFoundError(errno.ENOENT, "another process takes our drafts away", str(target))


def _close(place: Path, lock: IO[bytes]) -> None:
    """Remove a staging folder, the lock file last: after a crash in between it is still known as one."""
    for path in [path for path in place.iterdir() if path.name != _LOCK]:
        shutil.rmtree(path, ignore_errors=True)
    lock.close()
    # Without the lock, another process may come first.
    with suppress(FileNotFoundError):
        if [path.name for path in place.iterdir()] == [_LOCK]:
            (place / _LOCK).unlink()
            place.rmdir()


def _lock(file: IO[bytes]) -> bool:
    """Lock a file until it is closed; False where somebody else has.

    Raises:
        OSError: There are no locks here.
    """
    if sys.platform == "win32":
        raise OSError(errno.ENOLCK, "no locks of this kind")
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True


def _holds(file: IO[bytes]) -> bool:
    """Lock a file of our own; where there are no locks, nobody can tell that we are gone, and nobody sweeps."""
    try:
        return _lock(file)
    except OSError:
        return True


def _is_at(file: IO[bytes], path: Path) -> bool:
    """Tell whether an open file still is the one at `path`."""
    return os.path.samestat(os.fstat(file.fileno()), path.stat())
