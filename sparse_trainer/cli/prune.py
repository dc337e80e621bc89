"""The command `prune`: one-shot pruning on the command line."""

from __future__ import annotations

import sys
from contextlib import redirect_stdout
from pathlib import Path
from typing import Annotated, Any

import typer

from sparse_trainer.cli import show
from sparse_trainer.cli.console import Json, print_result, tell
from sparse_trainer.criteria.calibration.registry import WIDTH_CRITERIA
from sparse_trainer.errors import ArgumentError, RecipeError
from sparse_trainer.fields import checked
from sparse_trainer.folders.exports import EXPORTS
from sparse_trainer.one_shot.repairs.reconstruct import REPAIRS
from sparse_trainer.run.prune_folder import (
    CalibrationOptions,
    PruneOptions,
    SourceOptions,
    prune_folder,
)

BUDGET, DATA, REPAIR, RESULT = "Budget", "Calibration", "Repair", "Result"


def prune(
    model: Annotated[str, typer.Argument(help="Folder or hub id.")],
    out: Annotated[Path, typer.Argument(help="Folder for the pruned model.")],
    criterion: Annotated[
        str,
        typer.Option(
            help=f"{', '.join(WIDTH_CRITERIA)}; with options: 'obs(rounds=16)'; mixed: 'wanda + 0.5 fisher'."
        ),
    ] = "wifv",
    allocation: Annotated[
        str | None, typer.Option(help="A second criterion, which shares the widths out over the layers.")
    ] = None,
    density: Annotated[
        list[str] | None,
        typer.Option(
            help="What stays: 0.8, or per kind channels=0.7 (may be repeated).", rich_help_panel=BUDGET
        ),
    ] = None,
    target: Annotated[str, typer.Option(help="params, macs or units.", rich_help_panel=BUDGET)] = "params",
    scope: Annotated[str, typer.Option(help="global, layer or uniform.", rich_help_panel=BUDGET)] = "global",
    standardize: Annotated[
        str | None,
        typer.Option(help="How scores compare across layers; default: by criterion.", rich_help_panel=BUDGET),
    ] = None,
    units: Annotated[
        list[str] | None, typer.Option(help="heads, channels; may be repeated.", rich_help_panel=BUDGET)
    ] = None,
    protect: Annotated[
        list[str] | None,
        typer.Option(
            help="first, last, 3, 3-5 or a pattern of group names; may be repeated.", rich_help_panel=BUDGET
        ),
    ] = None,
    multiple_of: Annotated[
        list[str] | None, typer.Option(help="64, or per kind channels=64.", rich_help_panel=BUDGET)
    ] = None,
    min_keep: Annotated[
        list[str] | None, typer.Option(help="Least units per layer: 8, or heads=1.", rich_help_panel=BUDGET)
    ] = None,
    max_prune: Annotated[
        float, typer.Option(help="Share of its units that any layer may lose.", rich_help_panel=BUDGET)
    ] = 1.0,
    steps: Annotated[
        int, typer.Option(help="Rounds of scoring and cutting on the way.", rich_help_panel=BUDGET)
    ] = 1,
    calibration: Annotated[
        str | None,
        typer.Option(help="wikitext2, c4, boolq, ... or a local file.", rich_help_panel=DATA),
    ] = None,
    calibration_file: Annotated[
        Path | None, typer.Option(help="Stands in for the data set on the hub.", rich_help_panel=DATA)
    ] = None,
    samples: Annotated[
        int | None, typer.Option(help="Sequences; default: 128.", rich_help_panel=DATA)
    ] = None,
    length: Annotated[
        int | None, typer.Option(help="Tokens per sequence; default: 512.", rich_help_panel=DATA)
    ] = None,
    seed: Annotated[
        int | None, typer.Option(help="Which sequences are drawn; default: 42.", rich_help_panel=DATA)
    ] = None,
    batch_size: Annotated[
        int | None, typer.Option(help="Sequences per forward pass; default: 8.", rich_help_panel=DATA)
    ] = None,
    chat_template: Annotated[
        bool | None,
        typer.Option("--chat-template", help="Put the text into the chat template.", rich_help_panel=DATA),
    ] = None,
    reconstruct: Annotated[
        str | None, typer.Option(help=f"{', '.join(REPAIRS)}.", rich_help_panel=REPAIR)
    ] = None,
    reconstruct_bias: Annotated[
        bool | None,
        typer.Option(help="Whether least squares may move biases.", rich_help_panel=REPAIR),
    ] = None,
    damping: Annotated[
        float | None, typer.Option(help="Of least squares; default: 0.1.", rich_help_panel=REPAIR)
    ] = None,
    sequential: Annotated[
        bool, typer.Option("--sequential", help="Repair layer by layer.", rich_help_panel=REPAIR)
    ] = False,
    by_block: Annotated[
        bool,
        typer.Option(
            "--by-block", help="One block at a time on the device: less memory.", rich_help_panel=DATA
        ),
    ] = False,
    dtype: Annotated[
        str, typer.Option(help="auto (as stored), float32, bfloat16, float16.", rich_help_panel=RESULT)
    ] = "auto",
    device: Annotated[
        str | None,
        typer.Option(
            help="cpu, cuda, ...; default: an accelerator where there is one.", rich_help_panel=RESULT
        ),
    ] = None,
    export: Annotated[
        str, typer.Option(help=f"One of {', '.join(EXPORTS)}.", rich_help_panel=RESULT)
    ] = "auto",
    pictures: Annotated[
        bool, typer.Option(help="Draw scores and widths, and write them as CSV.", rich_help_panel=RESULT)
    ] = True,
    overwrite: Annotated[
        bool, typer.Option("--overwrite", help="Replace an earlier result.", rich_help_panel=RESULT)
    ] = False,
    as_json: Json = False,
) -> None:
    """Prune a pretrained model in one shot: score on calibration text, cut, repair, save. No training."""
    source = _options(SourceOptions, name_or_path=model, dtype=dtype, device=device)
    options = _options(
        PruneOptions,
        criterion=criterion,
        allocation=allocation,
        target=target,
        scope=scope,
        standardize=standardize,
        reconstruct=reconstruct,
        reconstruct_bias=reconstruct_bias,
        sequential=sequential,
        by_block=by_block,
        steps=steps,
        max_prune=max_prune,
        units=units or None,
        protect=protect or (),
        **_given(density=density, multiple_of=multiple_of, min_keep=min_keep),
        **_known(damping=damping),
    )
    text = _calibration(
        calibration,
        calibration_file,
        samples=samples,
        length=length,
        seed=seed,
        batch_size=batch_size,
        chat_template=chat_template,
    )
    with redirect_stdout(sys.stderr):
        folder, plan, files = prune_folder(
            source, out, options, text, export=export, overwrite=overwrite, draw=pictures, tell=tell
        )
    facts = {
        "folder": str(folder),
        "method": plan.method,
        "density_asked": plan.density_asked,
        "density_reached": plan.density_reached,
        "params": plan.params,
        "macs": plan.macs,
        "files": {what: str(path) for what, path in files.items()},
    }
    print_result(as_json, facts, show.pruned(folder, plan, files))


def _options(cls: Any, **values: Any) -> Any:
    """Return options, checked against the types of their fields."""
    try:
        return cls(**checked(cls, values, "prune"))
    except RecipeError as error:
        raise ArgumentError(error.where.removeprefix("prune."), error.what, error.remedy) from error


def _known(**values: Any) -> dict[str, Any]:
    """Return the options that were given."""
    return {name: value for name, value in values.items() if value is not None}


def _calibration(source: str | None, file: Path | None, **values: Any) -> CalibrationOptions | None:
    """Return what is to be read, None where nothing is.

    Raises:
        ArgumentError: How to read it is said, but not what.
    """
    given = _known(**values)
    if source is not None or file is not None:
        text = {
            "source": str(file) if source is None else source,
            "file": None if file is None else str(file),
        }
        options: CalibrationOptions = _options(CalibrationOptions, **text, **given)
        return options
    if given:
        raise ArgumentError(min(given), "there is no calibration text.", "Set `calibration`, or drop it.")
    return None


def _given(**asked: list[str] | None) -> dict[str, Any]:
    """Return the budgets that were given."""
    return {name: per_kind(name, values) for name, values in asked.items() if values}


def per_kind(name: str, values: list[str]) -> Any:
    """Return one number for all kinds, or numbers by kind.

    >>> per_kind("density", ["0.8"]), per_kind("density", ["heads=0.75", "channels=0.5"])
    (0.8, {'heads': 0.75, 'channels': 0.5})
    >>> per_kind("multiple_of", ["64"])
    64

    Raises:
        ArgumentError: Not a number, or several without a kind.
    """
    if len(values) == 1 and "=" not in values[0]:
        return _number(name, values[0])
    pairs = [value.partition("=") for value in values]
    if not all(kind and text for kind, _, text in pairs):
        raise ArgumentError(
            name, f"{' '.join(values)!r} cannot be meant.", "Give one number, or KIND=NUMBER for each kind."
        )
    return {kind: _number(f"{name}.{kind}", text) for kind, _, text in pairs}


def _number(name: str, text: str) -> int | float:
    try:
        return int(text) if text.isdigit() else float(text)
    except ValueError as error:
        raise ArgumentError(name, f"{text!r} is no number.", "Give e.g. 0.8.") from error
