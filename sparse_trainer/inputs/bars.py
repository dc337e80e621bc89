"""Progress of long work: a bar on stderr while it lasts, where somebody looks at a terminal."""

from collections.abc import Iterable
from typing import TypeVar

from tqdm.auto import tqdm

T = TypeVar("T")


def bar(things: Iterable[T], says: str, total: int | None = None) -> Iterable[T]:
    """Return the same things, one after the other, with a bar that shows how many are done and how long it takes.

    The bar goes when the last one is done. Without a terminal there is none.

    Args:
        says: What is done, in a word or two.
        total: How many things there are; None = their length, where they have one.

    >>> list(bar([1, 2], "counting"))
    [1, 2]
    """
    shown: Iterable[T] = tqdm(things, desc=says, total=total, leave=False, disable=None, dynamic_ncols=True)
    return shown
