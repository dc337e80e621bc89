"""Wanda (Sun et al., arXiv 2306.11695, equation 1): |w| times the size of the input that it multiplies."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar, Final, final

from torch import Tensor

from sparse_trainer.one_shot.elements.base import Compare, found_for
from sparse_trainer.statistics.moments import Moments
from sparse_trainer.statistics.requests import Statistic, Statistics

# Shape legend: O x I = a weight, outputs by inputs.

_INPUTS: Final = Moments(every_linear=True)


@final
@dataclass(frozen=True, kw_only=True)
class WandaOfWeights:
    """|w| times the root mean square of its input over real tokens."""

    compare: ClassVar[Compare] = "row"

    def requests(self) -> tuple[Statistic[Any], ...]:
        """Return second moments of what the linears read."""
        return (_INPUTS,)

    def scores(self, weights: Mapping[str, Tensor], statistics: Statistics) -> dict[str, Tensor]:
        """Return the scores."""
        return {path: self._score(path, weight_OI, statistics) for path, weight_OI in weights.items()}

    def _score(self, path: str, weight_OI: Tensor, statistics: Statistics) -> Tensor:
        rms_I = found_for(path, _INPUTS, statistics).second_I.sqrt()
        return weight_OI.abs() * rms_I.to(weight_OI)
