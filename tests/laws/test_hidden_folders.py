"""Models that lost hidden features: folders, plans, cuts on disk."""

from pathlib import Path

import pytest
import torch
import transformers
from transformers import (
    AutoModel,
    AutoModelForMultipleChoice,
    AutoModelForSequenceClassification,
    AutoModelForTokenClassification,
    PreTrainedModel,
)

from patchers.discovery.discover import discover
from patchers.modeling_pruned import stock_class_of
from patchers.patching.gates import Gate
from patchers.patching.patch import gates_by_group, patch, unpatch
from patchers.units import KINDS
from sparse_trainer.cut.optimize import optimize_model
from sparse_trainer.errors import CheckpointError
from sparse_trainer.folders.load import load_pruned
from sparse_trainer.folders.save import save_pruned
from sparse_trainer.folders.streaming import cut_checkpoint
from sparse_trainer.run.cut_folder import compact_folder
from tests.architectures.tiny import tiny_model
from tests.fixtures.hidden_models import hidden_model, outputs, some
from tests.fixtures.same import assert_same, assert_same_answer
from tests.fixtures.training import quiet_model, sparse_args, trainer


@pytest.mark.parametrize(("name", "left"), [("llama-tied", 20), ("qwen2", 21), ("mistral", 12), ("bert", 20)])
def test_folders_load_as_they_were_saved(name: str, left: int, tmp_path: Path) -> None:
    model = hidden_model(name, torch.float32)
    structure = discover(model, ["hidden"])
    patch(model, structure, lambda group: Gate(group.num_units, scored=False))
    for gate in gates_by_group(model, structure).values():
        gate.set_keep(torch.arange(32) % 3 < 2)
        gate.set_keep((gate.keep_U > 0) & (gate.keep_U.cumsum(0) <= left))
    masked = outputs(model)
    compact = optimize_model(model)
    is_native = name != "bert"
    assert (type(compact) is stock_class_of(compact)) == is_native
    torch.testing.assert_close(outputs(compact), masked, rtol=0, atol=1e-5)
    folder = save_pruned(compact, tmp_path / "folder")
    again = stock_class_of(compact).from_pretrained(folder) if is_native else load_pruned(folder)
    assert_same(again.eval(), compact, outputs)
    if is_native:
        assert (again.config.hidden_size, again.config.head_dim) == (left, 8)


def test_a_checkpoint_of_a_training_is_cut_like_the_model_that_was_trained(tmp_path: Path) -> None:
    run = trainer(
        tmp_path, sparse_args("l0-hidden"), quiet_model().float(), save_strategy="steps", save_steps=12
    )
    run.train()
    compact = optimize_model(run.model)
    folder, plan = compact_folder(str(tmp_path / "checkpoint-12"), tmp_path / "compact")
    assert_same(load_pruned(folder).eval(), compact.eval(), outputs, calculated=True)
    assert plan.density_reached == compact.pruning_plan.density_reached
    assert (
        plan.groups["bert.encoder.hidden"]["keep"]
        == compact.pruning_plan.groups["bert.encoder.hidden"]["keep"]
    )


def test_a_plan_cuts_twice_what_two_plans_cut(tmp_path: Path) -> None:
    model = hidden_model("bert")
    compact = model
    for seed in (1, 2):
        structure = discover(compact, KINDS)
        keep = {
            n: k for n, k in some(structure, seed).items() if structure[n].kind not in ("layers", "attention")
        }
        patch(compact, structure, lambda group: Gate(group.num_units, scored=False))
        for name, gate in gates_by_group(compact, structure).items():
            gate.set_keep(keep.get(name, gate.keep_U > 0))
        compact = optimize_model(compact)
        unpatch(model)
    compact.pruning_plan.save(tmp_path / "plan.json")
    at_once = optimize_model(model, plan=tmp_path / "plan.json")
    torch.testing.assert_close(outputs(at_once), outputs(compact), rtol=0, atol=1e-10)
    assert compact.pruning_plan.groups["bert.encoder.hidden"]["size"] == 32


def test_a_checkpoint_is_cut_on_disk_like_in_memory_and_never_padded(tmp_path: Path) -> None:
    model = hidden_model("llama-tied", torch.float32)
    structure = discover(model, ["heads", "channels", "hidden"])
    keep = some(structure)
    patch(model, structure, lambda group: Gate(group.num_units, scored=False))
    for name, gate in gates_by_group(model, structure).items():
        gate.set_keep(keep[name])
    compact = optimize_model(model)
    unpatch(model)
    model.save_pretrained(tmp_path / "dense")
    folder = cut_checkpoint(tmp_path / "dense", compact.pruning_plan, tmp_path / "cut")
    assert_same(load_pruned(folder).eval(), compact, outputs, calculated=True)
    bert = hidden_model("bert", torch.float32)
    structure = discover(bert, ["hidden"])
    patch(bert, structure, lambda group: Gate(group.num_units, scored=False))
    next(iter(gates_by_group(bert, structure).values())).set_keep(torch.arange(32) < 20)
    with pytest.raises(CheckpointError, match="a norm would count hidden features"):
        save_pruned(optimize_model(bert), tmp_path / "padded", export="padded")


OTHER_HEADS = {
    "bert": "QuestionAnswering TokenClassification MaskedLM MultipleChoice",
    "roberta": "QuestionAnswering TokenClassification MaskedLM MultipleChoice",
    "electra": "QuestionAnswering TokenClassification MaskedLM",
    "distilbert": "QuestionAnswering TokenClassification MaskedLM MultipleChoice",
    "gpt2": "QuestionAnswering TokenClassification CausalLM",
}


def narrowed(model_type: str) -> PreTrainedModel:
    """Return a classifier without 12 of its 32 hidden features."""
    config = tiny_model(model_type).config
    config.pad_token_id = 0
    torch.manual_seed(0)
    model = AutoModelForSequenceClassification.from_config(config).eval()
    structure = discover(model, ["hidden"])
    patch(model, structure, lambda group: Gate(group.num_units, scored=False))
    (gate,) = gates_by_group(model, structure).values()
    gate.set_keep(torch.arange(32) % 8 < 5)
    return optimize_model(model)


@pytest.mark.parametrize("model_type", OTHER_HEADS)
def test_a_folder_loads_under_other_task_heads(model_type: str, tmp_path: Path) -> None:
    compact = narrowed(model_type)
    folder = save_pruned(compact, tmp_path / "folder")
    ids_BT = torch.arange(5, 21).view(2, 8)
    expected = compact.base_model(ids_BT).last_hidden_state
    for head in OTHER_HEADS[model_type].split():
        auto = getattr(transformers, f"AutoModelFor{head}")
        # A classifier of sequences and one of tokens have the same names, as in stock folders.
        again = auto.from_pretrained(folder, trust_remote_code=True, ignore_mismatched_sizes=True).eval()
        assert_same_answer(again.base_model(ids_BT).last_hidden_state, expected)
        again(ids_BT.view(1, 2, 8) if head == "MultipleChoice" else ids_BT)
        again.save_pretrained(tmp_path / head)
        third = auto.from_pretrained(tmp_path / head, trust_remote_code=True).eval()
        for name, tensor in again.state_dict().items():
            assert torch.equal(third.state_dict()[name], tensor), (head, name)
    base = AutoModel.from_pretrained(folder, trust_remote_code=True).eval()
    assert_same_answer(base(ids_BT).last_hidden_state, expected)


def test_a_cut_under_another_head_still_loads_under_the_first(tmp_path: Path) -> None:
    folder = save_pruned(narrowed("roberta"), tmp_path / "folder")
    other = AutoModelForTokenClassification.from_pretrained(folder, trust_remote_code=True)
    structure = discover(other)
    patch(other, structure, lambda group: Gate(group.num_units, scored=False))
    gates_by_group(other, structure)[structure.of(["channels"])[0].name].set_keep(torch.arange(48) < 7)
    again = save_pruned(optimize_model(other.eval()), tmp_path / "again")
    first = AutoModelForSequenceClassification.from_pretrained(again, trust_remote_code=True)
    assert first.classifier.dense.weight.shape == (32, 20)
    first(torch.arange(5, 21).view(2, 8))


def test_a_head_that_cannot_follow_says_why(tmp_path: Path) -> None:
    folder = save_pruned(narrowed("electra"), tmp_path / "folder")
    with pytest.raises(ValueError, match=r"ElectraForMultipleChoice.*sequence_summary"):
        AutoModelForMultipleChoice.from_pretrained(folder, trust_remote_code=True)
