"""What a Trainer is handed: a coordinator that belongs to its model, an optimizer that the scores have a place in."""

import dataclasses
import os
from collections.abc import Mapping
from typing import Any

from torch import nn

from sparse_trainer.errors import ArgumentError
from sparse_trainer.training.arguments.arguments import SparseTrainingArguments
from sparse_trainer.training.coordinator import ModelPatchingCoordinator

_HOLDS_SCORES = "holds_scores"


def check_match(
    coordinator: ModelPatchingCoordinator, model: nn.Module, sparse_args: SparseTrainingArguments | None
) -> None:
    """Raise `ArgumentError` unless the coordinator has patched `model`, as `sparse_args` ask where there are any.

    Args:
        model: Of the Trainer: the patched one, one that wraps it (peft), or a part of it.
    """
    patched = coordinator.model
    if all(patched is not m for m in model.modules()) and all(model is not m for m in patched.modules()):
        raise ArgumentError(
            "set_patch_coordinator",
            f"the coordinator has patched another {type(patched).__name__} than the one to train.",
            "Give the Trainer what patch_model returned.",
        )
    if sparse_args is None or sparse_args is coordinator.args:
        return
    asked, used = dataclasses.asdict(sparse_args), dataclasses.asdict(coordinator.args)
    for name, value in asked.items():
        if name not in used or value != used[name]:
            raise ArgumentError(
                name,
                f"{value!r} for the Trainer, {used.get(name)!r} for the coordinator.",
                "Give both the same sparse_args.",
            )


def check_loads_names(trainer: type, mixin: type, model: object) -> None:
    """Raise `ArgumentError` for the name of a model that the Trainer next to the mixin does not load, as trl's do."""
    bases = trainer.__mro__[trainer.__mro__.index(mixin) + 1 :]
    loads = next(base for base in bases if "__init__" in vars(base))
    if loads.__module__.partition(".")[0] == "transformers" or not isinstance(model, str | os.PathLike):
        raise ArgumentError(
            "model",
            f"{model!r} is no model, and {loads.__name__} loads none.",
            "Load it first: AutoModelFor….from_pretrained(folder).",
        )


def place_scores(optimizer: Any, scheduler: Any, coordinator: ModelPatchingCoordinator) -> None:
    """Take the scores out of the optimizer's other groups, once, and add the groups they belong to.

    Raises:
        ArgumentError: a scheduler has counted the groups already.
    """
    if optimizer is None or any(group.get(_HOLDS_SCORES) for group in optimizer.param_groups):
        return
    wanted = coordinator.score_groups()
    present = {frozenset(map(id, group["params"])): group for group in optimizer.param_groups}
    placed = [present.get(frozenset(map(id, group["params"]))) for group in wanted]
    if wanted and all(group is not None for group in placed):
        for group in placed:
            if group is not None:
                group[_HOLDS_SCORES] = True
        return
    if wanted and scheduler is not None:
        raise ArgumentError(
            "optimizers",
            "the scheduler was made before the learned scores had a group in the optimizer.",
            "Pass (optimizer, None), and let the Trainer make the scheduler; or patch the model with a "
            "ModelPatchingCoordinator first and build both from coordinator.parameter_groups().",
        )
    scores = {id(p) for p in coordinator.score_parameters()}
    for group in optimizer.param_groups:
        group["params"] = [p for p in group["params"] if id(p) not in scores]
    for group in wanted:
        optimizer.add_param_group({**options_known_to(group, optimizer.defaults), _HOLDS_SCORES: True})


def options_known_to(group: Mapping[str, Any], defaults: Mapping[str, Any]) -> dict[str, Any]:
    """Return an optimizer group without the options of Adam that an optimizer does not know, or means otherwise.

    Args:
        defaults: Those of the optimizer: Adafactor's `eps` is a pair, SGD has none.

    >>> options_known_to({"lr": 0.1, "eps": 1e-12, "betas": (0.9, 0.99)}, {"lr": 0.01, "eps": (1e-30, 1e-3)})
    {'lr': 0.1}
    """
    strange = [k for k in ("betas", "eps") if k in group and not isinstance(defaults.get(k), type(group[k]))]
    return {name: value for name, value in group.items() if name not in strange}
