"""JSON that nobody here wrote: whatever is wrong with a file of a folder, one error names it."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from sparse_trainer.errors import CheckpointError, SparseTrainerError
from sparse_trainer.files.json_text import parse_json, read_object
from sparse_trainer.folders.load import load_pruned
from sparse_trainer.folders.load_shape import load_shape
from sparse_trainer.folders.safetensors_files import files_of_index, weight_files
from sparse_trainer.folders.save import save_pruned
from sparse_trainer.folders.streaming import cut_checkpoint
from sparse_trainer.folders.tokenizers import find_tokenizer
from sparse_trainer.one_shot.prune import prune
from sparse_trainer.plan.document import PLAN_FILE, Plan
from sparse_trainer.training.checkpoint import STATE_FILE, read_sparse_args
from tests.architectures.tiny import tiny_model
from tests.fixtures.character_tokenizer import character_tokenizer

DAMAGE: dict[str, Callable[[bytes], bytes]] = {
    "nothing": lambda whole: b"",
    "half": lambda whole: whole[: len(whole) // 2],
    "list": lambda whole: b"[" + whole + b"]",
    "text": lambda whole: b'"config"',
    "null": lambda whole: b"null",
    "number": lambda whole: b"9" * 5000,
    "deep": lambda whole: b"[" * 100_000,
    "deep object": lambda whole: b'{"a":' * 100_000,
    "bytes": lambda whole: b"\xff\xfe" + whole,
    "latin": lambda whole: whole.replace(b"{", b'{"caf\xe9": 1,', 1),
    "byte order mark": lambda whole: b"\xef\xbb\xbf" + whole,
    "pickle": lambda whole: b"\x80\x04\x95.",
    "twice": lambda whole: whole.replace(
        b"{", b'{"hidden_size": 7, "hidden_size": 8, "format": 2, "format": 1,', 1
    ),
    "huge": lambda whole: whole.replace(b"{", b'{"extra": ' + b"9" * 5000 + b",", 1),
    "half a character": lambda whole: whole.replace(b"{", b'{"extra": "\\ud800",', 1),
    "more": lambda whole: whole + b"}",
}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a pruned model, uneven, with a tokenizer."""
    model = tiny_model("llama", dtype=torch.float32)
    pruned, _ = prune(model, None, criterion="magnitude", density={"channels": 0.5})
    return save_pruned(pruned, tmp_path_factory.mktemp("json") / "out", processor=character_tokenizer())


@pytest.fixture
def damaged(folder: Path, tmp_path: Path) -> Path:
    return shutil.copytree(folder, tmp_path / "out")


@pytest.mark.parametrize("damage", DAMAGE.values(), ids=DAMAGE)
@pytest.mark.parametrize("name", ["config.json", PLAN_FILE])
def test_every_reader_names_the_file(damaged: Path, name: str, damage: Callable[[bytes], bytes]) -> None:
    (damaged / name).write_bytes(damage((damaged / name).read_bytes()))
    plan = Plan.load(damaged) if name != PLAN_FILE else {}
    readers: list[Callable[[], Any]] = [lambda: load_pruned(damaged)]
    if name == PLAN_FILE:
        readers += [lambda: Plan.load(damaged)]
    else:
        readers += [
            lambda: load_shape(str(damaged)),
            lambda: cut_checkpoint(damaged, plan, damaged.parent / "cut"),
        ]
    for read in readers:
        with pytest.raises(CheckpointError, match=name.replace(".", r"\.")) as caught:
            read()
        assert len(str(caught.value)) < 2500


@pytest.mark.parametrize("damage", [DAMAGE[n] for n in ("half", "list", "null", "deep", "bytes", "number")])
@pytest.mark.parametrize("name", ["tokenizer.json", "tokenizer_config.json"])
def test_a_damaged_tokenizer_is_named(damaged: Path, name: str, damage: Callable[[bytes], bytes]) -> None:
    (damaged / name).write_bytes(damage((damaged / name).read_bytes()))
    with pytest.raises(CheckpointError, match="no tokenizer can be loaded"):
        find_tokenizer(str(damaged))


@pytest.mark.parametrize("damage", [DAMAGE[n] for n in ("half", "list", "deep", "bytes", "number")])
def test_a_damaged_generation_config_is_named_or_of_no_use(
    damaged: Path, damage: Callable[[bytes], bytes]
) -> None:
    file = damaged / "generation_config.json"
    file.write_bytes(damage(file.read_bytes()))
    try:
        load_pruned(damaged)
    except SparseTrainerError as error:
        assert str(damaged) in str(error)  # noqa: PT017 - loading may do without it


@pytest.mark.parametrize("damage", DAMAGE.values(), ids=DAMAGE)
def test_a_damaged_index_or_state_is_named(tmp_path: Path, damage: Callable[[bytes], bytes]) -> None:
    index, state = tmp_path / "model.safetensors.index.json", tmp_path / STATE_FILE
    index.write_bytes(damage(json.dumps({"weight_map": {"a": "b"}}).encode()))
    with pytest.raises(CheckpointError, match=index.name):
        weight_files(tmp_path)
    state.write_bytes(damage(json.dumps({"format": 1, "sparse_args": {}}).encode()))
    with pytest.raises(CheckpointError, match=state.name):
        read_sparse_args(tmp_path, "Mend it.")


@pytest.mark.parametrize(
    "name",
    [
        "../model.safetensors",
        "/etc/passwd",
        "a/b.safetensors",
        "..",
        ".",
        "",
        "a\\b",
        "\0",
        3,
        None,
        ["a"],
        {"a": 1},
    ],
)
def test_an_index_lists_files_of_its_folder_alone(damaged: Path, name: Any) -> None:
    shutil.copy(damaged / "model.safetensors", damaged.parent / "model.safetensors")
    (damaged / "model.safetensors").unlink()
    index = damaged / "model.safetensors.index.json"
    index.write_text(json.dumps({"metadata": {}, "weight_map": {"lm_head.weight": name}}))
    for read in (files_of_index, lambda _: load_pruned(damaged), lambda _: weight_files(damaged)):
        with pytest.raises(CheckpointError, match="weight_map"):
            read(index)


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("architectures", "LlamaForCausalLM"), ("architectures", [3]), ("architectures", 3),
        ("architectures", ["Trainer"]), ("architectures", ["LlamaConfig"]),
        ("model_type", 3), ("model_type", ["llama"]), ("model_type", {}), ("num_attention_heads", 0),
        ("hidden_size", "wide"), ("hidden_size", -1), ("num_hidden_layers", "x"), ("hidden_act", "no_such"),
        ("attn_implementation", "someone/kernel"), ("_attn_implementation", {"": "someone/kernel"}),
        ("rope_parameters", 3), ("vocab_size", None), ("dtype", "float99"), ("quantization_config", 3),
        ("pruning", {"format": 1, "layout": None}), ("pruning", 3),
    ],
)  # fmt: skip
def test_values_of_a_config_that_make_no_model_are_named(damaged: Path, name: str, value: Any) -> None:
    file = damaged / "config.json"
    file.write_text(json.dumps({**json.loads(file.read_text()), name: value}))
    for read in (load_pruned, lambda where: load_shape(str(where))):
        try:
            read(damaged)
        except CheckpointError as error:
            assert "config.json" in str(error) or "safetensors" in str(error)  # noqa: PT017
        else:
            assert name in (
                "dtype",
                "attn_implementation",
                "quantization_config",
                "hidden_size",
                "num_attention_heads",
            )


def test_what_is_harmless_is_read(tmp_path: Path) -> None:
    assert parse_json('{"a": 1, "a": 1}', "here", "Mend it.") == {"a": 1}
    assert parse_json('"\\ud83d\\ude00"', "here", "Mend it.") == "\U0001f600"
    (tmp_path / "config.json").write_text('{"limit": [0.0, Infinity]}')
    assert read_object(tmp_path / "config.json", "", constants=True) == {"limit": [0.0, float("inf")]}
    with pytest.raises(CheckpointError, match="Infinity is no number"):
        read_object(tmp_path / "config.json", "")
