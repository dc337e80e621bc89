"""ONNX graphs of uneven models say in ONNX Runtime what the models say; the pages' examples run on them."""

import importlib.util
import logging
import re
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoTokenizer, PreTrainedModel

from sparse_trainer import load_pruned, prune, save_pruned
from sparse_trainer.convert.exporting import EXPORTED_TYPES
from sparse_trainer.convert.folder import convert_folder
from sparse_trainer.convert.registry import CONVERSIONS
from sparse_trainer.errors import ArgumentError, ConversionError
from sparse_trainer.run.bench import BenchOptions, run_bench
from tests.fixtures.character_tokenizer import character_tokenizer
from tests.fixtures.oneshot_models import model_of
from tests.unit.test_docs import ROOT, blocks

for _package in CONVERSIONS["onnx"].packages:
    pytest.importorskip(_package)

# Exporters speak of releases, and of parts of torch that are to go.
pytestmark = pytest.mark.filterwarnings("ignore")


def _folder(name: str, place: Path) -> Path:
    """Save an uneven float32 model."""
    model, _ = prune(model_of(name).float(), None, criterion="magnitude", density=0.6)
    save_pruned(model, place, processor=character_tokenizer())
    return place


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[str, Any]]:
    """Return a folder with a pruned BERT and Llama, and their conversions; and the facts of these."""
    place, facts = tmp_path_factory.mktemp("onnx"), {}
    for name, out, numbers in (("bert", "model-onnx", "int8"), ("llama", "decoder-onnx", "float32")):
        source = _folder(name, place / name)
        facts[name] = convert_folder(str(source), place / out, "onnx", quantize=numbers)[1]
    return place, facts


def _largest(model: PreTrainedModel) -> float:
    return float(model(torch.arange(3, 9)[None]).logits.abs().max())


def test_exporters_are_not_heard(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    source = _folder("bert", tmp_path / "bert")
    capfd.readouterr()
    convert_folder(str(source), tmp_path / "out", "onnx")
    said = capfd.readouterr()
    assert said.out == ""
    assert not re.search(r"torch\.onnx|signature|experimental|WARNING", said.err)
    assert logging.root.manager.disable == 0


def test_graphs_agree_on_other_sizes_than_were_traced(made: tuple[Path, dict[str, Any]]) -> None:
    place, facts = made
    for name, told in facts.items():
        assert told["difference"] <= 1e-5
        assert told["largest_output"] > 0.1 * _largest(load_pruned(place / name))
    assert facts["bert"]["inputs"][:2] == ["input_ids", "attention_mask"]
    assert not facts["bert"]["reads_a_cache"]
    assert facts["llama"]["reads_a_cache"]
    assert "attention_mask" in facts["llama"]["inputs"]
    assert 1e-5 < facts["bert"]["difference_of_int8"] < 0.5


@pytest.mark.parametrize("name", sorted({*EXPORTED_TYPES} - {"bert", "llama"}))
def test_types_that_cards_promise_are_exported(name: str, tmp_path: Path) -> None:
    told = convert_folder(str(_folder(name, tmp_path / name)), tmp_path / "out", "onnx")[1]
    assert told["largest_output"] > 0.1


def test_caches_of_windows_are_refused(tmp_path: Path) -> None:
    with pytest.raises(ConversionError, match="window"):
        convert_folder(str(_folder("mistral", tmp_path / "one")), tmp_path / "out", "onnx")


def test_int8_lies_in_one_file(made: tuple[Path, dict[str, Any]]) -> None:
    place, facts = made
    assert not (place / "model-onnx" / "model.onnx.data").exists()
    assert facts["bert"]["bytes"] == (place / "model-onnx" / "model.onnx").stat().st_size


def test_the_page_runs_and_says_what_generate_says(
    made: tuple[Path, dict[str, Any]], monkeypatch: pytest.MonkeyPatch
) -> None:
    place, _ = made
    monkeypatch.chdir(place)
    names: dict[str, Any] = {}
    for block in blocks(ROOT / "docs" / "onnx.md"):
        if block.language == "python":
            exec(compile(block.text, "onnx.md", "exec"), names)
    model, tokenizer = load_pruned(place / "llama"), AutoTokenizer.from_pretrained(place / "llama")
    asked = {"max_new_tokens": 8, "min_new_tokens": 8, "do_sample": False}
    model.generation_config.eos_token_id = None
    for row, text in enumerate(("to be", "or not to be")):
        ids_BT = tokenizer(text, return_tensors="pt")["input_ids"]
        alone = model.generate(ids_BT, **asked)[0, ids_BT.shape[1] :].tolist()
        assert [int(ids[row]) for ids in names["said"]] == alone


def test_releases_without_these_exporters_are_refused(
    made: tuple[Path, dict[str, Any]], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    find = importlib.util.find_spec
    monkeypatch.setattr(
        importlib.util,
        "find_spec",
        lambda name, *rest: None if name.endswith(".runners") else find(name, *rest),
    )
    with pytest.raises(ConversionError, match="no exporters that save and run"):
        convert_folder(str(made[0] / "llama"), tmp_path / "out", "onnx")
    assert not (tmp_path / "out").exists()


def test_an_unknown_format_is_refused(made: tuple[Path, dict[str, Any]], tmp_path: Path) -> None:
    with pytest.raises(ArgumentError, match="q4_0"):
        convert_folder(str(made[0] / "llama"), tmp_path / "out", "onnx", quantize="q4_0")


def test_bench_times_the_graphs_beside_the_models(made: tuple[Path, dict[str, Any]]) -> None:
    options = BenchOptions(
        model=str(made[0] / "llama"),
        batch_sizes=(1, 2),
        lengths=(6,),
        rounds=2,
        device=torch.device("cpu"),
        dtype=torch.float32,
        runtimes="eager,onnx",
    )
    found = run_bench(options).forward
    assert [(each.runtime, each.rows) for each in found] == [
        ("eager", 1),
        ("onnx", 1),
        ("eager", 2),
        ("onnx", 2),
    ]
