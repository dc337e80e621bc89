"""Cheaper layers in the place of GELU and LayerNorm: blended in while a model trains, then left alone.

From nn_pruning (Lagunas et al., arXiv 2109.04838); NoNorm is MobileBERT's (Sun et al., arXiv 2004.02984).
"""

from collections.abc import Callable, Collection, Iterable, Iterator
from typing import Any, Final, final

import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch import Tensor, nn
from transformers.activations import ACT2FN

from patchers.modeling_pruned import NoNorm

# Shape legend: B = leading dimensions, D = features.

GELUS: tuple[type[nn.Module], ...] = (nn.GELU, *{type(ACT2FN[name]) for name in ACT2FN if "gelu" in name})
"""Every form of GELU that transformers has, exact or not."""


@final
class BlendedActivation(nn.Module):
    """mix * original + (1 - mix) * ReLU."""

    layer: Final = "relu"
    mix: Tensor

    def __init__(self, original: nn.Module, device: torch.device | None = None) -> None:
        super().__init__()
        self.original = original
        self.register_buffer("mix", torch.ones((), dtype=torch.float32, device=device))

    def forward(self, x_BD: Tensor) -> Tensor:
        """Return the blend; at 1 exactly the original, at 0 exactly ReLU."""
        return torch.lerp(F.relu(x_BD), self.original(x_BD), self.mix.to(x_BD.dtype))

    def folded(self) -> nn.Module:
        """Return ReLU."""
        return nn.ReLU()


@final
class BlendedNorm(nn.Module):
    """mix * LayerNorm + (1 - mix) * NoNorm: the same affine map, with one running mean and deviation for all tokens.

    In training mode batches are summed up until `take_in` makes their mean the next term of the statistics, `decay` of
    the old ones kept: once per optimizer step, so that gradient accumulation changes nothing. Not used yet at mix 1.
    """

    layer: Final = "no_norm"
    mix: Tensor
    mean: Tensor
    variance: Tensor
    seen: Tensor
    pending: Tensor

    def __init__(self, original: nn.LayerNorm, decay: float) -> None:
        super().__init__()
        self.weight, self.bias, self.eps = original.weight, original.bias, original.eps
        self.normalized_shape, self.decay = original.normalized_shape, decay
        kind = torch.promote_types(self.weight.dtype, torch.float32)
        for name, value in (("mix", 1.0), ("mean", 0.0), ("variance", 1.0), ("seen", 0.0)):
            self.register_buffer(name, torch.tensor(value, device=self.weight.device, dtype=kind))
        self.register_buffer("pending", self.mean.new_zeros(3), persistent=False)
        _refuse_stock_loaders(self)

    def forward(self, x_BD: Tensor) -> Tensor:
        """Return the blend; at 1 exactly LayerNorm, at 0 exactly what `folded` computes."""
        if self.training:
            self._watch(x_BD.detach().to(self.mean.dtype))
        normed_BD = F.layer_norm(x_BD, self.normalized_shape, self.weight, self.bias, self.eps)
        scale_D, shift_D = self._affine()
        plain_BD = torch.addcmul(shift_D.to(x_BD.dtype), x_BD, scale_D.to(x_BD.dtype))
        return torch.lerp(plain_BD.to(normed_BD.dtype), normed_BD, self.mix.to(normed_BD.dtype))

    @torch.no_grad()
    def _watch(self, x_BD: Tensor) -> None:
        variance_B, mean_B = torch.var_mean(x_BD, dim=-1, correction=0)
        self.pending += torch.stack((mean_B.mean(), variance_B.mean(), torch.ones_like(self.mean)))

    @torch.no_grad()
    def follow(self, batches: Tensor) -> None:
        """Move the statistics towards the mean of some batches, and forget the pending ones.

        Args:
            batches: Sum of means, sum of variances, number of batches; shape [3].
        """
        mean, variance, count = batches / batches[2].clamp_min(1.0)
        rate = count * (1.0 - self.decay * self.seen)
        self.mean.lerp_(mean, rate)
        self.variance.lerp_(variance, rate)
        self.seen.copy_(torch.maximum(self.seen, count))
        self.pending.zero_()

    def _affine(self) -> tuple[Tensor, Tensor]:
        scale_D = self.weight * torch.rsqrt(self.variance + self.eps)
        return scale_D, (-self.mean * scale_D if self.bias is None else self.bias - self.mean * scale_D)

    @property
    def original(self) -> nn.LayerNorm:
        """A LayerNorm with the same parameters."""
        norm = nn.LayerNorm(self.normalized_shape, self.eps, device="meta")
        norm.weight, norm.bias = self.weight, self.bias
        return norm.train(self.training)

    def folded(self) -> nn.Module:
        """Return the affine map that remains."""
        scale_D, shift_D = self._affine()
        return NoNorm(scale_D.to(self.weight.dtype), shift_D.to(self.weight.dtype))


def take_in(layers: Iterable[BlendedActivation | BlendedNorm]) -> None:
    """Let the statistics of norms follow the batches since the last call, in every process those of all."""
    norms = [layer for layer in layers if isinstance(layer, BlendedNorm)]
    if not norms:
        return
    batches = torch.stack([norm.pending for norm in norms])
    if dist.is_available() and dist.is_initialized():
        dist.all_reduce(batches)
    for norm, its_batches in zip(norms, batches, strict=True):
        norm.follow(its_batches)


def blend_gelus(model: nn.Module, paths: Collection[str]) -> int:
    """Put blended activations in the place of the GELUs at these paths, in place; return how many."""
    owned = [path.rpartition(".") for path, m in model.named_modules(remove_duplicate=False) if path in paths]
    device = next(model.parameters()).device
    for owner, _, name in owned:
        holder = model.get_submodule(owner)
        setattr(holder, name, BlendedActivation(getattr(holder, name), device))
    return len(owned)


def blend_norms(block: nn.Module, decay: float) -> int:
    """Put blended norms in the place of the LayerNorms inside a module, in place; return how many."""
    return _exchange(block, _is_affine, lambda norm: BlendedNorm(norm, decay))


def blended(model: nn.Module) -> Iterator[BlendedActivation | BlendedNorm]:
    """Yield the blended layers of a model."""
    return (m for m in model.modules() if isinstance(m, BlendedActivation | BlendedNorm))


def unblend(model: nn.Module) -> None:
    """Put the original layers back, with the same parameters, in place."""
    _exchange(model, _is_blended, lambda layer: layer.original)


def fold(model: nn.Module) -> None:
    """Leave only the cheaper layers, in place."""
    _exchange(model, _is_blended, lambda layer: layer.folded())


def read_as_no_norms(model: nn.Module) -> None:
    """Take weight and bias of every LayerNorm for those of a NoNorm, in place."""
    _exchange(model, _is_affine, lambda norm: NoNorm(norm.weight, norm.bias))


def _exchange(model: nn.Module, is_meant: Callable[[Any], bool], other: Callable[[Any], nn.Module]) -> int:
    """Put another layer in the place of each that is meant, in place; return how many."""
    found = [
        (owner, name, m) for owner in model.modules() for name, m in owner.named_children() if is_meant(m)
    ]
    for owner, name, child in found:
        setattr(owner, name, other(child))
    return len(found)


def _is_blended(module: nn.Module) -> bool:
    return isinstance(module, BlendedActivation | BlendedNorm)


def _is_affine(module: nn.Module) -> bool:
    """Tell whether a module is a LayerNorm with weights, over the last dimension."""
    return type(module) is nn.LayerNorm and module.elementwise_affine and len(module.normalized_shape) == 1


# A stock class would load the entries of a blended norm as those of a LayerNorm, wrongly and without a word. So its
# weight is stored with a leading axis of 1, like that of a NoNorm.
def _refuse_stock_loaders(module: nn.Module) -> None:
    module.register_state_dict_post_hook(_add_axis)
    module.register_load_state_dict_pre_hook(_drop_axis)


def _add_axis(module: nn.Module, state: dict[str, Any], prefix: str, metadata: Any) -> None:
    state[f"{prefix}weight"] = state[f"{prefix}weight"].unsqueeze(0)


def _drop_axis(module: nn.Module, state: dict[str, Any], prefix: str, *rest: Any) -> None:
    weight = state.get(f"{prefix}weight")
    if weight is not None and weight.dim() == 2:
        state[f"{prefix}weight"] = weight.squeeze(0)
