"""Masks over single weights: what can be asked, plans of several cuts, what the folder says, sparse tensor cores."""

from typing import Any

import pytest
import torch
from torch import nn
from transformers import LlamaConfig, LlamaForCausalLM

from patchers.layers import linear_at
from sparse_trainer.criteria.calibration.wanda import Wanda
from sparse_trainer.errors import (
    ArgumentError,
    DataError,
    NonFiniteError,
    SparseTrainerError,
    UnsupportedModelError,
)
from sparse_trainer.folders.save import save_pruned
from sparse_trainer.one_shot.elements.sparsegpt import SparseGPT
from sparse_trainer.one_shot.prune import prune
from sparse_trainer.plan.document import Plan
from tests.architectures.tiny import tiny_model
from tests.fixtures.oneshot_models import calibration, model_of

WEIGHTS: dict[str, Any] = {"units": ["weights"], "density": 0.5}

MISTAKES: dict[str, tuple[dict[str, Any], str]] = {
    "a criterion of units": ({"criterion": "wifv"}, "criterion: unknown value 'wifv'.*Known: magnitude"),
    "no criterion at all": ({}, "criterion: unknown value 'wifv'"),
    "an instance for units": ({"criterion": Wanda()}, r"Wanda\(\) scores no single weights"),
    "a mixture": ({"criterion": {"wanda": 1.0, "obs": 1.0}}, "scores no single weights.*Take magnitude"),
    "an option": ({"criterion": "obs(rows=2)"}, "criterion obs.*rows"),
    "beside heads": ({"units": ["heads", "weights"]}, "units: .*not in one call. Prune heads first"),
    "beside hidden": ({"units": ["weights", "hidden"]}, "units: .*Prune hidden first"),
    "two densities": ({"density": {"weights": 0.5, "heads": 0.5}, "units": None}, "not in one call"),
    "a density of none": ({"density": 1.5}, r"density: 1.5 is not in \(0, 1\]"),
    "no pattern": ({"pattern": "2:x"}, "pattern: '2:x' is no N:M"),
    "a pattern that keeps all": ({"pattern": "4:4"}, "pattern: '4:4' is no N:M"),
    "a pattern of units": ({"units": ["heads"], "pattern": "2:4"}, "pattern: is one of single weights"),
    "two opinions": ({"pattern": "1:4"}, "density: 0.5, but 1:4 keeps 0.25"),
    "a comparison of runs": ({"pattern": "2:4", "compare": "row"}, "compare: 2:4 compares 4 inputs"),
    "a comparison": ({"compare": "column"}, "compare: unknown value 'column'"),
    "a comparison of units": ({"units": ["heads"], "compare": "row"}, "compare: is for single weights"),
    "obs over all": ({"criterion": "obs", "compare": "global"}, "obs refits one linear after the other"),
    "strips": ({"criterion": "obs(columns=6)", "pattern": "2:4"}, "6 columns are no multiple of 4"),
    "repair": ({"reconstruct": "least_squares"}, "reconstruct: is for whole units"),
    "allocation": ({"allocation": "fisher"}, "allocation: is for whole units"),
    "steps": ({"steps": 2}, "steps: is for whole units"),
    "scope": ({"scope": "uniform"}, "scope: is for whole units"),
    "gradients by block": (
        {"criterion": "snip", "by_block": True},
        "by_block: the criterion needs gradients",
    ),
    "all by block": (
        {"criterion": "wanda", "compare": "global", "by_block": True},
        "by_block: weights of all layers are compared",
    ),
    "a width": ({"pattern": "3:7"}, "pattern: 7 does not divide the .* inputs of model.layers.0"),
}
"""What is wrong -> options, and the message."""


@pytest.mark.parametrize("name", MISTAKES)
def test_mistakes_name_the_option_and_what_to_do(name: str) -> None:
    options, message = MISTAKES[name]
    model = model_of("llama")
    # Wrong options are found before a calibration set is looked at.
    asked = WEIGHTS | (
        {} if name in ("no criterion at all", "a criterion of units") else {"criterion": "magnitude"}
    )
    if "pattern" in options and name != "two opinions":
        del asked["density"]
    with pytest.raises(ArgumentError, match=message):
        prune(model, None, **(asked | options))


def test_what_a_model_or_a_calibration_set_lacks_is_told() -> None:
    model = model_of("llama")
    with pytest.raises(DataError, match="calibration: obs needs one"):
        prune(model, criterion="obs", **WEIGHTS)
    with pytest.raises(SparseTrainerError, match="statistics: hold nothing of single weights"):
        prune(model, criterion="magnitude", statistics=object(), **WEIGHTS)  # type: ignore[arg-type]
    with pytest.raises(UnsupportedModelError, match=r"lie in one tensor.*protect=\['\*.channels'\]"):
        prune(tiny_model("mixtral"), criterion="magnitude", **WEIGHTS)
    plan = prune(tiny_model("mixtral"), criterion="magnitude", protect=["*.channels"], **WEIGHTS)[1]
    assert all("self_attn" in name for name in plan.zeros)
    assert plan.density_reached == 0.5
    with torch.no_grad():
        linear_at(model, "model.layers.1.mlp.up_proj").weight[0, 0] = torch.nan
    with pytest.raises(NonFiniteError, match=r"model.layers.1.mlp.up_proj: NaN"):
        prune(model, criterion="magnitude", **WEIGHTS)


def test_protected_layers_stay_whole_and_do_not_count() -> None:
    model = model_of("llama")
    masked, plan = prune(model, criterion="magnitude", protect=["first", "*.heads"], **WEIGHTS)
    assert plan.zeros
    assert all(".mlp." in name and not name.startswith("model.layers.0.") for name in plan.zeros)
    assert plan.density_reached == 0.5
    for name, parameter in model.named_parameters():
        if name not in plan.zeros:
            assert torch.equal(parameter, masked.get_parameter(name))


def test_a_criterion_instance_is_named_in_the_plan() -> None:
    model = model_of("llama")
    plan = prune(model, calibration(model), criterion=SparseGPT(columns=8), **WEIGHTS)[1]  # type: ignore[arg-type]
    assert plan.method == "obs(columns=8) of weights"


def test_masks_after_a_cut_and_a_cut_after_masks_compose(tmp_path: Any) -> None:
    cut, first = prune(model_of("llama"), criterion="magnitude", density={"channels": 0.5})
    masked, plan = prune(cut, criterion="magnitude", **WEIGHTS)
    assert plan.method == "magnitude, then magnitude of weights"
    assert plan.params == first.params
    assert plan.groups == first.groups
    assert (plan.target, plan.density_asked, plan.density_reached) == ("weights", 0.5, 0.5)
    folder = save_pruned(masked, tmp_path / "both")
    text = (folder / "README.md").read_text()
    assert "cut down to" in text
    assert f"{plan.zeros_in_all[0]:,} zeros among" in text
    assert Plan.load(folder) == plan
    later = prune(masked, criterion="random", density={"heads": 0.5})[1]
    assert later.zeros.keys() == plan.zeros.keys()
    assert 0 < later.zeros_in_all[0] < plan.zeros_in_all[0]


def test_plans_without_zeros_read_as_before() -> None:
    plan = prune(model_of("llama"), criterion="magnitude", density=0.8)[1]
    assert "zeros" not in plan.to_dict()
    assert Plan.from_dict(plan.to_dict()) == plan
    damaged = plan.to_dict() | {"zeros": {"a.weight": [3, 2]}}
    with pytest.raises(SparseTrainerError, match=r"plan: zeros: .* is not an object of \[zeros, weights\]"):
        Plan.from_dict(damaged)


def test_layers_that_share_their_weights_are_masked_once() -> None:
    model = tiny_model("albert")
    batches = [{"input_ids": torch.randint(3, 90, (2, 12))} for _ in range(3)]
    plan = prune(model, batches, criterion="obs", **WEIGHTS)[1]
    assert plan.density_reached == 0.5


@pytest.mark.skipif(not torch.cuda.is_available(), reason="sparse tensor cores are in GPUs")
def test_two_of_four_run_on_sparse_tensor_cores() -> None:
    config = LlamaConfig(
        vocab_size=64, hidden_size=128, intermediate_size=256, num_hidden_layers=1, num_attention_heads=4
    )
    model = LlamaForCausalLM(config).half().cuda().eval()
    masked, plan = prune(model, criterion="magnitude", units=["weights"], pattern="2:4")
    ids_BT = torch.arange(64, device="cuda").view(2, 32)
    with torch.no_grad():
        expected = masked(ids_BT).logits
        for name in plan.zeros:
            linear = linear_at(masked, name.removesuffix(".weight"))
            linear.weight = nn.Parameter(torch.sparse.to_sparse_semi_structured(linear.weight.detach()))
        torch.testing.assert_close(masked(ids_BT).logits, expected, rtol=1e-2, atol=1e-2)
