"""Cheaper layers in the place of GELU and LayerNorm: blended in while a model trains, then left alone.

From nn_pruning (Lagunas et al., arXiv 2109.04838); NoNorm is MobileBERT's (Sun et al., arXiv 2004.02984).
"""

from collections.abc import Iterator
from typing import Any, final

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers.activations import ACT2FN

# Shape legend: B = leading dimensions, D = features.

GELUS: tuple[type[nn.Module], ...] = (nn.GELU, *{type(ACT2FN[name]) for name in ACT2FN if "gelu" in name})
"""Every form of GELU that transformers has, exact or not."""


@final
class BlendedActivation(nn.Module):
    """mix * original + (1 - mix) * ReLU."""

    mix: Tensor

    def __init__(self, original: nn.Module) -> None:
        super().__init__()
        self.original = original
        self.register_buffer("mix", torch.ones(()))

    def forward(self, x_BD: Tensor) -> Tensor:
        """Return the blend; at 1 exactly the original, at 0 exactly ReLU."""
        return torch.lerp(F.relu(x_BD), self.original(x_BD), self.mix.to(x_BD.dtype))

    def folded(self) -> nn.Module:
        """Return ReLU."""
        return nn.ReLU()


@final
class BlendedNorm(nn.Module):
    """mix * LayerNorm + (1 - mix) * NoNorm: the same affine map, with one running mean and deviation for all tokens.

    In training mode the statistics follow the batches, `decay` of the old ones kept. At mix 1 they are not used yet, so
    that evaluation before the first step is that of LayerNorm.
    """

    mix: Tensor
    mean: Tensor
    variance: Tensor
    seen: Tensor

    def __init__(self, original: nn.LayerNorm, decay: float) -> None:
        super().__init__()
        self.weight, self.bias, self.eps = original.weight, original.bias, original.eps
        self.normalized_shape, self.decay = original.normalized_shape, decay
        for name, value in (("mix", 1.0), ("mean", 0.0), ("variance", 1.0), ("seen", 0.0)):
            self.register_buffer(name, torch.tensor(value, device=original.weight.device))
        _refuse_stock_loaders(self)

    def forward(self, x_BD: Tensor) -> Tensor:
        """Return the blend; at 1 exactly LayerNorm, at 0 exactly what `folded` computes."""
        if self.training:
            self._follow(x_BD.detach().float())
        normed_BD = F.layer_norm(x_BD, self.normalized_shape, self.weight, self.bias, self.eps)
        scale_D, shift_D = self._affine()
        plain_BD = torch.addcmul(shift_D.to(x_BD.dtype), x_BD, scale_D.to(x_BD.dtype))
        return torch.lerp(plain_BD, normed_BD, self.mix.to(x_BD.dtype))

    @torch.no_grad()
    def _follow(self, x_BD: Tensor) -> None:
        variance_B, mean_B = torch.var_mean(x_BD, dim=-1, correction=0)
        rate = torch.where(self.seen > 0, 1.0 - self.decay, 1.0)
        self.mean.lerp_(mean_B.mean(), rate)
        self.variance.lerp_(variance_B.mean(), rate)
        self.seen.fill_(1.0)

    def _affine(self) -> tuple[Tensor, Tensor]:
        scale_D = self.weight * torch.rsqrt(self.variance + self.eps)
        return scale_D, (-self.mean * scale_D if self.bias is None else self.bias - self.mean * scale_D)

    def folded(self) -> nn.Module:
        """Return the affine map that remains."""
        scale_D, shift_D = self._affine()
        return NoNorm(scale_D.to(self.weight.dtype), shift_D.to(self.weight.dtype))


@final
class NoNorm(nn.Module):
    """y = weight * x + bias, feature by feature: what is left of a LayerNorm without statistics."""

    def __init__(self, weight_D: Tensor, bias_D: Tensor) -> None:
        super().__init__()
        self.weight = nn.Parameter(weight_D.detach().clone())
        self.bias = nn.Parameter(bias_D.detach().clone())
        _refuse_stock_loaders(self)

    def forward(self, x_BD: Tensor) -> Tensor:
        """Return the affine map of the input."""
        return torch.addcmul(self.bias.to(x_BD.dtype), x_BD, self.weight.to(x_BD.dtype))


def blend(block: nn.Module, *, gelus: bool, norms: bool, decay: float) -> int:
    """Put blended layers in the place of GELUs and LayerNorms inside a module, in place; return how many."""
    count = 0
    for owner in list(block.modules()):
        for name, child in list(owner.named_children()):
            if gelus and isinstance(child, GELUS) and not isinstance(owner, BlendedActivation):
                setattr(owner, name, BlendedActivation(child))
            elif norms and type(child) is nn.LayerNorm and child.elementwise_affine:
                setattr(owner, name, BlendedNorm(child, decay))
            else:
                continue
            count += 1
    return count


def blended(model: nn.Module) -> Iterator[BlendedActivation | BlendedNorm]:
    """Yield the blended layers of a model."""
    return (m for m in model.modules() if isinstance(m, BlendedActivation | BlendedNorm))


def fold(model: nn.Module) -> None:
    """Leave only the cheaper layers, in place."""
    for owner in list(model.modules()):
        for name, child in list(owner.named_children()):
            if isinstance(child, BlendedActivation | BlendedNorm):
                setattr(owner, name, child.folded())


# The entries of a NoNorm would load as those of a LayerNorm, in silence and wrongly. So its weight is stored with a
# leading axis of 1, which every stock loader refuses as a size mismatch.
def _refuse_stock_loaders(module: nn.Module) -> None:
    module.register_state_dict_post_hook(_add_axis)
    module.register_load_state_dict_pre_hook(_drop_axis)


def _add_axis(module: nn.Module, state: dict[str, Any], prefix: str, metadata: Any) -> None:
    state[f"{prefix}weight"] = state[f"{prefix}weight"].unsqueeze(0)


def _drop_axis(module: nn.Module, state: dict[str, Any], prefix: str, *rest: Any) -> None:
    weight = state.get(f"{prefix}weight")
    if weight is not None and weight.dim() == 2:
        state[f"{prefix}weight"] = weight.squeeze(0)
