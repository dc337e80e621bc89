"""The command `recover`: brief training of a model that was cut."""

import sys
from contextlib import redirect_stdout
from pathlib import Path
from typing import Annotated

import typer
from rich.console import RenderableType

from sparse_trainer.cli import show
from sparse_trainer.cli.console import print_result, tell
from sparse_trainer.cli.options import Fields, Json, Values, expanded, made
from sparse_trainer.cli.plugins import Plugins
from sparse_trainer.cli.shared import PLACE, Export, Overwrite
from sparse_trainer.run.card_commands import add_commands
from sparse_trainer.run.options import SourceOptions
from sparse_trainer.run.page import PAGE_FILE
from sparse_trainer.run.recover_folder import recover_folder
from sparse_trainer.run.recovery_options import RecoveryOptions

LEARNS = Fields(
    RecoveryOptions,
    train="lora, norms-and-biases or all.",
    rank="Of the adapters.",
    alpha="The update of a weight is alpha / rank times B A.",
    targets="Names of modules that get an adapter; may be repeated; default: every linear but the head.",
    learning_rate="Default: 5e-4 of adapters, 1e-3 of norms and biases, 5e-5 of all weights.",
    teacher="Folder or hub id of the dense model, whose answers are learned, too.",
    teacher_weight="Share of the loss that is the distance to the teacher.",
    temperature="Of the answers, when they are compared with the teacher's.",
    bf16="Autocast to bfloat16; default: where the weights have 16 bits.",
    seed="Of the order of the data and of new adapters.",
)
DATA = Fields(
    RecoveryOptions,
    "Data",
    data="wikitext2, a hub id, or a local file.",
    validation="Local file to measure on; default: the last rows of the data.",
    held_out="Rows, or blocks of text, to measure on.",
    instructions="Rows are conversations, or prompts with answers.",
    column="Column with text, conversations or prompts.",
    answers="Column with the answers to prompts.",
    length="Tokens per sequence.",
    batch_size="Sequences per forward pass.",
    accumulate="Forward passes per step.",
)
DURATION = Fields(
    RecoveryOptions,
    "Duration (default: one pass over the data)",
    steps="Most optimizer steps.",
    tokens="Most tokens.",
    minutes="Most minutes of training.",
)


@expanded
def recover_command(
    model: Annotated[str, typer.Argument(help="Folder of a model that was cut.")],
    out: Annotated[Path, typer.Argument(help="Folder for the recovered model.")],
    *,
    recovery: Annotated[Values, LEARNS, DATA, DURATION],
    place: Annotated[Values, PLACE],
    checkpoints: Annotated[
        Path | None, typer.Option(help="Folder for checkpoints; default: none are kept.")
    ] = None,
    save_steps: Annotated[int, typer.Option(help="Steps between two checkpoints.")] = 100,
    resume: Annotated[bool, typer.Option("--resume", help="Go on from the last checkpoint.")] = False,
    export: Export = "auto",
    overwrite: Overwrite = False,
    plugin: Plugins = None,
    as_json: Json = False,
) -> None:
    """Train a model that was cut briefly, by LoRA that is merged, and save it with its plan continued."""
    source = made(SourceOptions, name_or_path=model, **place)
    options = made(RecoveryOptions, **recovery)
    with redirect_stdout(sys.stderr):
        folder, done = recover_folder(
            source, out, options, checkpoints=checkpoints, save_steps=save_steps, resume=resume,
            export=export, overwrite=overwrite, tell=tell,
        )  # fmt: skip
        add_commands(folder)
    lines: list[RenderableType] = [
        f"{done['steps']} steps on {done['data']}, at most {done['tokens']:,} tokens",
        f"perplexity of what was held out: {done['perplexity_before']:.4g} => {done['perplexity_after']:.4g}",
        f"written to {folder}",
        *show.to_open({"page": folder / PAGE_FILE}),
    ]
    print_result(as_json, {"folder": str(folder), **done}, lines)
