"""Cheaper layers: nothing changes at first, at the end what ran is what is exported, and no folder lies."""

import copy
from pathlib import Path

import pytest
import torch
from transformers import AutoModelForSequenceClassification, Trainer

from patchers import discover
from patchers.cheaper import BlendedActivation, BlendedNorm, NoNorm, blended
from sparse_trainer import SparseTrainingArguments, optimize_model, save_pruned
from sparse_trainer.cheaper import Cheapening, cheapen, finish, set_mix
from sparse_trainer.errors import ArgumentError, UnsupportedModelError
from tests.compact_models import DECISIONS, FAMILIES, batch, logits, patched, tiny
from tests.laws.training import trainer

BOTH = ("relu", "no_norm")


@pytest.mark.parametrize("family", FAMILIES)
def test_at_first_nothing_changes_not_even_the_structure(family: str) -> None:
    model = tiny(family)
    before, structure = logits(model), discover(model)
    assert cheapen(model, BOTH) >= 6
    torch.testing.assert_close(logits(model), before, rtol=0, atol=1e-12)
    assert discover(model) == structure
    set_mix(model, 0.5)
    assert not torch.allclose(logits(model), before, rtol=0, atol=1e-3)


@pytest.mark.parametrize("family", FAMILIES)
def test_folding_changes_nothing_at_mix_zero(family: str) -> None:
    model = tiny(family)
    cheapen(model, BOTH)
    model.train()(**batch(model))
    set_mix(model.eval(), 0.0)
    before = logits(model)
    finish(model)
    assert not list(blended(model))
    torch.testing.assert_close(logits(model), before, rtol=0, atol=1e-12)


@pytest.mark.parametrize("family", FAMILIES)
def test_relu_survives_the_folder(family: str, tmp_path: Path) -> None:
    model = tiny(family)
    gelu = logits(model)
    cheapen(model)
    set_mix(model, 0.0)
    finish(model)
    model.save_pretrained(tmp_path)
    again = AutoModelForSequenceClassification.from_pretrained(tmp_path, dtype=torch.float64)
    assert torch.equal(logits(again.eval()), logits(model))
    assert not torch.allclose(gelu, logits(model), rtol=0, atol=1e-3)


def test_blend_and_statistics_by_hand() -> None:
    norm = torch.nn.LayerNorm(6).double()
    norm.weight.data.normal_()
    norm.bias.data.normal_()
    layer = BlendedNorm(norm, decay=0.9)
    batches = [torch.randn(2, 3, 6, dtype=torch.float64) * scale + 1 for scale in (1.0, 2.0)]
    for x in batches:
        layer.train()(x)
    means = [x.mean(-1).mean() for x in batches]
    variances = [x.var(-1, correction=0).mean() for x in batches]
    mean = 0.9 * means[0] + 0.1 * means[1]
    variance = 0.9 * variances[0] + 0.1 * variances[1]
    layer.eval().mix.fill_(0.25)
    plain = (batches[0] - mean) / (variance + norm.eps).sqrt() * norm.weight + norm.bias
    torch.testing.assert_close(layer(batches[0]), 0.25 * norm(batches[0]) + 0.75 * plain, rtol=0, atol=1e-5)
    act = BlendedActivation(torch.nn.GELU())
    act.mix.fill_(0.25)
    x = batches[0]
    expected = 0.25 * torch.nn.functional.gelu(x) + 0.75 * x.relu()
    torch.testing.assert_close(act(x), expected, rtol=0, atol=1e-12)


def test_no_norm_is_never_taken_for_a_layer_norm(tmp_path: Path) -> None:
    model = tiny("bert", torch.float32)
    cheapen(model, BOTH)
    model.train()(**batch(model))
    set_mix(model.eval(), 0.0)
    twin = copy.deepcopy(model)
    model.save_pretrained(tmp_path / "blended")
    with pytest.raises(RuntimeError, match=r"size mismatch|ignore_mismatched_sizes"):
        type(model).from_pretrained(tmp_path / "blended")
    twin.load_state_dict(model.state_dict())
    finish(model)
    assert any(isinstance(m, NoNorm) for m in model.modules())
    with pytest.raises(UnsupportedModelError, match="NoNorm"):
        save_pruned(model, tmp_path / "folded")
    model.save_pretrained(tmp_path / "plain")
    with pytest.raises(RuntimeError, match=r"size mismatch|ignore_mismatched_sizes"):
        type(model).from_pretrained(tmp_path / "plain")


def test_trainer_blends_to_the_end_and_goes_on_after_a_stop(tmp_path: Path) -> None:
    def run(*, resume: bool) -> Trainer:
        model = tiny().train()
        cheapen(model, BOTH)
        made = trainer(
            tmp_path, SparseTrainingArguments(scoring="magnitude"), model, save_strategy="steps", save_steps=5
        )
        made.add_callback(Cheapening(model, until=0.8))
        made.train(resume_from_checkpoint=str(tmp_path / "checkpoint-5") if resume else None)
        return made

    straight, resumed = run(resume=False).model, run(resume=True).model
    assert all(float(layer.mix) == 0.0 for layer in blended(straight))
    theirs = resumed.state_dict()
    assert all(torch.equal(tensor, theirs[name]) for name, tensor in straight.state_dict().items())


def test_relu_and_pruning_go_together(tmp_path: Path) -> None:
    model = tiny().train()
    cheapen(model)
    run = trainer(tmp_path, SparseTrainingArguments(density={"channels": 0.5}, scope="uniform"), model)
    run.add_callback(Cheapening(model))
    run.train()
    finish(model)
    masked = logits(model.eval())
    compact = optimize_model(model)
    torch.testing.assert_close(logits(compact), masked, rtol=0, atol=1e-10)
    save_pruned(compact, tmp_path / "out")
    again = AutoModelForSequenceClassification.from_pretrained(tmp_path / "out", dtype=torch.float64)
    assert again.config.hidden_act == "relu"
    assert torch.equal(logits(again.eval()), logits(compact))


def test_bad_input() -> None:
    with pytest.raises(ArgumentError, match=r"layers.*Did you mean 'relu'"):
        cheapen(tiny(), ("rellu",))
    with pytest.raises(ArgumentError, match="until"):
        Cheapening(tiny(), until=0.0)
    with pytest.raises(UnsupportedModelError, match="hidden_act"):
        cheapen(tiny("bert", hidden_act="silu"))


@pytest.mark.parametrize("decision", ["uneven", "even"])
def test_no_norm_and_pruning_go_together(decision: str) -> None:
    model = tiny()
    cheapen(model, BOTH)
    model.train()(**batch(model))
    set_mix(model.eval(), 0.0)
    gates = patched(model, DECISIONS[decision](discover(model)))
    before = logits(gates)
    with pytest.raises(UnsupportedModelError, match="LayerNorm"):
        optimize_model(gates)
    finish(gates)
    compact = optimize_model(gates)
    torch.testing.assert_close(logits(compact), before, rtol=0, atol=1e-10)
    assert not any(isinstance(m, torch.nn.LayerNorm) for m in compact.bert.encoder.modules())
