"""What every reader of modules needs: dotted paths, and a word for what is left alone."""

from dataclasses import dataclass


@dataclass(frozen=True, kw_only=True)
class Refusal:
    """A module that was recognised and cannot be cut soundly."""

    path: str
    reason: str
    pins_layer: bool = False


def join(path: str, *parts: str) -> str:
    """Return a dotted path; empty parts vanish.

    >>> join("a.b", "", "c"), join("", "c")
    ('a.b.c', 'c')
    """
    return ".".join(part for part in (path, *parts) if part)
