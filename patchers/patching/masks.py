"""Weight masks: zeros and ones over the blocks of one matrix, kept apart from the matrix itself.

For whole channels and heads a `Gate` on the consumer's input computes the same for less; masks serve what gates cannot
express: single weights, blocks, rows and columns of one matrix, N of M.
"""

from collections.abc import Iterable
from typing import Any, Final, final

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from patchers.layers import Linear, weight_OI
from patchers.patching.hard_concrete import BETA, HIGH, LOW

# Shape legend: B = batch, T = tokens, N = all tokens, I = input features, O = output features, R x C = blocks.

MASK_NAME: Final = "weight_mask"
"""Masks are children of this name of the linear they multiply; of a shared one, of the first."""


@final
class MaskFactor(nn.Module):
    """One value per block of a matrix, with an optional score behind it.

    Blocks are of any size: 1 x 1 for single weights, 1 x I for rows, O x 1 for columns. The gradient of the value goes
    straight through to the score (Bengio et al., arXiv 1308.3432), or, where the value is a hard-concrete number,
    through its slope.

    Args:
        blocks: Rows and columns of blocks.
        scored: Whether a score receives the gradient.
        soft: Whether the value in training mode differs from the mask.
        concrete: Whether it is a hard-concrete number, see `patchers.patching.hard_concrete`.
    """

    keep_RC: Tensor
    """1 = keep, 0 = closed: what counts in evaluation mode and for good."""

    def __init__(
        self,
        blocks: tuple[int, int],
        like: Tensor,
        *,
        scored: bool,
        soft: bool = False,
        concrete: bool = False,
    ) -> None:
        super().__init__()
        ones = torch.ones(blocks, dtype=like.dtype, device=like.device)
        self.register_buffer("keep_RC", ones)
        self.register_buffer("value_RC", ones.clone() if soft or concrete else None)
        zeros = torch.zeros(blocks, dtype=torch.float32, device=like.device)
        self.score_RC = nn.Parameter(zeros) if scored else None
        self.concrete = concrete

    def forward(self) -> Tensor:
        """Return the value of each block, shape [R, C]."""
        soft_RC = self._buffers["value_RC"] if self.training else None
        value_RC = self.keep_RC if soft_RC is None else soft_RC
        if self.score_RC is None:
            return value_RC
        through: Tensor = _Through.apply(self.score_RC, value_RC, self.concrete and self.training)  # type: ignore[no-untyped-call]
        return through

    @torch.no_grad()
    def set_keep(self, keep_RC: Tensor, value_RC: Tensor | None = None) -> None:
        """Keep these blocks; `value_RC` is what training multiplies by instead, where the factor is soft."""
        self.keep_RC.copy_(keep_RC)
        soft_RC = self._buffers["value_RC"]
        if soft_RC is not None:
            soft_RC.copy_(keep_RC if value_RC is None else value_RC)


@final
class WeightMask(nn.Module):
    """The product of one or more factors over the same matrix, and what it leaves of the bias.

    Args:
        outputs: Rows of the matrix.
        masks_bias: Whether an output without any weight loses its bias as well.
    """

    keep_O: Tensor
    """1 = some weight of the row is kept."""

    def __init__(self, factors: Iterable[MaskFactor], outputs: int, *, masks_bias: bool) -> None:
        super().__init__()
        self.factors = nn.ModuleList(factors)
        self.register_buffer(
            "keep_O", torch.ones_like(self._factors()[0].keep_RC[:1, :1].expand(1, outputs)[0])
        )
        self.masks_bias = masks_bias

    def _factors(self) -> list[MaskFactor]:
        return [factor for factor in self.factors if isinstance(factor, MaskFactor)]

    def forward(self) -> list[Tensor]:
        """Return the values of the factors, each [R, C]."""
        return [factor() for factor in self._factors()]

    @property
    def bias_O(self) -> Tensor | None:
        """What multiplies the bias, or None."""
        return self.keep_O if self.masks_bias else None

    @torch.no_grad()
    def settle(self) -> None:
        """Follow the factors after they changed: find the rows that have no weight left."""
        factors = self._factors()
        whole = (
            factors[0].keep_RC
            if len(factors) == 1
            else self.keep_OI(max(f.keep_RC.shape[1] for f in factors))
        )
        rows_R = (whole != 0).any(dim=1)
        self.keep_O.copy_(rows_R.repeat_interleave(len(self.keep_O) // len(rows_R)))

    def keep_OI(self, inputs: int) -> Tensor:
        """Return the mask over a matrix with this many columns, shape [O, I]."""
        keep = torch.ones(len(self.keep_O), inputs, dtype=self.keep_O.dtype, device=self.keep_O.device)
        for factor in self._factors():
            multiply_(keep, factor.keep_RC)
        return keep


@final
class MaskedForward:
    """Stands for the `forward` of a plain linear: mask and linear as one autograd function."""

    def __init__(self, linear: Linear, mask: WeightMask) -> None:
        self.linear, self.mask = linear, mask

    def __call__(self, x_BTI: Tensor) -> Tensor:
        """Return the output of the linear with its masked weight."""
        linear, mask = self.linear, self.mask
        y_BTO: Tensor = _MaskedLinear.apply(  # type: ignore[no-untyped-call]
            x_BTI, weight_OI(linear), linear.bias, mask.bias_O, *mask()
        )
        return y_BTO


@torch.no_grad()
def bake(linear: Linear, mask: WeightMask) -> None:
    """Multiply the parameters of a linear by its mask, in place: what the mask closes is zero from now on."""
    weight = weight_OI(linear)
    for factor in mask._factors():
        multiply_(weight, factor.keep_RC)
    if linear.bias is not None and mask.bias_O is not None:
        linear.bias.mul_(mask.bias_O)


def multiply(weight_OI: Tensor, value_RC: Tensor) -> Tensor:
    """Return a matrix times one value per block.

    >>> multiply(torch.ones(2, 4), torch.tensor([[1.0, 0.0]]))
    tensor([[1., 1., 0., 0.],
            [1., 1., 0., 0.]])
    """
    if weight_OI.shape == value_RC.shape:
        return weight_OI * value_RC
    return (_blocks(weight_OI, value_RC.shape) * value_RC[:, None, :, None]).reshape(weight_OI.shape)


def multiply_(weight_OI: Tensor, value_RC: Tensor) -> None:
    """Multiply a matrix by one value per block, in place."""
    _blocks(weight_OI, value_RC.shape).mul_(value_RC[:, None, :, None])


def block_sum(weight_OI: Tensor, blocks: torch.Size) -> Tensor:
    """Return the sum over each block, shape [R, C].

    >>> block_sum(torch.ones(2, 4), torch.Size([1, 2]))
    tensor([[4., 4.]])
    """
    if weight_OI.shape == blocks:
        return weight_OI
    # Along the rows first: these lie side by side in memory.
    return _blocks(weight_OI, blocks).sum(3).sum(1)


def _blocks(weight_OI: Tensor, blocks: torch.Size) -> Tensor:
    """Return a matrix as [R, rows of a block, C, columns of a block]: a view of a plain or transposed one."""
    (rows, columns), (outputs, inputs) = blocks, weight_OI.shape
    return weight_OI.view(rows, outputs // rows, columns, inputs // columns)


class _Through(torch.autograd.Function):
    """The value as it is; its gradient is the score's, times the slope of a hard-concrete number."""

    @staticmethod
    def forward(ctx: Any, score_RC: Tensor, value_RC: Tensor, concrete: bool) -> Tensor:
        ctx.concrete, ctx.dtype = concrete, score_RC.dtype
        if concrete:
            ctx.save_for_backward(value_RC)
        return value_RC.view_as(value_RC)

    @staticmethod
    def backward(ctx: Any, dvalue_RC: Tensor) -> tuple[Tensor | None, ...]:
        dscore_RC = dvalue_RC.to(ctx.dtype)
        if ctx.concrete:
            (value_RC,) = ctx.saved_tensors
            s_RC = (value_RC - LOW) / (HIGH - LOW)
            inside = (value_RC > 0) & (value_RC < 1)
            dscore_RC = dscore_RC * (inside * s_RC * (1 - s_RC) * ((HIGH - LOW) / BETA))
        return dscore_RC, None, None


class _MaskedLinear(torch.autograd.Function):
    """y = x (W M)^T + b m, M the product of the values over their blocks. dL/dM = sum over a block of W dL/d(W M).

    Saves the input, the weight and the small values, no masked weight: that is one product, made again.
    """

    @staticmethod
    def forward(
        ctx: Any,
        x_BTI: Tensor,
        weight_OI: Tensor,
        bias_O: Tensor | None,
        keep_O: Tensor | None,
        *values: Tensor,
    ) -> Tensor:
        ctx.save_for_backward(x_BTI, weight_OI, keep_O, *values)
        if bias_O is not None and keep_O is not None:
            bias_O = bias_O * keep_O
        return F.linear(x_BTI, _masked(weight_OI, values), bias_O)

    @staticmethod
    def backward(ctx: Any, dy_BTO: Tensor) -> tuple[Tensor | None, ...]:
        x_BTI, weight_OI, keep_O, *values = ctx.saved_tensors
        needs_x, needs_weight, needs_bias, _, *needs_values = ctx.needs_input_grad
        # Under autocast the gradient comes in the lower precision that the forward pass computed in.
        dy_NO = dy_BTO.flatten(0, -2)
        dx = dweight = dbias = None
        if needs_x:
            dx = (dy_NO @ _masked(weight_OI, values).to(dy_NO.dtype)).view_as(x_BTI)
        dvalues: list[Tensor | None] = [None] * len(values)
        if needs_weight or any(needs_values):
            dweight = dy_NO.T @ x_BTI.flatten(0, -2).to(dy_NO.dtype)
            if any(needs_values):
                product_OI = dweight * weight_OI
                for i, value_RC in enumerate(values):
                    others = values[:i] + values[i + 1 :]
                    if needs_values[i]:
                        dvalues[i] = block_sum(_masked(product_OI, others), value_RC.shape).to(value_RC.dtype)
            for value_RC in values:
                multiply_(dweight, value_RC.to(dweight.dtype))
        if needs_bias:
            dbias = dy_NO.sum(0)
            dbias = dbias if keep_O is None else dbias * keep_O.to(dbias.dtype)
        return dx, dweight if needs_weight else None, dbias, None, *dvalues


def _masked(weight_OI: Tensor, values: Iterable[Tensor]) -> Tensor:
    for value_RC in values:
        weight_OI = multiply(weight_OI, value_RC)
    return weight_OI
