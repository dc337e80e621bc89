"""Files appear whole: written beside their place, flushed to the disk, renamed. A reader sees the old or the new.

Whatever the system says against it becomes a `CheckpointError` that names the place and a remedy.
"""

import errno
import os
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from safetensors import SafetensorError

from sparse_trainer.errors import CheckpointError

_ELSEWHERE = "Name a place that can be written to."
_REMEDIES = {
    errno.ENOSPC: "Make room, or name a place on another disk.",
    errno.EDQUOT: "Make room, or name a place on another disk.",
    errno.ENAMETOOLONG: "Give a shorter name.",
}


def write_text(path: str | os.PathLike[str], text: str) -> None:
    """Write `text` to `path`, all or nothing.

    Raises:
        CheckpointError: It cannot be written.
    """
    with new_file(path) as draft:
        draft.write_text(text, encoding="utf-8", newline="")


@contextmanager
def new_file(path: str | os.PathLike[str]) -> Iterator[Path]:
    """Give a file to fill that takes the place of `path` when the block ends well, and vanishes when it does not.

    Raises:
        CheckpointError: It cannot be written.
    """
    target = place_of(path)
    with writing(target):
        draft = _draft(target)
        try:
            yield draft
            draft.chmod(0o644)
            sync_file(draft)
            os.replace(draft, target)
            sync_names(target.parent)
        finally:
            draft.unlink(missing_ok=True)


def check_file(path: str | os.PathLike[str]) -> None:
    """Raise `CheckpointError` where `write_text` would: ask before a long run. Nothing stays behind."""
    target = place_of(path)
    with writing(target):
        _draft(target).unlink()


def place_of(path: str | os.PathLike[str]) -> Path:
    """Return the absolute path, links followed: what is written there does not replace a link.

    Raises:
        CheckpointError: It is no path, or its links go round in a circle.
    """
    try:
        return Path(path).resolve()
    except (OSError, RuntimeError, ValueError) as error:
        raise CheckpointError(repr(os.fspath(path)), f"cannot be written ({error}).", _ELSEWHERE) from error


@contextmanager
def writing(where: Path) -> Iterator[None]:
    """Turn what the system says against writing `where` into a `CheckpointError`."""
    try:
        yield
    except (OSError, SafetensorError) as error:
        code = _code(error)
        said = os.strerror(code) if code else f"{error}"
        raise CheckpointError(
            str(where), f"cannot be written ({said}).", _REMEDIES.get(code, _ELSEWHERE)
        ) from error


def sync_file(path: Path) -> None:
    """Wait until the content of a file is on the disk."""
    with path.open("rb") as file:
        os.fsync(file.fileno())


def sync_names(folder: Path) -> None:
    """Wait until the names in a folder are on the disk, where the file system can do that."""
    handle = os.open(folder, os.O_RDONLY)
    try:
        with suppress(OSError):
            os.fsync(handle)
    finally:
        os.close(handle)


def sync_tree(folder: Path) -> None:
    """Wait until all files and folders below `folder` are on the disk."""
    for path, _, names in os.walk(folder, topdown=False):
        for file in (Path(path, name) for name in names):
            if file.is_file() and not file.is_symlink():
                sync_file(file)
        sync_names(Path(path))


def _draft(target: Path) -> Path:
    """Make an empty file beside `target`."""
    if target.is_dir():
        raise CheckpointError(str(target), "is a folder.", "Name a file.")
    handle, name = tempfile.mkstemp(prefix=f".{target.name}.", dir=target.parent)
    os.close(handle)
    return Path(name)


def _code(error: Exception) -> int:
    """Return the number of an error of the system, 0 for none; safetensors has it in words only."""
    if isinstance(error, OSError):
        return error.errno or 0
    return next((code for code in errno.errorcode if f"(os error {code})" in str(error)), 0)
