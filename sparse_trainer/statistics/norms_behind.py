"""Find the norms that stand behind the linears of a block, in the way of its hidden states (BERT)."""

from collections.abc import Iterable
from contextlib import ExitStack
from functools import partial
from typing import Any

from torch import Tensor, nn

from patchers.patching.gated_norm import is_plain_norm
from patchers.units import Group
from sparse_trainer.inputs.evaluating import evaluating
from sparse_trainer.statistics.batch import Batch
from sparse_trainer.statistics.forward import ForwardPass


def norms_behind(model: Any, groups: Iterable[Group], batch: Batch) -> dict[str, str]:
    """Return the norm in its block that reads the states with what a consumer added, by path of the consumer.

    One that reads the output of the consumer alone (Gemma 2) does not count, nor one outside of the block.

    Args:
        batch: What the model is run on, once.
    """
    chosen = list(groups)
    run = ForwardPass(model, [g.consumer for g in chosen], labelled=False, differentiable=False)
    waiting: dict[str, tuple[str, Tensor]] = {}
    found: dict[str, str] = {}

    def leave(group: Group, linear: nn.Module, args: tuple[Any, ...], output: Tensor) -> None:
        waiting[group.block] = group.consumer, output.clone()

    def enter(block: str, path: str, norm: nn.Module, args: tuple[Any, ...]) -> None:
        if block not in waiting:
            return
        consumer, output = waiting[block]
        if args[0].shape == output.shape and not bool((args[0] == output).all()):
            found.setdefault(consumer, path)
            del waiting[block]

    with ExitStack() as stack, evaluating(model):
        for group in chosen:
            consumer = model.get_submodule(group.consumer)
            stack.callback(consumer.register_forward_hook(partial(leave, group)).remove)
        for block in dict.fromkeys(g.block for g in chosen):
            for name, module in model.get_submodule(block).named_modules():
                if is_plain_norm(module):
                    hook = module.register_forward_pre_hook(partial(enter, block, f"{block}.{name}"))
                    stack.callback(hook.remove)
        run(batch)
    return found
