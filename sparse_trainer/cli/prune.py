"""The command `prune`: one-shot pruning on the command line."""

import sys
from contextlib import redirect_stdout
from pathlib import Path
from typing import Annotated

import typer

from sparse_trainer.cli import show
from sparse_trainer.cli.console import print_result, tell
from sparse_trainer.cli.options import Fields, Json, Values, expanded, made
from sparse_trainer.cli.plugins import Plugins
from sparse_trainer.cli.shared import CALIBRATION, PLACE, RESULT, Export, Overwrite, calibration_text
from sparse_trainer.criteria.calibration.registry import WIDTH_CRITERIA
from sparse_trainer.one_shot.elements.registry import ELEMENT_CRITERIA
from sparse_trainer.one_shot.repairs.registry import REPAIRS
from sparse_trainer.run.card_commands import add_commands
from sparse_trainer.run.options import PruneSection, SourceOptions
from sparse_trainer.run.prune_folder import prune_folder

CRITERIA = Fields(
    PruneSection,
    criterion=f"{', '.join(WIDTH_CRITERIA)}; with options: 'obs(rounds=16)'; mixed: 'wanda + 0.5 fisher'. "
    f"Of weights: {', '.join(ELEMENT_CRITERIA)}.",
    allocation="A second criterion, which shares the widths out over the layers.",
)
SEARCH = Fields(
    PruneSection,
    "Search",
    search="dp or evolve: widths by measured loss instead of scores.",
    levels="Widths that are tried in each group; default: 8.",
    search_tokens="Calibration tokens that losses are measured on; default: 4096.",
    time_limit="Seconds after which the best that is found is taken.",
    search_bfloat16="Measure losses in bfloat16: faster, less exact.",
)
BUDGET = Fields(
    PruneSection,
    "Budget",
    density="What stays: 0.8, or per kind channels=0.7 (may be repeated).",
    target="params, macs or units; latency with --speedup or --milliseconds.",
    scope="global, layer or uniform.",
    standardize="How scores compare across layers; default: by criterion.",
    units="heads, channels, ...; may be repeated. weights: zeros in dense matrices, not smaller.",
    pattern="Of weights: N:M, e.g. 2:4, of every 4 inputs 2 stay.",
    compare="Of weights: row, tensor or global: among which the best stay; default: by criterion.",
    protect="first, last, 3, 3-5 or a pattern of group names; may be repeated.",
    include="Patterns of the only groups; default: all, of image-text models the language model; may be repeated.",
    multiple_of="64, or per kind channels=64.",
    min_keep="Least units per layer: 8, or heads=1.",
    max_prune="Share of its units that any layer may lose.",
    steps="Rounds of scoring and cutting on the way.",
    pooling="Of encoders: mean, cls, max or lasttoken; default: by the model's files, else none.",
)
TIME = Fields(
    PruneSection,
    "Budget in time",
    speedup="How many times faster, instead of --density: 1.5.",
    milliseconds="What one forward pass may take, instead of --speedup.",
    latency_batch="Sequences per forward pass.",
    sequence_length="Tokens per sequence; also for the target macs.",
    latency_phase="prefill, or decode: one more token, with a cache.",
    latency_runtime="eager or compile.",
    latency_table="Times in a file: of `sparse-trainer timing`, or .csv of another device; default: measured.",
)
BY_BLOCK = Fields(PruneSection, "Calibration", by_block="One block at a time on the device: less memory.")
REPAIR = Fields(
    PruneSection,
    "Repair",
    reconstruct=f"{', '.join(REPAIRS)}.",
    reconstruct_bias="Whether least squares may move biases.",
    damping="Of least squares.",
    sequential="Repair layer by layer.",
    refit_behind="Refit layer after layer to the states of the whole model.",
)


@expanded
def prune_command(
    model: Annotated[str, typer.Argument(help="Folder or hub id.")],
    out: Annotated[Path, typer.Argument(help="Folder for the pruned model.")],
    *,
    pruning: Annotated[Values, CRITERIA, BUDGET, TIME, SEARCH, BY_BLOCK, REPAIR],
    calibration: Annotated[Values, CALIBRATION],
    place: Annotated[Values, PLACE],
    export: Export = "auto",
    pictures: Annotated[
        bool, typer.Option(help="Draw scores and widths, and write them as CSV.", rich_help_panel=RESULT)
    ] = True,
    perplexity: Annotated[
        bool,
        typer.Option(
            help="Measure a language model before and after, on text beside the calibration's.",
            rich_help_panel=RESULT,
        ),
    ] = True,
    overwrite: Overwrite = False,
    plugin: Plugins = None,
    as_json: Json = False,
) -> None:
    """Prune a pretrained model in one shot: score on calibration text, cut, repair, save. No training."""
    source = made(SourceOptions, name_or_path=model, **place)
    options = made(PruneSection, **pruning)
    text = calibration_text(calibration)
    with redirect_stdout(sys.stderr):
        folder, plan, files = prune_folder(
            source,
            out,
            options,
            text,
            export=export,
            overwrite=overwrite,
            draw=pictures,
            measure=perplexity,
            tell=tell,
        )
        add_commands(folder)
    facts = {
        "folder": str(folder),
        "method": plan.method,
        "density_asked": plan.density_asked,
        "density_reached": plan.density_reached,
        "speed": plan.speed,
        "params": plan.params,
        "macs": plan.macs,
        "files": {what: str(path) for what, path in files.items()},
    }
    print_result(as_json, facts, show.pruned_lines(folder, plan, files))
