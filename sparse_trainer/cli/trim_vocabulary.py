"""The command `trim-vocabulary`: tokens that a corpus does not use leave a model and its tokenizer."""

import sys
from contextlib import redirect_stdout
from pathlib import Path
from typing import Annotated

import typer
from rich.console import RenderableType

from sparse_trainer.cli.console import print_result, tell
from sparse_trainer.cli.options import Json, Values, expanded, made
from sparse_trainer.cli.plugins import Plugins
from sparse_trainer.cli.shared import PLACE, Export, Overwrite
from sparse_trainer.cut.vocabulary.trim import Trimmed
from sparse_trainer.run.options import SourceOptions, VocabularyOptions
from sparse_trainer.run.vocabulary import trim_folder


@expanded
def trim_vocabulary_command(
    model: Annotated[str, typer.Argument(help="Folder or hub id, dense or pruned.")],
    out: Annotated[Path, typer.Argument(help="Folder for the model with fewer tokens.")],
    *,
    corpus: Annotated[
        list[str], typer.Option(help="Local file of text, or a table with text; may be repeated.")
    ],
    keep_minimum_count: Annotated[int, typer.Option(help="How often a token has to occur to stay.")] = 1,
    place: Annotated[Values, PLACE],
    export: Export = "auto",
    overwrite: Overwrite = False,
    plugin: Plugins = None,
    as_json: Json = False,
) -> None:
    """Take tokens that a corpus does not use out of embeddings, head and tokenizer."""
    source = made(SourceOptions, name_or_path=model, **place)
    options = VocabularyOptions(corpus=tuple(corpus), keep_minimum_count=keep_minimum_count)
    with redirect_stdout(sys.stderr):
        folder, done = trim_folder(source, out, options, export=export, overwrite=overwrite, tell=tell)
    result = {
        "folder": str(folder),
        "tokens": {"before": done.kept["size"], "kept": len(done.kept["keep"])},
        "parameters": done.parameters,
        "corpus": {"files": done.kept["corpora"], "tokens": done.tokens, "texts_cut_otherwise": done.recut},
    }
    print_result(as_json, result, _shown(folder, done))


def _shown(folder: Path, done: Trimmed) -> list[RenderableType]:
    kept, sizes = done.kept, done.parameters
    same = "all of it is cut into the same pieces as before"
    return [
        f"tokens {kept['size']:,} => {len(kept['keep']):,}",
        f"parameters {sizes['dense']:,} => {sizes['compact']:,}",
        *(f"{name}: SHA-256 {digest}" for name, digest in kept["corpora"].items()),
        f"{done.tokens:,} tokens of text: "
        + (f"texts and lines that are cut into other pieces since: {done.recut:,}" if done.recut else same),
        "other text is spelled in shorter pieces or bytes, and is unknown where there are none",
        f"written to {folder}",
    ]
