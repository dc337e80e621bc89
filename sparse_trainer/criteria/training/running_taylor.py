"""Taylor, as a running mean: keep what the loss would miss.

The gradient of the loss with respect to a gate is the first-order change of the loss when the unit goes (Molchanov et
al., arXiv 1611.06440, "vector" form); its square, per optimizer step, is the diagonal Fisher information of the gates
(Kwon et al., arXiv 2204.09656). A running mean of either is the score. One-shot pruning sums over a calibration set
instead, weight by weight where it is asked to.
"""

from dataclasses import dataclass
from typing import ClassVar, final

import torch
from torch import Tensor, nn

from patchers.patching.gates import Gate, SaliencyGate
from patchers.units import CHANNELS, HEADS, KINDS, Group, Kind, Structure
from sparse_trainer.criteria.training.base import Gates
from sparse_trainer.errors import one_of
from sparse_trainer.fields import check_share


@final
@dataclass(frozen=True, kw_only=True)
class RunningTaylor:
    """Running saliency from mask gradients; the gradient is that of the whole optimizer step."""

    kinds: ClassVar[tuple[Kind, ...]] = KINDS
    default_units: ClassVar[tuple[Kind, ...]] = (HEADS, CHANNELS)
    standardize: ClassVar[str] = "cost"
    learns: ClassVar[bool] = False
    order: int = 1
    """1 = |g|, 2 = g^2 per step (Fisher)."""
    decay: float = 0.99
    """Decay of the running mean per step, in [0, 1)."""

    def __post_init__(self) -> None:
        one_of("taylor.order", self.order, (1, 2))
        check_share("taylor.decay", self.decay, "[0, 1)", "Give e.g. 0.99.")

    def make_gate(self, group: Group) -> Gate:
        """Return a gate that remembers a saliency."""
        return SaliencyGate(group.num_units)

    @torch.no_grad()
    def observe(self, gates: Gates, loss_scale: Tensor | None = None) -> None:
        """Move the running saliency towards |g| (order 1) or g^2 (order 2), then clear the gradient.

        Under a GradScaler a step that overflowed leaves the saliency of its gate alone.
        """
        for gate in gates.values():
            if isinstance(gate, SaliencyGate) and gate.score_U is not None and gate.score_U.grad is not None:
                gradient_U = gate.score_U.grad if loss_scale is None else gate.score_U.grad / loss_scale
                saliency_U = gradient_U.abs() if self.order == 1 else gradient_U.square()
                if loss_scale is not None:
                    # Without a GradScaler NaN is no overflow: it has to show in the scores.
                    saliency_U = torch.where(saliency_U.isfinite().all(), saliency_U, gate.saliency_U)
                gate.saliency_U.lerp_(saliency_U, 1.0 - self.decay)
                gate.score_U.grad = None

    def scores(self, model: nn.Module, structure: Structure, gates: Gates) -> dict[str, Tensor]:
        """Return the running saliencies."""
        return {name: gate.saliency_U for name, gate in gates.items() if isinstance(gate, SaliencyGate)}
