"""Rows of a corpus: from the hub, or from a local file that stands in for it."""

import os
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from sparse_trainer.data.corpora.base import Corpus, Part, Question, Row
from sparse_trainer.data.corpora.table import CORPORA, plain
from sparse_trainer.data.readers import (
    TABLES,
    TEXTS,
    check_data_file,
    ending,
    read_hub,
    read_table,
    read_text,
)
from sparse_trainer.errors import DataError, nearest, shown


def find(source: str) -> Corpus:
    """Return the corpus of this name, or one of running text for the path of a local file.

    Raises:
        DataError: Neither a name nor a file.
    """
    if source in CORPORA:
        return CORPORA[source]
    if os.path.isfile(source):  # unlike Path.is_file, no error for a name that no file can have
        return Corpus(name=Path(source).name, hub=None, file=source, text=plain)
    raise DataError(f"corpus {shown(source)}", "neither a name nor a file.", nearest(source, CORPORA))


def check_source(corpus: Corpus, part: Part, file: str | Path | None = None) -> None:
    """Raise `DataError` where the local file of a corpus cannot be read: before anything slow starts.

    Args:
        file: Stands in for the hub.
    """
    named = corpus.file if file is None else file
    if named is not None:
        endings = tuple(TABLES) if corpus.question is not None else (*TABLES, *TEXTS)
        check_data_file(Path(named), f"{corpus.name}, {part}: {shown(str(named))}", endings)


def rows(corpus: Corpus, part: Part, file: str | Path | None = None) -> Sequence[Row]:
    """Return the rows of a part of a corpus; a file of plain text is one row.

    Args:
        file: Stands in for the hub.

    Raises:
        DataError: They cannot be had.
    """
    where = f"{corpus.name}, {part}"
    file = corpus.file if file is None else file
    if file is None and corpus.read is not None:
        return corpus.read(part)
    if file is None:
        assert corpus.hub is not None
        remedy = "a local file as `files`" if part == "evaluation" else "a local file as `file`"
        hub: Sequence[Row] = read_hub(
            corpus.hub, corpus.config, corpus.split(part), where, remedy, corpus.files
        )
        return hub
    path = Path(file)
    if corpus.question is None and ending(path) in TEXTS:
        return [{"text": read_text(path, f"{where}: {path}")}]
    table: Sequence[Row] = read_table(path, f"{where}: {path}")
    return table


def texts(corpus: Corpus, found: Sequence[Row], order: Sequence[int] | None = None) -> Iterator[str]:
    """Yield the text of each row.

    Args:
        order: Numbers of rows; None = all, one after the other.

    Raises:
        DataError: A row that cannot be read; the message says which.
    """
    for number in range(len(found)) if order is None else order:
        with _naming(corpus, number):
            yield corpus.text_of(found[number])


def joined(corpus: Corpus, found: Iterable[str]) -> Iterator[str]:
    """Yield the texts that stand by themselves: the rows, or all of them as one."""
    if corpus.is_one_text:
        yield corpus.joint.join(found)
    else:
        yield from found


def questions(corpus: Corpus, found: Sequence[Row], limit: int | None = None) -> list[Question]:
    """Return the first rows as questions.

    Raises:
        DataError: A row that cannot be read; the message says which.
    """
    asked = []
    for number in range(len(found) if limit is None else min(limit, len(found))):
        with _naming(corpus, number):
            asked.append(corpus.question_of(found[number]))
    return asked


@contextmanager
def _naming(corpus: Corpus, number: int) -> Iterator[None]:
    """Say of which corpus and row an error speaks."""
    try:
        yield
    except DataError as error:
        raise DataError(f"{corpus.name}, row {number}", error.what, error.remedy) from error
    except (TypeError, ValueError, KeyError) as error:
        raise DataError(
            f"{corpus.name}, row {number}",
            f"cannot be read: {error}.",
            "Correct or drop the row, or name another corpus.",
        ) from error
