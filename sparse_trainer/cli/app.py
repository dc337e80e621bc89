"""The command line as typer knows it. One command is imported when it is called; the others are only listed."""

import os
from collections.abc import Collection, Sequence
from typing import Annotated, NoReturn

import typer

from sparse_trainer import __version__
from sparse_trainer.cli.boundary import run_app
from sparse_trainer.cli.commands import ABOUT, COMMANDS, named_command
from sparse_trainer.cli.quiet import quieten


def make_app(called: Collection[str]) -> typer.Typer:
    """Return the command line, in which the commands that are called can be run, and the others are listed."""
    app = typer.Typer(
        name="sparse-trainer",
        help=ABOUT,
        add_completion=True,
        pretty_exceptions_enable=False,
    )
    app.callback()(_whole)
    for name, command in COMMANDS.items():
        app.command(name)(command.load() if name in called else command.listed())
    return app


def _print_version(asked: bool) -> None:
    if asked:
        typer.echo(f"sparse-trainer {__version__}")
        raise typer.Exit


def _whole(
    version: Annotated[
        bool, typer.Option("--version", callback=_print_version, is_eager=True, help="Print the version.")
    ] = False,
) -> None: ...


def run_cli(arguments: Sequence[str]) -> NoReturn:
    """Run the command that arguments name, or complete what a shell asks for, and leave with the exit code."""
    quieten()
    run_app(make_app({named_command(arguments or _typed())}), arguments)


def _typed() -> list[str]:
    """Return the words that a shell asks to complete, without the program's name; [] where none does.

    bash hands them over in one variable, other shells in another.
    """
    return os.environ.get("COMP_WORDS", os.environ.get("_TYPER_COMPLETE_ARGS", "")).split()[1:]
