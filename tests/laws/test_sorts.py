"""Stacks whose layers mix tokens in different ways keep a layer of each sort: caches and masks look for the first."""

from typing import Any

import pytest
import torch
from torch import Tensor
from transformers import CONFIG_MAPPING

from patchers.discovery.discover import discover
from patchers.errors import UnsupportedModelError
from patchers.surgery import cut
from patchers.units import Group
from sparse_trainer.cut.optimize import optimize_model
from sparse_trainer.errors import BudgetError
from sparse_trainer.inputs.make import inputs_for
from sparse_trainer.training.arguments.arguments import SparseTrainingArguments
from sparse_trainer.training.coordinator import ModelPatchingCoordinator
from tests.architectures.tiny import tiny_model

HYBRIDS = [
    model_type
    for model_type in (
        "bamba", "granitemoehybrid", "kimi_linear", "lfm2", "lfm2_moe", "nemotron_h", "olmo_hybrid",
        "qwen3_5_text", "qwen3_next", "recurrent_gemma",
    )
    if model_type in CONFIG_MAPPING  # transformers 5.16 lacks the newest
]  # fmt: skip


def by_sort(groups: tuple[Group, ...]) -> dict[str, list[Group]]:
    found: dict[str, list[Group]] = {}
    for group in groups:
        found.setdefault(group.sort, []).append(group)
    return found


def written(model: Any) -> Tensor:
    """Return what a model writes with the cache that it makes itself."""
    ids_BT = inputs_for(model)["input_ids"]
    tokens: Tensor = model.generate(input_ids=ids_BT, max_new_tokens=4, min_new_tokens=4, do_sample=False)
    return tokens


@pytest.mark.parametrize("model_type", HYBRIDS)
def test_a_cut_that_leaves_no_layer_of_a_sort_is_refused(model_type: str) -> None:
    model = tiny_model(model_type, dtype=torch.float32)
    structure = discover(model)
    sorts = by_sort(structure.of(["layers"]))
    assert len(sorts) > 1
    for sort, groups in sorts.items():
        with pytest.raises(UnsupportedModelError, match=f"no layer with {sort or 'feed'}.*Keep one"):
            cut(model, structure, {group.name: torch.tensor([False]) for group in groups})


@pytest.mark.parametrize("model_type", HYBRIDS)
def test_fine_pruning_keeps_a_layer_of_each_sort_whatever_the_scores_say(model_type: str) -> None:
    model: Any = tiny_model(model_type, dtype=torch.float32)
    layers = discover(model, ["layers"]).groups
    sorts = by_sort(layers)
    coordinator = ModelPatchingCoordinator(
        SparseTrainingArguments(
            scoring="movement",
            units=["layers"],
            target="units",
            density=len(sorts) / len(layers),
            warmup_ratio=0.0,
            cooldown_ratio=0.0,
        )
    )
    coordinator.patch_model(model)
    coordinator.begin(1)
    rare = min(sorts, key=lambda sort: len(sorts[sort]))
    for name, gate in coordinator.gates.items():
        gate.score_U.data.fill_(-1.0 if name in {g.name for g in sorts[rare]} else 1.0)
    coordinator.step()
    compact = optimize_model(model)
    left = discover(compact).stacks[0].sorts
    assert sorted(left) == sorted(sorts)
    assert written(compact).shape[1] == inputs_for(compact)["input_ids"].shape[1] + 4


def test_a_budget_below_a_layer_of_each_sort_names_the_range() -> None:
    arguments = SparseTrainingArguments(scoring="movement", units=["layers"], target="units", density=0.34)
    with pytest.raises(BudgetError, match=r"one layer of every stack and sort.*density in \[0\.6667, 1\]"):
        ModelPatchingCoordinator(arguments).patch_model(tiny_model("qwen3_next"))


def test_layers_that_differ_in_their_feed_forward_part_alone_are_of_one_sort() -> None:
    assert len(set(discover(tiny_model("deepseek_v3")).stacks[0].sorts)) == 1
    assert len(set(discover(tiny_model("gemma3_text")).stacks[0].sorts)) == 1


@pytest.mark.parametrize("model_type", ["minimax", "mllama"])
def test_the_layer_at_which_a_cache_counts_tokens_stays(model_type: str) -> None:
    stacks = {s.path: s.fixed_layers for s in discover(tiny_model(model_type)).stacks}
    assert any("caches count tokens" in fixed.get(0, "") for fixed in stacks.values())
