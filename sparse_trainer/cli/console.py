"""What all commands share: results go to stdout, everything else to stderr."""

import json
import sys
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from rich.console import RenderableType


def tell(line: str) -> None:
    """Say on stderr what is being done."""
    from rich.console import Console  # a tenth of a second, which --help and --version do not need

    Console(stderr=True).print(f">> {line}", style="bold", markup=False, highlight=False, soft_wrap=True)


def say(line: str) -> None:
    """Say a line on stderr as it is."""
    print(line, file=sys.stderr)


def print_text(text: str) -> None:
    """Print a text on stdout as it is."""
    print(text)


def print_json(values: dict[str, Any]) -> None:
    """Print a JSON object on stdout."""
    print(json.dumps(values, indent=2))


def print_result(as_json: bool, values: dict[str, Any], shown: "list[RenderableType]") -> None:
    """Print a result, for a script or for a reader."""
    if as_json:
        print_json(values)
        return
    from rich.console import Console  # as above

    console = Console()
    for part in shown:
        console.print(
            part, highlight=False, soft_wrap=isinstance(part, str), markup=not isinstance(part, str)
        )


def complain(kind: str, where: str, problem: str, remedy: str, arguments: Sequence[str]) -> None:
    """Say in one line on stderr why nothing was done; with --json among the arguments as an object on stdout, too."""
    say(" ".join(f"error: {where}: {problem} {remedy}".split()))
    if "--json" in arguments:
        told = {"type": kind, "where": where, "problem": problem, "remedy": remedy}
        print_json({"error": told})
