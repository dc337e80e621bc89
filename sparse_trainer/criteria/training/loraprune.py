"""LoRAPrune: keep what the gradients of LoRA factors say the loss needs; the frozen weights need no gradient.

Zhang et al. (arXiv 2305.18403). Beside a frozen weight W with the update s B A, a step of gradient descent of
size eta moves the update by -eta s (G_B A + B G_A - eta G_B G_A), where G_A and G_B are the gradients of the factors.
What stands in brackets, times s, takes the place of the gradient of the weight; the importance of a unit in one linear
is the sum of |gradient x (W + s B A)| over its rows, or columns in the linear that reads it. The importances of each
linear are divided by their L2 norm, and added up over the linears of the unit; a running mean over the steps is the
score.

The paper writes the last term with eta = 1, so that its weight depends on the scale of the loss; here it is left out
where nobody asks for it. The paper's code leaves s out of the gradient, which the norm cancels.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, ClassVar, Final, final

import torch
from torch import Tensor, nn

from patchers.layers import linear_at, weight_OI
from patchers.patching.adapters import chain
from patchers.patching.gates import Gate, SaliencyGate
from patchers.patching.merging import has_adapters
from patchers.units import CHANNELS, HEADS, Group, Kind, Slice, Structure
from sparse_trainer.criteria.training.base import Gates
from sparse_trainer.errors import UnsupportedModelError
from sparse_trainer.fields import check_not_negative, check_share

# Shape legend: O = output features, I = input features, R = rank, U = units of a group, C = output features at a time.

_ENTRIES: Final = 2**22
"""Entries of a weight that are looked at together: what is calculated of it is never there as a whole."""


@final
@dataclass(frozen=True, kw_only=True)
class LoraPrune:
    """Running importance from the gradients of LoRA factors, of the whole optimizer step; rsLoRA's scaling included."""

    kinds: ClassVar[tuple[Kind, ...]] = (HEADS, CHANNELS)
    default_units: ClassVar[tuple[Kind, ...]] = (HEADS, CHANNELS)
    standardize: ClassVar[str] = "share"
    learns: ClassVar[bool] = False
    decay: float = 0.9
    """Decay of the running mean per step, in [0, 1)."""
    step_size: float = 0.0
    """Size eta of the step of gradient descent in G_B A + B G_A - eta G_B G_A; the paper has 1."""

    def __post_init__(self) -> None:
        check_share("loraprune.decay", self.decay, "[0, 1)", "Give e.g. 0.9.")
        check_not_negative("loraprune.step_size", self.step_size)

    def make_gate(self, group: Group) -> Gate:
        """Return a gate that remembers a saliency; it needs no gradient of its own."""
        return SaliencyGate(group.num_units, scored=False)

    def check_model(self, model: nn.Module, structure: Structure) -> None:
        """Refuse a model without LoRA, with DoRA, or with a group whose linears have none.

        Raises:
            UnsupportedModelError: It is one of these.
        """
        if not has_adapters(model):
            raise UnsupportedModelError(
                type(model).__name__,
                "has no LoRA adapters, whose gradients loraprune reads.",
                "Put them on: get_peft_model(model, LoraConfig(…)), in a recipe section lora; or score by movement.",
            )
        for group in structure.groups:
            factors = [each for part in group.slices for each in _factors(model, part.path)]
            if any(each.is_dora for each in factors):
                raise UnsupportedModelError(
                    group.name,
                    "has an adapter of DoRA, for which loraprune has no formula.",
                    "Set `use_dora=False`, or score by movement or taylor.",
                )
            if not factors:
                names = ", ".join(dict.fromkeys(part.path.rpartition(".")[2] for part in group.slices))
                adapt = f"Name some of {names} in `target_modules`, or exclude" if names else "Exclude"
                raise UnsupportedModelError(
                    group.name,
                    "has no LoRA that trains on any of its linears, whose gradients loraprune reads.",
                    f"{adapt} these units; or score by movement.",
                )

    @torch.no_grad()
    def read_gradients(
        self, model: nn.Module, structure: Structure, gates: Gates, loss_scale: Tensor | None = None
    ) -> None:
        """Move the running importance towards that of this optimizer step.

        Under a GradScaler a step that overflowed leaves the importance of its gate alone.
        """
        for group in structure.groups:
            gate = gates[group.name]
            assert isinstance(gate, SaliencyGate)
            parts = [self._importance(model, part, loss_scale) for part in group.slices]
            found = [part_U for part_U in parts if part_U is not None]
            if not found:
                continue
            now_U = torch.stack(found).sum(0).to(gate.saliency_U.dtype)
            if loss_scale is not None:
                now_U = torch.where(now_U.isfinite().all(), now_U, gate.saliency_U)
            gate.saliency_U.lerp_(now_U, 1.0 - self.decay)

    def scores(self, model: nn.Module, structure: Structure, gates: Gates) -> dict[str, Tensor]:
        """Return the running importances."""
        return {name: gate.saliency_U for name, gate in gates.items() if isinstance(gate, SaliencyGate)}

    def _importance(self, model: nn.Module, part: Slice, loss_scale: Tensor | None) -> Tensor | None:
        """Return the importance of each unit in one linear, of L2 norm 1; None where no factor has a gradient."""
        factors = [each for each in _factors(model, part.path) if each.has_gradients]
        if not factors:
            return None
        weight = weight_OI(linear_at(model, part.path))
        sums = _sums_of_products(factors, weight, part.axis == "out", self.step_size, loss_scale)
        unit_U = sums[part.index_UW.to(sums.device)].sum(1)
        importance_U: Tensor = unit_U / unit_U.norm().clamp_min(torch.finfo(unit_U.dtype).tiny)
        return importance_U


@dataclass(frozen=True, kw_only=True)
class _Factors:
    """The factors of one active adapter beside a linear: its update is scale x B A."""

    a_RI: nn.Parameter
    b_OR: nn.Parameter
    scale: float
    is_dora: bool

    @property
    def has_gradients(self) -> bool:
        return self.a_RI.grad is not None and self.b_OR.grad is not None


def _factors(model: nn.Module, path: str) -> Iterator[_Factors]:
    """Yield the factors that train beside the linear at `path`; adapters that are no LoRA have none."""
    for wrapper in chain(model, path)[:-1]:
        lora: Any = wrapper
        if not {"lora_A", "lora_B"} <= wrapper._modules.keys():
            continue
        for name in lora.active_adapters:
            if name not in lora.lora_A:
                continue
            a_RI, b_OR = lora.lora_A[name].weight, lora.lora_B[name].weight
            if a_RI.requires_grad and b_OR.requires_grad:
                is_dora = name in lora.lora_magnitude_vector
                yield _Factors(a_RI=a_RI, b_OR=b_OR, scale=lora.scaling[name], is_dora=is_dora)


def _sums_of_products(
    factors: list[_Factors], weight_OI: Tensor, by_output: bool, step_size: float, loss_scale: Tensor | None
) -> Tensor:
    """Return the sum of |gradient x weight| of each output feature, [O], or of each input feature, [I].

    Both are products of narrow matrices: [G_B, B - eta G_B] times [A; G_A], and W + s B times A.
    """
    dtype = torch.promote_types(weight_OI.dtype, torch.float32)
    left, right = [], []
    for each in factors:
        assert each.a_RI.grad is not None
        assert each.b_OR.grad is not None
        a_grad_RI, b_grad_OR = each.a_RI.grad.to(dtype), each.b_OR.grad.to(dtype)
        if loss_scale is not None:
            a_grad_RI, b_grad_OR = a_grad_RI / loss_scale, b_grad_OR / loss_scale
        b_OR = each.b_OR.to(dtype)
        left += [each.scale * b_grad_OR, each.scale * (b_OR - step_size * b_grad_OR)]
        right += [each.a_RI.to(dtype), a_grad_RI]
    update_OR = torch.cat([each.scale * each.b_OR.to(dtype) for each in factors], dim=1)
    update_RI = torch.cat([each.a_RI.to(dtype) for each in factors])
    left_OR, right_RI = torch.cat(left, dim=1), torch.cat(right)
    rows = max(1, _ENTRIES // weight_OI.shape[1])
    parts = []
    for left_CR, b_CR, weight_CI in zip(
        left_OR.split(rows), update_OR.split(rows), weight_OI.split(rows), strict=True
    ):
        product_CI = torch.addmm(weight_CI.to(dtype), b_CR, update_RI).mul_(left_CR @ right_RI)
        parts.append(torch.linalg.vector_norm(product_CI, ord=1, dim=1 if by_output else 0))
    return torch.cat(parts) if by_output else torch.stack(parts).sum(0)
