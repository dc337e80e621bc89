"""The one reader of data: tables and text from local files, data sets from the hub."""

import gzip
import io
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from datasets import Dataset, load_dataset
from datasets.exceptions import DatasetsError

from sparse_trainer.errors import DataError

TABLES: dict[str, str] = {
    ".json": "json",
    ".jsonl": "json",
    ".csv": "csv",
    ".parquet": "parquet",
}
"""Ending of a file with rows (a further .gz is allowed) -> reader of the datasets library."""

TEXTS = (".txt", ".text", ".raw", ".md")
"""Endings of plain text in UTF-8 (a further .gz is allowed)."""


def ending(path: Path) -> str:
    """Return what says how a file is read: its ending, without a .gz.

    >>> ending(Path("rows.jsonl.gz"))
    '.jsonl'
    """
    return path.with_suffix("").suffix if path.suffix == ".gz" else path.suffix


def read_table(path: Path, where: str) -> Dataset:
    """Read the rows of a file.

    Raises:
        DataError: An unknown kind of file, no file, one that cannot be read, or one without rows.
    """
    check_data_file(path, where, tuple(TABLES))
    reader = TABLES[ending(path)]
    try:
        loaded = load_dataset(reader, data_files={"rows": str(path)})
    # datasets 4.7 takes rows with columns of their own for damage (KeyError).
    except (DatasetsError, OSError, ValueError, EOFError, StopIteration, KeyError) as error:
        reason = error.__cause__ or error
        raise DataError(where, f"cannot be read: {reason}.", f"Give a complete file of {reader}.") from error
    if "rows" not in loaded or len(loaded["rows"]) == 0:
        raise DataError(where, "is empty.", "Give a file with at least one example.")
    return loaded["rows"]


def read_text(path: Path, where: str) -> str:
    """Read a file of plain text as it is, line ends included.

    Raises:
        DataError: An unknown kind of file, no file, or one that cannot be read.
    """
    check_data_file(path, where, TEXTS)
    try:
        data = gzip.decompress(path.read_bytes()) if path.suffix == ".gz" else path.read_bytes()
        return data.decode("utf-8")
    except (OSError, EOFError, UnicodeDecodeError) as error:
        raise DataError(where, f"cannot be read: {error}.", "Give a complete file of UTF-8 text.") from error


def read_table_or_text(path: Path, where: str) -> Dataset:
    """Read the rows of a file; of plain text they are its lines, with their ends, in column `text`.

    Raises:
        DataError: As of `read_table` and `read_text`.
    """
    if ending(path) in TEXTS:
        return Dataset.from_dict({"text": list(io.StringIO(read_text(path, where), newline="\n"))})
    return read_table(path, where)


def read_hub(
    source: str,
    config: str | None,
    split: str,
    where: str,
    remedy: str,
    files: Mapping[str, str] | None = None,
) -> Dataset:
    """Load one split of a data set of the hub.

    Args:
        files: Split -> file in the data set's repository, to load only that one.

    Raises:
        DataError: It cannot be had.
    """
    options: dict[str, Any] = {} if files is None else {"data_files": dict(files)}
    try:
        return load_dataset(source, config, split=split, **options)
    except (DatasetsError, OSError, ValueError, RuntimeError) as error:  # RuntimeError: it would need code
        raise DataError(
            where, f"split {split!r} cannot be loaded from the hub: {error.__cause__ or error}.",
            f"Check the name and the connection, or give {remedy}.",
        ) from error  # fmt: skip


def check_data_file(path: Path, where: str, endings: tuple[str, ...]) -> None:
    """Raise `DataError` unless a file of one of these kinds is there, may be read and is not empty."""
    if not os.path.isfile(path):  # unlike Path.is_file, no error for a name that no file can have
        raise DataError(where, "is a folder." if os.path.isdir(path) else "no such file.", "Name a file.")
    if ending(path) not in endings:
        known = f"Known: {', '.join(endings)}, and .gz of them."
        raise DataError(where, f"unknown kind of file {path.suffix!r}.", known)
    if not os.access(path, os.R_OK):
        raise DataError(where, "must not be read.", "Change its permissions, or name another file.")
    if path.stat().st_size == 0:
        raise DataError(where, "is empty.", "Give a file with at least one example.")
