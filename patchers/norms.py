"""Gates on hidden features: norms that see only the open ones."""

import copy
from typing import Any, final

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from patchers.gates import Gate

# Shape legend: B = leading dimensions, D = hidden features.


@final
class GatedNorm:
    """Stands for the `forward` of a norm over hidden features: closed ones are nothing to it, and it says 0 for them.

    With values z and c = sqrt(D / sum of z^2) the norm reads what, over all D features, has the mean and the scale of
    the open ones, and what it says is divided by c. At z = 1 everything is multiplied by exactly 1.

        LayerNorm: m = sum(z x) / sum(z);   norm(c (m + z (x - m))) / c, bias times z
        RMSNorm:   norm(c z x) / c
    """

    def __init__(self, norm: nn.Module, gate: Gate) -> None:
        self.norm, self.gate = norm, gate

    def __call__(self, x_BD: Tensor) -> Tensor:
        """Return the norm of the open features, 0 for the closed ones."""
        value_D = self.gate()
        wide = torch.promote_types(x_BD.dtype, torch.float32)
        wide_D = value_D.to(wide)
        scale = (value_D.numel() / wide_D.square().sum().clamp_min(_LEAST)).sqrt()
        value_D = value_D.to(x_BD.dtype)
        if isinstance(self.norm, nn.LayerNorm):
            return _layer_norm(self.norm, x_BD, value_D, scale, wide_D.sum().clamp_min(_LEAST))
        y_BD = type(self.norm).forward(self.norm, x_BD * value_D * scale.to(x_BD.dtype))
        divided: Tensor = (y_BD.to(wide) / scale).to(y_BD.dtype)
        return divided


_LEAST = 1e-6
"""Of sums of values: where a draw closes all features, the norm says 0."""


def _layer_norm(norm: nn.LayerNorm, x_BD: Tensor, value_D: Tensor, scale: Tensor, count: Tensor) -> Tensor:
    mean_B1 = ((x_BD * value_D).sum(-1, keepdim=True).to(count.dtype) / count).to(x_BD.dtype)
    # `lerp` gives exactly x at 1 and exactly the mean at 0.
    filled_BD = torch.lerp(mean_B1, x_BD, value_D) * scale.to(x_BD.dtype)
    weight_D = (norm.weight.to(scale.dtype) / scale).to(norm.weight.dtype)
    bias_D = None if norm.bias is None else norm.bias * value_D.to(norm.bias.dtype)
    return F.layer_norm(filled_BD, norm.normalized_shape, weight_D, bias_D, norm.eps)


def is_plain_norm(module: nn.Module) -> bool:
    """Tell whether a module is a LayerNorm, or computes an RMSNorm, over its features: found by trying it."""
    tensors = dict(module.named_parameters(recurse=False))
    if type(module).forward is nn.LayerNorm.forward:
        return "weight" in tensors
    inside = [child for child in module.children() if not isinstance(child, Gate)]
    if inside or list(tensors) != ["weight"] or module._buffers or tensors["weight"].dim() != 1:
        return False
    try:
        return _leaves_closed_out(module)
    except (AttributeError, RuntimeError, TypeError, ValueError):
        return False


@torch.no_grad()
def _leaves_closed_out(module: nn.Module) -> bool:
    """Tell whether the norm of a few features, gated, is that of the open ones alone."""
    x_BD = torch.linspace(-2.0, 3.0, 24, device="cpu").sin().view(3, 8) * 2.0
    weight_D = torch.linspace(0.5, 1.5, 8, device="cpu")
    gate = Gate(8, scored=False, device=torch.device("cpu"))
    gate.keep_U[torch.tensor([1, 4, 6], device="cpu")] = 0
    gated_BD = GatedNorm(_with_weight(module, weight_D), gate)(x_BD)
    is_open_D = gate.keep_U > 0
    small = _with_weight(module, weight_D[is_open_D])
    alone_BD = type(small).forward(small, x_BD[:, is_open_D])
    same = torch.allclose(gated_BD[:, is_open_D], alone_BD, rtol=1e-4, atol=1e-5)
    return same and not bool(gated_BD[:, ~is_open_D].any())


def _with_weight(module: nn.Module, weight_D: Tensor) -> nn.Module:
    twin: Any = copy.copy(module)
    vars(twin).update(_parameters={"weight": nn.Parameter(weight_D)}, _modules={})
    if isinstance(module, nn.RMSNorm):
        twin.normalized_shape = tuple(weight_D.shape)
    return twin  # type: ignore[no-any-return]
