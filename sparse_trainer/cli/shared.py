"""Options that several commands take: where the model goes, which text is read, what becomes of the result."""

import re
from typing import Annotated

import typer

from sparse_trainer.cli.options import Fields, Values, made
from sparse_trainer.errors import ArgumentError
from sparse_trainer.folders.exports import EXPORTS
from sparse_trainer.run.options import CalibrationOptions, SourceOptions

RESULT = "Result"
PLACE = Fields(
    SourceOptions,
    RESULT,
    dtype="auto (as stored), float32, bfloat16, float16.",
    device="cpu, cuda, ...; default: an accelerator where there is one.",
)
CALIBRATION = Fields(
    CalibrationOptions,
    "Calibration",
    unset=True,
    source="wikitext2, c4, boolq, ... or a local file.",
    file="Stands in for the data set on the hub.",
    samples="Sequences; default: 128.",
    length="Tokens per sequence; default: 512.",
    seed="Which sequences are drawn; default: 42.",
    batch_size="Sequences per forward pass; default: 8.",
    text_columns="Of a table whose rows stand by themselves; may be repeated.",
    chat_template="Put the text into the chat template.",
)
Export = Annotated[str, typer.Option(help=f"One of {', '.join(EXPORTS)}.", rich_help_panel=RESULT)]
Overwrite = Annotated[
    bool, typer.Option("--overwrite", help="Replace an earlier result.", rich_help_panel=RESULT)
]
_COMMA = re.compile(r",(?![^()]*\))")
"""Commas in brackets belong to the options of a criterion."""


def calibration_text(given: Values) -> CalibrationOptions | None:
    """Return what is to be read, None where nothing is.

    Raises:
        ArgumentError: How to read it is said, but not what.
    """
    if not given:
        return None
    source = given.get("source", given.get("file"))
    if source is None:
        raise ArgumentError(min(given), "there is no calibration text.", "Set `calibration`, or drop it.")
    return made(CalibrationOptions, **{**given, "source": source})


def criteria_of(text: str) -> list[str]:
    """Return the criteria that commas part.

    >>> criteria_of("wanda, obs(rounds=2, damping=0.1)")
    ['wanda', 'obs(rounds=2, damping=0.1)']
    """
    return [name.strip() for name in _COMMA.split(text) if name.strip()]
