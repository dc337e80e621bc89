"""Taylor, first order: what the loss would gain or lose if a unit's weights were zero (Molchanov et al., LLM-Pruner).

Absolute values are taken per sequence: gradients of different sequences cancel, and their sum is a poor guide.
"""

from dataclasses import dataclass
from typing import Any, ClassVar, Final, Literal, final, get_args

from torch import Tensor

from patchers.units import BLOCK_KINDS, Group, Kind
from sparse_trainer.criteria.calibration.base import Evidence
from sparse_trainer.errors import one_of
from sparse_trainer.statistics.elements import Elements
from sparse_trainer.statistics.mask_gradients import MaskGradients
from sparse_trainer.statistics.requests import Statistic

# Shape legend: T = linears of a unit, U = units.

TaylorForm = Literal["element", "vector"]
Aggregation = Literal["sum", "mean", "max", "prod", "first"]
_DEFAULT: Final[dict[str, Aggregation]] = {"element": "sum", "vector": "first"}


@final
@dataclass(frozen=True, kw_only=True)
class Taylor:
    """Sum over sequences of sum |w g| (element) or |sum w g| (vector), per linear, aggregated over the linears."""

    kinds: ClassVar[tuple[Kind, ...]] = BLOCK_KINDS
    standardize: ClassVar[str] = "cost"
    form: TaylorForm = "element"
    aggregation: Aggregation | None = None
    """Over the linears of a unit; first = the consumer alone. Default: sum for element, first for vector, where the
    number is the mask gradient and costs no weight gradient."""

    def __post_init__(self) -> None:
        one_of("taylor.form", self.form, get_args(TaylorForm))
        if self.aggregation is not None:
            one_of("taylor.aggregation", self.aggregation, get_args(Aggregation))

    @property
    def _reduce(self) -> Aggregation:
        return self.aggregation or _DEFAULT[self.form]

    @property
    def _request(self) -> Elements | MaskGradients:
        if self.form == "vector" and self._reduce == "first":
            return MaskGradients()
        return Elements(form="absolute" if self.form == "element" else "vector")

    def requests(self) -> tuple[Statistic[Any], ...]:
        """Return mask gradients, or element sums."""
        return (self._request,)

    def scores(self, evidence: Evidence) -> dict[str, Tensor]:
        """Return the Taylor scores."""
        request = self._request
        if isinstance(request, MaskGradients):
            return {name: sums.absolute_U for name, sums in evidence.of(request).items()}
        sums = evidence.of(request)
        return {
            g.name: aggregate(sums[g.name], self._reduce, _consumer(g)) for g in evidence.structure.groups
        }


def _consumer(group: Group) -> int:
    """Return which of a group's linears is the consumer."""
    return next(i for i, s in enumerate(group.slices) if s.path == group.consumer and s.axis == "in")


def aggregate(sums_TU: Tensor, how: Aggregation, consumer: int) -> Tensor:
    """Reduce over the linears of a unit; `first` takes the consumer.

    >>> import torch
    >>> aggregate(torch.tensor([[1.0, 2.0], [3.0, 4.0]]), "prod", 1)
    tensor([3., 8.])
    """
    if how == "sum":
        return sums_TU.sum(0)
    if how == "mean":
        return sums_TU.mean(0)
    if how == "max":
        return sums_TU.amax(0)
    return sums_TU.prod(0) if how == "prod" else sums_TU[consumer]
