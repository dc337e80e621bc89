"""Progress of long work: a bar on stderr while it lasts, where somebody looks at a terminal."""

from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
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


@contextmanager
def counting(says: str) -> Iterator[Callable[[int, int], None]]:
    """Show a bar for the time of a `with` block, and return what is told how many things are done, and of how many."""
    with tqdm(desc=says, leave=False, disable=None, dynamic_ncols=True) as shown:

        def told(done: int, total: int) -> None:
            shown.total = total
            shown.update(done - shown.n)

        yield told
