"""Channels of linears and of stacked experts alike: their rows in a fused pair, and the attributes that count them."""

from collections.abc import Iterable, Iterator
from functools import lru_cache

from torch import nn

from patchers.discovery.tables.names import FFN_WIDTH
from patchers.units import Edit


@lru_cache(maxsize=16)
def pair_index(width: int, *, concatenated: bool) -> tuple[tuple[int, int], ...]:
    """Return the rows of gate and up of each channel.

    >>> pair_index(2, concatenated=True), pair_index(2, concatenated=False)
    (((0, 2), (1, 3)), ((0, 1), (2, 3)))
    """
    if concatenated:
        return tuple((u, u + width) for u in range(width))
    return tuple((2 * u, 2 * u + 1) for u in range(width))


def width_edits(model: nn.Module, paths: Iterable[str], width: int) -> Iterator[Edit]:
    """Yield the attributes of these modules that count the channels."""
    for path in paths:
        own = vars(model.get_submodule(path))
        for name in FFN_WIDTH:
            # An attribute that counts the hidden features may be as large by chance.
            if own.get(name) == width and width not in (own.get("hidden_size"), own.get("embed_dim")):
                yield Edit(path=path, attribute=name, per_unit=1)
