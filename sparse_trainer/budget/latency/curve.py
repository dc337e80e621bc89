"""What the units of one group add to the time of their block, by how many there are."""

from bisect import bisect_right
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Self

from scipy.optimize import isotonic_regression


@dataclass(frozen=True, kw_only=True)
class Curve:
    """Seconds by number of units: 0 without any, never falling, straight between the widths that were measured."""

    widths: tuple[int, ...]
    """Numbers of units, rising from 0."""
    seconds: tuple[float, ...]

    @classmethod
    def through(cls, times: Mapping[int, float]) -> Self:
        """Return the curve nearest to measured times, by least squares; only differences between them count.

        Where no block without units could be timed, the line through the two narrowest is drawn on.

        >>> Curve.through({0: 1.0, 2: 3.0, 4: 2.0, 6: 5.0})
        Curve(widths=(0, 2, 4, 6), seconds=(0.0, 1.5, 1.5, 4.0))
        """
        widths = sorted(times)
        fitted = isotonic_regression([times[width] for width in widths]).x.tolist()
        if widths[0] > 0:
            slope = (
                (fitted[1] - fitted[0]) / (widths[1] - widths[0])
                if len(widths) > 1
                else fitted[0] / widths[0]
            )
            fitted, widths = [max(0.0, fitted[0] - slope * widths[0]), *fitted], [0, *widths]
        return cls(widths=tuple(widths), seconds=tuple(value - fitted[0] for value in fitted))

    def at(self, width: float) -> float:
        """Return the seconds of so many units; more than were measured cost as much each as all of those.

        >>> Curve(widths=(0, 4, 8), seconds=(0.0, 1.0, 4.0)).at(6)
        2.5
        """
        last = self.widths[-1]
        if width >= last:
            return self.seconds[-1] * width / last if last else 0.0
        place = bisect_right(self.widths, width) - 1
        low, high = self.widths[place], self.widths[place + 1]
        part = (width - low) / (high - low)
        return self.seconds[place] + part * (self.seconds[place + 1] - self.seconds[place])

    def scaled(self, factor: float) -> Self:
        """Return the curve with all times multiplied."""
        return type(self)(widths=self.widths, seconds=tuple(value * factor for value in self.seconds))
