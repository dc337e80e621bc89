"""Vocabularies from folder to folder: load a model, take out the tokens that a corpus does not use, save it."""

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from transformers import PreTrainedTokenizerBase

from sparse_trainer.cut.vocabulary.tokenizer import read_fast
from sparse_trainer.cut.vocabulary.trim import Trimmed, trim_vocabulary
from sparse_trainer.errors import CheckpointError
from sparse_trainer.folders.configs import resolve
from sparse_trainer.folders.exports import find_export
from sparse_trainer.folders.processors import find_processor, tokenizer_in
from sparse_trainer.folders.replace import check_target
from sparse_trainer.folders.save import Processor, save_pruned
from sparse_trainer.run.options import SourceOptions, Tell, VocabularyOptions
from sparse_trainer.run.together import check_alone
from sparse_trainer.tasks.embeddings.files import read_pooling, read_settings, write_files


def trim_folder(
    source: SourceOptions,
    folder: Path,
    options: VocabularyOptions,
    *,
    export: str = "auto",
    overwrite: bool = False,
    tell: Tell,
) -> tuple[Path, Trimmed]:
    """Take the tokens that a corpus does not use out of a model and its tokenizer, and save both to another folder.

    The folder appears whole or not at all. A folder of sentence-transformers stays one.

    Args:
        tell: Called with one line at the start of every stage.

    Raises:
        ArgumentError: An option cannot be meant.
        CheckpointError: Model or tokenizer cannot be loaded, the tokenizer cannot be trimmed, or the folder is not ours
            to replace.
        DataError: The corpus cannot be read, or holds no text.
        UnsupportedModelError: A model that does not follow the size of its vocabulary.
    """
    check_alone("trim-vocabulary")
    files = options.files
    files.check()
    check_target(folder, overwrite=overwrite)
    find_export(export)
    processor = find_processor(source.name_or_path, source.revision)
    tokenizer = tokenizer_in(processor)
    if tokenizer is None:
        raise CheckpointError(source.name_or_path, "has no tokenizer.", "Save one into the folder.")
    read_fast(tokenizer)
    beside = _pooling_files(source)
    tell(f"loading {source.name_or_path}")
    model = source.load()
    tell(f"reading {', '.join(options.corpus)}")
    done = trim_vocabulary(
        model, tokenizer, files, keep_minimum_count=options.keep_minimum_count, corpora=files.hashes()
    )
    tell(f"saving to {folder}")
    made = save_pruned(
        done.model,
        folder,
        processor=_Processor(processor, done.tokenizer),
        export=export,
        overwrite=overwrite,
        beside=None if beside is None else partial(beside, done.model.config.hidden_size),
    )
    return made, done


def trimmed_source(name: str, revision: str, options: VocabularyOptions, folder: Path, tell: Tell) -> str:
    """Return the folder of a recipe's model with the tokens of its corpus: it stands in for the model that is named.

    Args:
        folder: Where the run keeps what it makes.

    Raises:
        SparseTrainerError: As `trim_folder`.
    """
    source = SourceOptions(name_or_path=name, revision=revision, device="cpu")
    made, done = trim_folder(source, folder / "vocabulary", options, overwrite=True, tell=tell)
    tell(f"{len(done.kept['keep']):,} of {done.kept['size']:,} tokens stay")
    return str(made)


@dataclass(frozen=True, slots=True)
class _Processor:
    """What makes a model's inputs, with another tokenizer."""

    processor: Processor | None
    tokenizer: PreTrainedTokenizerBase

    def save_pretrained(self, save_directory: Any, **kwargs: Any) -> Any:
        """Write the files of both: those of the tokenizer stand."""
        if self.processor is not None:
            self.processor.save_pretrained(save_directory, **kwargs)
        return self.tokenizer.save_pretrained(save_directory, **kwargs)


def _pooling_files(source: SourceOptions) -> Callable[[int, Path], None] | None:
    """Return what writes the files by which sentence-transformers knows a model, where it is one of its models."""
    name = resolve(source.name_or_path)
    pooling = read_pooling(name, source.revision)
    if pooling is None:
        return None
    settings = read_settings(name, source.revision)
    return lambda size, folder: write_files(folder, pooling, size, settings)
