"""A loss without labels: how far what the model says moves.

How far is the KL divergence of distributions (of labels that are right or wrong each by itself, the sum over labels),
and the squared distance of vectors over their squared length. All are
least, and their gradient is zero, where the model says what it says. What counts there is the second derivative of the
divergence in the output, H, which is known in closed form. The loss here is the product of the output with a random z
whose E[z z^T] is H: with g its gradient, E[g^2] is the second derivative in whatever g is taken of (the Gauss-Newton
matrix, or Fisher information with labels drawn from the model: Martens, arXiv 1412.1193). Criteria that square
gradients need nothing else, and no label.
"""

import math
from typing import Any, Final, final

import torch
from torch import Tensor

from sparse_trainer.statistics.batch import Batch
from sparse_trainer.statistics.calibration_pass import precise
from sparse_trainer.statistics.said import Meaning, said

# Shape legend: N = positions, C = classes or features.

_SEED: Final = 0


@final
class OwnOutput:
    """Draws random directions, one for each position: the same ones however the rows are shared out over batches."""

    def __init__(self) -> None:
        self._generator = torch.Generator().manual_seed(_SEED)

    def __call__(self, output: Any, batch: Batch) -> Tensor:
        """Return the sum over positions of the output along its direction, scalar."""
        return torch.stack([self._along(*value) for value in said(output, batch)]).sum()

    def _along(self, value_NC: Tensor, meaning: Meaning) -> Tensor:
        value_NC = precise(value_NC)
        drawn_NC = torch.randint(0, 2, value_NC.shape, generator=self._generator)
        sign_NC = (2 * drawn_NC - 1).to(value_NC)
        direction_NC = _DIRECTIONS[meaning](value_NC.detach(), sign_NC)
        return (direction_NC * value_NC).sum()


def _of_classes(logits_NC: Tensor, sign_NC: Tensor) -> Tensor:
    """Return directions whose second moment is diag(p) - p p^T, the second derivative of KL in the logits.

    >>> logits_NC = torch.tensor([[0.0, 1.0]])
    >>> signs = (torch.tensor([[1.0, 1.0]]), torch.tensor([[1.0, -1.0]]))
    >>> z_NC = torch.cat([_of_classes(logits_NC, sign_NC) for sign_NC in signs])
    >>> p_C = logits_NC[0].softmax(-1)
    >>> bool(torch.allclose(z_NC.T @ z_NC / 2, p_C.diag() - torch.outer(p_C, p_C)))
    True
    """
    p_NC = logits_NC.softmax(-1)
    root_NC = p_NC.sqrt() * sign_NC
    return root_NC - p_NC * root_NC.sum(-1, keepdim=True)


def _of_vectors(value_NC: Tensor, sign_NC: Tensor) -> Tensor:
    """Return directions whose second moment is twice the identity over the squared length; of single numbers, 2."""
    if value_NC.shape[-1] == 1:
        return sign_NC * math.sqrt(2)
    tiny = torch.finfo(value_NC.dtype).tiny
    return sign_NC * (2 / value_NC.square().sum(-1, keepdim=True).clamp_min(tiny)).sqrt()


def _of_labels(logits_NC: Tensor, sign_NC: Tensor) -> Tensor:
    """Return directions whose second moment is diag(p (1 - p)), the second derivative of the sum of KLs."""
    p_NC = logits_NC.sigmoid()
    return sign_NC * (p_NC * (1 - p_NC)).sqrt()


_DIRECTIONS: Final = {Meaning.CLASSES: _of_classes, Meaning.LABELS: _of_labels, Meaning.VECTORS: _of_vectors}
