"""The command `evaluate`: perplexity, multiple-choice accuracy and answers about images of a model folder."""

import sys
from collections.abc import Mapping, Sequence
from contextlib import redirect_stdout
from dataclasses import asdict, dataclass
from typing import Annotated, Any

import torch
import transformers
import typer
from rich.console import RenderableType

from sparse_trainer.cli.console import print_result, tell
from sparse_trainer.cli.options import Fields, Json, Values, expanded, made
from sparse_trainer.cli.plugins import Plugins
from sparse_trainer.cli.tables import table
from sparse_trainer.errors import ArgumentError, CheckpointError, DataError
from sparse_trainer.folders.configs import read_config, resolve
from sparse_trainer.folders.load import check_weight_files
from sparse_trainer.folders.processors import load_image_processor
from sparse_trainer.folders.tokenizers import find_tokenizer
from sparse_trainer.inputs.limits import check_positions, positions_of
from sparse_trainer.run.latency import device_name
from sparse_trainer.run.options import SourceOptions
from sparse_trainer.tasks.language.choices import Accuracy
from sparse_trainer.tasks.language.image_text.answers import WrittenAnswers
from sparse_trainer.tasks.language.measure import (
    Change,
    EvaluationOptions,
    Result,
    check_tasks,
    compare,
    evaluate,
    numbers_of,
)


@dataclass(frozen=True, kw_only=True, slots=True)
class Evaluation:
    """A model with what was measured on it, and how."""

    model: str
    device: str
    dtype: str
    results: Mapping[str, Result]

    def to_json(self) -> dict[str, Any]:
        """Return plain types for JSON."""
        results = {task: result.to_json() for task, result in self.results.items()}
        return {"model": self.model, "device": self.device, "dtype": self.dtype, "results": results}


@expanded
def evaluate_command(
    model: Annotated[
        str, typer.Argument(help="Folder or hub id of a causal language model, or of an image-text model.")
    ],
    *,
    tasks: Annotated[
        str, typer.Option(help="Corpora, text files, or files of rows with images, parted by commas.")
    ] = "wikitext2",
    data: Annotated[
        list[str] | None, typer.Option(help="NAME=FILE: a local file in place of the hub's; may be repeated.")
    ] = None,
    against: Annotated[
        str | None, typer.Option(help="A second model, on the same tokens: the baseline.")
    ] = None,
    extent: Annotated[
        Values,
        Fields(
            EvaluationOptions,
            limit="Questions per task; default: all.",
            max_tokens="Tokens of text; default: all, of c4 524288.",
            length="Tokens per sequence; default: 2048 or the model's positions.",
            stride="Tokens from a window to the next; default: no overlap.",
            batch_size="Sequences per forward pass.",
            answer_tokens="Tokens of an answer about images; default: 16.",
        ),
    ],
    place: Annotated[
        Values,
        Fields(
            SourceOptions,
            device="cpu, cuda, cuda:1, ...; default: an accelerator.",
            dtype="auto, float32, bfloat16 or float16.",
        ),
    ],
    plugin: Plugins = None,
    as_json: Json = False,
) -> None:
    """Measure perplexity on running text, accuracy on multiple-choice questions, and answers about images."""
    options = made(EvaluationOptions, **extent)
    names, files = [part.strip() for part in tasks.split(",") if part.strip()], files_by_task(data or [])
    given = [model] if against is None else [model, against]
    sources = [made(SourceOptions, name_or_path=name, **place) for name in given]
    known = check_tasks(names, files, options)
    for source in sources:
        source.place()
        check_weight_files(resolve(source.name_or_path))
        check_positions(
            "length", options.length, positions_of(read_config(source.name_or_path, source.revision))
        )
    with redirect_stdout(sys.stderr):
        reader = shared_tokenizer(sources)
        if any(corpus.has_images for corpus in known.values()):
            reader = shared_processor(sources)
        found = [_evaluate(source, reader, names, files, options) for source in sources]
    compared = {
        task: compare(found[0].results[task], found[1].results[task]) for task in names if against is not None
    }
    values: dict[str, Any] = found[0].to_json()
    if against is not None:
        values["against"] = found[1].to_json()
        values["compared"] = {task: [asdict(each) for each in rows] for task, rows in compared.items()}
    values["versions"] = {"torch": torch.__version__, "transformers": transformers.__version__}
    print_result(as_json, values, evaluation_table(found, compared))


def files_by_task(pairs: Sequence[str]) -> dict[str, str]:
    """Return the files that `NAME=FILE` pairs give.

    Raises:
        ArgumentError: No such pair.

    >>> files_by_task(["boolq=rows.jsonl"])
    {'boolq': 'rows.jsonl'}
    """
    files = {}
    for pair in pairs:
        name, equals, file = pair.partition("=")
        if not (name and equals and file):
            raise ArgumentError("data", f"{pair!r} is no NAME=FILE.", "Write e.g. boolq=validation.jsonl.")
        files[name] = file
    return files


def shared_tokenizer(sources: Sequence[SourceOptions]) -> Any:
    """Return the tokenizer of all models; a folder without one takes that of the other.

    Raises:
        DataError: No model has one.
        ArgumentError: Their vocabularies differ: there are no same tokens to measure on.
    """
    loaded = [find_tokenizer(source.name_or_path, source.revision) for source in sources]
    found = [tokenizer for tokenizer in loaded if tokenizer is not None]
    if not found:
        raise DataError(sources[0].name_or_path, "no tokenizer can be loaded.", "Save one in the folder.")
    if found[0].get_vocab() != found[-1].get_vocab():
        raise ArgumentError(
            "against",
            "its tokenizer has another vocabulary.",
            "Compare with a model that has the same tokenizer.",
        )
    return found[0]


def shared_processor(sources: Sequence[SourceOptions]) -> Any:
    """Return the processor of image-text models; a folder without one takes that of the other.

    Raises:
        CheckpointError: No model has one.
        UnsupportedModelError: A model reads no images.
    """
    failed: CheckpointError | None = None
    found: list[Any] = []
    for source in sources:
        try:
            found.append(load_image_processor(source.name_or_path, source.revision))
        except CheckpointError as error:
            failed = failed or error
    if not found:
        assert failed is not None
        raise failed
    return found[0]


def evaluation_table(
    found: Sequence[Evaluation], compared: Mapping[str, Sequence[Change]]
) -> list[RenderableType]:
    """Return a row per number, with its change over the baseline where there is one; then what it rests on."""
    rows = [["", "value", *(["baseline", "change"] if compared else [])]]
    for task, result in found[0].results.items():
        for place, (number, value, error) in enumerate(numbers_of(result)):
            cells = [f"{task} {number}", f"{value:.4g}{_plus_minus(error)}"]
            rows.append([*cells, *(_changed(compared[task][place]) if compared else ())])
    lines = [f"{task}: {measured_on(result)}" for task, result in found[0].results.items()]
    roles = ("model", "baseline")
    lines += [
        f"{role}: {each.model} on {each.device} in {each.dtype}"
        for role, each in zip(roles, found, strict=False)
    ]
    return [table(rows, None), *lines]


def measured_on(result: Result) -> str:
    """Return how much data a result rests on."""
    if isinstance(result, WrittenAnswers):
        return f"{result.num_questions:,} questions, answered in at most {result.answer_tokens} tokens"
    if isinstance(result, Accuracy):
        return f"{result.num_questions:,} questions"
    return f"{result.num_tokens:,} tokens in windows of {result.length}, stride {result.stride}"


def _changed(change: Change) -> tuple[str, str]:
    moved = f"{change.change:.4f}x" if change.number == "perplexity" else f"{change.change:+.4f}"
    return f"{change.baseline:.4g}", moved + _plus_minus(change.stderr)


def _plus_minus(error: float | None) -> str:
    return "" if error is None else f" ± {error:.2g}"


def _evaluate(
    source: SourceOptions,
    reader: Any,
    tasks: Sequence[str],
    files: Mapping[str, str],
    options: EvaluationOptions,
) -> Evaluation:
    """Load a model, measure it, and let it go."""
    tell(f"loading {source.name_or_path}")
    model = source.load()
    tell(f"measuring {source.name_or_path} on {', '.join(tasks)}")
    results = evaluate(model, reader, tasks, files=files, options=options)
    return Evaluation(
        model=source.name_or_path,
        device=device_name(model.device),
        dtype=str(model.dtype).removeprefix("torch."),
        results=results,
    )
