"""Whether two models are one: their numbers bit by bit, their answers up to rounding.

Kernels may sum in another order where memory is aligned otherwise, and the tensors of a loaded folder lie as in the
file: the same numbers then give answers that differ in the last bits, on some machines, some of the time.
"""

from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import Tensor, nn

_ROUNDING = {torch.float64: 1e-11, torch.float32: 1e-5, torch.bfloat16: 1e-2}
"""How far the answers of equal models may lie apart, relative to their size, by dtype."""


def assert_same(
    one: nn.Module,
    other: nn.Module,
    says: Callable[[Any], Tensor | Iterable[Tensor]],
    *,
    calculated: bool = False,
) -> None:
    """Expect two instances to hold the same tensors, bit by bit, and to say the same, up to rounding.

    Args:
        says: Gives the answer, or answers, of a model.
        calculated: Both calculated their tensors (folded, merged) rather than copied them: equal up to rounding.
    """
    assert_same_tensors(one, other, calculated=calculated)
    found, expected = says(one), says(other)
    if isinstance(found, Tensor):
        found, expected = [found], [expected]
    for left, right in zip(found, expected, strict=True):
        assert_same_answer(left, right)


def assert_same_tensors(one: nn.Module, other: nn.Module, *, calculated: bool = False) -> None:
    """Expect the same names, shapes, dtypes and bits; of what was calculated, values up to rounding."""
    mine, theirs = one.state_dict(), other.state_dict()
    assert mine.keys() == theirs.keys()
    for name, tensor in mine.items():
        if calculated:
            assert_same_answer(tensor, theirs[name])
        else:
            assert tensor.dtype == theirs[name].dtype, name
            assert torch.equal(tensor, theirs[name]), name


def assert_same_answer(found: Tensor, expected: Tensor) -> None:
    """Expect what equal models may say: the same shape and dtype, values up to rounding."""
    near = _ROUNDING.get(expected.dtype, 0.0)
    torch.testing.assert_close(found, expected, rtol=near, atol=near, equal_nan=True)
