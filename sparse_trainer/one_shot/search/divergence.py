"""How far what a model says is from what the dense one says: KL divergence of distributions, distance of states."""

from collections.abc import Callable
from typing import Any, Final, Protocol, final

import torch
from torch import Tensor
from torch.nn.functional import binary_cross_entropy_with_logits

from sparse_trainer.statistics.batch import Batch
from sparse_trainer.statistics.calibration_pass import precise
from sparse_trainer.statistics.said import Meaning, said

# Shape legend: N = positions, C = classes or features.

_AT_ONCE: Final = 1 << 21
"""Logits that are looked at at once: so few that what is made of them on the way stays in the cache."""


class _Measure(Protocol):
    """Sums over rows how far others are from those that it was made of."""

    def __call__(self, other_NC: Tensor) -> Tensor: ...


@final
class DenseOutput:
    """What the dense model says of one batch, ready to be compared with what others say of it.

    Of every output named logits it is KL(dense || other) over the last axis, in nats; of labels that are right or wrong
    each by itself the sum of theirs; of a single number its squared change. Of a model without logits: the squared
    distance of its first output, over the dense one's squared norm; of texts where the batch knows how their vectors
    are pooled, else of tokens.
    """

    def __init__(self, dense: Any, batch: Batch) -> None:
        self.batch = batch
        values = list(said(dense, batch))
        self.positions = max(len(value_NC) for value_NC, _ in values)
        """How many are real."""
        self._measures: list[list[_Measure]] = [
            [_measure_of(meaning, value_NC)(precise(part)) for part in _parts(value_NC)]
            for value_NC, meaning in values
        ]

    def divergence(self, other: Any) -> Tensor:
        """Return the sum over real positions, scalar, on the CPU."""
        found = [
            measure(precise(part))
            for (value_NC, _), measures in zip(said(other, self.batch), self._measures, strict=True)
            for part, measure in zip(_parts(value_NC), measures, strict=True)
        ]
        return torch.stack(found).cpu().double().sum()


def _parts(value_NC: Tensor) -> tuple[Tensor, ...]:
    parts: tuple[Tensor, ...] = value_NC.split(max(1, _AT_ONCE // value_NC.shape[-1]))
    return parts


def _measure_of(meaning: Meaning, value_NC: Tensor) -> Callable[[Tensor], _Measure]:
    if meaning is Meaning.LABELS:
        return _LabelKl
    if meaning is Meaning.CLASSES:
        return _Kl
    return _Distance if value_NC.shape[-1] > 1 else _Change


class _Kl:
    """sum p (log p - log q) = sum p log p + logsumexp(y) - sum p y, where y are the other's logits: two passes."""

    def __init__(self, logits_NC: Tensor) -> None:
        log_NC = logits_NC.log_softmax(-1)
        self.p_NC = log_NC.exp()
        possible_NC = log_NC > -torch.inf
        self.possible_NC = None if bool(possible_NC.all()) else possible_NC
        """Classes that the model does not rule out; others rule out the same. None = all."""
        self.entropy_N = -_dot(self.p_NC, log_NC.masked_fill(~possible_NC, 0.0))

    def __call__(self, other_NC: Tensor) -> Tensor:
        total_N = other_NC.logsumexp(-1)
        if self.possible_NC is not None:
            other_NC = torch.where(self.possible_NC, other_NC, 0.0)
        return (total_N - _dot(self.p_NC, other_NC) - self.entropy_N).sum()


class _LabelKl:
    """sum p (log p - log q) + (1 - p) (log (1 - p) - log (1 - q)) over labels."""

    def __init__(self, logits_NC: Tensor) -> None:
        self.p_NC = logits_NC.sigmoid()
        self.own_NC = self._cross_entropy(logits_NC)

    def _cross_entropy(self, logits_NC: Tensor) -> Tensor:
        return binary_cross_entropy_with_logits(logits_NC, self.p_NC, reduction="none")

    def __call__(self, other_NC: Tensor) -> Tensor:
        # Label by label: sums would differ in their last digits only, where the models are alike.
        return (self._cross_entropy(other_NC) - self.own_NC).sum()


class _Distance:
    def __init__(self, dense_NC: Tensor) -> None:
        self.dense_NC = dense_NC
        self.size_N = dense_NC.square().sum(-1).clamp_min(torch.finfo(dense_NC.dtype).tiny)

    def __call__(self, other_NC: Tensor) -> Tensor:
        return ((self.dense_NC - other_NC).square().sum(-1) / self.size_N).sum()


class _Change:
    def __init__(self, dense_NC: Tensor) -> None:
        self.dense_NC = dense_NC

    def __call__(self, other_NC: Tensor) -> Tensor:
        return (self.dense_NC - other_NC).square().sum()


def _dot(a_NC: Tensor, b_NC: Tensor) -> Tensor:
    dot_N: Tensor = torch.linalg.vecdot(a_NC, b_NC)
    return dot_N
