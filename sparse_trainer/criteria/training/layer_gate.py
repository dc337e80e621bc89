"""Layer gates: learn which layers (or branches) to do without.

After FoldGPT (arXiv 2407.00928), which replaces static layer scores by learnable gates under a FLOPs constraint. Its
formulas were not available to us; this is our reading, with the smoothed-L0 gate of GDP (ICCV 2021): the gate of
layer l is g = theta^2 / (theta^2 + epsilon), epsilon falls geometrically, and the loss gains
penalty * (sum of cost_l g_l / sum of cost_l - density)^2, the density following the schedule.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import ClassVar, final

import torch
from torch import Tensor, nn

from patchers.patching.gates import Gate, PolarGate
from patchers.units import BLOCK_KINDS, EXPERTS, LAYERS, Group, Kind, Structure
from sparse_trainer.budget.nesting import Constraint
from sparse_trainer.budget.schedule import Schedule
from sparse_trainer.criteria.training.base import Gates, Penalty
from sparse_trainer.fields import check_not_negative, check_positive


@final
@dataclass(frozen=True, kw_only=True)
class LayerGate:
    """Learned soft gates that polarise, then close for good."""

    # A router chooses among experts that are there or not: it cannot read a soft gate.
    kinds: ClassVar[tuple[Kind, ...]] = tuple(kind for kind in BLOCK_KINDS if kind != EXPERTS)
    default_units: ClassVar[tuple[Kind, ...]] = (LAYERS,)
    standardize: ClassVar[str] = "none"
    learns: ClassVar[bool] = True
    epsilon: float = 0.1
    """Of the gates at the start: they open at 1 / (1 + epsilon)."""
    epsilon_final: float = 1e-4
    """Of the gates at the end."""
    penalty: float = 10.0
    """Weight of the budget penalty."""

    def __post_init__(self) -> None:
        check_positive("layer_gate.epsilon", self.epsilon)
        check_positive("layer_gate.epsilon_final", self.epsilon_final)
        check_not_negative("layer_gate.penalty", self.penalty)

    def make_gate(self, group: Group) -> Gate:
        """Return a learnable gate, almost open."""
        return PolarGate(group.num_units, epsilon=self.epsilon)

    def scores(self, model: nn.Module, structure: Structure, gates: Gates) -> dict[str, Tensor]:
        """Return theta^2: the order of the gates, whatever epsilon is."""
        return {name: gate.score_U.square() for name, gate in gates.items() if gate.score_U is not None}

    def make_penalty(self, costs: Mapping[str, int], constraints: Sequence[Constraint]) -> Penalty:
        """Return the squared distance between the expected and the asked cost, as fractions, times the weight."""

        def penalty(gates: Gates, density: float, remaining: float) -> Tensor:
            total = sum(costs[name] * gate.keep_U.numel() for name, gate in gates.items())
            parts = [
                gate.soft().sum() * (costs[name] / total)
                for name, gate in gates.items()
                if isinstance(gate, PolarGate)
            ]
            return (torch.stack(parts).sum() - density).square() * self.penalty

        return penalty

    @torch.no_grad()
    def advance(self, gates: Gates, progress: float, schedule: Schedule) -> None:
        """Lower epsilon geometrically over training and harden the gates once the structure is final."""
        done = min(1.0, progress / max(1e-12, 1.0 - schedule.cooldown))
        epsilon = self.epsilon * (self.epsilon_final / self.epsilon) ** done
        for gate in gates.values():
            if isinstance(gate, PolarGate):
                gate.epsilon.fill_(epsilon)
                gate.hard.fill_(float(schedule.frozen(progress)))
