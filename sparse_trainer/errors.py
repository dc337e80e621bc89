"""User errors: where, what, and the remedy. One root, `SparseTrainerError`."""

import reprlib
from collections.abc import Iterable
from difflib import get_close_matches
from typing import TypeVar

from patchers.errors import SparseTrainerError, Spelling, UnsupportedModelError

_T = TypeVar("_T")


class ArgumentError(SparseTrainerError):
    """An option has a value that cannot be meant."""


class RecipeError(SparseTrainerError):
    """A recipe, or an override of one, that cannot be read."""


class BudgetError(SparseTrainerError):
    """A budget that the floors and exclusions make impossible."""


class DataError(SparseTrainerError):
    """A data set without what the task needs."""


class TooLittleDataError(DataError):
    """A data set with less text, or fewer rows, than are asked for."""


class CheckpointError(SparseTrainerError):
    """A folder that cannot be loaded, or must not be written."""


class ExportError(SparseTrainerError):
    """An export that writes nothing, or has nothing to say in the model card."""


class ConversionError(SparseTrainerError):
    """A model that the form of another runtime cannot hold."""


class CriterionError(SparseTrainerError):
    """Scores that are not one number per unit."""


class NonFiniteError(CriterionError):
    """NaN or infinite scores."""


class DisagreementError(SparseTrainerError):
    """Processes of one training that have decided differently."""


class ProcessError(SparseTrainerError):
    """One process of several that has failed alone."""


def shown(value: object) -> str:
    """Return a value as messages show it: as Python writes it, long and deep ones cut short.

    >>> shown("a" * 500), shown([[1, 2], {"a": None}])
    ("'aaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaa...aaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaa'", "[[1, 2], {'a': None}]")
    """
    return _SHORT.repr(value)


_SHORT = reprlib.Repr()
_SHORT.maxlevel = 4
_SHORT.maxstring = _SHORT.maxother = 80
_SHORT.maxlist = _SHORT.maxtuple = _SHORT.maxdict = 12


def first_line(error: BaseException) -> str:
    """Return what an error says, on one line."""
    return next(iter(str(error).strip().splitlines()), type(error).__name__).rstrip(". ")


_MOST_NAMES = 40
"""Names that a remedy lists; of more, the nearest will do."""


def nearest(name: str, known: Iterable[str]) -> str:
    """Return a remedy that names the nearest known name and lists all of them, or of many the nearest five.

    >>> nearest("densty", ["density", "target"])
    "Did you mean 'density'? Known: density, target."
    >>> nearest("zzz", ["density"])
    'Known: density.'
    >>> nearest("WANDA", ["wanda"])
    "Did you mean 'wanda'? Known: wanda."
    """
    names = list(known)
    if not names:
        return "There are none."
    close = _close(name, names, n=1)
    hint = f"Did you mean {close[0]!r}? " if close else ""
    if len(names) > _MOST_NAMES:
        near = _close(name, names, n=5, cutoff=0.0)
        return f"{hint}The nearest of {len(names)}: {', '.join(near)}."
    return f"{hint}Known: {', '.join(names)}."


def _close(name: str, names: Iterable[str], n: int, cutoff: float = 0.6) -> list[str]:
    """Return the names nearest to one, whatever letters are capitals."""
    spelled: dict[str, list[str]] = {}
    for each in names:
        spelled.setdefault(each.casefold(), []).append(each)
    near = get_close_matches(name[:200].casefold(), spelled, n=n, cutoff=cutoff)
    return [each for folded in near for each in spelled[folded]][:n]


def one_of(where: str, value: object, known: Iterable[_T]) -> _T:
    """Return the known value that a user's value equals.

    >>> one_of("target", "params", ("params", "macs"))
    'params'

    Raises:
        ArgumentError: none does; the nearest known one is given.
    """
    values = list(known)
    found = [each for each in values if each == value]
    if not found:
        raise ArgumentError(where, f"unknown value {shown(value)}.", nearest(str(value), map(str, values)))
    return found[0]


__all__ = [
    "ArgumentError",
    "BudgetError",
    "CheckpointError",
    "ConversionError",
    "CriterionError",
    "DataError",
    "DisagreementError",
    "ExportError",
    "NonFiniteError",
    "ProcessError",
    "RecipeError",
    "SparseTrainerError",
    "Spelling",
    "TooLittleDataError",
    "UnsupportedModelError",
    "nearest",
    "one_of",
    "shown",
]
