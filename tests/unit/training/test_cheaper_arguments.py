"""Cheaper layers asked for by arguments: old words and new ones agree, and what is evaluated is what remains."""

import copy
from pathlib import Path
from typing import Any

import pytest
import torch

from patchers.patching.blends import BlendedNorm, blended
from sparse_trainer.cut.optimize import optimize_model
from sparse_trainer.errors import ArgumentError, UnsupportedModelError
from sparse_trainer.folders.load import load_pruned
from sparse_trainer.folders.save import save_pruned
from sparse_trainer.run.cut_folder import compact_folder
from sparse_trainer.training.arguments.arguments import SparseTrainingArguments
from sparse_trainer.training.blending import finish
from sparse_trainer.training.coordinator import ModelPatchingCoordinator
from sparse_trainer.training.trainer import save_state
from tests.fixtures.compact_models import logits, tiny
from tests.fixtures.same import assert_same
from tests.fixtures.training import sparse_args
from tests.unit.training.test_coordinator import loop


def mixes(options: dict[str, Any], steps: int = 10) -> list[dict[str, float]]:
    """Return how much of the originals is left after each step."""
    coordinator = ModelPatchingCoordinator(SparseTrainingArguments(scoring="random", **options))
    model = coordinator.patch_model(tiny())
    coordinator.begin(steps)
    found = []
    for step in range(steps + 1):
        if step:
            coordinator.step(step)
        found.append({layer.layer: round(float(layer.mix), 6) for layer in blended(model)})
    return found


def test_blends_fall_in_a_line_each_in_its_time_and_old_words_mean_the_same() -> None:
    both = mixes({"cheaper": ["no_norm", "relu"], "cheaper_until": 0.5})
    line = [1.0, 0.8, 0.6, 0.4, 0.2, *[0.0] * 6]
    assert both == [{"relu": mix, "no_norm": mix} for mix in line]
    assert mixes({"gelu_patch": True, "layer_norm_patch": 1, "cheaper_until": 0.5}) == both
    apart = mixes({"gelu_patch": True, "gelu_patch_steps": 5, "cheaper": ["no_norm"], "cheaper_until": 1.0})
    assert apart == [{"relu": mix, "no_norm": round(1 - 0.1 * i, 6)} for i, mix in enumerate(line)]
    assert mixes({"gelu_patch": 0, "gelu_patch_steps": 50000}) == [{}] * 11


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"cheaper": ["rellu"]}, "cheaper: unknown value 'rellu'.*Did you mean 'relu'"),
        ({"cheaper": ["relu"], "cheaper_until": 0.0}, "cheaper_until"),
        ({"gelu_patch": True, "gelu_patch_steps": 0}, "gelu_patch_steps: 0 is not positive"),
        ({"layer_norm_patch": True, "layer_norm_patch_start_delta": 1.0}, "cheaper_decay: 1.0"),
        (
            {"cheaper": ["no_norm"], "scoring": "l0", "units": ["heads", "hidden"]},
            "cheaper: no_norm takes the norms away",
        ),
        ({"final_finetune": True}, r"final_finetune.*model\.fill"),
        ({"gelu_patch_steps": 5}, "gelu_patch_steps: is an option of relu, which is not asked for"),
        (
            {"cheaper": ["relu"], "layer_norm_patch_steps": 5},
            "layer_norm_patch_steps: is an option of no_norm",
        ),
        ({"layer_norm_patch_start_delta": 0.9}, "layer_norm_patch_start_delta: is an option of no_norm"),
        ({"cheaper": ["relu"], "cheaper_decay": 0.9}, "cheaper_decay: .*Add 'no_norm' to cheaper"),
        ({"cheaper_until": 0.5}, "cheaper_until: no cheaper layer is asked for"),
        (
            {"cheaper": ["no_norm"], "cheaper_decay": 0.9, "layer_norm_patch_start_delta": 0.8},
            "cheaper_decay, layer_norm_patch_start_delta: say the same thing",
        ),
    ],
)
def test_bad_options_are_refused(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ArgumentError, match=message):
        SparseTrainingArguments(**options)


def test_a_blend_that_outlasts_training_is_refused_when_it_starts() -> None:
    coordinator = ModelPatchingCoordinator(SparseTrainingArguments(gelu_patch=True, gelu_patch_steps=50))
    coordinator.patch_model(tiny())
    with pytest.raises(ArgumentError, match=r"gelu_patch_steps: 50 steps, but training has 49"):
        coordinator.begin(49)
    with pytest.raises(UnsupportedModelError, match="hidden_act"):
        ModelPatchingCoordinator(SparseTrainingArguments(cheaper=["relu"])).patch_model(
            tiny(hidden_act="silu")
        )


def halfway(**options: Any) -> tuple[Any, ModelPatchingCoordinator]:
    """Return a model in the middle of training, and what prunes it."""
    args = sparse_args("cheaper", cheaper_until=1.0, **options)
    model, coordinator = loop(args)
    coordinator.begin(12, 6)
    return model, coordinator


def test_evaluation_shows_what_will_remain_and_training_goes_on_as_before() -> None:
    model, coordinator = halfway()
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    assert {float(layer.mix) for layer in blended(model)} == {0.5}
    assert not coordinator.finished
    current = logits(model)
    with coordinator.final_masks():
        shown = logits(model)
    folded = copy.deepcopy(model)
    finish(folded)
    torch.testing.assert_close(shown, logits(folded), rtol=0, atol=1e-12)
    assert not torch.allclose(shown, current, rtol=0, atol=1e-3)
    assert all(torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items())
    model, coordinator = halfway(eval_with_current_patch_params=True)
    with coordinator.final_masks():
        torch.testing.assert_close(logits(model), current, rtol=0, atol=0)


def test_norms_that_saw_no_batch_are_not_shown_yet() -> None:
    coordinator = ModelPatchingCoordinator(SparseTrainingArguments(scoring="random", cheaper=["no_norm"]))
    model = coordinator.patch_model(tiny())
    coordinator.begin(10, 5)
    before = logits(model)
    with coordinator.final_masks():
        assert torch.equal(logits(model), before)


def test_old_scripts_evaluate_masks_as_they_are_when_they_ask_for_it() -> None:
    options = {
        "dense_pruning_method": "topK:1d_alt",
        "attention_pruning_method": "topK",
        "final_threshold": 0.3,
    }
    for current, same in ((False, False), (True, True)):
        args = SparseTrainingArguments(**options, eval_with_current_patch_params=current)
        coordinator = ModelPatchingCoordinator(args)
        model = coordinator.patch_model(tiny())
        coordinator.begin(10)
        before = logits(model)
        with coordinator.final_masks():
            assert torch.equal(logits(model), before) is same


def test_a_checkpoint_is_cut_when_its_blends_are_over_and_not_before(tmp_path: Path) -> None:
    model, coordinator = loop(sparse_args("cheaper"))
    assert any(isinstance(layer, BlendedNorm) for layer in blended(model))
    compact = optimize_model(model)
    assert compact.pruning_plan.method == "movement, relu + no_norm"
    assert compact.config.hidden_act == "relu"
    assert model.config.hidden_act == "gelu"
    model.save_pretrained(tmp_path / "checkpoint")
    save_state(tmp_path / "checkpoint", coordinator)
    folder, plan = compact_folder(str(tmp_path / "checkpoint"), tmp_path / "out")
    assert plan.groups == compact.pruning_plan.groups
    again = load_pruned(folder)
    assert_same(again, load_pruned(save_pruned(compact, tmp_path / "same")), logits)
    coordinator.begin(12, 2)
    model.save_pretrained(tmp_path / "early")
    save_state(tmp_path / "early", coordinator)
    with pytest.raises(UnsupportedModelError, match="still blended"):
        compact_folder(str(tmp_path / "early"), tmp_path / "never")


def test_masks_and_cheaper_layers_go_together() -> None:
    model, coordinator = loop(SparseTrainingArguments(preset="hybrid", attention_block_rows=8, attention_block_cols=8,
        dense_pruning_method="topK:1d_alt", attention_pruning_method="topK", initial_threshold=1.0, final_threshold=0.4,
        cheaper=["relu", "no_norm"]))  # fmt: skip
    assert coordinator.finished
    masked = logits(model)
    compact = optimize_model(model)
    torch.testing.assert_close(logits(compact), masked, rtol=0, atol=1e-10)
    assert compact.num_parameters() < tiny().num_parameters()
