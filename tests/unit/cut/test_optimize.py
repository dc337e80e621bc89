"""From gates, plans and zeros to a smaller dense model."""

import copy
import logging
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn
from transformers import (
    AutoModelForCausalLM,
    AutoModelForSequenceClassification,
    BertConfig,
    BertForMaskedLM,
    BertForMultipleChoice,
    PreTrainedModel,
    T5Config,
    T5ForConditionalGeneration,
)

import sparse_trainer.cut.carry_out
from patchers.discovery.discover import discover
from patchers.modeling_pruned import _index_on, stock_class_of
from patchers.patching.gates import Gate, PolarGate
from patchers.patching.patch import gates_by_group, gates_of, patch, unpatch
from sparse_trainer.cut.optimize import optimize_model
from sparse_trainer.cut.record import plan_of
from sparse_trainer.cut.self_check import SelfCheckError
from sparse_trainer.errors import ArgumentError, UnsupportedModelError
from sparse_trainer.folders.load import load_pruned
from sparse_trainer.folders.save import save_pruned
from sparse_trainer.training.arguments.arguments import SparseTrainingArguments
from sparse_trainer.training.coordinator import ModelPatchingCoordinator
from tests.architectures.tiny import tiny_model
from tests.fixtures.compact_models import (
    DECISIONS,
    FAMILIES,
    even_keep,
    logits,
    masked_logits,
    patched,
    perturbed,
    tiny,
    uneven_keep,
)
from tests.fixtures.same import assert_same


def same_weights(one: nn.Module, other: nn.Module) -> bool:
    """Tell whether two models have the same entries, bit for bit."""
    mine, theirs = one.state_dict(), other.state_dict()
    return mine.keys() == theirs.keys() and all(torch.equal(mine[name], theirs[name]) for name in mine)


@pytest.mark.parametrize("decision", DECISIONS)
@pytest.mark.parametrize("family", FAMILIES)
def test_cut_equals_masked(family: str, decision: str) -> None:
    model = tiny(family)
    keep = DECISIONS[decision](discover(model))
    gated = patched(model, keep)
    config, state = model.config.to_dict(), copy.deepcopy(gated.state_dict())
    compact = optimize_model(gated)
    torch.testing.assert_close(logits(compact), masked_logits(model, keep), rtol=0, atol=1e-10)
    assert not torch.allclose(logits(compact), logits(model), atol=1e-3)
    assert type(compact).__name__ == type(model).__name__
    assert isinstance(compact, type(model))
    assert compact.num_parameters() < model.num_parameters()
    assert not gates_of(compact)
    # The patched model is as it was.
    assert gated.config.to_dict() == config
    assert all(torch.equal(state[name], value) for name, value in gated.state_dict().items())
    # The plan alone does the same.
    again = optimize_model(model, plan=plan_of(compact))
    assert same_weights(again, compact)
    assert plan_of(again).groups == plan_of(compact).groups  # type: ignore[union-attr]


@pytest.mark.parametrize("family", FAMILIES)
def test_even_sizes_give_the_stock_class(family: str) -> None:
    model = tiny(family)
    structure = discover(model)
    compact = optimize_model(patched(model, even_keep(structure)))
    fields = compact.config.to_dict()
    assert type(compact) is type(model)
    assert (compact.config.num_hidden_layers, compact.config.num_attention_heads) == (2, 4)
    assert fields.get("intermediate_size", fields.get("hidden_dim")) == 20
    assert not {"pruning", "auto_map"} & fields.keys()


def test_uneven_sizes_keep_the_class_name_and_say_where_to_find_it() -> None:
    model = tiny()
    compact = optimize_model(patched(model, uneven_keep(discover(model))))
    assert type(compact) is not type(model)
    assert stock_class_of(compact) is type(model)
    auto_map = compact.config.auto_map
    assert auto_map["AutoModel"] == "modeling_pruned.BertModel"
    assert auto_map["AutoModelForSequenceClassification"] == "modeling_pruned.BertForSequenceClassification"
    assert auto_map["AutoModelForTokenClassification"] == "modeling_pruned.BertForTokenClassification"


def test_float32_and_half_precision() -> None:
    for dtype, atol in ((torch.float32, 1e-5), (torch.bfloat16, 5e-2)):
        model = tiny(dtype=dtype)
        keep = uneven_keep(discover(model))
        compact = optimize_model(patched(model, keep))
        assert {p.dtype for p in compact.parameters()} == {dtype}
        torch.testing.assert_close(logits(compact), masked_logits(model, keep), rtol=0, atol=atol)


def test_modes_flags_and_random_numbers_are_kept() -> None:
    model = tiny()
    for parameter in model.base_model.embeddings.parameters():
        parameter.requires_grad_(False)
    model.bert.encoder.layer[0].intermediate.dense.weight.requires_grad_(False)
    gated = patched(model, uneven_keep(discover(model)))
    gated.train()
    gated.bert.pooler.training = False
    before = torch.get_rng_state()
    compact = optimize_model(gated)
    assert torch.equal(torch.get_rng_state(), before)
    modes = {name: module.training for name, module in compact.named_modules()}
    assert [name for name, mode in modes.items() if not mode] == [
        name for name in modes if name.startswith("bert.pooler")
    ][:1]
    frozen = {name for name, p in model.named_parameters() if not p.requires_grad}
    assert {name for name, p in compact.named_parameters() if not p.requires_grad} == frozen


def test_tied_weights_stay_tied() -> None:
    torch.manual_seed(0)
    config = BertConfig(
        vocab_size=99, hidden_size=32, num_attention_heads=4, intermediate_size=48, num_hidden_layers=3
    )
    model = perturbed(BertForMaskedLM(config)).double().eval()
    compact = optimize_model(patched(model, uneven_keep(discover(model))))
    assert compact.cls.predictions.decoder.weight is compact.bert.embeddings.word_embeddings.weight
    assert compact.config.auto_map["AutoModelForMaskedLM"] == "modeling_pruned.BertForMaskedLM"


def test_heads_with_inputs_of_their_own_shape() -> None:
    config = BertConfig(
        vocab_size=99, hidden_size=32, num_attention_heads=4, intermediate_size=48, num_hidden_layers=3
    )
    model = perturbed(BertForMultipleChoice(config)).eval()
    assert (
        "AutoModelForMultipleChoice"
        in optimize_model(patched(model, uneven_keep(discover(model)))).config.auto_map
    )


def test_in_place() -> None:
    model = tiny()
    keep = uneven_keep(discover(model))
    expected = masked_logits(model, keep)
    gated = patched(model, keep)
    assert optimize_model(gated, inplace=True) is gated
    torch.testing.assert_close(logits(gated), expected, rtol=0, atol=1e-10)


def test_soft_gates_decide_by_their_mask() -> None:
    model = tiny()
    structure = discover(model, ["layers"])
    gates = patch(model, structure, lambda group: PolarGate(group.num_units, epsilon=0.5))
    name = structure.groups[1].name
    gates[name].set_keep(torch.tensor([False]))
    soft = logits(model)
    compact = optimize_model(model)
    unpatch(model)
    assert compact.config.num_hidden_layers == 2
    torch.testing.assert_close(
        logits(compact), masked_logits(model, {name: torch.tensor([False])}), rtol=0, atol=1e-10
    )
    assert not torch.allclose(logits(compact), soft, atol=1e-3)


def with_zeros(model: PreTrainedModel) -> PreTrainedModel:
    """Zero columns, rows, heads, and every head of a layer, and leave the biases."""
    layers = model.bert.encoder.layer
    with torch.no_grad():
        layers[0].output.dense.weight[:, 5:9] = 0
        layers[0].intermediate.dense.weight[20:23] = 0
        layers[0].attention.self.value.weight[8:16] = 0
        layers[1].attention.self.value.weight.zero_()
        layers[1].attention.output.dense.weight[:, 24:] = 0
        layers[2].intermediate.dense.weight.zero_()
    return model


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16])
def test_zeros_are_found_and_their_constants_folded(dtype: torch.dtype) -> None:
    model = with_zeros(tiny(dtype=dtype))
    compact = optimize_model(model)
    atol = {torch.float64: 1e-10, torch.float32: 1e-5, torch.bfloat16: 5e-2}[dtype]
    torch.testing.assert_close(logits(compact), logits(model), rtol=0, atol=atol)
    groups = plan_of(compact).groups  # type: ignore[union-attr]
    kept = {name: len(group["keep"]) for name, group in groups.items()}
    assert [kept[f"bert.encoder.layer.{i}.heads"] for i in range(3)] == [3, 0, 4]
    assert [kept[f"bert.encoder.layer.{i}.channels"] for i in range(3)] == [41, 48, 0]
    assert plan_of(compact).method == "zeros"  # type: ignore[union-attr]


@pytest.mark.parametrize("family", ["distilbert", "mpnet"])
def test_zero_heads_where_attention_owns_its_output(family: str) -> None:
    model = tiny(family)
    value, output = ("v_lin", "out_lin") if family == "distilbert" else ("attn.v", "attn.o")
    block = next(g.block for g in discover(model).of(["heads"]))
    with torch.no_grad():
        model.get_submodule(f"{block}.attention.{value}").weight.zero_()
    compact = optimize_model(model)
    torch.testing.assert_close(logits(compact), logits(model), rtol=0, atol=1e-10)
    assert not any(
        name.startswith(f"{block}.attention.{output}.weight") for name, _ in compact.named_parameters()
    )


def test_nothing_to_cut_says_so(caplog: pytest.LogCaptureFixture) -> None:
    model = tiny()
    with caplog.at_level(logging.WARNING, "sparse_trainer"):
        compact = optimize_model(model)
    assert "nothing to cut" in caplog.text
    assert type(compact) is type(model)
    assert same_weights(compact, model)


@pytest.mark.parametrize("family", FAMILIES)
def test_a_pruned_model_is_pruned_again(family: str) -> None:
    model = tiny(family)
    structure = discover(model)
    first_keep = uneven_keep(structure)
    first_keep[next(g.name for g in structure.of(["layers"]) if g.layer == 2)] = torch.tensor([False])
    first = optimize_model(patched(model, first_keep))
    left = discover(first)
    generator = torch.Generator().manual_seed(11)
    keep = {}
    for group in left.of(["heads", "channels"]):
        keep[group.name] = torch.rand(group.num_units, generator=generator) > 0.3
        keep[group.name][0] = False
        keep[group.name][-1] = True
    second = optimize_model(patched(first, keep))
    torch.testing.assert_close(logits(second), masked_logits(first, keep), rtol=0, atol=1e-10)
    assert second.num_parameters() < first.num_parameters()
    # One plan over the dense model says both cuts.
    once = optimize_model(model, plan=plan_of(second))
    assert same_weights(once, second)
    assert plan_of(once).shapes == plan_of(second).shapes  # type: ignore[union-attr]
    assert plan_of(once).params == plan_of(second).params  # type: ignore[union-attr]


@pytest.mark.parametrize("family", ["bert", "mpnet"])
def test_a_model_made_by_the_code_in_its_folder_is_pruned_again(
    family: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("transformers.dynamic_module_utils.HF_MODULES_CACHE", str(tmp_path / "modules"))
    monkeypatch.syspath_prepend(str(tmp_path / "modules"))
    model = tiny(family)
    first = optimize_model(patched(model, uneven_keep(discover(model))))
    first.save_pretrained(tmp_path / "first")
    foreign = AutoModelForSequenceClassification.from_pretrained(tmp_path / "first", trust_remote_code=True)
    assert type(foreign).__module__.startswith("transformers_modules.")
    channels = discover(foreign).of(["channels"])[0]
    keep = {
        channels.name: torch.arange(channels.num_units) > 3,
        discover(foreign).of(["heads"])[0].name: torch.tensor([False, True]),
    }
    second = optimize_model(patched(foreign, keep))
    assert type(second) is type(first)
    torch.testing.assert_close(logits(second), masked_logits(first, keep), rtol=0, atol=1e-10)
    second.save_pretrained(tmp_path / "second")
    assert_same(load_pruned(tmp_path / "second"), second, logits)


def test_removing_a_layer_after_a_layer() -> None:
    model = tiny(num_hidden_layers=5)
    first = optimize_model(patched(model, {"bert.encoder.layer.1.layer": torch.tensor([False])}))
    second = optimize_model(
        patched(
            first,
            {
                "bert.encoder.layer.2.layer": torch.tensor([False]),
                "bert.encoder.layer.3.channels": torch.arange(48) < 40,
            },
        )
    )
    groups = plan_of(second).groups  # type: ignore[union-attr]
    assert [n for n, g in groups.items() if not g["keep"]] == [
        f"bert.encoder.layer.{i}.layer" for i in (1, 3)
    ]
    assert groups["bert.encoder.layer.4.channels"]["layer"] == 4
    assert same_weights(optimize_model(model, plan=plan_of(second)), second)


@pytest.mark.parametrize("decision", DECISIONS)
def test_on_the_meta_device(decision: str) -> None:
    model = tiny("deberta-v2")
    compact = optimize_model(patched(model, DECISIONS[decision](discover(model))))
    shadow = optimize_model(model.to("meta"), plan=plan_of(compact))
    assert {n: p.shape for n, p in shadow.named_parameters()} == {
        n: p.shape for n, p in compact.named_parameters()
    }
    assert {p.device.type for p in shadow.parameters()} == {"meta"}
    with pytest.raises(UnsupportedModelError, match="Pass plan="):
        optimize_model(model)


def test_self_check_catches_a_wrong_cut(monkeypatch: pytest.MonkeyPatch) -> None:
    model = tiny()
    gated = patched(model, uneven_keep(discover(model)))
    right = sparse_trainer.cut.carry_out.cut

    def wrong(model: Any, *args: Any) -> None:
        right(model, *args)
        with torch.no_grad():
            model.bert.encoder.layer[0].output.dense.bias[0] += 1e-3

    monkeypatch.setattr(sparse_trainer.cut.carry_out, "cut", wrong)
    with pytest.raises(SelfCheckError, match="before and after the cut differ"):
        optimize_model(gated)
    optimize_model(gated, check=False)


def test_self_check_refuses_weights_that_are_not_finite() -> None:
    model = tiny()
    with torch.no_grad():
        model.bert.embeddings.word_embeddings.weight.fill_(float("nan"))
    with pytest.raises(SelfCheckError):
        optimize_model(patched(model, uneven_keep(discover(model))))


def test_mixed_precision_wrapper_is_taken_off() -> None:
    model = tiny()
    gated: Any = patched(model, uneven_keep(discover(model)))
    gated._original_forward = gated.forward
    gated.forward = lambda *args, **kwargs: None
    assert "forward" not in vars(optimize_model(gated))
    assert "forward" in vars(gated)


def test_a_class_of_the_users_own_is_cut_in_memory(caplog: pytest.LogCaptureFixture) -> None:
    class Mine(type(tiny())):  # type: ignore[misc]
        """A subclass that transformers does not know."""

    model = tiny()
    model.__class__ = Mine
    keep = uneven_keep(discover(model))
    compact = optimize_model(patched(model, keep))
    assert isinstance(compact, Mine)
    assert "no class of transformers" in caplog.text
    torch.testing.assert_close(logits(compact), masked_logits(model, keep), rtol=0, atol=1e-10)


def test_bad_input_is_named() -> None:
    model = tiny()
    gated = patched(model, uneven_keep(discover(model)))
    with pytest.raises(ArgumentError, match="mode: unknown value 'dens'"):
        optimize_model(model, "dens")
    with pytest.raises(ArgumentError, match="plan"):
        optimize_model(gated, plan=plan_of(optimize_model(gated)))
    with pytest.raises(UnsupportedModelError, match="Unwrap it first"):
        optimize_model(nn.Linear(2, 2))  # type: ignore[type-var]


def test_a_second_cut_where_one_kv_group_was_left() -> None:
    model = tiny_model("llama")

    def close(model: PreTrainedModel, name: str, keep: list[bool]) -> PreTrainedModel:
        structure = discover(model)
        patch(model, structure, lambda group: Gate(group.num_units, scored=False))
        gates_by_group(model, structure)[name].set_keep(torch.tensor(keep))
        return optimize_model(model)

    once = close(model, "model.layers.0.heads", [True, False])
    twice = close(once, "model.layers.0.channels", [False] + [True] * 47)
    plan = plan_of(twice)
    assert plan is not None
    assert plan.groups["model.layers.0.heads"]["keep"] == [0]
    assert plan.groups["model.layers.0.channels"]["keep"] == list(range(1, 48))
    # The whole decision on the whole model gives the same weights.
    unpatch(model)
    assert same_weights(optimize_model(model, plan=plan), twice)
    unpatch(twice)
    # Its query heads are counted now, and no plan over the first model says which of them stay.
    thrice = close(twice, "model.layers.0.heads", [True, False])
    last = plan_of(thrice)
    assert last is not None
    assert last.groups["model.layers.0.heads"] == {"kind": "heads", "layer": 0, "size": 2, "keep": [0]}
    assert last.params == {"dense": twice.num_parameters(), "compact": thrice.num_parameters()}
    unpatch(twice)
    assert same_weights(optimize_model(twice, plan=last), thrice)


def test_a_second_cut_is_the_same_in_memory_and_after_loading(tmp_path: Path) -> None:
    def halved(model: PreTrainedModel) -> PreTrainedModel:
        coordinator = ModelPatchingCoordinator(SparseTrainingArguments(scoring="magnitude", density=0.5))
        coordinator.patch_model(model)
        coordinator.begin(1)
        coordinator.step(1)
        return optimize_model(model)

    once = halved(tiny_model("llama"))
    once.save_pretrained(tmp_path / "plain")
    folder = save_pruned(once, tmp_path / "ours")
    stock = AutoModelForCausalLM.from_pretrained(tmp_path / "plain", trust_remote_code=True)
    ours = load_pruned(folder)
    twice, *others = [halved(model) for model in (once, stock, ours)]
    assert all(same_weights(twice, other) for other in others)
    plans = [plan_of(model) for model in (twice, *others)]
    # Their name alone says where they were loaded from.
    nameless = [replace(plan, model="") for plan in plans if plan is not None]
    assert len(nameless) == 3
    assert nameless[0] == nameless[1] == nameless[2]


def test_the_check_of_a_cut_reads_no_word_that_a_small_vocabulary_lacks() -> None:
    config = T5Config(
        vocab_size=20, d_model=32, d_ff=48, num_layers=2, num_heads=4, d_kv=8, decoder_start_token_id=0
    )
    model = T5ForConditionalGeneration(config).eval()
    structure = discover(model)
    keep = {g.name: torch.arange(g.num_units) < 20 for g in structure.of(["channels"])}
    assert optimize_model(patched(model, keep)).num_parameters() < model.num_parameters()


def test_a_model_that_first_ran_in_inference_mode_still_trains() -> None:
    model = tiny_model("t5").float().eval()
    structure = discover(model)
    keep = {g.name: torch.arange(g.num_units) < 2 for g in structure.of(["heads"])}
    compact = optimize_model(patched(model, keep), check=False)
    ids_BT = torch.arange(5, 13).view(1, 8)
    _index_on.cache_clear()
    with torch.inference_mode():
        compact(input_ids=ids_BT, decoder_input_ids=ids_BT)
    compact(input_ids=ids_BT, decoder_input_ids=ids_BT).logits.sum().backward()
    assert all(p.grad is not None for p in compact.parameters() if p.numel())
