"""What every reader of modules needs: dotted paths, and a word for what is left alone."""

import re
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


def starred(path: str) -> str:
    """Return a path with its numbers starred, so that all layers read alike.

    >>> starred("encoder.layer.11.output.dense")
    'encoder.layer.*.output.dense'
    """
    return re.sub(r"\.\d+(?=\.|$)", ".*", path)
