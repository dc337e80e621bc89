"""Reading folders, whole and damaged."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import (
    AutoModel,
    AutoModelForSequenceClassification,
    AutoModelForTokenClassification,
    BertConfig,
    BertForMaskedLM,
    BertForNextSentencePrediction,
    BertForPreTraining,
    BertForQuestionAnswering,
    BertModel,
    PreTrainedModel,
)

from patchers.discovery.discover import discover
from patchers.patching.patch import gates_of
from sparse_trainer.cut.optimize import optimize_model
from sparse_trainer.cut.record import plan_of
from sparse_trainer.errors import CheckpointError
from sparse_trainer.folders.load import is_patched_checkpoint, load_model, load_pruned
from sparse_trainer.folders.save import save_pruned
from sparse_trainer.training.arguments.arguments import SparseTrainingArguments
from sparse_trainer.training.coordinator import ModelPatchingCoordinator
from sparse_trainer.training.load import load_patched
from sparse_trainer.training.trainer import STATE_FILE, save_state
from tests.fixtures.compact_models import DECISIONS, FAMILIES, logits, patched, perturbed, tiny
from tests.fixtures.same import assert_same

WEIGHTS = "model.safetensors"


def compact_model(decision: str = "uneven", family: str = "bert", **options: Any) -> PreTrainedModel:
    """Return a small model that was cut."""
    model = tiny(family, **options)
    return optimize_model(patched(model, DECISIONS[decision](discover(model))))


@pytest.mark.parametrize("decision", DECISIONS)
@pytest.mark.parametrize("family", FAMILIES)
def test_load_gives_back_what_was_saved(family: str, decision: str, tmp_path: Path) -> None:
    model = compact_model(decision, family)
    folder = save_pruned(model, tmp_path / "out")
    loaded = load_pruned(folder)
    assert type(loaded) is type(model)
    assert not loaded.training
    assert loaded.dtype == model.dtype
    assert_same(loaded, model, logits)
    assert plan_of(loaded) == plan_of(model)
    again = save_pruned(loaded, tmp_path / "again")
    for name in (WEIGHTS, "config.json", "pruning_plan.json", "README.md"):
        assert (again / name).read_bytes() == (folder / name).read_bytes(), name


@pytest.mark.parametrize(
    "head",
    [BertForMaskedLM, BertForPreTraining, BertForQuestionAnswering, BertModel, BertForNextSentencePrediction],
)
def test_heads_of_every_kind_and_tied_weights(head: Any, tmp_path: Path) -> None:
    torch.manual_seed(0)
    config = BertConfig(
        vocab_size=99, hidden_size=32, num_attention_heads=4, intermediate_size=48, num_hidden_layers=3
    )
    model = perturbed(head(config)).eval()
    compact = optimize_model(patched(model, DECISIONS["uneven"](discover(model))))
    loaded = load_pruned(save_pruned(compact, tmp_path / "out"))
    assert type(loaded) is type(compact)
    mine, theirs = compact.state_dict(), loaded.state_dict()
    assert all(torch.equal(mine[name], theirs[name]) for name in mine)
    assert loaded.num_parameters() == compact.num_parameters()


def test_options_go_to_from_pretrained(tmp_path: Path) -> None:
    folder = save_pruned(compact_model(), tmp_path / "out")
    loaded = load_pruned(folder, dtype=torch.float32, attn_implementation="eager")
    assert loaded.dtype == torch.float32
    assert loaded.config._attn_implementation == "eager"
    assert torch.equal(
        load_pruned(str(folder), dtype=torch.bfloat16).classifier.bias, loaded.classifier.bias.bfloat16()
    )


def test_sharded_weights(tmp_path: Path) -> None:
    model = compact_model()
    model.save_pretrained(tmp_path, max_shard_size="20KB")
    assert len(list(tmp_path.glob("*.safetensors"))) > 2
    assert_same(load_pruned(tmp_path), model, logits)
    assert not is_patched_checkpoint(tmp_path)
    next(tmp_path.glob("*-00002-of-*.safetensors")).unlink()
    with pytest.raises(CheckpointError, match="00002"):
        load_pruned(tmp_path)


def test_another_task_head(tmp_path: Path) -> None:
    model = compact_model()
    folder = save_pruned(model, tmp_path / "out")
    with pytest.raises(CheckpointError, match=r"classifier\.bias.*fresh task head"):
        load_model(folder, AutoModelForTokenClassification, num_labels=7)
    tokens = load_model(folder, AutoModelForTokenClassification, num_labels=7, ignore_mismatched_sizes=True)
    assert tokens.classifier.out_features == 7
    assert torch.equal(
        tokens.bert.encoder.layer[0].intermediate.dense.weight,
        model.bert.encoder.layer[0].intermediate.dense.weight,
    )
    assert type(load_model(folder, AutoModel)).__name__ == "BertModel"
    tiny().save_pretrained(tmp_path / "dense")
    assert_same(load_model(tmp_path / "dense"), tiny(), logits)


@pytest.mark.parametrize("family", FAMILIES)
def test_the_stock_class_refuses_an_uneven_folder(family: str, tmp_path: Path) -> None:
    model = tiny(family)
    attention = discover(model).of(["attention"])[1].name
    compact = optimize_model(patched(model, {attention: torch.tensor([False])}))
    compact.save_pretrained(tmp_path)
    with pytest.raises(RuntimeError, match=r"size|mismatch"):
        AutoModelForSequenceClassification.from_pretrained(tmp_path)


def edit_json(file: str, change: Callable[[dict[str, Any]], Any]) -> Callable[[Path], None]:
    """Return a damage: a change of JSON values."""

    def damage(folder: Path) -> None:
        values = json.loads((folder / file).read_text(encoding="utf-8"))
        change(values)
        (folder / file).write_text(json.dumps(values), encoding="utf-8")

    return damage


def edit_weights(change: Callable[[dict[str, torch.Tensor]], Any]) -> Callable[[Path], None]:
    """Return a damage: a change of tensors."""

    def damage(folder: Path) -> None:
        state = load_file(folder / WEIGHTS)
        change(state)
        save_file(state, folder / WEIGHTS, metadata={"format": "pt"})

    return damage


def cut_file(file: str, size: int) -> Callable[[Path], None]:
    """Return a damage: only the first bytes are left."""

    def damage(folder: Path) -> None:
        (folder / file).write_bytes((folder / file).read_bytes()[:size])

    return damage


QUERY = "bert.encoder.layer.0.attention.self.query.weight"
DAMAGES: dict[str, tuple[Callable[[Path], None], str]] = {
    "weights cut off": (cut_file(WEIGHTS, 20_000), WEIGHTS),
    "weights empty": (cut_file(WEIGHTS, 0), WEIGHTS),
    "weights gone": (lambda folder: (folder / WEIGHTS).unlink(), WEIGHTS),
    "an entry gone": (edit_weights(lambda state: state.pop(QUERY)), QUERY),
    "an entry too many": (
        edit_weights(lambda state: state.update({"bert.extra": torch.ones(1)})),
        "bert.extra",
    ),
    "an entry too small": (edit_weights(lambda state: state.update({QUERY: torch.ones(3, 32)})), QUERY),
    "config gone": (lambda folder: (folder / "config.json").unlink(), "config.json"),
    "config cut off": (cut_file("config.json", 100), "config.json"),
    "class unknown": (edit_json("config.json", lambda c: c.update(architectures=["Mine"])), "architectures"),
    "class missing": (edit_json("config.json", lambda c: c.pop("architectures")), "architectures"),
    "layout gone": (edit_json("config.json", lambda c: c["pruning"].pop("layout")), "config.json"),
    "pruning gone": (edit_json("config.json", lambda c: c.pop("pruning")), WEIGHTS),
    "layout of later times": (edit_json("config.json", lambda c: c["pruning"].update(format=7)), "format 7"),
    "layout of another": (
        edit_json(
            "config.json", lambda c: c["pruning"]["layout"]["shapes"].update({"encoder.foo.weight": [1, 1]})
        ),
        "encoder.foo",
    ),
    "plan cut off": (cut_file("pruning_plan.json", 200), "pruning_plan.json"),
    "plan field gone": (
        edit_json("pruning_plan.json", lambda p: p.pop("groups")),
        "pruning_plan.json: groups",
    ),
}


@pytest.mark.parametrize("damage", DAMAGES)
def test_damage_is_named(damage: str, tmp_path: Path) -> None:
    folder = save_pruned(compact_model(), tmp_path / "out")
    do_harm, named = DAMAGES[damage]
    do_harm(folder)
    with pytest.raises(CheckpointError) as caught:
        load_pruned(folder)
    assert named in str(caught.value)
    assert str(folder) in str(caught.value)


def test_a_folder_or_name_that_is_not_there(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    with pytest.raises(CheckpointError, match=r"config\.json"):
        load_pruned(tmp_path / "nothing")
    with pytest.raises(CheckpointError, match=r"config\.json"):
        load_pruned(tmp_path)
    with pytest.raises(CheckpointError, match=r"config\.json"):
        load_pruned("nobody/nothing-here")


def training_checkpoint(folder: Path, **options: Any) -> PreTrainedModel:
    """Write what the trainer leaves in the middle of pruning, and return the patched model."""
    model = tiny(**options)
    coordinator = ModelPatchingCoordinator(
        SparseTrainingArguments(
            density=0.5, pruning_warmup_ratio=0, cooldown_ratio=0.9, distil_teacher_name_or_path="self"
        )
    )
    coordinator.patch_model(model)
    coordinator.begin(10)
    with torch.no_grad():
        for score in coordinator.score_parameters():
            score.normal_()
    for _ in range(5):
        coordinator.step()
    model.save_pretrained(folder)
    save_state(folder, coordinator)
    return model


@pytest.mark.parametrize(
    "load", [load_pruned, load_model, lambda f: load_model(f, AutoModelForSequenceClassification)]
)
def test_a_checkpoint_with_gates_is_not_taken_for_a_dense_model(
    load: Callable[[Path], Any], tmp_path: Path
) -> None:
    training_checkpoint(tmp_path)
    assert is_patched_checkpoint(tmp_path)
    with pytest.raises(CheckpointError, match="sparse-trainer optimize"):
        load(tmp_path)


def test_a_checkpoint_with_gates_loads_with_its_gates(tmp_path: Path) -> None:
    model = training_checkpoint(tmp_path)
    loaded = load_patched(tmp_path)
    assert len(gates_of(loaded)) == len(gates_of(model)) == 6
    assert_same(loaded, model, logits)
    compact = optimize_model(loaded)
    assert compact.num_parameters() < tiny().num_parameters()
    torch.testing.assert_close(logits(compact), logits(model), rtol=0, atol=1e-10)


def test_a_pruned_model_that_is_pruned_again_can_be_resumed(tmp_path: Path) -> None:
    compact = compact_model()
    coordinator = ModelPatchingCoordinator(SparseTrainingArguments(density=0.5))
    coordinator.patch_model(compact)
    coordinator.begin(2)
    coordinator.step(2)
    compact.save_pretrained(tmp_path, max_shard_size="20KB")
    save_state(tmp_path, coordinator)
    assert is_patched_checkpoint(tmp_path)
    assert_same(load_patched(tmp_path), compact, logits)


def test_a_damaged_checkpoint_with_gates_is_named(tmp_path: Path) -> None:
    whole = tmp_path / "whole"
    training_checkpoint(whole)
    gate = "bert.encoder.layer.0.attention.output.dense.heads_gate.keep_U"
    damages: list[tuple[Callable[[Path], None], str]] = [
        (lambda folder: (folder / STATE_FILE).unlink(), STATE_FILE),
        (edit_json(STATE_FILE, lambda s: s.update(format=2)), "format 1"),
        (edit_json(STATE_FILE, lambda s: s["sparse_args"].update(density=3)), "density"),
        (edit_json(STATE_FILE, lambda s: s["sparse_args"].update(unknown=3)), "sparse_args"),
        (edit_weights(lambda state: state.pop(gate)), WEIGHTS),
        (edit_weights(lambda state: state.pop("classifier.bias")), "classifier.bias"),
        (edit_weights(lambda state: state.update({gate: torch.ones(3)})), WEIGHTS),
        (cut_file(WEIGHTS, 50), WEIGHTS),
    ]
    for index, (do_harm, named) in enumerate(damages):
        folder = tmp_path / str(index)
        shutil.copytree(whole, folder)
        do_harm(folder)
        with pytest.raises(CheckpointError) as caught:
            load_patched(folder)
        assert named in str(caught.value)
    tiny().save_pretrained(tmp_path / "dense")
    with pytest.raises(CheckpointError, match="has no gates"):
        load_patched(tmp_path / "dense")
