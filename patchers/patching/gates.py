"""Gates: one value per unit. 0 = closed = exactly as if removed, 1 = open = exactly as if no gate stood there."""

from typing import Any, Literal, final

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

# Shape legend: B = batch, T = tokens, D = hidden features, I = features of a consumer's input, U = units.

Place = Literal["input", "output", "block"]
GATE_SUFFIX = "_gate"
"""Gates are children named `heads_gate`, `channels_gate`, … of the module they act on."""
SCORE_ENTRIES = (f"{GATE_SUFFIX}.score_U", f"{GATE_SUFFIX}.scale_U", ".score_RC")
"""How the names of what gates and masks learn end: parameters, but not of the model's own."""


class Gate(nn.Module):
    """A keep mask over the units of one group, with an optional score behind it, and an optional scale beside it.

    The value is the mask. Its gradient goes straight through to the score (Bengio et al., arXiv 1308.3432), so that
    `score_U.grad` = dL/dgate_U = sum over tokens of x_u * dL/dx_u, for open and closed units alike.

    With `learn_scale` the value is multiplied by one learned number per unit; `fold_scales` moves it into the weights.

    Args:
        num_units: Units of the group.
        scored: Whether a score receives the gradient. Without one the gate costs one product and no reduction.
    """

    keep_U: Tensor
    """1 = keep, 0 = closed. Floating point, so that the value needs no conversion in the forward pass."""
    is_applied: bool = False
    """True while an adapter around the gated linear runs and has multiplied by the gate for it."""

    def __init__(self, num_units: int, *, scored: bool, device: torch.device | None = None) -> None:
        super().__init__()
        self.register_buffer("keep_U", torch.ones(num_units, dtype=torch.float32, device=device))
        zeros = torch.zeros(num_units, dtype=torch.float32, device=device)
        self.score_U = nn.Parameter(zeros) if scored else None
        self.scale_U: nn.Parameter | None = None

    def learn_scale(self) -> None:
        """Multiply the value by a scale from now on: one per unit, 1 at first."""
        self.scale_U = nn.Parameter(torch.ones_like(self.keep_U))

    def forward(self) -> Tensor:
        """Return what units are multiplied by, shape [U]."""
        value_U = self.value()
        return value_U if self.scale_U is None else value_U * self.scale_U

    def value(self) -> Tensor:
        """Return how far each unit is open, shape [U]."""
        if self.score_U is None:
            return self.keep_U
        return self.keep_U + (self.score_U - self.score_U.detach())

    @torch.no_grad()
    def set_keep(self, keep_U: Tensor) -> None:
        """Open the units where `keep_U` is True and close the others, without a host sync."""
        self.keep_U.copy_(keep_U)


@final
class SaliencyGate(Gate):
    """A gate that remembers a saliency of its units beside the mask."""

    saliency_U: Tensor

    def __init__(self, num_units: int, *, scored: bool = True, device: torch.device | None = None) -> None:
        super().__init__(num_units, scored=scored, device=device)
        self.register_buffer("saliency_U", torch.zeros(num_units, dtype=torch.float32, device=device))


@final
class PolarGate(Gate):
    """A learnable gate theta^2 / (theta^2 + epsilon) that polarises to 0 or 1 as epsilon falls.

    Smoothed L0 of Guo et al. (GDP, ICCV 2021), the form we use for FoldGPT-style layer gates. Soft while it learns;
    once `hard` is 1 the value is the mask.
    """

    epsilon: Tensor
    hard: Tensor

    def __init__(self, num_units: int, *, epsilon: float, device: torch.device | None = None) -> None:
        super().__init__(num_units, scored=True, device=device)
        assert self.score_U is not None
        nn.init.ones_(self.score_U)
        self.register_buffer("epsilon", torch.tensor(epsilon, dtype=torch.float32, device=device))
        self.register_buffer("hard", torch.tensor(0.0, dtype=torch.float32, device=device))

    def soft(self) -> Tensor:
        """Return the soft value of each unit, shape [U]."""
        assert self.score_U is not None
        squared = self.score_U.square()
        return squared / (squared + self.epsilon)

    def value(self) -> Tensor:
        """Return the soft value while learning, the mask (with a straight-through gradient) afterwards."""
        soft = self.soft()
        return torch.where(self.hard > 0, self.keep_U + (soft - soft.detach()), soft)


@final
class DrawnGate(Gate):
    """A gate whose value is set from outside before each forward pass: the gates of a model share one budget."""

    def __init__(self, num_units: int, *, device: torch.device | None = None) -> None:
        super().__init__(num_units, scored=True, device=device)
        self.value_U = self.keep_U
        """A function of the scores of all gates."""

    def value(self) -> Tensor:
        """Return what was set; open at first."""
        return self.value_U


@final
class GateHook:
    """Multiplies what passes a module by a gate. Picklable and copyable with the hooked module.

    Args:
        gate: The gate; it is a child of the hooked module.
        place: `input` of a consumer (heads, channels), `output` of a branch's last linear, or a whole `block`.
        width: Features of each unit in the consumer's input, in contiguous runs.
    """

    def __init__(self, gate: Gate, place: Place, width: int = 1) -> None:
        self.gate, self.place, self.width = gate, place, width

    def __call__(self, module: nn.Module, args: tuple[Any, ...], *rest: Any) -> Any:
        """Serve as forward pre-hook (input) or as forward hook with keyword arguments (output, block)."""
        if self.gate.is_applied:
            return None
        if self.place == "input":
            return self.on_input(args)
        kwargs, output = rest
        if self.place == "output":
            return self.on_output(output)
        value_U = self.gate()
        x_BTD = kwargs.get(
            "hidden_states", next(v for v in (*args, *kwargs.values()) if isinstance(v, Tensor))
        )
        if isinstance(output, tuple | list):
            return type(output)([_between(x_BTD, output[0], value_U), *output[1:]])
        return _between(x_BTD, output, value_U)

    def on_input(self, args: tuple[Any, ...]) -> tuple[Any, ...]:
        """Return the arguments of a linear, the first of them gated."""
        x_BTI = args[0]
        return (x_BTI * _over_features(self.gate(), self.width).to(x_BTI.dtype), *args[1:])

    def on_output(self, output: Tensor) -> Tensor:
        """Return the gated output."""
        value_U: Tensor = self.gate()
        return output * value_U.to(output.dtype)


@final
class GatedForward:
    """Stands for the `forward` of a plain linear: gate and linear as one autograd function.

    Only the input is kept for the backward pass; with a product in front, autograd would keep the gated input as well.
    """

    def __init__(self, linear: nn.Linear, gate: Gate, width: int) -> None:
        self.linear, self.gate, self.width = linear, gate, width

    def __call__(self, x_BTI: Tensor) -> Tensor:
        """Return the linear's output for the gated input."""
        if self.gate.is_applied:
            return F.linear(x_BTI, self.linear.weight, self.linear.bias)
        gate_I = _over_features(self.gate(), self.width)
        y_BTO: Tensor = _GatedLinear.apply(x_BTI, gate_I, self.linear.weight, self.linear.bias)  # type: ignore[no-untyped-call]
        return y_BTO


@final
class GatedParameter:
    """Stands for the `forward` of a module that reads its units with a bare parameter: stacked experts.

    The units sit inside that forward, where no hook reaches them, so the parameter is multiplied instead.
    """

    def __init__(self, owner: nn.Module, gate: Gate, name: str, dim: int) -> None:
        self.owner, self.gate, self.name, self.dim = owner, gate, name, dim

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        """Return the output of the module with the gated parameter in the place of its own."""
        whole = self.owner.get_parameter(self.name)
        shape = [1] * whole.dim()
        shape[self.dim] = -1
        gated = whole * self.gate().to(whole.dtype).view(shape)
        self.owner._parameters[self.name] = gated
        try:
            return type(self.owner).forward(self.owner, *args, **kwargs)
        finally:
            self.owner._parameters[self.name] = whole


@final
class GatedRouter:
    """Stands for the `forward` of a router: a closed expert gets the logit -inf, so that it is never chosen.

    Routers compute their logits inside, before softmax and choice, where no hook reaches them: a torch-function mode
    adds to the result of the linear. The gradient of the gate is that of the logit.
    """

    def __init__(self, router: nn.Module, gate: Gate) -> None:
        self.router, self.gate = router, gate

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        """Return the output of the router with the gated logits."""
        value_U = self.gate()
        closed_U = torch.zeros_like(value_U).masked_fill(self.gate.keep_U == 0, -torch.inf)
        with _AddToLogits(closed_U + (value_U - value_U.detach())):
            return type(self.router).forward(self.router, *args, **kwargs)


class _AddToLogits(TorchFunctionMode):
    """Adds to what `F.linear` returns: in a router, the logits."""

    def __init__(self, bias_U: Tensor) -> None:
        super().__init__()
        self.bias_U = bias_U

    def __torch_function__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        """Call the function; add to the logits."""
        result = func(*args, **(kwargs or {}))
        return result + self.bias_U.to(result.dtype) if func is F.linear else result


class _GatedLinear(torch.autograd.Function):
    """y = (x g) W^T + b. dL/dg_i = sum over o of W[o, i] (dL/dy^T x)[o, i]: no second pass over the tokens."""

    @staticmethod
    def forward(ctx: Any, x_BTI: Tensor, gate_I: Tensor, weight_OI: Tensor, bias_O: Tensor | None) -> Tensor:
        ctx.save_for_backward(x_BTI, gate_I, weight_OI)
        return F.linear(x_BTI * gate_I.to(x_BTI.dtype), weight_OI, bias_O)

    @staticmethod
    def backward(ctx: Any, dy_BTO: Tensor) -> tuple[Tensor | None, ...]:
        x_BTI, gate_I, weight_OI = ctx.saved_tensors
        needs_x, needs_gate, needs_weight, needs_bias = ctx.needs_input_grad
        # Under autocast the gradient comes in the lower precision that the forward pass computed in.
        dy_NO = dy_BTO.flatten(0, -2)
        x_NI = x_BTI.flatten(0, -2).to(dy_NO.dtype)
        weight_OI, gate_cast_I = weight_OI.to(dy_NO.dtype), gate_I.to(dy_NO.dtype)
        dx = dgate = dweight = None
        if needs_x or (needs_gate and not needs_weight):
            dx = dy_NO @ weight_OI
        if needs_weight:
            dweight = dy_NO.T @ x_NI
            if needs_gate:
                dgate = (dweight * weight_OI).sum(0, dtype=gate_I.dtype)
            dweight.mul_(gate_cast_I)
        elif needs_gate:
            dgate = (x_NI * dx).sum(0, dtype=gate_I.dtype)
        dx = dx.mul_(gate_cast_I).view_as(x_BTI) if needs_x and dx is not None else None
        return dx, dgate, dweight, dy_NO.sum(0) if needs_bias else None


def _over_features(value_U: Tensor, width: int) -> Tensor:
    """Repeat each unit's value over its features.

    >>> _over_features(torch.tensor([1.0, 0.0]), 3)
    tensor([1., 1., 1., 0., 0., 0.])
    """
    return value_U if width == 1 else value_U.unsqueeze(-1).expand(-1, width).flatten()


def _between(x_BTD: Tensor, y_BTD: Tensor, value_U: Tensor) -> Tensor:
    """Return x + g (y - x); `lerp` gives exactly y at 1 and exactly x at 0.

    It also keeps the strides of y, on which the rounding of what follows depends.
    """
    return torch.lerp(y_BTD, x_BTD, (1 - value_U).to(y_BTD.dtype))
