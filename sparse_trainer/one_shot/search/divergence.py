"""How far what a model says is from what the dense one says: KL divergence of distributions, distance of states."""

from typing import Any, Final

import torch
from torch import Tensor

from sparse_trainer.statistics.batch import Batch
from sparse_trainer.statistics.calibration_pass import precise

# Shape legend: N = positions, C = classes or features.

_ROWS: Final = 512
"""Positions whose distributions are in memory at once."""


def divergence(dense: Any, other: Any, batch: Batch) -> tuple[Tensor, int]:
    """Return the sum over real positions, scalar, and how many positions there are.

    Of every output named logits: KL(dense || other) over its last axis, in nats. Of a model without logits: the squared
    distance of its first output, over the dense one's squared norm.
    """
    named = [name for name in dense if name.endswith("logits")]
    pairs = [(dense[name], other[name]) for name in named] or [(dense[0], other[0])]
    total, positions = torch.zeros((), dtype=torch.float64), 0
    for first, second in pairs:
        p_NC, q_NC = (_real(value, batch) for value in (first, second))
        measure = _kl if named and p_NC.shape[-1] > 1 else _distance
        for p, q in zip(p_NC.split(_ROWS), q_NC.split(_ROWS), strict=True):
            total += measure(precise(p), precise(q)).double().cpu()
        positions = max(positions, len(p_NC))
    return total, positions


def _real(value: Tensor, batch: Batch) -> Tensor:
    """Return what is said at real positions, [N, C]."""
    for real_BT in (batch.decoder_real_BT, batch.real_BT):
        if real_BT is not None and value.dim() == 3 and value.shape[:2] == real_BT.shape:
            return value[real_BT.to(value.device)]
    return value.flatten(0, -2)


def _kl(p_NC: Tensor, q_NC: Tensor) -> Tensor:
    p_NC, q_NC = p_NC.log_softmax(-1), q_NC.log_softmax(-1)
    # Where a model rules out a class, both say minus infinity.
    return (p_NC.exp() * (p_NC - q_NC)).masked_fill(p_NC == -torch.inf, 0.0).sum()


def _distance(p_NC: Tensor, q_NC: Tensor) -> Tensor:
    tiny = torch.finfo(p_NC.dtype).tiny
    return ((p_NC - q_NC).square().sum(-1) / p_NC.square().sum(-1).clamp_min(tiny)).sum()
