"""The class and the plan that a changed model gets."""

import logging
from collections.abc import Iterable
from dataclasses import replace
from typing import Any

from torch import nn

from patchers.discovery.discover import discover
from patchers.layers import LINEAR_TYPES
from patchers.modeling_pruned import FORMAT, portable, pruned_class, stock_class_of, widen_routers
from patchers.units import KINDS
from sparse_trainer.cut.auto_classes import auto_map_for
from sparse_trainer.cut.config_changes import Cut
from sparse_trainer.cut.config_fit import fit_config
from sparse_trainer.cut.decision import Decision, Request
from sparse_trainer.cut.layer_sizes import write_layer_sizes
from sparse_trainer.cut.layout import (
    check_builds,
    earlier_layout,
    follow_counts,
    is_native,
    layout_of,
    mark_skips,
)
from sparse_trainer.cut.record import attach_plan, compose, counts_anew, make_plan, measures_of, plan_of
from sparse_trainer.cut.router_logits import most_experts, short_routers
from sparse_trainer.plan.document import Plan

logger = logging.getLogger(__name__)


def adopt(model: Any, method: str) -> None:
    """Give a model of which nothing was cut, but layers exchanged, the class that builds it and a plan that says so."""
    decision = Decision(structure=discover(model, KINDS), keep={}, request=Request(method=method))
    take_class(model, Cut(before=decision.structure, after=decision.structure, gone={}))
    sizes = measures_of(model, decision.structure, decision.request.sequence_length)
    record(model, make_plan(model, decision, reached=1.0, before=sizes, after=sizes))


def record(model: Any, plan: Plan) -> None:
    """Attach a plan to a model: over the units of the first model of several cuts, where one plan can say them all."""
    earlier = plan_of(model)
    if earlier is not None and earlier.zeros:
        plan = replace(plan, zeros=zeros_left(model, earlier.zeros))
    if earlier is not None and counts_anew(earlier, plan):
        logger.warning(
            "The units of %s are counted anew since its last cut: the plan is that of this cut alone.",
            type(model).__name__,
        )
        # Tokens are counted as before.
        plan, earlier = replace(plan, vocabulary=plan.vocabulary or earlier.vocabulary), None
    attach_plan(model, plan if earlier is None else replace(compose(earlier, plan), zeros=plan.zeros))


def zeros_left(model: nn.Module, masked: Iterable[str]) -> dict[str, tuple[int, int]]:
    """Return how many weights are zero, and of how many, of every linear that has some; nothing on the meta device.

    Args:
        masked: Parameters that had zeros before the cut: linears of these names, whose layers may have moved, count.
    """
    names = {name.split(".")[-2] for name in masked}
    weights = {
        f"{path}.weight": module.weight
        for path, module in model.named_modules()
        if isinstance(module, LINEAR_TYPES) and path.split(".")[-1] in names and not module.weight.is_meta
    }
    counts = {name: (int((weight == 0).sum()), weight.numel()) for name, weight in weights.items()}
    return {name: count for name, count in counts.items() if count[0]}


def take_class(model: Any, done: Cut) -> None:
    """Make the model an instance of the class that can build it: the stock one where that is possible."""
    earlier = earlier_layout(model.config)
    fit = fit_config(model, done, earlier["build"])
    follow_counts(model, fit.built, [stack.path for stack in done.after.stacks])
    routers = short_routers(model, done.after, most_experts(fit.built, done.after))
    widen_routers(model, routers)
    layout = layout_of(model, fit, done, earlier)
    layout["routers"] = {portable(model, path): list(pad) for path, pad in routers.items()}
    if is_native(layout):
        model.__class__ = stock_class_of(model)
    else:
        mark_skips(model, fit.built)
        model.config.pruning = {"format": FORMAT, "layout": dict(layout)}
        write_layer_sizes(model, done.after)
        model.__class__ = pruned_class(stock_class_of(model))
        # Conversions of names that `from_pretrained` applied are those of the stock class, and not undone by this one.
        vars(model).pop("_weight_conversions", None)
        _say_where_to_find(model)
    # The class registers what it can record (output_hidden_states=True) when an instance is built, and only then.
    check_builds(model)


def _say_where_to_find(model: Any) -> None:
    auto_map = auto_map_for(model)
    if auto_map:
        model.config.auto_map = auto_map
    else:
        logger.warning(
            "%s is no class of transformers: its folder loads with pruned_class(%s).from_pretrained(folder).",
            *[type(model).__name__] * 2,
        )
