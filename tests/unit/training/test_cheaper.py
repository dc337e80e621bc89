"""Cheaper layers: nothing changes at first, at the end what ran is what is exported, and no folder lies."""

import copy
from pathlib import Path

import pytest
import torch
from transformers import AutoModelForMaskedLM, AutoModelForSequenceClassification, Trainer

from patchers.discovery.discover import discover
from patchers.modeling_pruned import is_no_norm
from patchers.patching.blends import BlendedActivation, BlendedNorm, blended, take_in, unblend
from sparse_trainer.cut.optimize import optimize_model
from sparse_trainer.cut.self_check import check_same, outputs_of
from sparse_trainer.errors import ArgumentError, CheckpointError, UnsupportedModelError
from sparse_trainer.folders.load import load_pruned
from sparse_trainer.folders.load_shape import load_shape
from sparse_trainer.folders.save import save_pruned
from sparse_trainer.folders.streaming import cut_checkpoint
from sparse_trainer.training.arguments.arguments import SparseTrainingArguments
from sparse_trainer.training.blending import Cheapening, cheapen, finish, set_mix
from tests.architectures.tiny import tiny_model
from tests.fixtures.compact_models import DECISIONS, FAMILIES, batch, cheap, logits, patched, tiny
from tests.fixtures.same import assert_same
from tests.fixtures.training import trainer

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
    assert_same(again.eval(), model, logits)
    assert not torch.allclose(gelu, logits(model), rtol=0, atol=1e-3)


@pytest.mark.parametrize("model_type", ["bert", "distilbert", "roberta", "electra"])
def test_relu_reaches_the_task_heads_that_read_the_same_field(model_type: str, tmp_path: Path) -> None:
    torch.manual_seed(0)
    model = AutoModelForMaskedLM.from_config(tiny_model(model_type).config).eval()
    blocks = sum(stack.size for stack in discover(model).stacks)
    follows = model_type in ("bert", "distilbert")
    assert cheapen(model) == blocks + follows
    set_mix(model, 0.0)
    ids_BT = torch.arange(5, 21).view(2, 8)
    blended_logits = model(ids_BT).logits
    finish(model)
    assert torch.equal(model(ids_BT).logits, blended_logits)
    model.save_pretrained(tmp_path)
    again = AutoModelForMaskedLM.from_pretrained(tmp_path).eval()
    assert_same(again, model, lambda one: one(ids_BT).logits)


def test_blend_and_statistics_by_hand() -> None:
    norm = torch.nn.LayerNorm(6).double()
    norm.weight.data.normal_()
    norm.bias.data.normal_()
    layer = BlendedNorm(norm, decay=0.9)
    batches = [torch.randn(2, 3, 6, dtype=torch.float64) * scale + 1 for scale in (1.0, 2.0)]
    for x in batches:
        for row in x:  # as gradient accumulation splits them
            layer.train()(row)
        take_in([layer])
        take_in([layer])
    means = [x.mean(-1).mean() for x in batches]
    variances = [x.var(-1, correction=0).mean() for x in batches]
    mean = 0.9 * means[0] + 0.1 * means[1]
    variance = 0.9 * variances[0] + 0.1 * variances[1]
    layer.eval().mix.fill_(0.25)
    plain = (batches[0] - mean) / (variance + norm.eps).sqrt() * norm.weight + norm.bias
    torch.testing.assert_close(layer(batches[0]), 0.25 * norm(batches[0]) + 0.75 * plain, rtol=0, atol=1e-12)
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
    stock = type(model)
    with pytest.raises(CheckpointError, match="LayerNorm"):
        load_pruned(tmp_path / "blended")
    finish(model)
    assert any(map(is_no_norm, model.modules()))
    model.save_pretrained(tmp_path / "plain")
    with pytest.raises(RuntimeError, match=r"size mismatch|ignore_mismatched_sizes"):
        stock.from_pretrained(tmp_path / "plain")


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
    assert_same(again.eval(), compact, logits)


def test_bad_input() -> None:
    with pytest.raises(ArgumentError, match=r"layers.*Did you mean 'relu'"):
        cheapen(tiny(), ("rellu",))
    with pytest.raises(ArgumentError, match="until"):
        Cheapening(tiny(), until=0.0)
    with pytest.raises(UnsupportedModelError, match="hidden_act"):
        cheapen(tiny("bert", hidden_act="silu"))


@pytest.mark.parametrize("first", ["finish", "optimize"])
@pytest.mark.parametrize("decision", ["uneven", "even"])
def test_no_norm_and_pruning_go_together_in_either_order(decision: str, first: str, tmp_path: Path) -> None:
    model = cheap()
    gates = patched(model, DECISIONS[decision](discover(model)))
    before = logits(gates)
    if first == "finish":
        finish(gates)
    compact = optimize_model(gates)
    finish(compact)
    torch.testing.assert_close(logits(compact), before, rtol=0, atol=1e-10)
    assert not any(isinstance(m, torch.nn.LayerNorm) for m in compact.bert.encoder.modules())
    again = load_pruned(save_pruned(compact, tmp_path / "out"))
    assert_same(again, compact, logits)
    assert again.pruning_plan.density_reached < 1
    if first == "optimize":
        assert again.pruning_plan.method == "gates, relu + no_norm"


def test_a_cut_may_follow_on_a_finished_model_and_on_its_folder(tmp_path: Path) -> None:
    model = cheap()
    finish(model)
    folder = save_pruned(model, tmp_path / "whole")
    assert model.pruning_plan.method == "relu + no_norm"
    assert model.pruning_plan.density_reached == 1.0
    assert all(len(g["keep"]) == g["size"] for g in model.pruning_plan.groups.values())
    gates = patched(load_pruned(folder), DECISIONS["uneven"](discover(model)))
    before = logits(gates)
    compact = optimize_model(gates)
    torch.testing.assert_close(logits(compact), before, rtol=0, atol=1e-10)
    plan = compact.pruning_plan
    assert plan.method == "relu + no_norm, then gates"
    assert plan.params["dense"] == model.num_parameters()
    shape = {name: p.shape for name, p in compact.named_parameters()}
    again = load_pruned(save_pruned(compact, tmp_path / "cut"))
    assert_same(again, compact, logits)
    assert {name: p.shape for name, p in load_shape(str(tmp_path / "cut")).named_parameters()} == shape
    streamed = load_pruned(cut_checkpoint(folder, plan, tmp_path / "streamed"))
    assert_same(streamed, compact, logits, calculated=True)


@pytest.mark.parametrize("family", FAMILIES)
def test_a_model_that_was_only_made_cheaper_saves_and_loads(family: str, tmp_path: Path) -> None:
    model = cheap(family)
    before = logits(model)
    finish(model)
    torch.testing.assert_close(logits(model), before, rtol=0, atol=1e-12)
    again = load_pruned(save_pruned(model, tmp_path / "out"))
    assert_same(again, model, logits)
    assert [tuple(p.shape) for p in again.parameters()] == [tuple(p.shape) for p in model.parameters()]
    again.save_pretrained(tmp_path / "again")
    assert_same(load_pruned(tmp_path / "again"), model, logits)
    stock = type(model).stock_class
    with pytest.raises(RuntimeError, match=r"size mismatch|ignore_mismatched_sizes"):
        stock.from_pretrained(tmp_path / "out")
    fresh = type(model)._from_config(model.config)
    assert sum(map(is_no_norm, fresh.modules())) == sum(map(is_no_norm, model.modules())) >= 6


@pytest.mark.parametrize("model_type", ["gpt2", "bart", "vit", "whisper"])
def test_decoders_pictures_and_sound_save_and_load_too(model_type: str, tmp_path: Path) -> None:
    model = tiny_model(model_type)
    cheapen(model, BOTH)
    set_mix(model, 0.0)
    before = outputs_of(model)
    finish(model)
    again = load_pruned(save_pruned(model, tmp_path / "out"))
    check_same(before, model, what="the outputs before and after folding")
    assert_same(again, model, outputs_of)


def test_exports_that_only_the_stock_class_reads_are_refused(tmp_path: Path) -> None:
    model = cheap()
    finish(model)
    for export in ("native", "padded"):
        with pytest.raises(CheckpointError, match=f"'{export}' .*NoNorm.*Use 'self-contained'"):
            save_pruned(model, tmp_path / export, export=export)
    card = (save_pruned(model, tmp_path / "own", export="self-contained") / "README.md").read_text()
    assert "nothing was cut. Its blocks scale and shift" in card
    assert "Chosen by `relu + no_norm`" in card
    half = cheap()
    set_mix(half, 0.25)
    with pytest.raises(UnsupportedModelError, match=r"still blended.*25%.*finish"):
        optimize_model(half)
    set_mix(half, 0.0)
    with pytest.raises(CheckpointError, match=r"still has blended layers.*finish"):
        save_pruned(half, tmp_path / "half", plan=model.pruning_plan)


def test_unblend_puts_the_same_parameters_back() -> None:
    model = tiny()
    before, parameters = logits(model), dict(model.named_parameters())
    cheapen(model, BOTH)
    set_mix(model, 0.0)
    unblend(model)
    assert torch.equal(logits(model), before)
    assert all(p is parameters[name] for name, p in model.named_parameters())
    assert model.state_dict().keys() == tiny().state_dict().keys()


def test_what_is_missing_is_named_and_leaves_no_trace() -> None:
    model = tiny()
    for module in list(model.modules()):
        for name, child in module.named_children():
            if isinstance(child, torch.nn.LayerNorm):
                setattr(module, name, torch.nn.RMSNorm(32, dtype=torch.float64))
    with pytest.raises(UnsupportedModelError, match="change into no_norm"):
        cheapen(model, BOTH)
    assert not list(blended(model))
