"""Which files in a saved folder were written by us; files of the user move to the new folder when it is replaced."""

import errno
import filecmp
import itertools
import json
import logging
import os
import re
import shutil
from collections.abc import Iterator
from pathlib import Path

from transformers.utils import CONFIG_NAME, GENERATION_CONFIG_NAME

from sparse_trainer.errors import CheckpointError
from sparse_trainer.files.writing import write_text
from sparse_trainer.plan.document import PLAN_FILE

RECORD_FILE = ".pruning_files.json"
"""Lists the files that were saved into a folder: an overwrite replaces these, and nothing else."""
_MODEL_FILES = re.compile(
    rf"{re.escape(CONFIG_NAME)}|{re.escape(GENERATION_CONFIG_NAME)}|{re.escape(PLAN_FILE)}|README\.md|modeling_pruned\.py"
    r"|model(-\d{5}-of-\d{5})?\.safetensors|model\.safetensors\.index\.json"
)
"""What a folder without a record has of ours: earlier versions wrote none."""
logger = logging.getLogger(__name__)


def record_files(folder: Path) -> None:
    """Record the files of a folder that was just written, so that a later overwrite knows them."""
    names = sorted([*_files(folder), RECORD_FILE])
    write_text(folder / RECORD_FILE, json.dumps({"format": 1, "files": names}, indent=1) + "\n")


def carry_over(old: Path, new: Path) -> None:
    """Bring the files and folders in `old` that are not ours into `new`; `old` stays as it is.

    Files are linked, not copied, where the file system can. One whose name is taken by a file that was saved now is
    kept beside it as NAME.kept. What is there already is not brought again.

    Raises:
        CheckpointError: Another file system is mounted in `old`, which cannot move.
        OSError: The system does not let us.
    """
    _carry(old, new, _own_files(old, new))


def check_mounts(folder: Path) -> None:
    """Raise `CheckpointError` where another file system is mounted at or below `folder`: it cannot be replaced."""
    for path in (folder, *(Path(at, name) for at, names, _ in os.walk(folder) for name in names)):
        if os.path.ismount(path):
            raise _mounted(path)


def _carry(old: Path, new: Path, own: frozenset[str], at: str = "") -> None:
    for entry in sorted(os.scandir(old / at), key=lambda entry: entry.name):
        name = f"{at}{entry.name}"
        if name in own:
            continue
        if not entry.is_dir(follow_symlinks=False):
            _carry_file(old / name, new / name)
        elif any(file.startswith(f"{name}/") for file in own):
            _carry(old, new, own, f"{name}/")
        else:
            _carry_folder(old / name, new / name)


def _carry_folder(old: Path, new: Path) -> None:
    """Bring a folder that holds nothing of ours."""
    place = next(p for p in _names_for(new) if not os.path.lexists(p) or _is_folder(p))
    place.mkdir(parents=True, exist_ok=True)
    _carry(old, place, frozenset())
    shutil.copystat(old, place)


def _carry_file(old: Path, new: Path) -> None:
    for place in _names_for(new):
        if not os.path.lexists(place):
            place.parent.mkdir(parents=True, exist_ok=True)
            _link(old, place)
            if place != new:
                logger.warning("%s is kept as %s: a file of this name was saved now.", new.name, place.name)
            return
        if _is_same(old, place):
            return


def _names_for(path: Path) -> Iterator[Path]:
    """Return the name itself, then those under which something can be kept beside it."""
    yield path
    yield path.with_name(f"{path.name}.kept")
    for number in itertools.count(2):
        yield path.with_name(f"{path.name}.kept-{number}")


def _link(old: Path, new: Path) -> None:
    """Give a file, or a symbolic link, a second name; copy it where the file system cannot."""
    if old.is_symlink():
        new.symlink_to(os.readlink(old))
        return
    try:
        os.link(old, new)
    except OSError as error:
        if error.errno == errno.EXDEV:
            raise _mounted(old) from error
        shutil.copy2(old, new)


def _is_same(one: Path, other: Path) -> bool:
    if one.is_symlink() or other.is_symlink():
        return one.is_symlink() and other.is_symlink() and os.readlink(one) == os.readlink(other)
    if not one.is_file() or not other.is_file():
        return other.exists() and os.path.samefile(one, other)
    return os.path.samefile(one, other) or filecmp.cmp(one, other, shallow=False)


def _is_folder(path: Path) -> bool:
    return path.is_dir() and not path.is_symlink()


def _own_files(old: Path, new: Path) -> frozenset[str]:
    """Return the names in `old` of what was saved there; without a record: model files, and what is saved now."""
    recorded = _recorded(old / RECORD_FILE)
    if recorded is not None:
        return recorded
    return frozenset(name for name in _files(old) if _MODEL_FILES.fullmatch(name)).union(_files(new))


def _recorded(file: Path) -> frozenset[str] | None:
    """Return what a record lists; None where there is none, or nothing that can be read as one."""
    try:
        values = json.loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None
    names = values.get("files") if isinstance(values, dict) else None
    if not isinstance(names, list) or not all(isinstance(name, str) for name in names):
        return None
    return frozenset(names)


def _files(folder: Path) -> Iterator[str]:
    """Yield the names of all files below a folder, as seen from there."""
    for at, _, names in os.walk(folder):
        for name in names:
            yield Path(at, name).relative_to(folder).as_posix()


def _mounted(path: Path) -> CheckpointError:
    return CheckpointError(
        str(path),
        "is a place where another file system is mounted: a folder that holds one cannot be replaced as a whole.",
        "Name another folder, or one inside it.",
    )
