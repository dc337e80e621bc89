"""Python files of a user's own, named in a recipe or on the command line: they register criteria, tasks and exports.

A plugin is code that is run. So only a user names one: in the recipe that is run, or with `--plugin`; never a model's
folder, never an override of a recipe.
"""

import importlib.util
import os
import sys
import traceback
from collections.abc import Iterable
from pathlib import Path
from typing import Final

from sparse_trainer.errors import ArgumentError, first_line, shown

_LOADED: Final[set[str]] = set()


def load_plugins(files: Iterable[str | Path], folder: Path | None = None) -> list[str]:
    """Import files, each once in the life of the process; return where they lie.

    Args:
        files: Python files.
        folder: What relative paths are relative to; None = the working directory.

    Raises:
        ArgumentError: One is no Python file, or fails when it is imported.
    """
    found = [_found(file, folder or Path()) for file in files]
    for path in found:
        if path not in _LOADED:
            _import(path)
            _LOADED.add(path)
    return found


def _found(file: str | Path, folder: Path) -> str:
    if not isinstance(file, str | Path):
        raise ArgumentError("plugins", f"{shown(file)} is no path.", "Name Python files, e.g. [my_file.py].")
    if not os.path.isfile(folder / file):  # unlike Path.is_file, no error for a name that no file can have
        raise ArgumentError(
            "plugins", f"there is no file {shown(str(folder / file))}.", "Name a Python file."
        )
    path = os.path.realpath(folder / file)
    if not path.endswith(".py"):
        raise ArgumentError("plugins", f"{path} is no Python file.", "Name a file that ends in .py.")
    return path


def _import(path: str) -> None:
    """Run a file as a module of a name that no package has."""
    name = f"sparse_trainer_plugin_{len(_LOADED)}_{Path(path).stem}"
    spec = importlib.util.spec_from_file_location(name, path)
    assert spec is not None
    assert spec.loader is not None
    sys.modules[name] = module = importlib.util.module_from_spec(spec)
    try:
        spec.loader.exec_module(module)
    except (Exception, SystemExit) as error:  # whatever the file does
        del sys.modules[name]
        what = f"{_place(error, path)}: {type(error).__name__}: {first_line(error)}."
        raise ArgumentError("plugins", what, "Change that file.") from error


def _place(error: BaseException, path: str) -> str:
    """Return the file, and the line of it at which an error arose."""
    if isinstance(error, SyntaxError) and error.filename == path:
        return f"{path}, line {error.lineno}"
    frames = traceback.extract_tb(error.__traceback__)
    return path + "".join([f", line {frame.lineno}" for frame in frames if frame.filename == path][-1:])
