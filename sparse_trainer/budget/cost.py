"""What a unit costs. A new measure is a class that follows `CostModel`, and one line in `COSTS`."""

from collections.abc import Callable, Sequence
from typing import Final, Protocol, final

from torch import nn

from patchers.units import Group
from sparse_trainer.budget.counting import Counting, Macs, Params

Target = str
"""Name of a cost model: what a density is a fraction of."""


class CostModel(Protocol):
    """Measures units, in whole numbers of one quantity."""

    def unit(self, model: nn.Module, group: Group) -> int:
        """Return the cost of one unit of a group, what lies inside it included."""

    def per_feature(self, model: nn.Module, groups: Sequence[Group]) -> dict[str, int]:
        """Return what of the cost of a unit goes with every hidden feature, by group name; empty where none can go.

        A channel reads and writes hidden features: with a feature one entry of each of its rows and columns goes. Of
        the hidden features themselves, what no other group has: biases, and linears of kinds that are not pruned.
        """


@final
class Units:
    """Every unit counts as one."""

    def unit(self, model: nn.Module, group: Group) -> int:
        """Return 1."""
        return 1

    def per_feature(self, model: nn.Module, groups: Sequence[Group]) -> dict[str, int]:
        """Return nothing: units have no share in each other."""
        return {}


COSTS: Final[dict[Target, Callable[[int], CostModel]]] = {
    "params": lambda sequence_length: Counting(Params()),
    "macs": lambda sequence_length: Counting(Macs(sequence_length)),
    "units": lambda sequence_length: Units(),
}
"""Makes each cost model for a number of tokens per sequence."""


def unit_cost(model: nn.Module, group: Group, target: Target, sequence_length: int = 128) -> int:
    """Return the cost of one unit of `group`: `CostModel.unit` of the target."""
    return COSTS[target](sequence_length).unit(model, group)


def feature_costs(model: nn.Module, groups: Sequence[Group], target: Target) -> dict[str, int]:
    """Return what of the cost of a unit goes with every hidden feature: `CostModel.per_feature` of the target."""
    return COSTS[target](1).per_feature(model, groups)
