"""Gates on hidden features: norms that see only the open ones."""

import copy
from typing import Any, final

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

from patchers.patching.gates import Gate

# Shape legend: B = leading dimensions, D = hidden features.


@final
class GatedNorm:
    """Stands for the `forward` of a norm over hidden features: closed ones do not count, and come out as 0.

    With gate values z and c = sqrt(D / sum of z^2), the norm is given an input whose mean and scale over all D features
    are those of the open ones, and its output is divided by c. At z = 1 everything is multiplied by exactly 1.

        LayerNorm: m = sum(z x) / sum(z);   norm(c (m + z (x - m))) / c, bias times z
        RMSNorm:   norm(c z x) / c
    """

    def __init__(self, norm: nn.Module, gate: Gate) -> None:
        self.norm, self.gate = norm, gate

    def __call__(self, x_BD: Tensor) -> Tensor:
        """Return the norm of the open features, 0 for the closed ones."""
        value_D = self.gate()
        if isinstance(self.norm, nn.LayerNorm):
            norm = self.norm
            y_BD: Tensor = _LayerNorm.apply(x_BD, value_D, norm.weight, norm.bias, norm.eps)  # type: ignore[no-untyped-call]
            return y_BD
        wide = torch.promote_types(x_BD.dtype, torch.float32)
        value_D = value_D.to(wide)
        scale = (value_D.numel() / value_D.square().sum().clamp_min(_LEAST)).sqrt()
        value_D = value_D.to(x_BD.dtype)
        y_BD = type(self.norm).forward(self.norm, x_BD * value_D * scale.to(x_BD.dtype))
        divided: Tensor = (y_BD.to(wide) / scale).to(y_BD.dtype)
        return divided


_LEAST = 1e-6
"""Of sums of gate values: where random gates close all features, the output is 0."""


class _LayerNorm(torch.autograd.Function):
    """The LayerNorm of `GatedNorm`: y = z u r w + z b, with u = x - m, r = (q + eps)^-1/2, q = sum((z u)^2) / sum(z^2).

    One function, because autograd would keep and pass over each step of the forward pass by itself.
    """

    @staticmethod
    def forward(
        ctx: Any, x_BD: Tensor, value_D: Tensor, weight_D: Tensor, bias_D: Tensor | None, eps: float
    ) -> Tensor:
        wide = torch.promote_types(x_BD.dtype, torch.float32)
        value_D = value_D.to(wide)
        count, power = _sums(value_D)
        with torch.autocast(x_BD.device.type, enabled=False):
            mean_B1 = (x_BD.to(wide) @ value_D / count).unsqueeze(-1)
        scale = (value_D.numel() / power).sqrt()
        # `lerp` gives exactly x at 1 and exactly the mean at 0.
        filled_BD = torch.lerp(mean_B1.to(x_BD.dtype), x_BD, value_D.to(x_BD.dtype))
        filled_BD *= scale.to(x_BD.dtype)
        scaled_D = (weight_D.to(wide) / scale).to(weight_D.dtype)
        open_D = None if bias_D is None else bias_D * value_D.to(bias_D.dtype)
        y_BD, _, rstd_B1 = torch.native_layer_norm(filled_BD, [value_D.numel()], scaled_D, open_D, eps)
        ctx.save_for_backward(x_BD, value_D, weight_D, bias_D, mean_B1, rstd_B1.to(wide))
        return y_BD

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad_BD: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor | None, None]:
        x_BD, z_D, weight_D, bias_D, mean_B1, rstd_B1 = ctx.saved_tensors
        count, power = _sums(z_D)
        zz_D, w_D, r_B1 = z_D.square(), weight_D.to(z_D.dtype), rstd_B1.reshape(-1, 1)
        g_BD = grad_BD.reshape(-1, z_D.numel()).to(z_D.dtype)
        u_BD = x_BD.reshape(g_BD.shape) - mean_B1.reshape(-1, 1)
        gu_BD, r_B = g_BD * u_BD, r_B1.squeeze(-1)
        g_D, gur_D = g_BD.sum(0), r_B @ gu_BD
        of_q_B = -0.5 * r_B**3 * (gu_BD @ (z_D * w_D))
        uu_BD = torch.mul(u_BD, u_BD, out=gu_BD)  # memory that is new is slow
        of_mean_B = -r_B * (g_BD @ (z_D * w_D)) - 2 * of_q_B * (u_BD @ zz_D) / power
        of_power_D = of_q_B @ uu_BD - of_q_B @ (uu_BD @ zz_D / power)
        z_grad_D = w_D * gur_D + of_mean_B @ u_BD / count + 2 * z_D / power * of_power_D
        x_grad_BD = (g_BD * w_D).mul_(r_B1).add_((of_mean_B / count).unsqueeze(-1))
        x_grad_BD.addcmul_(u_BD.mul_(z_D), (2 * of_q_B / power).unsqueeze(-1)).mul_(z_D)
        if bias_D is None:
            return x_grad_BD.view(x_BD.shape), z_grad_D, z_D * gur_D, None, None
        return x_grad_BD.view(x_BD.shape), z_grad_D + bias_D * g_D, z_D * gur_D, z_D * g_D, None


def _sums(value_D: Tensor) -> tuple[Tensor, Tensor]:
    return value_D.sum().clamp_min(_LEAST), value_D.square().sum().clamp_min(_LEAST)


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
