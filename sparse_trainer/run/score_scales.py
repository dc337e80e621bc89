"""How the axis of a picture of scores runs, so that most of them can be told apart."""

import math
from dataclasses import dataclass
from typing import Final

import numpy as np
from torch import Tensor

# Shape legend: N = units of all groups of a kind.

BINS: Final = 60
ASINH: Final = "asinh"
_LONG_TAIL: Final = 20.0
"""Scores whose range is so many times that of their middle half have a tail that would hide all others."""


@dataclass(frozen=True)
class AxisScale:
    """How an axis of scores runs: a scale of matplotlib's with its options."""

    name: str
    linear_width: float = 0.0
    """Of `asinh`: up to here it is about linear, beyond it about logarithmic."""

    @property
    def options(self) -> dict[str, float]:
        """Return what `set_xscale` takes beside the name."""
        return {"linear_width": self.linear_width} if self.name == ASINH else {}


def scale_of(score_N: Tensor) -> AxisScale:
    """Return a scale on which the scores of most units can be told apart.

    >>> scale_of(Tensor([0.1, 10.0])).name, scale_of(Tensor([-1.0, 0.0, 1.0])).name
    ('log', 'linear')
    >>> scale_of(Tensor([-1.0, -0.5, 0.0, 0.5, 1.0, 500.0])).name
    'asinh'
    """
    if bool((score_N > 0).all()):
        return AxisScale("log")
    low, quarter, three_quarters, high = np.quantile(score_N.double().numpy(), [0, 0.25, 0.75, 1])
    middle = float(three_quarters - quarter)
    return (
        AxisScale(ASINH, middle) if middle > 0 and high - low > _LONG_TAIL * middle else AxisScale("linear")
    )


def bin_edges(score_N: Tensor, scale: AxisScale) -> list[float]:
    """Return edges of bins over all scores that are equally wide on a scale.

    >>> bin_edges(Tensor([1.0, 100.0]), AxisScale("log"))[0::30]
    [1.0, 10.0, 100.0]
    """
    low, high = float(score_N.min()), float(score_N.max())
    if low == high:
        low, high = (low / 2, high * 2) if scale.name == "log" else (low - 0.5, high + 0.5)
    if scale.name == "log":
        return [low * (high / low) ** (i / BINS) for i in range(BINS + 1)]
    if scale.name == ASINH:
        first, last = (math.asinh(end / scale.linear_width) for end in (low, high))
        inner = (math.sinh(first + (last - first) * i / BINS) * scale.linear_width for i in range(1, BINS))
        return [low, *inner, high]
    return [low + (high - low) * i / BINS for i in range(BINS + 1)]
