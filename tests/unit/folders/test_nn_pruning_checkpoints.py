"""Checkpoints of nn_pruning: load, optimize, save; and lists, weights and pickles that cannot be used."""

import json
import os
import subprocess
import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor
from transformers import AutoModel, AutoModelForQuestionAnswering, BertConfig, BertModel, PreTrainedModel

from sparse_trainer.cut.optimize import optimize_model
from sparse_trainer.cut.record import plan_of
from sparse_trainer.errors import ArgumentError, CheckpointError
from sparse_trainer.folders.load import load_model, load_pruned
from sparse_trainer.folders.load_shape import load_shape
from sparse_trainer.folders.nn_pruning_format import removed_heads
from sparse_trainer.folders.save import save_pruned
from sparse_trainer.folders.streaming import cut_checkpoint
from sparse_trainer.run.cut_folder import compact_folder
from tests.fixtures.compact_models import batch
from tests.fixtures.nn_pruning_files import (
    BERT_NAMES,
    BIN,
    CHANNELS,
    FAMILIES,
    NO_COLUMNS,
    NO_ROWS,
    SAFE,
    SIZES,
    Family,
    aged,
    cut_state,
    features_of,
    linear,
    with_zeros,
    write,
)
from tests.fixtures.same import assert_same

# Shape legend: B = rows, T = tokens.

UNEVEN: Mapping[int, list[int]] = {0: [2, 0], 2: [1, 2, 3]}
WHOLE_LAYER: Mapping[int, list[int]] = {0: [1], 1: [3, 2, 1, 0]}


@torch.no_grad()
def spans(model: PreTrainedModel) -> Tensor:
    """Return start and end logits, shape [2, B, T]: what a question-answering pipeline reads."""
    out = model(**batch(model))
    return torch.stack([out.start_logits, out.end_logits])


def same(left: Tensor, right: Tensor) -> None:
    """Assert equality within rounding in float32."""
    torch.testing.assert_close(left, right, rtol=0, atol=1e-6)


@pytest.mark.parametrize("file", [BIN, SAFE, f"{BIN}.index.json", f"{SAFE}.index.json"])
@pytest.mark.parametrize("removed", [UNEVEN, WHOLE_LAYER], ids=["uneven", "whole-layer"])
@pytest.mark.parametrize("name", FAMILIES)
def test_load_optimize_save_and_load_again(
    name: str, removed: Mapping[int, list[int]], file: str, tmp_path: Path
) -> None:
    family = FAMILIES[name]
    reference = with_zeros(family, removed)
    folder = write(tmp_path / "old", family, cut_state(family, reference, removed), removed, file)
    model = load_pruned(folder)
    assert isinstance(model, family.model_class)
    assert not model.training
    same(spans(model), spans(reference))
    assert "pruned_heads" not in model.config.to_dict()
    plan = plan_of(model)
    assert plan is not None
    assert plan.method == "nn_pruning"
    assert plan.params["dense"] == reference.num_parameters()
    kept = {group["layer"]: group["keep"] for group in plan.groups.values() if group["kind"] == "heads"}
    assert kept == {layer: sorted(set(range(4)) - set(removed.get(layer, []))) for layer in range(3)}

    compact = optimize_model(model)
    same(spans(compact), spans(reference))
    plan = plan_of(compact)
    assert plan is not None
    assert plan.method == "nn_pruning, then zeros"
    assert plan.params == {"dense": reference.num_parameters(), "compact": compact.num_parameters()}
    left = CHANNELS - len(NO_ROWS) - len(NO_COLUMNS)
    assert all(len(g["keep"]) == left for g in plan.groups.values() if g["kind"] == "channels")
    assert plan.groups[f"{family.layers}.0.heads"]["keep"] == kept[0]
    block = compact.get_submodule(f"{family.layers}.0")
    assert linear(block, family.ffn[0]).out_features == left

    for number, saved in enumerate((model, compact)):
        again = load_pruned(save_pruned(saved, tmp_path / str(number)))
        assert_same(again, saved, spans)
        assert plan_of(again) == plan_of(saved)


@pytest.mark.parametrize("file", [BIN, SAFE])
def test_names_and_buffers_of_old(file: str, tmp_path: Path) -> None:
    family = FAMILIES["bert"]
    reference = with_zeros(family, UNEVEN)
    state = aged(cut_state(family, reference, UNEVEN))
    assert any(name.endswith("LayerNorm.gamma") for name in state)
    model = load_pruned(write(tmp_path / "old", family, state, UNEVEN, file))
    same(spans(model), spans(reference))
    saved = load_file(save_pruned(model, tmp_path / "new") / SAFE)
    assert not any(name.endswith(("gamma", "beta", "position_ids")) or "pooler" in name for name in saved)


def test_zero_heads_that_no_list_names_go_too(tmp_path: Path) -> None:
    family = FAMILIES["bert"]
    reference = with_zeros(family, UNEVEN)
    block = reference.get_submodule(f"{family.layers}.1")
    with torch.no_grad():
        for path in family.inputs:
            linear(block, path).weight[features_of([3])] = 0
        linear(block, family.output).weight[:, features_of([1])] = 0
    folder = write(tmp_path / "old", family, cut_state(family, reference, UNEVEN), UNEVEN, BIN)
    model = load_pruned(folder)
    compact = optimize_model(model)
    same(spans(compact), spans(reference))
    plan = plan_of(compact)
    assert plan is not None
    assert plan.groups[f"{family.layers}.1.heads"]["keep"] == [0, 2]
    assert plan.groups[f"{family.layers}.2.heads"]["keep"] == [0]


def test_equal_heads_everywhere_and_a_list_of_none(tmp_path: Path) -> None:
    family = FAMILIES["bert"]
    everywhere = {layer: [1, 3] for layer in range(3)}
    reference = with_zeros(family, everywhere)
    model = load_pruned(write(tmp_path / "a", family, cut_state(family, reference, everywhere), everywhere))
    same(spans(model), spans(reference))
    # transformers 3 and 4 wrote the empty entry into every config.
    dense = write(tmp_path / "b", family, cut_state(family, reference, {}), {"0": []})
    assert_same(load_pruned(dense), reference, spans, calculated=True)


READER = """
import json, sys
sys.modules["sparse_trainer"] = sys.modules["patchers"] = None
import torch
from safetensors.torch import load_file
from transformers import AutoModelForQuestionAnswering

folder, inputs = sys.argv[1], load_file(sys.argv[2])
model = AutoModelForQuestionAnswering.from_pretrained(folder, trust_remote_code=True)
with torch.no_grad():
    out = model(**inputs)
print(json.dumps([out.start_logits.tolist(), out.end_logits.tolist()]))
"""


def test_a_fresh_process_with_transformers_alone_reads_the_result(tmp_path: Path) -> None:
    family = FAMILIES["bert"]
    reference = with_zeros(family, WHOLE_LAYER)
    folder = write(tmp_path / "old", family, cut_state(family, reference, WHOLE_LAYER), WHOLE_LAYER, BIN)
    with pytest.raises(RuntimeError, match="size"):
        AutoModelForQuestionAnswering.from_pretrained(folder)
    compact, plan = compact_folder(str(folder), tmp_path / "new")
    assert plan.method == "nn_pruning, then zeros"
    save_file(batch(reference), tmp_path / "batch.safetensors")
    (tmp_path / "reader.py").write_text(READER, encoding="utf-8")
    environment = {
        **os.environ,
        "HF_HOME": str(tmp_path / "hf"),
        "HF_HUB_OFFLINE": "1",
        "OMP_NUM_THREADS": "1",
    }
    environment.pop("PYTHONPATH", None)
    done = subprocess.run(
        [sys.executable, str(tmp_path / "reader.py"), str(compact), str(tmp_path / "batch.safetensors")],
        capture_output=True, text=True, env=environment, cwd=tmp_path, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-4000:]
    same(torch.tensor(json.loads(done.stdout.splitlines()[-1])), spans(reference))


def test_options_shapes_and_other_heads(tmp_path: Path) -> None:
    family = FAMILIES["bert"]
    reference = with_zeros(family, UNEVEN)
    folder = write(tmp_path / "old", family, cut_state(family, reference, UNEVEN), UNEVEN, BIN)
    model = load_pruned(folder, dtype=torch.bfloat16, attn_implementation="eager")
    assert model.dtype == torch.bfloat16
    assert model.config._attn_implementation == "eager"
    assert load_pruned(folder, dtype="auto").dtype == torch.float32
    base = load_model(folder, AutoModel)
    assert type(base).__name__ == "BertModel"
    bare, full = base.state_dict(), load_pruned(folder).base_model.state_dict()
    assert all(torch.equal(full[name], bare[name]) for name in full)
    labelled = load_model(folder, AutoModelForQuestionAnswering, num_labels=2)
    same(spans(labelled), spans(reference))
    shape = load_shape(str(folder))
    assert {n: p.shape for n, p in shape.named_parameters()} == {
        n: p.shape for n, p in load_pruned(folder).named_parameters()
    }
    with pytest.raises(ArgumentError, match="config"):
        load_pruned(folder, config=family.config)


def test_removed_heads_takes_numbers_and_texts() -> None:
    assert removed_heads({"pruned_heads": {0: [1], "2": [3, 3], "1": []}}) == {0: {1}, 2: {3}}
    assert removed_heads({"pruned_heads": None}) == removed_heads({}) == {}


BAD_LISTS: dict[str, tuple[object, str]] = {
    "no mapping": ([0, 1], "pruned_heads: "),
    "no layer": ({"a": [1]}, "'a' is not the number of a layer"),
    "layer below 0": ({"-1": [1]}, "'-1'"),
    "layer too high": ({"3": [1]}, "pruned_heads.3: no such layer"),
    "no list": ({"1": 2}, "pruned_heads.1: 2 is not a list"),
    "no number": ({"1": [True]}, "pruned_heads.1"),
    "head too high": ({"1": [0, 4]}, "pruned_heads.1: no head 4"),
    "head below 0": ({"1": [-1]}, "pruned_heads.1: no head -1"),
    "everything": ({layer: [0, 1, 2, 3] for layer in range(3)}, "every head of every layer"),
}


@pytest.mark.parametrize("bad", BAD_LISTS)
def test_a_list_that_cannot_be_meant_is_named(bad: str, tmp_path: Path) -> None:
    family = FAMILIES["bert"]
    removed, named = BAD_LISTS[bad]
    folder = write(tmp_path / "old", family, cut_state(family, family.dense(), {}), removed)
    with pytest.raises(CheckpointError) as caught:
        load_pruned(folder)
    assert named in str(caught.value)
    assert str(folder / "config.json").replace("/config", ": config") in str(caught.value)


QUERY = "bert.encoder.layer.0.attention.self.query.weight"
DAMAGES: dict[str, tuple[Callable[[dict[str, Tensor]], object], str]] = {
    "an entry gone": (lambda state: state.pop(QUERY), QUERY),
    "an entry too many": (lambda state: state.update({"bert.extra": torch.ones(1)}), "bert.extra"),
    "heads still there": (lambda state: state.update({QUERY: torch.ones(32, 32)}), QUERY),
    "one head more": (lambda state: state.update({QUERY: torch.ones(24, 32)}), QUERY),
    "no task head": (lambda state: state.pop("qa_outputs.bias"), "qa_outputs.bias"),
}


@pytest.mark.parametrize("file", [BIN, SAFE])
@pytest.mark.parametrize("damage", DAMAGES)
def test_weights_that_do_not_fit_are_named(damage: str, file: str, tmp_path: Path) -> None:
    family = FAMILIES["bert"]
    state = cut_state(family, family.dense(), UNEVEN)
    do_harm, named = DAMAGES[damage]
    do_harm(state)
    folder = write(tmp_path / "old", family, state, UNEVEN, file)
    with pytest.raises(CheckpointError) as caught:
        load_pruned(folder)
    assert named in str(caught.value)
    assert f"{folder}: {file}" in str(caught.value)


def test_a_pooler_is_spared_only_where_the_class_has_none(tmp_path: Path) -> None:
    family = Family(BertModel, BertConfig(**SIZES), "encoder.layer", *BERT_NAMES)
    state = cut_state(family, family.dense(), UNEVEN)
    assert isinstance(load_pruned(write(tmp_path / "whole", family, state, UNEVEN)), BertModel)
    del state["pooler.dense.bias"]
    with pytest.raises(CheckpointError, match=r"pooler\.dense\.bias"):
        load_pruned(write(tmp_path / "old", family, state, UNEVEN))


def test_weights_of_a_layer_that_has_no_heads_left(tmp_path: Path) -> None:
    family = FAMILIES["bert"]
    folder = write(tmp_path / "old", family, cut_state(family, family.dense(), UNEVEN), WHOLE_LAYER)
    with pytest.raises(CheckpointError, match=r"entries are missing, unknown or of the wrong size"):
        load_pruned(folder)


class Harmful:
    """Writes a file when it is unpickled."""

    def __init__(self, mark: Path) -> None:
        self.mark = mark

    def __reduce__(self) -> tuple[Any, ...]:
        return (Path.touch, (self.mark,))


def test_a_pickle_runs_no_code_and_other_folders_may_have_none(tmp_path: Path) -> None:
    family = FAMILIES["bert"]
    state: dict[str, Any] = {**cut_state(family, family.dense(), UNEVEN)}
    folder = write(tmp_path / "bad", family, {**state, "bert.x": Harmful(tmp_path / "mark")}, UNEVEN, BIN)
    for options in ({}, {"weights_only": False}):
        with pytest.raises(CheckpointError, match=BIN):
            load_pruned(folder, **options)
        assert not (tmp_path / "mark").exists()
    dense = write(tmp_path / "dense", family, cut_state(family, family.dense(), {}), {}, BIN)
    with pytest.raises(CheckpointError, match=SAFE):
        load_pruned(dense)


@pytest.mark.parametrize("content", [b"", b"PK\x03\x04 no archive", b"text", b"\x80\x02."])
def test_damaged_pickles_are_named(content: bytes, tmp_path: Path) -> None:
    family = FAMILIES["bert"]
    folder = write(tmp_path / "old", family, cut_state(family, family.dense(), UNEVEN), UNEVEN, BIN)
    (folder / BIN).write_bytes(content)
    with pytest.raises(CheckpointError, match=BIN):
        load_pruned(folder)
    torch.save({"model": {}}, folder / BIN)
    with pytest.raises(CheckpointError, match="holds more than tensors"):
        load_pruned(folder)
    (folder / BIN).unlink()
    with pytest.raises(CheckpointError, match="has neither"):
        load_pruned(folder)


class Scaled(torch.nn.Module):
    """What nn_pruning puts in the place of every LayerNorm of such a checkpoint."""

    def __init__(self, norm: torch.nn.LayerNorm) -> None:
        super().__init__()
        self.weight, self.bias = norm.weight, norm.bias

    def forward(self, x: Tensor) -> Tensor:
        return x * self.weight + self.bias


@pytest.mark.parametrize("removed", [UNEVEN, {}], ids=["heads-removed", "no-head-removed"])
@pytest.mark.parametrize("file", [BIN, SAFE])
def test_norms_that_only_scale(removed: Mapping[int, list[int]], file: str, tmp_path: Path) -> None:
    family = FAMILIES["bert"]
    reference = with_zeros(family, removed)
    state = cut_state(family, reference, removed)
    for owner in list(reference.modules()):
        for name, child in list(owner.named_children()):
            if isinstance(child, torch.nn.LayerNorm):
                setattr(owner, name, Scaled(child))
    for block in reference.bert.encoder.layer:
        block.intermediate.intermediate_act_fn = torch.nn.ReLU()
    folder = write(tmp_path / "old", family, state, removed, file)
    values = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    values |= {"layer_norm_type": "no_norm", "hidden_act": "relu"}
    (folder / "config.json").write_text(json.dumps(values), encoding="utf-8")

    model = load_pruned(folder)
    expected = spans(reference)
    scale = float(expected.abs().max())
    torch.testing.assert_close(spans(model) / scale, expected / scale, rtol=0, atol=1e-5)
    assert "layer_norm_type" not in model.config.to_dict()
    shape = load_shape(str(folder))
    assert {n: p.shape for n, p in shape.named_parameters()} == {
        n: p.shape for n, p in model.named_parameters()
    }
    compact = optimize_model(model)
    torch.testing.assert_close(spans(compact) / scale, expected / scale, rtol=0, atol=1e-5)
    plan = plan_of(compact)
    assert plan is not None
    assert plan.method == "nn_pruning, then zeros"
    assert plan.params["dense"] == reference.num_parameters()
    for number, saved in enumerate((model, compact)):
        again = load_pruned(save_pruned(saved, tmp_path / str(number)))
        assert_same(again, saved, spans)
    with pytest.raises(CheckpointError, match="checkpoint of nn_pruning"):
        cut_checkpoint(folder, plan, tmp_path / "streamed")
