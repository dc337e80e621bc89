"""Fine-pruning under Trainers that share a model out among processes: FSDP2, and what of DeepSpeed can work.

Gates and masks, with their scores, stay whole in every process, because each process chooses among all units by itself:
FSDP leaves them alone, and their gradients are averaged here. Scores of gates are one number per unit; those of masks
over single weights are as large as the weights.
"""

import importlib.metadata
import re
from collections.abc import Iterable, Iterator
from typing import Any, Final

import torch
import torch.distributed as dist
from accelerate import Accelerator
from accelerate.utils import DistributedType
from packaging.version import Version
from torch import nn

from patchers.patching.gates import Gate
from patchers.patching.masks import WeightMask
from sparse_trainer.criteria.training.base import Calibrates, Observes, ReadsGradients
from sparse_trainer.criteria.training.l0 import L0
from sparse_trainer.errors import ArgumentError
from sparse_trainer.training.mask_options import MaskOptions
from sparse_trainer.training.options import GateOptions
from sparse_trainer.training.wrapped_model import is_wrapper

_LEAST: Final = {"torch": "2.7", "accelerate": "1.15"}
"""Releases in which FSDP leaves parameters alone that it is told of, and gradients of both kinds are clipped as one."""


def is_fsdp(accelerator: Accelerator) -> bool:
    """Tell whether a Trainer shares its model out by FSDP."""
    return bool(accelerator.distributed_type == DistributedType.FSDP)


def saves_shards(accelerator: Accelerator) -> bool:
    """Tell whether checkpoints hold the piece of each process, rather than whole weights."""
    return is_fsdp(accelerator) and accelerator.state.fsdp_plugin.state_dict_type.name == "SHARDED_STATE_DICT"


def check_sharing(accelerator: Accelerator, model: nn.Module, options: GateOptions | MaskOptions) -> None:
    """Refuse, before any training, ways to share a model out in which fine-pruning cannot work.

    Raises:
        ArgumentError: The option, and what to do instead.
    """
    refused: tuple[str, str, str] | None = None
    if is_fsdp(accelerator):
        refused = next(_against_fsdp(accelerator, model, options), None)
    elif accelerator.distributed_type == DistributedType.DEEPSPEED:
        refused = next(_against_deepspeed(accelerator.state.deepspeed_plugin.zero_stage, options), None)
    if refused is not None:
        raise ArgumentError(*refused)


def _against_fsdp(
    accelerator: Accelerator, model: nn.Module, options: GateOptions | MaskOptions
) -> Iterator[tuple[str, str, str]]:
    plugin = accelerator.state.fsdp_plugin
    if plugin.fsdp_version != 2:
        yield (
            "fsdp_config.version",
            f"{plugin.fsdp_version} packs weights and scores into one flat tensor, of which each process sees a piece.",
            "Set it to 2 (fsdp_version: 2 in the file of `accelerate config`).",
        )
    for package, least in _LEAST.items():
        found = importlib.metadata.version(package)
        if Version(found) < Version(least):
            yield (
                "fsdp",
                f"{package} {found} cannot leave the scores whole.",
                f'pip install "{package}>={least}".',
            )
    if plugin.cpu_ram_efficient_loading:
        yield (
            "fsdp_config.cpu_ram_efficient_loading",
            "sends parameters to the other processes, and no masks: they would start without.",
            "Set it to false: every process loads the model.",
        )
    # A boolean becomes the policy OffloadPolicy, or the subclass CPUOffloadPolicy.
    if type(plugin.cpu_offload).__name__ == "CPUOffloadPolicy":
        yield (
            "fsdp_config.cpu_offload",
            "keeps weights on the CPU, and the scores stay on the device: their gradients have no norm in common.",
            "Set it to false.",
        )
    parallel = accelerator.parallelism_config
    if parallel is not None and parallel.non_data_parallel_size > 1:
        yield (
            "parallelism_config",
            "shares out tensors, tokens or experts too, and gradients of scores are averaged over data alone.",
            "Take FSDP by itself.",
        )
    if is_wrapper(model):
        yield (
            "fsdp",
            f"{type(model).__name__} wraps a model, and one process alone saves the wrapper: it has no whole weights.",
            "Take DDP: leave fsdp out.",
        )
    if isinstance(options, GateOptions) and _calibrates(options):
        yield (
            "scoring",
            f"{options.scoring} runs the whole model on a calibration set first, which FSDP has shared out.",
            "Take movement, taylor, l0 or magnitude; or DDP, where the model fits on one device.",
        )
    if isinstance(options, GateOptions) and isinstance(options.criterion, ReadsGradients):
        yield (
            "scoring",
            f"{options.scoring} reads gradients of parameters, of which FSDP leaves each process a piece.",
            "Take movement, taylor, l0 or magnitude; or DDP.",
        )


def _against_deepspeed(stage: int, options: GateOptions | MaskOptions) -> Iterator[tuple[str, str, str]]:
    if stage == 3:
        yield (
            "deepspeed: zero_optimization.stage",
            "3 leaves each process a piece of every weight and score, and units are chosen among all.",
            'Set it to 2, or take FSDP2: fsdp=True, fsdp_config={"version": 2}.',
        )
    if isinstance(options, GateOptions) and options.repair is not None:
        yield (
            "reconstruct",
            "changes weights between two steps, and DeepSpeed writes its own copy of them over that.",
            "Drop it; or take DDP.",
        )
    criterion = options.criterion if isinstance(options, GateOptions) else None
    if isinstance(criterion, Observes | ReadsGradients):
        yield (
            "scoring",
            f"{options.method} reads gradients after the backward pass, and DeepSpeed has taken them by then.",
            "Take movement or magnitude; or DDP or FSDP2.",
        )
    if isinstance(criterion, L0):
        yield (
            "scoring",
            "l0 limits its scores after each step, and DeepSpeed writes its own copy of them over that.",
            "Take movement or magnitude; or DDP or FSDP2.",
        )


def _calibrates(options: GateOptions) -> bool:
    return options.repair is not None or (
        isinstance(options.criterion, Calibrates) and bool(options.criterion.requests())
    )


def keep_whole(accelerator: Accelerator, model: nn.Module) -> None:
    """Tell FSDP to leave gates and masks alone; it does not bring them to the device either."""
    own = [module for module in model.modules() if isinstance(module, Gate | WeightMask)]
    for module in own:
        module.to(accelerator.device)
    plugin = accelerator.state.fsdp_plugin
    plugin.ignored_modules = [*own, *_others(plugin.ignored_modules, model)]


def _others(ignored: str | Iterable[nn.Module] | None, model: nn.Module) -> Iterator[nn.Module]:
    """Yield what the user leaves out of FSDP: modules, or a pattern of their names."""
    if isinstance(ignored, str):
        ignored = [module for name, module in model.named_modules() if re.fullmatch(ignored, name)]
    yield from (module for module in ignored or () if not isinstance(module, Gate | WeightMask))


@torch.no_grad()
def average_gradients(parameters: Iterable[nn.Parameter]) -> None:
    """Average gradients over all processes, in one message."""
    gradients = [p.grad for p in parameters if p.grad is not None]
    if not gradients:
        return
    flat = torch.cat([gradient.flatten() for gradient in gradients])
    dist.all_reduce(flat)
    flat.div_(dist.get_world_size())
    for gradient, mean in zip(gradients, flat.split([g.numel() for g in gradients]), strict=True):
        gradient.copy_(mean.view_as(gradient))


def set_apart(optimizer: Any, parameters: Iterable[nn.Parameter]) -> None:
    """Give parameters that stay whole groups of their own: no fused step takes them together with shared ones."""
    whole = {id(p) for p in parameters}
    for group in list(optimizer.param_groups):
        ours = [p for p in group["params"] if id(p) in whole]
        if ours and len(ours) < len(group["params"]):
            group["params"] = [p for p in group["params"] if id(p) not in whole]
            optimizer.add_param_group({**group, "params": ours})
