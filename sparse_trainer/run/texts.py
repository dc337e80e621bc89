"""How a model reads text, by the class that its config names: running, a row at a time, or pooled to one vector."""

from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Final, TypeVar

from transformers import PreTrainedModel

from sparse_trainer.cut.auto_classes import auto_classes_of
from sparse_trainer.folders.configs import read_config, resolve
from sparse_trainer.one_shot.options import PruneOptions
from sparse_trainer.run.options import SourceOptions, Tell
from sparse_trainer.tasks.embeddings.files import read_pooling, read_settings, write_files

P = TypeVar("P", bound=PruneOptions)
_BY_ROW: Final = (
    "AutoModelForSequenceClassification",
    "AutoModelForTokenClassification",
    "AutoModelForQuestionAnswering",
)
_BARE: Final = {"AutoModel", "AutoModelForTextEncoding"}


@dataclass(frozen=True, kw_only=True)
class Reading:
    """What texts are to a model."""

    by_row: bool
    """Whether the rows of a table stand by themselves."""
    pairs: bool
    """Whether two texts of a row are read together."""


def reading_of(source: SourceOptions) -> Reading:
    """Return how a model reads text: language models whole documents, classifiers and encoders row by row.

    Raises:
        CheckpointError: It has no config that can be read.
    """
    autos = _autos(source)
    bare = _is_bare(autos)
    return Reading(by_row=bare or any(auto in _BY_ROW for auto in autos), pairs=not bare)


def pooled_as_stored(options: P, source: SourceOptions, tell: Tell) -> P:
    """Return options that pool as the files of sentence-transformers say, where the model has such and no head.

    Raises:
        CheckpointError: The files are damaged, or say what is not known here.
    """
    if options.pooling is not None or options.elements is not None or not _is_bare(_autos(source)):
        return options
    found = read_pooling(resolve(source.name_or_path), source.revision)
    if found is None:
        return options
    tell(f"texts are compared by their vectors: pooled by {found.mode}, as the model's files say")
    return replace(options, pooling=found.mode)


def read_text_files(source: SourceOptions, model: PreTrainedModel) -> Callable[[Path], None]:
    """Return what writes the files of sentence-transformers again, beside a model that is cut: nothing without any.

    Raises:
        CheckpointError: The files are damaged, or say what is not known here.
    """
    pooling = (
        read_pooling(resolve(source.name_or_path), source.revision) if _is_bare(_autos(source)) else None
    )
    if pooling is None:
        return lambda folder: None
    size, settings = model.config.hidden_size, read_settings(resolve(source.name_or_path), source.revision)
    return lambda folder: write_files(folder, pooling, size, settings)


def _autos(source: SourceOptions) -> tuple[str, ...]:
    names = read_config(source.name_or_path, source.revision).architectures or ()
    return tuple(auto for name in names for auto in auto_classes_of(name))


def _is_bare(autos: tuple[str, ...]) -> bool:
    return bool(autos) and set(autos) <= _BARE
