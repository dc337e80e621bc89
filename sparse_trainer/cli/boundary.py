"""Where the command line ends: every way a command can stop becomes one line on stderr and an exit code.

Exit codes: 0 done; 2 something that the user can mend; 1 a bug of ours, or a reader of stdout that went away, or a
sweep of which a run failed; 130 and 143 interrupted and terminated, as shells count them.
"""

import ast
import os
import signal
import sys
from collections.abc import Sequence
from types import FrameType
from typing import Any, NoReturn

import typer

from sparse_trainer.cli.commands import named_command
from sparse_trainer.cli.console import complain, say
from sparse_trainer.cli.endings import INTERRUPTED, code_of
from sparse_trainer.cli.options import CALLED
from sparse_trainer.errors import ProcessError, SparseTrainerError, Spelling

# click's class; newer typer brings a copy of click, so it is taken from what typer itself exports.
_UsageError: type[Any] = typer.BadParameter.__bases__[0]
_LISTED = {"criterion": "criteria", "layers": "layer"}
"""What some commands take one of, and others a list, under another name."""


def run_app(app: typer.Typer, arguments: Sequence[str]) -> NoReturn:
    """Run a command line and leave the process with its exit code."""
    before = signal.signal(signal.SIGTERM, _terminated)
    try:
        raise SystemExit(_exit_code(app, arguments))
    finally:
        signal.signal(signal.SIGTERM, before)


def _exit_code(app: typer.Typer, arguments: Sequence[str]) -> int:
    """Run a command line; say what went wrong, if anything, and return the exit code."""
    command = named_command(arguments)
    try:
        code = app(args=list(arguments), standalone_mode=False)
        sys.stdout.flush()
    except SparseTrainerError as error:
        said = error.respelled(option_spelling(app, command))
        # Of several processes all fail alike, and the first one speaks; one that has failed alone speaks for itself.
        if os.environ.get("RANK", "0") != "0" and not isinstance(error, ProcessError):
            return 2
        code = _complain(type(error).__name__, said.where, said.what, said.remedy, arguments, 2)
    except _UsageError as error:
        help_of = f"sparse-trainer {command} --help" if command in _commands(app) else "sparse-trainer --help"
        said = error.format_message()
        code = _complain("UsageError", "command line", said, f"See `{help_of}`.", arguments, error.exit_code)
    except (Exception, KeyboardInterrupt) as error:  # noqa: BLE001 - the last resort: no traceback unasked
        code = code_of(error, arguments)
    else:
        if code == INTERRUPTED:
            say("interrupted")
    return code or 0


def option_spelling(app: typer.Typer, command: str) -> Spelling:
    """Return how a command's options are written: `by_block=True` is --by-block, `scope='layer'` is --scope layer.

    One number for each kind, `density={'heads': 0.8}`, is --density heads=0.8, repeated. An argument without dashes is
    written in capitals, as help shows it; what is no option of the command stays as is.
    """
    found = _commands(app).get(command)
    kinds = {} if found is None else {option.name: option.param_type_name for option in found.params}

    def spell(name: str, value: str | None) -> str:
        called = (CALLED | _LISTED).get(name, name)
        name = called if called in kinds and name not in kinds else name
        kind = kinds.get(name)
        if kind is None:
            return name if value is None else f"{name}={value}"
        option = name.upper() if kind == "argument" else "--" + name.replace("_", "-")
        if value in (None, "True"):
            return option
        if value is not None and value.startswith("{"):
            by_kind = ast.literal_eval(value)
            return " ".join(f"{option} {kind}={number}" for kind, number in by_kind.items())
        return f"--no-{option[2:]}" if value == "False" else f"{option} {str(value).strip(chr(39))}"

    return spell


def _commands(app: typer.Typer) -> dict[str, Any]:
    """Return the commands by name, as click has them."""
    group: Any = typer.main.get_command(app)
    return dict(group.commands)


def _complain(kind: str, where: str, problem: str, remedy: str, arguments: Sequence[str], code: int) -> int:
    """Say why nothing was done, and return the exit code."""
    complain(kind, where, problem, remedy, arguments)
    return code


def _terminated(number: int, frame: FrameType | None) -> NoReturn:
    """Leave as after an error, so that half-written folders are swept."""
    raise SystemExit(128 + number)
