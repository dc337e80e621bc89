"""Hard-concrete gates: random while they learn, exactly open or closed otherwise.

Louizos et al., "Learning Sparse Neural Networks through L0 Regularization" (arXiv 1712.01312). With u uniform,

    s = sigmoid((log u - log(1 - u) + alpha) / BETA),   z = clamp(s (HIGH - LOW) + LOW, 0, 1)
    P(z != 0) = sigmoid(alpha - BETA log(-LOW / HIGH))
"""

import math
import zlib
from typing import final

import torch
from torch import Tensor, nn

from patchers.patching.gates import Gate

# Shape legend: U = units.

LOW, HIGH, BETA = -0.1, 1.1, 2 / 3
SHIFT = -BETA * math.log(-LOW / HIGH)
"""alpha + SHIFT are the log-odds that a gate is not closed."""
LIMIT = math.log(100.0)
"""alpha at the start, and at most: no gate gets out of reach of its gradient."""
QUADRATIC = 10.0
"""The multiplier of the squared violation at the start. At 0, as in CoFi, short runs swing around the budget."""
_LEAST = 1e-4
"""Uniform noise stays this far from 0 and 1."""


@final
class ConcreteGate(Gate):
    """A gate that is drawn anew for every optimizer step while it learns; `score_U` is alpha.

    In training mode the value is z for the noise at hand: +inf opens a gate exactly, -inf closes it exactly, and
    neither passes a gradient to alpha. In evaluation mode the value is the mask, as for every gate.
    """

    noise_U: Tensor
    """log u - log(1 - u). Stored with the model, so that a run that goes on computes what the first one would have."""
    multipliers_2: Tensor
    """Lagrange multipliers of the linear and the quadratic term; of the first gate under a constraint, else unused."""

    def __init__(self, num_units: int, *, device: torch.device | None = None) -> None:
        super().__init__(num_units, scored=True, device=device)
        assert self.score_U is not None
        nn.init.constant_(self.score_U, LIMIT)
        self.register_buffer(
            "noise_U", torch.full((num_units,), torch.inf, dtype=torch.float32, device=device)
        )
        start_2 = torch.tensor([0.0, QUADRATIC], dtype=torch.float32, device=device)
        self.register_buffer("multipliers_2", start_2)

    def value(self) -> Tensor:
        """Return z in training mode, the mask in evaluation mode, shape [U]."""
        assert self.score_U is not None
        if not self.training:
            return super().value()
        return torch.sigmoid((self.score_U + self.noise_U) / BETA).mul(HIGH - LOW).add(LOW).clamp(0.0, 1.0)

    @torch.no_grad()
    def start(self, odds_U: Tensor) -> None:
        """Let the gate be open with these log-odds."""
        assert self.score_U is not None
        self.score_U.copy_(odds_U - SHIFT)
        self.clamp()

    @torch.no_grad()
    def clamp(self) -> None:
        """Keep the probability that the gate is not closed away from 0 and 1, by as much on either side."""
        assert self.score_U is not None
        self.score_U.clamp_(-LIMIT - 2 * SHIFT, LIMIT)

    @torch.no_grad()
    def hold(self) -> None:
        """Make the mask the value in training mode too."""
        self.noise_U.fill_(torch.inf).masked_fill_(self.keep_U == 0, -torch.inf)


def log_odds(uniform: Tensor) -> Tensor:
    """Return log u - log(1 - u) for uniform numbers, kept away from 0 and 1.

    >>> log_odds(torch.tensor([0.5, 1.0]))
    tensor([0.0000, 9.2107])
    """
    return torch.logit(uniform * (1.0 - 2.0 * _LEAST) + _LEAST)


def drawn(count: int, key: str, device: torch.device) -> Tensor:
    """Return the log-odds of `count` uniform numbers that follow from a text alone.

    So ranks agree, a resumed run draws the same, and dropout draws what it would without them.
    """
    generator = torch.Generator(device).manual_seed(zlib.crc32(key.encode()))
    return log_odds(torch.rand(count, generator=generator, device=device))


def presence(alpha: Tensor) -> Tensor:
    """Return the probability that a gate is not closed.

    >>> presence(torch.tensor(-SHIFT))
    tensor(0.5000)
    """
    return torch.sigmoid(alpha + SHIFT)
