"""Open every image or sound of a data set once, before anything is trained."""

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any, Final

from datasets import Dataset

from sparse_trainer.errors import DataError

_AT_ONCE: Final = 1024
"""Entries whose bytes are held in memory while they are checked."""
_NAMED: Final = 5
"""Entries that a message names."""


def check_open(
    rows: Dataset, column: str, problem: Callable[[Any], str | None], place: str, what: str, remedy: str
) -> None:
    """Raise `DataError` where some entries do not open: they are counted and named.

    Args:
        column: Paths, or mappings with `path` and `bytes`.
        problem: Tells why an entry does not open; None = it does.
        what: What the entries are, e.g. images.
    """
    files = rows.select_columns([column])
    bad: list[str] = []
    with ThreadPoolExecutor() as threads:
        for start in range(0, len(files), _AT_ONCE):
            entries = files[start : start + _AT_ONCE][column]
            for row, (entry, reason) in enumerate(zip(entries, threads.map(problem, entries), strict=True)):
                if reason is not None:
                    bad.append(f"{path_of(entry) or f'row {start + row}'} ({reason})")
    if bad:
        named = list(dict.fromkeys(bad))
        more = f", and {len(named) - _NAMED} more" if len(named) > _NAMED else ""
        problem_said = f"{len(bad)} of {len(files)} {what} do not open: {', '.join(named[:_NAMED])}{more}."
        raise DataError(place, problem_said, remedy)


def path_of(entry: Any) -> str | None:
    """Return the path of an entry, None where it lies in the data set itself.

    >>> path_of("a.wav"), path_of({"path": "b.png", "bytes": None}), path_of(None)
    ('a.wav', 'b.png', None)
    """
    path = entry.get("path") if isinstance(entry, dict) else entry
    return path if isinstance(path, str) else None


def said_by(error: BaseException) -> str:
    """Return a short reason."""
    return f"{type(error).__name__}: {next(iter(str(error).splitlines()), '')}"[:80]
