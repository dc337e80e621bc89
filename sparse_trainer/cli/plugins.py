"""The option `--plugin` of commands."""

from typing import Annotated

import typer

from sparse_trainer.run.plugins import load_plugins


def _load(files: list[str] | None) -> list[str]:
    """Import the files; a list in any case, since typer 0.16 counts what a callback returns."""
    load_plugins(files or [])
    return files or []


Plugins = Annotated[
    list[str] | None,
    typer.Option(
        "--plugin",
        callback=_load,
        help="Python file that registers criteria, tasks or exports; may be repeated.",
    ),
]
