"""What all commands share: results go to stdout, everything else to stderr."""

import json
import sys
from typing import TYPE_CHECKING, Annotated, Any

import typer

if TYPE_CHECKING:
    from rich.console import RenderableType

Json = Annotated[bool, typer.Option("--json", help="Print one JSON object on stdout, nothing else.")]


def tell(line: str) -> None:
    """Say on stderr what is being done."""
    from rich.console import Console  # a tenth of a second, which --help and --version do not need

    Console(stderr=True).print(f"[bold]>> {line}", highlight=False)


def say(line: str) -> None:
    """Say a line on stderr as it is."""
    print(line, file=sys.stderr)


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
