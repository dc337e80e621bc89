"""Scores that do not tell units apart, and layers that escape a shared budget: said, with the cause."""

import logging

import pytest
import torch

from patchers.units import CHANNELS
from sparse_trainer.budget.standardize import STANDARDIZERS
from sparse_trainer.one_shot.prune import prune
from sparse_trainer.training.arguments.arguments import SparseTrainingArguments
from sparse_trainer.training.coordinator import ModelPatchingCoordinator
from tests.fixtures.compact_models import batch, tiny
from tests.fixtures.oneshot_models import calibration, model_of


@pytest.mark.parametrize("scoring", ["taylor", "movement"])
def test_a_training_whose_labels_count_nowhere_says_that_position_decides(
    scoring: str, caplog: pytest.LogCaptureFixture
) -> None:
    model = tiny().train()
    coordinator = ModelPatchingCoordinator(
        SparseTrainingArguments(scoring=scoring, density={"channels": 0.5})
    )
    coordinator.patch_model(model)
    coordinator.begin(total_steps=4)
    for step in range(4):
        (model(**batch(model)).logits * 0).sum().backward()  # what a loss over ignored labels alone gives
        coordinator.observe()
        coordinator.step(step + 1)
        coordinator.metrics()
    (said,) = [r.getMessage() for r in caplog.records if "position" in r.getMessage()]
    assert f"scoring='{scoring}': the scores of every group are all equal" in said
    assert "-100" in said


def test_one_shot_pruning_says_so_before_it_cuts(caplog: pytest.LogCaptureFixture) -> None:
    model = model_of("llama")
    batches = [{**b, "labels": torch.full_like(b["input_ids"], -100)} for b in calibration(model)]
    for b in batches:
        b["labels"][:, -1] = b["input_ids"][:, -1]
    with torch.no_grad():
        for layer in model.model.layers:
            layer.mlp.down_proj.weight.zero_()
    prune(model, batches, criterion="taylor", density={"channels": 0.5})
    said = [r.getMessage() for r in caplog.records if "position" in r.getMessage()]
    assert len(said) == 1
    assert said[0].startswith("taylor: the scores of every group")


def test_ties_are_no_matter_where_scores_differ(caplog: pytest.LogCaptureFixture) -> None:
    model = model_of("llama")
    prune(model, calibration(model), criterion="wanda", density={"channels": 0.5})
    assert not [r for r in caplog.records if "position" in r.getMessage()]


ROBUST = ["zscore_layer", "zscore_global", "median_layer", "log_layer", "rank_layer"]


@pytest.mark.parametrize("name", ROBUST)
def test_one_outlier_does_not_lift_its_layer_over_the_budget(name: str) -> None:
    generator = torch.Generator().manual_seed(0)
    plain = torch.randn(2, 1000, generator=generator).exp()
    scores = {"a.channels": plain[0], "b.channels": plain[1].clone()}
    kinds = dict.fromkeys(scores, CHANNELS)
    before = STANDARDIZERS[name](scores, {}, kinds)
    scores["b.channels"][7] = 285 * plain[1].median()
    after = STANDARDIZERS[name](scores, {}, kinds)
    others = torch.arange(1000) != 7
    torch.testing.assert_close(after["b.channels"][others], before["b.channels"][others], atol=0.1, rtol=0.1)
    for standardized, raw in ((after["b.channels"], scores["b.channels"]), (after["a.channels"], plain[0])):
        assert torch.equal(standardized.argsort(), raw.argsort())


@pytest.mark.parametrize("name", ["median_layer", "log_layer", "rank_layer"])
def test_robust_normalisers_know_no_scale_and_survive_equal_scores(name: str) -> None:
    score_U = torch.rand(100, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    of = STANDARDIZERS[name]
    torch.testing.assert_close(of({"a": 1e6 * score_U}, {}, {})["a"], of({"a": score_U}, {}, {})["a"])
    for strange in ([1.0] * 10, [0.0] * 9 + [5.0], [-1.0, 0.0, -2.0], [3.0]):
        assert of({"a": torch.tensor(strange)}, {}, {})["a"].isfinite().all()


def test_without_outliers_a_z_score_is_what_it_was() -> None:
    score_U = torch.rand(100, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    found = STANDARDIZERS["zscore_layer"]({"a": score_U}, {}, {})["a"]
    torch.testing.assert_close(
        found, (score_U - score_U.mean()) / score_U.std(correction=0), atol=1e-12, rtol=0
    )
    most_equal = torch.tensor([0.0] * 9 + [5.0])
    assert STANDARDIZERS["zscore_layer"]({"a": most_equal}, {}, {})["a"].isfinite().all()


def test_layers_that_keep_everything_are_named(caplog: pytest.LogCaptureFixture) -> None:
    model = model_of("llama")
    with torch.no_grad():
        model.model.layers[1].mlp.down_proj.weight.mul_(1e3)
    caplog.set_level(logging.WARNING)
    prune(model, calibration(model), criterion="wanda", density={"channels": 0.5}, standardize="none")
    (said,) = [r.getMessage() for r in caplog.records if "keep every unit" in r.getMessage()]
    assert "standardize='none': 1 of " in said
    assert "model.layers.1.channels" in said
    caplog.clear()
    prune(model, calibration(model), criterion="wanda", density={"channels": 0.5})
    assert not [r for r in caplog.records if "keep every unit" in r.getMessage()]
