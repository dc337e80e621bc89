"""The recipes that come with the project. Listing them reads no YAML, so that it is there at once."""

from pathlib import Path

import recipes

_DESCRIPTION = "description: "


def shipped() -> dict[str, Path]:
    """Return the recipes that come with the project: name -> file."""
    return {path.stem: path for folder in recipes.__path__ for path in sorted(Path(folder).glob("*.yaml"))}


def describe(path: Path) -> str:
    """Return the description of a shipped recipe, which is one line of plain text."""
    with open(path, encoding="utf-8") as lines:
        return next(
            (line.removeprefix(_DESCRIPTION).strip() for line in lines if line.startswith(_DESCRIPTION)), ""
        )
