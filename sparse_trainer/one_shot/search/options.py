"""What a user can ask of a search for widths."""

import math
from dataclasses import dataclass
from typing import Final

from sparse_trainer.errors import ArgumentError, one_of

SEARCHES: Final = ("dp", "evolve")
"""dp: dynamic programming over the losses of single levels. evolve: then switches between two groups, judged by the
whole model."""
LEVELS: Final = 8
SEARCH_TOKENS: Final = 4096


@dataclass(frozen=True, kw_only=True)
class SearchOptions:
    """How widths are searched for.

    Raises:
        ArgumentError: a value cannot be meant.
    """

    method: str
    """`dp` or `evolve`."""
    levels: int = LEVELS
    """Widths below the whole one that are tried in each group."""
    tokens: int = SEARCH_TOKENS
    """Calibration tokens that losses are measured on, in whole batches."""
    time_limit: float | None = None
    """Seconds after which the best that is found is taken; None = no limit."""

    bfloat16: bool = False
    """Whether losses are measured under autocast to bfloat16: faster, and about a thousandth of a nat less exact."""

    def __post_init__(self) -> None:
        one_of("search", self.method, SEARCHES)
        if not 1 <= self.levels <= 64:
            raise ArgumentError("levels", f"{self.levels} is not in [1, 64].", f"Give e.g. {LEVELS}.")
        if self.tokens < 1:
            raise ArgumentError(
                "search_tokens", f"{self.tokens} is not positive.", f"Give e.g. {SEARCH_TOKENS}."
            )
        if self.time_limit is not None and not (math.isfinite(self.time_limit) and self.time_limit > 0):
            raise ArgumentError(
                "time_limit", f"{self.time_limit} is no number of seconds.", "Give e.g. 600, or none."
            )
