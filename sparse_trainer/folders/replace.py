"""A folder appears whole or not at all, and takes the place of an earlier one in one step."""

import errno
import functools
import itertools
import os
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from sparse_trainer.errors import CheckpointError
from sparse_trainer.files.foreign_code import clean_folder
from sparse_trainer.files.writing import place_of, sync_names, sync_tree, write_text, writing
from sparse_trainer.folders.exchange import exchange
from sparse_trainer.folders.own_files import carry_over, check_mounts, record_files
from sparse_trainer.folders.staging import locked, old_folder, staging_folder, sweep
from sparse_trainer.plan.document import PLAN_FILE


@contextmanager
def new_folder(
    directory: str | os.PathLike[str], *, overwrite: bool, ours: str = PLAN_FILE, need: int = 0
) -> Iterator[Path]:
    """Yield a folder to fill that replaces `directory` when the block ends without an error, and is removed otherwise.

    What an earlier save wrote there is replaced; a user's own files and folders beside it move on into the new one.

    Args:
        ours: The file by which a folder is known as ours to replace.
        need: Bytes that will be written at least.

    Raises:
        CheckpointError: `directory` is not ours to replace, `overwrite` is not set, or it cannot be written.
    """
    check_target(directory, overwrite=overwrite, ours=ours, need=need)
    target = place_of(directory)
    with writing(target):
        target.parent.mkdir(parents=True, exist_ok=True)
        with staging_folder(target) as place:
            draft = place / "new"
            draft.mkdir()
            with _told_as(draft, target):
                yield draft
            clean_folder(draft)
            record_files(draft)
            sync_tree(draft)
            _publish(draft, target, place, functools.partial(_check_replaceable, target, overwrite, ours))


def check_target(
    directory: str | os.PathLike[str], *, overwrite: bool = True, ours: str = PLAN_FILE, need: int = 0
) -> None:
    """Raise `CheckpointError` where `save_pruned` would: ask before a long run. A draft is made on trial.

    Args:
        overwrite: Whether a folder that we wrote may be replaced.
        ours: The file by which it is known.
        need: Bytes that will be written at least.
    """
    target = place_of(directory)
    with writing(target):
        sweep(target)
        _check_replaceable(target, overwrite, ours)
        missing = [parent for parent in target.parents if not parent.exists()]
        try:
            target.parent.mkdir(parents=True, exist_ok=True)
            with staging_folder(target) as place:
                draft = place / "new"
                draft.mkdir()
                with _told_as(draft / "trial", target):
                    write_text(draft / "trial", "trial\n")
            _check_room(target, need)
        finally:
            for parent in missing:
                with suppress(OSError):
                    parent.rmdir()


def _check_replaceable(target: Path, overwrite: bool, ours: str) -> None:
    try:
        names = os.listdir(target)
    except FileNotFoundError:
        return
    except NotADirectoryError as error:
        if not target.exists():
            raise
        raise CheckpointError(str(target), "is a file.", "Name a folder.") from error
    check_mounts(target)
    if target.exists() and not os.access(target, os.W_OK | os.X_OK):
        raise CheckpointError(
            str(target), f"cannot be written ({os.strerror(errno.EACCES)}).", "Name another folder."
        )
    if names and ours not in names:
        raise CheckpointError(
            str(target), f"is not empty and holds no {ours}: not ours to replace.", "Name another folder."
        )
    if names and not overwrite:
        raise CheckpointError(
            str(target),
            "holds a result already.",
            "Set `overwrite=True`, or name another folder.",
        )


def _check_room(target: Path, need: int) -> None:
    free = shutil.disk_usage(target.parent).free
    if need > free:
        raise CheckpointError(
            str(target), f"needs {need / 1e9:.1f} GB, and {free / 1e9:.1f} GB are free.",
            "Make room, or name a folder on another disk.",
        )  # fmt: skip


def _publish(draft: Path, target: Path, place: Path, check: Callable[[], None]) -> None:
    """Give `draft` the name of `target`, with what is not ours in the folder that stands there.

    Args:
        place: The staging folder.
        check: Raises where what stands there may not be replaced.
    """
    for number in itertools.count():
        if _moved(draft, target):
            break
        with locked(target) as is_there:
            if not is_there:
                continue
            check()
            shutil.copymode(target, draft)
            carry_over(target, draft)
            old = _replace(draft, target, old_folder(place, number))
            if old is not None:
                # What came into the old folder in the meantime.
                carry_over(old, target)
                break
    sync_names(target.parent)


def _replace(draft: Path, target: Path, aside: Path) -> Path | None:
    """Put `draft` in the place of `target`; return where the old folder is now, None where another one came between."""
    if exchange(draft, target):
        return draft
    try:
        target.rename(aside)
        if _moved(draft, target):
            return aside
    except BaseException:
        if aside.is_dir() and not os.path.lexists(target):
            aside.rename(target)
        raise
    return None


def _moved(draft: Path, target: Path) -> bool:
    """Rename a folder unless something, other than an empty folder, stands there."""
    try:
        draft.rename(target)
    except OSError as error:
        if error.errno in (errno.ENOTEMPTY, errno.EEXIST):
            return False
        raise
    return True


@contextmanager
def _told_as(draft: Path, target: Path) -> Iterator[None]:
    """Let errors about files of a draft name the folder that the user asked for."""
    try:
        yield
    except CheckpointError as error:
        where = error.where.replace(str(draft), str(target))
        raise CheckpointError(where, error.what, error.remedy) from error
