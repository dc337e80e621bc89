"""What the weights of a model have to be like, so that its units can be scored, gated and cut."""

import torch
from torch import nn

from patchers.patching.shards import is_sharded
from sparse_trainer.errors import UnsupportedModelError

_TYPES = (torch.float64, torch.float32, torch.bfloat16, torch.float16)


def check_weights(model: nn.Module) -> None:
    """Refuse, before any work, weights that are not here, or are no numbers that can be compared.

    Raises:
        UnsupportedModelError: offloaded weights, weights shared out among processes, or weights of a type that torch
            does not compute with.
    """
    if is_sharded(model):
        raise UnsupportedModelError(
            type(model).__name__, "its weights lie in parts on several processes.",
            "Load it whole, without a tp_plan; a Trainer with fsdp=True shares it out after it was patched.",
        )  # fmt: skip
    for name, parameter in model.named_parameters():
        if parameter.is_meta:
            raise UnsupportedModelError(
                name, "is not in memory: the model is offloaded, or was built without numbers.",
                "Load it on one device, without a device_map that offloads; to cut by a plan, use "
                "`sparse-trainer optimize FOLDER OUT --plan PLAN`.",
            )  # fmt: skip
        if parameter.dtype not in _TYPES and parameter.dim() > 1:
            raise UnsupportedModelError(
                name, f"holds {parameter.dtype}, which can be neither compared nor trained.",
                "Load the model in float32 or bfloat16, and quantize after pruning.",
            )  # fmt: skip
