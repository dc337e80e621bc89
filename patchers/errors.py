"""Errors that say where, what, and the remedy."""

import re
from collections.abc import Callable
from typing import Self

_MOST = 1000
"""Characters of a place, and of what is wrong there: names and values may come from a file that nobody here wrote."""


_OPTION = re.compile(r"`([a-z][a-z_]*)(?:=([^`]*))?`")
"""An option of ours, with or without a value, as messages mark it: `by_block=True`."""

_NAME = re.compile("[a-z][a-z_]*")

Spelling = Callable[[str, str | None], str]
"""Takes the name of an option and its value in Python, if any, and returns how the user at hand writes them."""


def _in_python(name: str, value: str | None) -> str:
    return name if value is None else f"{name}={value}"


def _spelled(text: str, spell: Spelling) -> str:
    return _OPTION.sub(lambda found: spell(found[1], found[2]), text)


def _clipped(text: str) -> str:
    return text if len(text) <= _MOST else f"{text[: _MOST - 200]} [...] {text[-200:]}"


class SparseTrainerError(ValueError):
    """A mistake in the input that the user can mend.

    Options of ours stand in backticks, as Python writes them (`by_block=True`): on the command line and in recipes they
    are written otherwise, as `respelled` says them.

    Args:
        where: The place: a file, a field, a module path.
        what: What is wrong there, with the offending value.
        remedy: What to do about it.
    """

    def __init__(self, where: str, what: str, remedy: str) -> None:
        where, what = _clipped(where), _clipped(what)
        super().__init__(_spelled(f"{where}: {what} {remedy}", _in_python))
        self.where, self.what, self.remedy = where, what, remedy

    def __reduce__(self) -> tuple[type["SparseTrainerError"], tuple[str, str, str]]:
        """Survive a trip through another process (data loader workers, launchers)."""
        return type(self), (self.where, self.what, self.remedy)

    def respelled(self, spell: Spelling) -> Self:
        """Return the same error with every option as `spell` writes it, also one that is the place itself.

        >>> error = SparseTrainerError("device", "only blocks are moved there.", "Set `by_block=True`.")
        >>> print(error)
        device: only blocks are moved there. Set by_block=True.
        >>> print(error.respelled(lambda name, value: "--" + name.replace("_", "-")))
        --device: only blocks are moved there. Set --by-block.
        """
        where = f"`{self.where}`" if _NAME.fullmatch(self.where) else self.where
        return type(self)(*(_spelled(text, spell) for text in (where, self.what, self.remedy)))


class UnsupportedModelError(SparseTrainerError):
    """A model, or a part of one, that cannot be pruned soundly."""
