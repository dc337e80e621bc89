"""What the command line says before any command runs: the list of commands, the version, a word that is none.

It is there as fast as Python is: neither typer nor rich, let alone a model, is imported for it.
"""

import os
import sys
from collections.abc import Sequence
from typing import NoReturn

from sparse_trainer import __version__
from sparse_trainer.cli.commands import ABOUT, COMMANDS, named_command
from sparse_trainer.cli.console import complain, print_text
from sparse_trainer.cli.endings import code_of, ready_streams
from sparse_trainer.cli.recipe_list import list_recipes
from sparse_trainer.cli.two_columns import two_columns
from sparse_trainer.errors import nearest

_OPTIONS = {
    "--version": "Print the version.",
    "--install-completion": "Complete commands and options in the current shell from now on.",
    "--show-completion": "Print what --install-completion would install.",
    "--help": "Show this, or after a command what it takes.",
}
_COMPLETING = "_SPARSE_TRAINER_COMPLETE"


def main() -> NoReturn:
    """Run the command line on the arguments of the process, and leave with its exit code."""
    arguments = sys.argv[1:]
    ready_streams()
    try:
        if _COMPLETING not in os.environ and _answered(arguments):
            sys.stdout.flush()
            raise SystemExit(0)
        from sparse_trainer.cli.app import run_cli

        run_cli(arguments)
    except (Exception, KeyboardInterrupt) as error:  # noqa: BLE001 - also while a command is imported
        code = code_of(error, arguments)
    raise SystemExit(code)


def _answered(arguments: Sequence[str]) -> bool:
    """Answer what needs no command, and return whether that was all."""
    called = named_command(arguments)
    if arguments in ([], ["--help"]):
        print_text(_page())
    elif arguments == ["--version"]:
        print_text(f"sparse-trainer {__version__}")
    elif arguments in (["recipes"], ["recipes", "--json"]):
        list_recipes(as_json="--json" in arguments)
    elif called and called == arguments[0] and called not in COMMANDS:
        problem = f"there is no command {called!r}."
        complain("UsageError", "command line", problem, nearest(called, COMMANDS), arguments)
        raise SystemExit(2)
    else:
        return False
    return True


def _page() -> str:
    """Return what `--help` shows."""
    commands = [(name, command.says) for name, command in COMMANDS.items()]
    parts = ["Usage: sparse-trainer [OPTIONS] COMMAND [ARGS]...", "", ABOUT]
    for title, rows in (("Commands", commands), ("Options", list(_OPTIONS.items()))):
        parts += ["", _strong(f"{title}:"), *two_columns(rows)]
    return "\n".join(parts)


def _strong(text: str) -> str:
    """Return a text in bold letters where somebody looks at a terminal that has them."""
    plain = not sys.stdout.isatty() or os.environ.get("NO_COLOR") or os.environ.get("TERM") == "dumb"
    return text if plain else f"\033[1m{text}\033[0m"
