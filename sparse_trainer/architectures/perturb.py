"""Noise on the parameters of a fresh model: stock biases are 0 and stock norms 1, which hides mistakes."""

from typing import Final

import torch
from transformers import PreTrainedModel

_NOISE: Final = 0.1


@torch.no_grad()
def perturb(model: PreTrainedModel) -> None:
    """Add noise to every parameter that a folder holds, and to the statistics of batch norms, in place."""
    for name, parameter in model.named_parameters():
        if parameter.is_floating_point() and name not in (model._keys_to_ignore_on_save or ()):
            parameter.add_(_NOISE * torch.randn_like(parameter))
    for name, buffer in model.named_buffers():
        if name.endswith(("running_mean", "running_var")):
            buffer.add_(_NOISE * torch.rand_like(buffer))
