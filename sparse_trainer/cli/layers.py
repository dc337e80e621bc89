"""The command `layers`: every criterion of depth side by side, and a study of how important layers are."""

import sys
from contextlib import redirect_stdout
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import RenderableType

from patchers.units import LAYERS
from sparse_trainer.cli.console import print_result, tell
from sparse_trainer.cli.options import Json, Values, expanded, made, per_kind
from sparse_trainer.cli.plugins import Plugins
from sparse_trainer.cli.shared import CALIBRATION, PLACE, Overwrite, calibration_text, criteria_of
from sparse_trainer.cli.tables import table
from sparse_trainer.errors import ArgumentError
from sparse_trainer.folders.replace import check_target
from sparse_trainer.folders.tokenizers import find_tokenizer
from sparse_trainer.one_shot.checks import check_shape
from sparse_trainer.run.layer_pictures import TABLE, write_layers
from sparse_trainer.run.layers import (
    LayerComparison,
    check_text,
    compare_layers,
    depth_criteria,
    layer_options,
)
from sparse_trainer.run.options import SourceOptions
from sparse_trainer.run.pictures import check_drawing
from sparse_trainer.run.prune_folder import read_calibration
from sparse_trainer.run.together import check_alone


@expanded
def layers_command(
    model: Annotated[str, typer.Argument(help="Folder or hub id.")],
    *,
    out: Annotated[Path, typer.Option(help="Folder for tables and pictures.")],
    criteria: Annotated[
        str | None,
        typer.Option(help=f"Parted by commas; default: {','.join(depth_criteria())}."),
    ] = None,
    density: Annotated[
        str, typer.Option(help="Fraction of the layers that would stay: 0.75, or layers=0.75.")
    ] = "0.75",
    protect: Annotated[
        list[str] | None, typer.Option(help="Layers that stay: first, last, 3, 3-5; may be repeated.")
    ] = None,
    study: Annotated[
        bool, typer.Option(help="Activations, gradients and weights of every layer as well.")
    ] = True,
    calibration: Annotated[Values, CALIBRATION],
    place: Annotated[Values, PLACE],
    pictures: Annotated[bool, typer.Option(help="Draw as PNG what is written as CSV.")] = True,
    overwrite: Overwrite = False,
    plugin: Plugins = None,
    as_json: Json = False,
) -> None:
    """Show what every criterion of depth says of each layer, and which it would take. Nothing is cut."""
    source, text = made(SourceOptions, name_or_path=model, **place), calibration_text(calibration)
    names = None if criteria is None else criteria_of(criteria)
    with redirect_stdout(sys.stderr):
        check_alone("layers")
        check_target(out, overwrite=overwrite, ours=TABLE)
        share = _share_of_layers(density)
        asked = tuple(layer_options(names, share, protect or ()).values())
        if text is not None:
            text.check()
        check_text(asked, study=study, given=text is not None)
        if pictures:
            check_drawing("give --no-pictures")
        shape = source.shape()
        for options in asked:
            check_shape(options, shape, source.place())
        batches = read_calibration(
            source, find_tokenizer(model, source.revision), asked, text, tell, always=study
        )
        tell(f"loading {model}")
        loaded = source.load()
        tell("comparing layers")
        found = compare_layers(
            loaded, batches, criteria=names, density=share, protect=protect or (), study=study
        )
        files = write_layers(found, out, draw=pictures)
    print_result(as_json, _to_json(found, files), _shown(found, files))


def _share_of_layers(density: str) -> float:
    """Return the fraction that is given, as for `prune` with its kind or without; only layers go here.

    Raises:
        ArgumentError: No number, or one of another kind.
    """
    read = per_kind("density", [density])
    if not isinstance(read, dict):
        return float(read)
    if set(read) != {LAYERS}:
        raise ArgumentError("density", f"{density} is not of layers.", "Give e.g. `density=0.75`.")
    return float(read[LAYERS])


def _shown(found: LayerComparison, files: dict[str, Path]) -> list[RenderableType]:
    rows = [["criterion", f"layers that would go, to keep {found.density:g}"]]
    for name, taken in found.taken.items():
        rows.append([name, "no such run may go" if taken is None else found.goes(name) or "none"])
    return [table(rows, None, "left"), *(f"{what}: {path}" for what, path in files.items())]


def _to_json(found: LayerComparison, files: dict[str, Path]) -> dict[str, Any]:
    return {
        "stacks": found.stacks,
        "layers": found.numbers,
        "density": found.density,
        "scores": dict(found.scores),
        "takes": dict(found.taken),
        "study": dict(found.study),
        "files": {what: str(path) for what, path in files.items()},
    }
