"""After pruning: make the surviving shapes dense again, or start over from the dense weights in those shapes.

Both are Lagunas et al.'s (arXiv 2109.04838): a "hybrid-filled" model takes the zeros that are left inside the cut
layers as free capacity; "rewind" takes only the decision of a first run, and trains the pretrained weights under it.
"""

from typing import TypeVar

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from patchers.discovery.discover import discover
from patchers.layers import linear_at
from patchers.patching.patch import is_patched
from patchers.units import Structure
from sparse_trainer.cut.optimize import optimize_model
from sparse_trainer.errors import ArgumentError
from sparse_trainer.plan.document import PlanLike

M = TypeVar("M", bound=PreTrainedModel)


@torch.no_grad()
def fill(model: nn.Module, *, noise: float = 0.01, seed: int = 42) -> int:
    """Replace the exact zeros in prunable weights by small noise, in place; return how many there were.

    Each zero of a weight W becomes mean(W) + noise * std(W) * n, n standard normal. Biases, embeddings, norms and task
    heads stay as they are. Then fine-tune on: the shapes, and so size and speed, do not change.

    Args:
        model: A compact model, from `optimize_model`.

    Raises:
        ArgumentError: gates still hang in the model, or noise is negative.
    """
    if is_patched(model):
        raise ArgumentError(
            "model", "it is patched: what is closed would be filled.", "Call optimize_model(model) first."
        )
    if not noise >= 0:
        raise ArgumentError("noise", f"{noise!r} is negative.", "Give a small number, e.g. 0.01.")
    generator = torch.Generator().manual_seed(seed)
    return sum(_fill(weight, noise, generator) for weight in _weights(model, discover(model)))


def _weights(model: nn.Module, structure: Structure) -> list[Tensor]:
    """Return the weights that units are cut from, once each."""
    linears = dict.fromkeys(s.path for g in structure.groups for s in g.slices)
    tensors = dict.fromkeys(t.name for g in structure.groups for t in g.tensors)
    parameters = dict(model.named_parameters())
    bare = [parameters[name] for name in tensors if name in parameters and parameters[name].dim() == 3]
    return [linear_at(model, path).weight for path in linears] + bare


def _fill(weight: Tensor, noise: float, generator: torch.Generator) -> int:
    zero = weight == 0
    count = int(zero.sum())
    if 0 < count < weight.numel():
        drawn = torch.randn(count, generator=generator).to(weight.device)
        scale = weight.float().std() * noise
        weight[zero] = (weight.float().mean() + scale * drawn).to(weight.dtype)
    return count if count < weight.numel() else 0


def rewind(model: M, plan: PlanLike) -> M:
    """Return the model, its weights as they are, in the shapes that a plan decided on: train it from there.

    Args:
        model: The dense model as it was before the first run.
        plan: `compact.pruning_plan` of that run, its JSON values, or the file or folder that holds it.

    Raises:
        CheckpointError: the plan is damaged, or was made for another model.
    """
    return optimize_model(model, plan=plan)
