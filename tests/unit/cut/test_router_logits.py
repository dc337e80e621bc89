"""Mixtures without some of their experts: router logits and auxiliary losses, of layers with unlike numbers too."""

from pathlib import Path
from typing import Any

import pytest
import torch

from patchers.discovery.discover import discover
from patchers.patching.gates import Gate
from patchers.patching.patch import gates_by_group, patch
from sparse_trainer.cut.optimize import optimize_model
from sparse_trainer.folders.load import load_pruned
from sparse_trainer.folders.save import save_pruned
from sparse_trainer.inputs.evaluating import plain_outputs
from sparse_trainer.inputs.make import inputs_for
from sparse_trainer.training.arguments.arguments import SparseTrainingArguments
from sparse_trainer.training.coordinator import ModelPatchingCoordinator
from tests.architectures.tiny import tiny_model

MIXTURES = (
    "mixtral",
    "qwen2_moe",
    "qwen3_moe",
    "gpt_oss",
    "olmoe",
    "qwen3_next",
    "jamba",
    "granitemoe",
    "phimoe",
)


def cut_experts(model: Any, gone: list[int]) -> Any:
    """Return the model without the first experts of each layer, so many as `gone` says, in turn."""
    structure = discover(model, ["experts"])
    patch(model, structure, lambda group: Gate(group.num_units, scored=False))
    for place, gate in enumerate(gates_by_group(model, structure).values()):
        gate.set_keep(torch.arange(len(gate.keep_U)) >= gone[place % len(gone)])
    return optimize_model(model)


def auxiliary(model: Any) -> Any:
    inputs = inputs_for(model)
    return model(**inputs, labels=inputs["input_ids"], output_router_logits=True)


@pytest.mark.parametrize("gone", [[1], [1, 0, 2]], ids=["even", "uneven"])
@pytest.mark.parametrize("model_type", MIXTURES)
def test_auxiliary_losses_train_what_is_left(model_type: str, gone: list[int], tmp_path: Path) -> None:
    model: Any = tiny_model(model_type, dtype=torch.float32)
    model.config.output_router_logits = True
    auxiliary(model)
    if not discover(model, ["experts"]).groups:
        pytest.skip("its router is left alone")
    compact = cut_experts(model, gone)
    answer = auxiliary(compact)
    assert answer.aux_loss.isfinite()
    assert answer.aux_loss > 0
    answer.loss.backward()
    assert all(p.grad.isfinite().all() for p in compact.parameters() if p.grad is not None)
    again = load_pruned(save_pruned(compact, tmp_path / "compact"))
    torch.testing.assert_close(auxiliary(again.eval()).aux_loss, answer.aux_loss)
    assert len({logits.shape for logits in answer.router_logits}) == 1


def test_a_second_cut_sets_the_width_of_the_logits_anew() -> None:
    once = cut_experts(tiny_model("mixtral", dtype=torch.float32), [1, 0, 0])
    assert {logits.shape[-1] for logits in auxiliary(once).router_logits} == {4}
    twice = cut_experts(once, [0, 1, 1])
    assert {logits.shape[-1] for logits in auxiliary(twice).router_logits} == {3}
    assert not vars(twice.config).get("pruning")


def test_experts_are_fine_pruned_beside_an_auxiliary_loss() -> None:
    model: Any = tiny_model("mixtral", dtype=torch.float32)
    model.config.output_router_logits = True
    arguments = SparseTrainingArguments(units=["experts"], density=0.75, warmup_ratio=0.0, cooldown_ratio=0.0)
    coordinator = ModelPatchingCoordinator(arguments)
    coordinator.patch_model(model)
    coordinator.begin(2)
    for _ in range(2):
        loss = auxiliary(model).loss
        loss.backward()
        assert loss.isfinite()
        coordinator.observe()
        coordinator.step()
    assert auxiliary(optimize_model(model)).aux_loss.isfinite()


def test_what_a_config_asks_for_beside_the_answer_is_off_for_a_while() -> None:
    model: Any = tiny_model("mixtral")
    model.config.output_router_logits = True
    with plain_outputs(model):
        assert model.config.output_router_logits is False
    assert model.config.output_router_logits is True
