"""A cut from folder to folder: what `optimize_model` and `save_pruned` write, without the model in memory."""

import json
import resource
import shutil
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedModel

from patchers.discovery.discover import discover
from patchers.surgery import cut
from patchers.units import Structure
from sparse_trainer.cli.front import main
from sparse_trainer.cut.optimize import optimize_model
from sparse_trainer.cut.traced import Traced, pieces, trace
from sparse_trainer.errors import CheckpointError, UnsupportedModelError
from sparse_trainer.folders.load import load_pruned
from sparse_trainer.folders.own_files import RECORD_FILE
from sparse_trainer.folders.safetensors_writer import SafetensorsWriter
from sparse_trainer.folders.save import save_pruned
from sparse_trainer.folders.streaming import cut_checkpoint
from sparse_trainer.plan.document import PLAN_FILE, Plan
from tests.architectures.tiny import tiny_model
from tests.fixtures.same import assert_same_answer

# Shape legend: U = units of a group.

SHARD = "50KB"


def uneven(structure: Structure, *, layers: bool = True) -> dict[str, Tensor]:
    """Keep about half of all units; take a layer away, all heads of another, all channels of a third."""
    generator = torch.Generator().manual_seed(0)
    keep = {}
    for group in structure.of(["heads", "channels", "experts"]):
        keep_U = torch.rand(group.num_units, generator=generator) > 0.4
        keep_U[: max(1, group.min_units)] = True
        keep_U[(~keep_U).nonzero().flatten()[: -int(keep_U.sum()) % group.multiple_of]] = True
        keep[group.name] = keep_U
    closed = [
        next((g for g in structure.of(["layers"]) if g.layer == 1), None) if layers else None,
        next((g for g in structure.of(["heads"]) if g.layer == 0 and g.min_units == 0), None),
        next((g for g in structure.of(["ffn"]) if g.layer == 2), None),
    ]
    return keep | {g.name: torch.zeros(g.num_units, dtype=torch.bool) for g in closed if g is not None}


def plan_of_keep(model: PreTrainedModel, keep: dict[str, Tensor]) -> dict[str, Any]:
    """Return the JSON values of a plan."""
    structure, nothing = discover(model), {"dense": 0, "compact": 0}
    groups = {
        name: {
            "kind": structure[name].kind, "layer": structure[name].layer, "size": len(keep_U),
            "keep": keep_U.nonzero().flatten().tolist(),
        }
        for name, keep_U in keep.items()
    }  # fmt: skip
    return {
        "format": 1, "model_type": model.config.model_type, "architecture": type(model).__name__, "method": "hand",
        "target": "params", "scope": "global", "density_asked": None, "density_reached": None, "params": nothing,
        "macs": nothing, "groups": groups, "shapes": {}, "versions": {},
    }  # fmt: skip


def stored(folder: Path) -> dict[str, Tensor]:
    """Return every stored tensor."""
    return {name: t for file in folder.glob("*.safetensors") for name, t in load_file(file).items()}


def texts(folder: Path) -> dict[str, str]:
    """Return every file that holds no weights, nor the names of those that do."""
    files = [f for f in folder.iterdir() if "safetensors" not in f.name and f.name != RECORD_FILE]
    return {f.name: f.read_text(encoding="utf-8") for f in files}


def same(found: dict[str, Tensor], expected: dict[str, Tensor]) -> None:
    """Fail unless both hold the same bits under the same names."""
    assert found.keys() == expected.keys()
    for name, tensor in expected.items():
        # Constants are folded here and there, from memory that is aligned otherwise.
        assert_same_answer(found[name], tensor)


def folder_of(model: PreTrainedModel, folder: Path, **options: Any) -> Path:
    """Save a model in small shards."""
    model.save_pretrained(folder, max_shard_size=SHARD, **options)
    return folder


@pytest.fixture
def llama(tmp_path: Path) -> tuple[Path, dict[str, Any]]:
    """Return the folder of a tiny Llama, and a plan for it."""
    model = tiny_model("llama")
    return folder_of(model, tmp_path / "source"), plan_of_keep(model, uneven(discover(model)))


# GPT-NeoX and ViT are stored under other names than they have in memory; experts one by one; phi3 and gpt2 fuse.
@pytest.mark.parametrize(
    "model_type",
    [
        "llama",
        "mixtral",
        "qwen3_moe",
        "gpt_oss",
        "t5",
        "gpt2",
        "bert",
        "gpt_neox",
        "vit",
        "phi3",
        "albert",
        "deberta-v2",
    ],
)
def test_streamed_equals_cut_in_memory(model_type: str, tmp_path: Path) -> None:
    model = tiny_model(model_type)
    source = folder_of(model, tmp_path / "source")
    plan = plan_of_keep(model, uneven(discover(model)))
    made = cut_checkpoint(source, plan, tmp_path / "streamed", max_shard_size=SHARD)
    compact = optimize_model(load_pruned(source), plan=plan, check=False)
    expected = save_pruned(compact, tmp_path / "expected")
    same(stored(made), stored(expected))
    same(load_pruned(made).state_dict(), load_pruned(expected).state_dict())
    assert texts(made) == texts(expected)
    assert len(stored(source)) > 1
    changed = {name for name, t in stored(source).items() if stored(made).get(name, t[:0]).shape != t.shape}
    assert changed


def test_even_widths_stay_a_stock_checkpoint(tmp_path: Path) -> None:
    model = tiny_model("mixtral")
    source = folder_of(model, tmp_path / "source")
    structure = discover(model)
    keep = {g.name: torch.arange(g.num_units) % 2 == 0 for g in structure.of(["channels"])}
    plan = plan_of_keep(model, keep)
    made = cut_checkpoint(source, plan, tmp_path / "streamed")
    expected = save_pruned(optimize_model(load_pruned(source), plan=plan, check=False), tmp_path / "expected")
    same(stored(made), stored(expected))
    assert texts(made) == texts(expected)
    assert "modeling_pruned.py" not in texts(made)
    assert stored(made).keys() == stored(source).keys()
    assert any(".experts.0." in name for name in stored(made))


def test_a_pruned_folder_is_cut_again(llama: tuple[Path, dict[str, Any]], tmp_path: Path) -> None:
    first = cut_checkpoint(*llama, tmp_path / "first", max_shard_size=SHARD)
    model = load_pruned(first)
    plan = plan_of_keep(model, uneven(discover(model), layers=False))
    made = cut_checkpoint(first, plan, tmp_path / "second", max_shard_size=SHARD)
    expected = save_pruned(optimize_model(model, plan=plan, check=False), tmp_path / "expected")
    same(stored(made), stored(expected))
    assert Plan.load(made) == Plan.load(expected)
    assert Plan.load(made).params["dense"] == Plan.load(first).params["dense"]


@pytest.mark.parametrize("names", ["without the base prefix", "all of the tied ones", "in memory"])
def test_stored_names_may_differ(names: str, tmp_path: Path) -> None:
    model = tiny_model("mixtral" if names == "in memory" else "llama")
    model.config.tie_word_embeddings = True
    model.tie_weights()
    source = folder_of(model, tmp_path / "source", save_original_format=names != "in memory")
    plan = plan_of_keep(model, uneven(discover(model)))
    expected = cut_checkpoint(source, plan, tmp_path / "expected")
    weights = stored(source)
    if names == "without the base prefix":
        weights = {name.removeprefix("model."): tensor for name, tensor in weights.items()}
    if names == "all of the tied ones":
        weights["lm_head.weight"] = weights["model.embed_tokens.weight"].clone()
    for file in source.glob("*safetensors*"):
        file.unlink()
    save_file(weights, source / "model.safetensors")
    made = cut_checkpoint(source, plan, tmp_path / "streamed")
    same(load_pruned(made).state_dict(), load_pruned(expected).state_dict())
    assert "lm_head.weight" not in stored(made)


def test_half_precision_and_small_files_come_along(tmp_path: Path) -> None:
    model = tiny_model("llama", dtype=torch.bfloat16)
    model.generation_config.max_new_tokens = 7
    source = folder_of(model, tmp_path / "source")
    (source / "tokenizer.json").write_text("{}", encoding="utf-8")
    (source / "pytorch_model.bin").write_bytes(b"old")
    seen: list[tuple[int, int]] = []
    plan = plan_of_keep(model, uneven(discover(model)))
    made = cut_checkpoint(
        source, plan, tmp_path / "out", max_shard_size=SHARD, progress=lambda done, total: seen.append((done, total))
    )  # fmt: skip
    assert {t.dtype for t in stored(made).values()} == {torch.bfloat16}
    assert load_pruned(made).generation_config.max_new_tokens == 7
    assert (made / "tokenizer.json").read_text(encoding="utf-8") == "{}"
    assert not (made / "pytorch_model.bin").exists()
    assert [done for done, _ in seen] == sorted({done for done, _ in seen})
    assert seen[-1][0] == seen[-1][1] == sum(t.numel() * 2 for t in stored(made).values())


def test_shards_are_no_larger_than_asked(llama: tuple[Path, dict[str, Any]], tmp_path: Path) -> None:
    made = cut_checkpoint(*llama, tmp_path / "out", max_shard_size=20_000)
    index = json.loads((made / "model.safetensors.index.json").read_text(encoding="utf-8"))
    assert set(index["weight_map"].values()) == {f.name for f in made.glob("*.safetensors")}
    for file in made.glob("*.safetensors"):
        with safe_open(file, "pt") as content:
            sizes = [content.get_tensor(name).nbytes for name in content.keys()]  # noqa: SIM118
        assert sum(sizes) <= 20_000 or len(sizes) == 1


def rewrite(folder: Path, change: dict[str, Tensor | None]) -> None:
    """Change, add or take away stored tensors."""
    for file in folder.glob("*.safetensors"):
        weights = load_file(file)
        last = file == max(folder.glob("*.safetensors"))
        new = {n: t for n, t in change.items() if t is not None and (n in weights or last)}
        save_file({n: t for n, t in (weights | new).items() if change.get(n, t) is not None}, file)


WEIGHT = "model.layers.0.mlp.up_proj.weight"


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (
            {"model.layers.0.mlp.strange.weight": torch.zeros(2)},
            "strange.weight: has no place in LlamaForCausalLM",
        ),
        ({WEIGHT: None}, rf"{WEIGHT}: is in no file"),
        ({WEIGHT: torch.zeros(3, 2)}, rf"{WEIGHT}: makes .* \(3, 2\), and LlamaForCausalLM has"),
        ({WEIGHT: torch.zeros(3, 2, dtype=torch.float8_e4m3fn)}, "has dtype F8_E4M3"),
    ],
)
def test_what_does_not_fit_is_named_before_anything_is_written(
    change: dict[str, Tensor | None], message: str, llama: tuple[Path, dict[str, Any]], tmp_path: Path
) -> None:
    source, plan = llama
    rewrite(source, change)
    with pytest.raises(CheckpointError, match=message):
        cut_checkpoint(source, plan, tmp_path / "out")
    assert [path.name for path in tmp_path.iterdir()] == ["source"]


def test_sources_that_cannot_be_cut_are_refused(llama: tuple[Path, dict[str, Any]], tmp_path: Path) -> None:
    source, plan = llama
    with pytest.raises(CheckpointError, match=r"holds no config\.json"):
        cut_checkpoint(tmp_path, plan, tmp_path / "out")
    config = json.loads((source / "config.json").read_text(encoding="utf-8"))
    (source / "config.json").write_text(json.dumps(config | {"quantization_config": {"bits": 4}}))
    with pytest.raises(CheckpointError, match="is quantized"):
        cut_checkpoint(source, plan, tmp_path / "out")
    (source / "config.json").write_text(json.dumps(config))
    index = source / "model.safetensors.index.json"
    index.write_text("{}", encoding="utf-8")
    with pytest.raises(CheckpointError, match=r"index\.json: weight_map"):
        cut_checkpoint(source, plan, tmp_path / "out")
    index.unlink()
    with pytest.raises(CheckpointError, match=r"holds neither model\.safetensors nor"):
        cut_checkpoint(source, plan, tmp_path / "out")
    assert [path.name for path in tmp_path.iterdir()] == ["source"]


def test_damaged_files_and_strange_plans_are_refused(
    llama: tuple[Path, dict[str, Any]], tmp_path: Path
) -> None:
    source, plan = llama
    name = "model.layers.9.channels"
    groups = {name: {"kind": "channels", "layer": 9, "size": 4, "keep": [0]}}
    with pytest.raises(CheckpointError, match=r"layers\.9\.channels: no such group"):
        cut_checkpoint(source, plan | {"groups": groups}, tmp_path / "out")
    closed = {n: g | {"keep": []} for n, g in plan["groups"].items() if g["kind"] == "layers"}
    every = {f"model.layers.{i}.layer": {**next(iter(closed.values())), "layer": i} for i in range(3)}
    with pytest.raises(UnsupportedModelError, match="no layer with LlamaAttention would stay"):
        cut_checkpoint(source, plan | {"groups": every}, tmp_path / "out")
    shard = min(source.glob("*.safetensors"))
    shard.write_bytes(shard.read_bytes()[:100])
    with pytest.raises(CheckpointError, match=f"{shard.name}: cannot be read"):
        cut_checkpoint(source, plan, tmp_path / "out")
    assert [path.name for path in tmp_path.iterdir()] == ["source"]


def test_a_full_disk_is_told_before_writing(
    llama: tuple[Path, dict[str, Any]], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(shutil, "disk_usage", lambda place: shutil._ntuple_diskusage(10, 9, 1))
    with pytest.raises(CheckpointError, match=r"needs 0\.0 GB, and 0\.0 GB are free"):
        cut_checkpoint(*llama, tmp_path / "deep" / "out")
    assert [path.name for path in tmp_path.iterdir()] == ["source"]


@pytest.mark.parametrize("error", [OSError("disk full"), KeyboardInterrupt()])
def test_an_interrupted_cut_leaves_what_was_there(
    error: BaseException, llama: tuple[Path, dict[str, Any]], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    old = cut_checkpoint(*llama, tmp_path / "out", max_shard_size=SHARD)
    before = stored(old)
    (old / "note.txt").write_text("mine", encoding="utf-8")
    calls = []
    write = SafetensorsWriter.write

    def fail_in_the_middle(self: SafetensorsWriter, name: str, tensor: Tensor) -> bool:
        calls.append(name)
        if len(calls) == 9:
            raise error
        return write(self, name, tensor)

    monkeypatch.setattr(SafetensorsWriter, "write", fail_in_the_middle)
    with pytest.raises((CheckpointError, KeyboardInterrupt)):
        cut_checkpoint(*llama, old, max_shard_size=20_000, overwrite=True)
    same(stored(old), before)
    assert (old / "note.txt").exists()
    assert {path.name for path in tmp_path.iterdir()} == {"source", "out"}
    with pytest.raises(CheckpointError, match="overwrite=True"):
        cut_checkpoint(*llama, old)


def test_traced_tensors_take_no_memory_and_tell_what_was_kept() -> None:
    with torch.device("meta"):
        model = LlamaForCausalLM(LlamaConfig(num_hidden_layers=2, tie_word_embeddings=True))
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    names = trace(model)
    structure = discover(model)
    keep = {g.name: torch.arange(g.num_units) % 2 == 0 for g in structure.of(["heads"])}
    gone = {g.name: torch.zeros(1, dtype=torch.bool) for g in structure.of(["layers"]) if g.layer == 0}
    cut(model, structure, keep | gone)
    # 1.3 GB of weights in float32.
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 200_000
    assert names["lm_head.weight"] == names["model.embed_tokens.weight"]
    left = pieces(model)
    assert "lm_head.weight" not in left
    output = left["model.layers.0.self_attn.o_proj.weight"]
    assert isinstance(output, Traced)
    assert isinstance(output, nn.Parameter)
    assert output.piece.origin == "model.layers.1.self_attn.o_proj.weight"
    assert output.shape == (4096, 2048)
    assert output.piece.kept[1].tolist() == [i for i in range(4096) if i // 128 % 2 == 0]


def test_the_command_line_cuts_a_folder_by_a_plan(
    llama: tuple[Path, dict[str, Any]],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    source, plan = llama
    expected = cut_checkpoint(source, plan, tmp_path / "expected")
    file = tmp_path / "plan.json"
    shutil.copy(expected / PLAN_FILE, file)
    for options in ([], ["--export", "self-contained"]):
        out = tmp_path / f"out{len(options)}"
        arguments = ["optimize", str(source), str(out), "--plan", str(file), "--json", *options]
        monkeypatch.setattr(sys, "argv", ["sparse-trainer", *arguments])
        with pytest.raises(SystemExit) as caught:
            main()
        assert not caught.value.code
        assert json.loads(capsys.readouterr().out)["params"] == Plan.load(expected).params
        same(stored(out), stored(expected))
