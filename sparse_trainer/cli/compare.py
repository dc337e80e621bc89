"""The command `compare`: which criterion suits a model and its data, before anything is saved."""

import sys
from contextlib import redirect_stdout
from dataclasses import replace
from pathlib import Path
from typing import Annotated

import typer
from rich.console import RenderableType

from sparse_trainer.budget.time_target import LATENCY
from sparse_trainer.cli.console import print_result, tell
from sparse_trainer.cli.options import Fields, Json, Values, expanded, made
from sparse_trainer.cli.plugins import Plugins
from sparse_trainer.cli.shared import CALIBRATION, PLACE, Overwrite, calibration_text, criteria_of
from sparse_trainer.cli.tables import table
from sparse_trainer.errors import ArgumentError, DataError, TooLittleDataError
from sparse_trainer.fields import check_counts
from sparse_trainer.folders.replace import check_target
from sparse_trainer.folders.tokenizers import find_tokenizer
from sparse_trainer.one_shot.checks import check_shape
from sparse_trainer.run.compare import (
    TABLE,
    CriteriaComparison,
    compare_criteria,
    named_prunings,
    write_comparison,
)
from sparse_trainer.run.judge import LOSS
from sparse_trainer.run.options import PruneSection, SourceOptions
from sparse_trainer.run.pictures import check_drawing
from sparse_trainer.run.prune_folder import read_calibration
from sparse_trainer.run.texts import pooled_as_stored
from sparse_trainer.run.together import check_alone

PRUNING = Fields(
    PruneSection,
    "Budget",
    density="What stays: 0.8, or per kind channels=0.7 (may be repeated).",
    target="params, macs or units.",
    scope="global, layer or uniform.",
    standardize="How scores compare across layers; default: by criterion.",
    units="heads, channels, ...; may be repeated.",
    protect="first, last, 3, 3-5 or a pattern of group names; may be repeated.",
    min_keep="Least units per layer: 8, or heads=1.",
    reconstruct="Repair after each cut: bias, scale, least-squares.",
    damping="Of least squares.",
    pooling="Of encoders: mean, cls, max or lasttoken; default: by the model's files, else none.",
)


@expanded
def compare_command(
    model: Annotated[str, typer.Argument(help="Folder or hub id.")],
    *,
    criteria: Annotated[str, typer.Option(help="Parted by commas, e.g. 'wanda,obs(rounds=16),fisher'.")],
    pruning: Annotated[Values, PRUNING],
    calibration: Annotated[Values, CALIBRATION],
    held_out: Annotated[
        int, typer.Option(help="Sequences of the same text on which the cuts are judged.")
    ] = 32,
    place: Annotated[Values, PLACE],
    out: Annotated[Path | None, typer.Option(help="Folder for a table and a picture.")] = None,
    pictures: Annotated[bool, typer.Option(help="Draw as PNG what is written as CSV.")] = True,
    overwrite: Overwrite = False,
    plugin: Plugins = None,
    as_json: Json = False,
) -> None:
    """Prune by several criteria on one pass over the text; show what each costs on text held out. Nothing is saved."""
    source, text = made(SourceOptions, name_or_path=model, **place), calibration_text(calibration)
    names = criteria_of(criteria)
    if pruning.get("target") == LATENCY:
        raise ArgumentError("target", "times are not compared.", "Take params, macs or units.")
    prunings = [made(PruneSection, criterion=name, **pruning) for name in names]
    with redirect_stdout(sys.stderr):
        check_alone("compare")
        named_prunings(prunings)
        check_counts(held_out=held_out)
        if text is None:
            raise ArgumentError(
                "calibration", "there is none.", "Set `calibration`: the cuts are judged on it."
            )
        text.check()
        if out is not None:
            check_target(out, overwrite=overwrite, ours=TABLE)
            if pictures:
                check_drawing("give --no-pictures")
        pooling = pooled_as_stored(prunings[0], source, tell).pooling
        prunings = [replace(options, pooling=pooling) for options in prunings]
        shape = source.shape()
        for options in prunings:
            check_shape(options, shape, source.place())
        tokenizer = find_tokenizer(model, source.revision)
        # One by one: what is held out is counted in sequences.
        wanted = replace(text, samples=text.samples + held_out, batch_size=1)
        try:
            rows = read_calibration(source, tokenizer, prunings, wanted, tell, always=True) or []
        except TooLittleDataError as error:
            told = f"{error.what} {text.samples} to calibrate on, and {held_out} to judge on."
            raise DataError(
                error.where, told, "Ask for fewer `samples` or `held_out`, a smaller `length`, or give more."
            ) from error
        tell(f"loading {model}")
        loaded = source.load()
        tell(f"comparing {', '.join(names)}")
        found = compare_criteria(loaded, rows[: text.samples], rows[text.samples :], prunings)
        files = {} if out is None else write_comparison(found, out, draw=pictures)
    values = found.to_json() | {"files": {what: str(path) for what, path in files.items()}}
    print_result(as_json, values, _shown(found, files))


def _shown(found: CriteriaComparison, files: dict[str, Path]) -> list[RenderableType]:
    rows = [["criterion", found.measure, "rise", "behind the best", "stays", "seconds"]]
    for one in found.outcomes:
        rows.append(
            [
                one.criterion,
                f"{one.loss:.4f}",
                _with_error(one.rise, one.rise_stderr),
                _with_error(one.behind, one.behind_stderr) if one.behind else "",
                "" if one.density is None else f"{one.density:.3f}",
                f"{one.seconds:.1f}",
            ]
        )
    where = f"{found.sequences} sequence{'s' if found.sequences > 1 else ''}"
    if found.measure == LOSS:
        what = f"loss per label in nats over {where} ({found.labels:,} labels) held out; dense {found.dense_loss:.4f}"
    else:
        what = f"without labels: mean divergence from what the dense model says, over {where} held out"
    below = f"{what}; ± standard errors of differences, in pairs of sequences"
    return [table(rows, None), below, *(f"{what}: {path}" for what, path in files.items())]


def _with_error(value: float, error: float | None) -> str:
    return f"{value:.4f}" if error is None else f"{value:.4f} ± {error:.4f}"
