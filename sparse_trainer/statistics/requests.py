"""The nouns: what a criterion can ask of a calibration pass, and what it gets."""

from collections.abc import Collection, Iterable
from dataclasses import dataclass, field
from typing import ClassVar, Literal

import torch
from torch import Tensor

from patchers.units import BLOCK_KINDS, CHANNELS, HEADS, Group, Kind

# Shape legend: I = features of a consumer's input, U = units of a group, T = linears (slices) of a unit.

Loss = Literal["labels", "output_norm"]
Form = Literal["absolute", "vector", "upper", "removal", "signed_removal", "trimmed"]


_READ_BY_A_LINEAR: tuple[Kind, ...] = (HEADS, CHANNELS)
"""Kinds whose units are input features of a linear, where a hook sees them and whose weights it can compare."""


@dataclass(frozen=True, kw_only=True)
class Moments:
    """Mean and second moment of the consumers' inputs."""

    kinds: ClassVar[tuple[Kind, ...]] = _READ_BY_A_LINEAR
    in_stacked_experts: ClassVar[bool] = False
    covariance: bool = False
    """All products of two features as well: I x I numbers per group."""


@dataclass(frozen=True)
class SequenceMeans:
    """Squared mean over tokens of |x|, summed over sequences."""

    kinds: ClassVar[tuple[Kind, ...]] = _READ_BY_A_LINEAR
    in_stacked_experts: ClassVar[bool] = False


@dataclass(frozen=True)
class MaskGradients:
    """dL/dgate of every unit, per sequence: its sum, absolute sum and square sum. Memory: three numbers per unit."""

    kinds: ClassVar[tuple[Kind, ...]] = BLOCK_KINDS
    in_stacked_experts: ClassVar[bool] = True


@dataclass(frozen=True, kw_only=True)
class Elements:
    """Sums over a unit's weights of a function of p = w dL/dw, where dL/dw is that of one sequence."""

    kinds: ClassVar[tuple[Kind, ...]] = _READ_BY_A_LINEAR
    in_stacked_experts: ClassVar[bool] = False
    loss: Loss = "labels"
    """`labels`: the model's loss, summed over tokens. `output_norm`: Frobenius norms of the linears' outputs."""
    form: Form = "absolute"
    """What is summed over sequences: absolute sum |p|; vector |sum p|; upper sum |p| + p^2/2; removal
    sum |p - p^2/2|; signed_removal sum -p + p^2/2; trimmed |trimmed mean of p over the hidden features|."""
    trim: float = 0.0
    """Of `trimmed`: share of the hidden features left out on either side."""


Statistic = Moments | SequenceMeans | MaskGradients | Elements


def collectable_kinds(requests: Iterable[Statistic]) -> tuple[Kind, ...]:
    """Return the kinds of unit for which all of this can be collected; all of them, where nothing is needed."""
    wanted = tuple(requests)
    return tuple(kind for kind in BLOCK_KINDS if all(kind in need.kinds for need in wanted))


def unsupported_reason(group: Group, requests: Iterable[Statistic]) -> str | None:
    """Return why something cannot be collected for the units of a group, None where all can."""
    for need in requests:
        if group.kind not in need.kinds:
            return f"{group.kind} are no input features of a linear"
        if group.consumer_tensor is not None and not need.in_stacked_experts:
            return "its units lie in stacked experts, whose inputs and weights no hook sees one by one"
    return None


@dataclass(frozen=True, kw_only=True)
class MomentSums:
    """Moments of one consumer's input, per real token."""

    tokens: Tensor
    """Number of tokens, scalar."""
    mean_I: Tensor
    variance_I: Tensor
    """Mean squared distance from the mean (division by the number of tokens)."""
    centred_II: Tensor | None = None
    """Covariance."""

    @property
    def second_I(self) -> Tensor:
        """Return E[x^2]."""
        return self.variance_I + self.mean_I.square()

    @property
    def second_II(self) -> Tensor:
        """Return E[x x^T]."""
        assert self.centred_II is not None
        return self.centred_II.double() + torch.outer(self.mean_I, self.mean_I)


@dataclass(frozen=True, kw_only=True)
class MaskGradientSums:
    """Sums over sequences of g, |g| and g^2, where g is the gradient of a sequence's summed loss."""

    sum_U: Tensor
    absolute_U: Tensor
    square_U: Tensor


@dataclass(frozen=True, kw_only=True)
class Statistics:
    """What one calibration pass collected, by group name."""

    tokens: int = 0
    """Real tokens seen; images or sounds where there are no tokens."""
    sequences: int = 0
    moments: dict[str, MomentSums] = field(default_factory=dict)
    sequence_means: dict[str, Tensor] = field(default_factory=dict)
    """Sum over sequences of (mean over tokens of |x|)^2, shape [I]."""
    mask_gradients: dict[str, MaskGradientSums] = field(default_factory=dict)
    elements: dict[Elements, dict[str, Tensor]] = field(default_factory=dict)
    """Per linear and unit, shape [T, U], in the order of `group.slices`; of the trimmed form [1, U]."""

    def missing(self, groups: Iterable[Group], requests: Iterable[Statistic]) -> str | None:
        """Return the first group of which something that is needed was not collected, None where all is there."""
        for need in requests:
            found = self._of(need)
            name = next((group.name for group in groups if group.name not in found), None)
            if name is not None:
                return name
        return None

    def _of(self, need: Statistic) -> Collection[str]:
        """Return the groups of which it was collected."""
        if isinstance(need, Moments):
            return [
                n for n, sums in self.moments.items() if not need.covariance or sums.centred_II is not None
            ]
        if isinstance(need, SequenceMeans):
            return self.sequence_means
        return self.mask_gradients if isinstance(need, MaskGradients) else self.elements.get(need, {})
