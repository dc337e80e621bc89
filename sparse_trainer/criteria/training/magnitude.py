"""Magnitude: keep what is large. The control that every other criterion has to beat."""

from typing import ClassVar, final

from torch import Tensor, nn

from patchers.patching.gates import Gate
from patchers.units import Group, Structure
from sparse_trainer.criteria.magnitude import magnitude
from sparse_trainer.criteria.training.base import Gates, Plain


@final
class Magnitude(Plain):
    """Sum of |w| or w^2 over every slice of a unit; divided by its cost it is a mean."""

    standardize: ClassVar[str] = "cost"
    learns: ClassVar[bool] = False

    def make_gate(self, group: Group) -> Gate:
        """Return a bare gate."""
        return Gate(group.num_units, scored=False)

    def scores(self, model: nn.Module, structure: Structure, gates: Gates) -> dict[str, Tensor]:
        """Return the magnitudes of the weights as they are now."""
        return {name: magnitude(model, structure[name], self.args.magnitude_norm) for name in gates}
