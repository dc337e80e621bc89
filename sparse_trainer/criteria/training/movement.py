"""Movement: keep what moves away from zero.

Sanh et al., "Movement Pruning" (arXiv 2005.07683), with one score per unit (Lagunas et al., arXiv 2109.04838). The
score is a parameter; the mask is the top of the scores under the budget; the gradient passes straight through:
dL/dS_u = sum over the unit's consumer weights of W * dL/dW.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar, final

import torch
from torch import Tensor, nn

from patchers.patching.gates import Gate
from patchers.units import CHANNELS, HEADS, KINDS, Group, Kind, Structure
from sparse_trainer.criteria.training.base import Gates


@final
@dataclass(frozen=True, kw_only=True)
class Movement:
    """Learned scores, selected over the whole budget. Adam gives every score the same step, so none is rescaled."""

    kinds: ClassVar[tuple[Kind, ...]] = KINDS
    default_units: ClassVar[tuple[Kind, ...]] = (HEADS, CHANNELS)
    standardize: ClassVar[str] = "none"
    learns: ClassVar[bool] = True

    def make_gate(self, group: Group) -> Gate:
        """Return a gate with a learned score."""
        return Gate(group.num_units, scored=True)

    def scores(self, model: nn.Module, structure: Structure, gates: Gates) -> dict[str, Tensor]:
        """Return the learned scores."""
        return {name: gate.score_U for name, gate in gates.items() if gate.score_U is not None}

    @torch.no_grad()
    def start(self, gates: Gates, odds: Mapping[str, Tensor]) -> None:
        """Set the scores, which the optimizer moves by about its learning rate per step."""
        for name, gate in gates.items():
            if gate.score_U is not None:
                gate.score_U.copy_(odds[name])
