"""Errors that say where, what, and the remedy."""

_MOST = 1000
"""Characters of a place, and of what is wrong there: names and values may come from a file that nobody here wrote."""


def _clipped(text: str) -> str:
    return text if len(text) <= _MOST else f"{text[: _MOST - 200]} [...] {text[-200:]}"


class SparseTrainerError(ValueError):
    """A mistake in the input that the user can mend.

    Args:
        where: The place: a file, a field, a module path.
        what: What is wrong there, with the offending value.
        remedy: What to do about it.
    """

    def __init__(self, where: str, what: str, remedy: str) -> None:
        where, what = _clipped(where), _clipped(what)
        super().__init__(f"{where}: {what} {remedy}")
        self.where, self.what, self.remedy = where, what, remedy

    def __reduce__(self) -> tuple[type["SparseTrainerError"], tuple[str, str, str]]:
        """Survive a trip through another process (data loader workers, launchers)."""
        return type(self), (self.where, self.what, self.remedy)


class UnsupportedModelError(SparseTrainerError):
    """A model, or a part of one, that cannot be pruned soundly."""
