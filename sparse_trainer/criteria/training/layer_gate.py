"""Layer gates: learn which layers (or branches) to do without.

After FoldGPT (arXiv 2407.00928), which replaces static layer scores by learnable gates under a FLOPs constraint. Its
formulas were not available to us; this is our reading, with the smoothed-L0 gate of GDP (ICCV 2021): the gate of
layer l is g = theta^2 / (theta^2 + epsilon), epsilon falls geometrically, and the loss gains
penalty * (sum of cost_l g_l / sum of cost_l - density)^2, the density following the schedule.
"""

from collections.abc import Mapping
from typing import ClassVar, final

import torch
from torch import Tensor, nn

from patchers.patching.gates import Gate, PolarGate
from patchers.units import BLOCK_KINDS, EXPERTS, LAYERS, Group, Kind, Structure
from sparse_trainer.criteria.training.base import Gates, Plain


@final
class LayerGate(Plain):
    """Learned soft gates that polarise, then close for good."""

    kinds: ClassVar[tuple[Kind, ...]] = (LAYERS,)
    # A router chooses among experts that are there or not: it cannot read a soft gate.
    scored: ClassVar[tuple[Kind, ...]] = tuple(kind for kind in BLOCK_KINDS if kind != EXPERTS)
    standardize: ClassVar[str] = "none"
    learns: ClassVar[bool] = True

    def make_gate(self, group: Group) -> Gate:
        """Return a learnable gate, almost open."""
        return PolarGate(group.num_units, epsilon=self.args.gate_epsilon)

    def scores(self, model: nn.Module, structure: Structure, gates: Gates) -> dict[str, Tensor]:
        """Return theta^2: the order of the gates, whatever epsilon is."""
        return {name: gate.score_U.square() for name, gate in gates.items() if gate.score_U is not None}

    def penalty(
        self, gates: Gates, costs: Mapping[str, int], density: float, remaining: float
    ) -> Tensor | None:
        """Return the squared distance between the expected and the asked cost, as fractions, times the weight."""
        total = sum(costs[name] * gate.keep_U.numel() for name, gate in gates.items())
        open_cost = torch.stack(
            [
                gate.soft().sum() * (costs[name] / total)
                for name, gate in gates.items()
                if isinstance(gate, PolarGate)
            ]
        ).sum()
        weight: float = self.args.gate_penalty
        return (open_cost - density).square() * weight

    @torch.no_grad()
    def advance(self, gates: Gates, progress: float, frozen: bool) -> None:
        """Lower epsilon geometrically over training and harden the gates once the structure is final."""
        first, last = self.args.gate_epsilon, self.args.gate_epsilon_final
        epsilon = first * (last / first) ** min(1.0, progress / max(1e-12, 1.0 - self.args.cooldown_ratio))
        for gate in gates.values():
            if isinstance(gate, PolarGate):
                gate.epsilon.fill_(epsilon)
                gate.hard.fill_(float(frozen))
