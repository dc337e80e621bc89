"""OpenVINO says of uneven models what transformers says; the page's example runs on it."""

import re
from pathlib import Path
from typing import Any

import pytest
from transformers import AutoTokenizer

from sparse_trainer import load_pruned, prune, save_pruned
from sparse_trainer.convert.exporting import EXPORTED_TYPES
from sparse_trainer.convert.folder import convert_folder
from sparse_trainer.convert.registry import CONVERSIONS
from tests.fixtures.character_tokenizer import character_tokenizer
from tests.fixtures.oneshot_models import model_of
from tests.unit.test_docs import ROOT, blocks

for _package in CONVERSIONS["openvino"].packages:
    pytest.importorskip(_package)

# Exporters speak of releases, and of parts of torch that are to go.
pytestmark = pytest.mark.filterwarnings("ignore")


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[str, Any]]:
    """Return a folder with a pruned BERT and Llama, and their conversions; and the facts of these."""
    place, facts = tmp_path_factory.mktemp("openvino"), {}
    for name in ("bert", "llama"):
        model, _ = prune(model_of(name).float(), None, criterion="magnitude", density=0.6)
        save_pruned(model, place / name, processor=character_tokenizer())
        facts[name] = convert_folder(str(place / name), place / f"{name}-openvino", "openvino")[1]
    return place, facts


def test_exporters_are_not_heard(
    made: tuple[Path, dict[str, Any]], tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    capfd.readouterr()
    convert_folder(str(made[0] / "llama"), tmp_path / "out", "openvino")
    assert not re.search(r"experimental|generation_config|WARNING", capfd.readouterr().err)


def test_conversions_agree_on_other_sizes_than_were_traced(made: tuple[Path, dict[str, Any]]) -> None:
    for told in made[1].values():
        assert told["difference"] <= 1e-5
        assert told["largest_output"] > 0.1
    assert {"input_ids", "attention_mask"} <= set(made[1]["bert"]["inputs"])
    assert {"input_ids", "attention_mask", "position_ids", "beam_idx"} == set(made[1]["llama"]["inputs"])
    assert made[1]["llama"]["outputs"] == ["logits"]


@pytest.mark.parametrize("name", sorted({*EXPORTED_TYPES} - {"bert", "llama"}))
def test_types_that_cards_promise_are_exported(name: str, tmp_path: Path) -> None:
    model, _ = prune(model_of(name).float(), None, criterion="magnitude", density=0.6)
    folder = save_pruned(model, tmp_path / name, processor=character_tokenizer())
    told = convert_folder(str(folder), tmp_path / "out", "openvino")[1]
    assert told["largest_output"] > 0.1


def test_the_page_runs_and_says_what_generate_says(
    made: tuple[Path, dict[str, Any]], monkeypatch: pytest.MonkeyPatch
) -> None:
    place, _ = made
    monkeypatch.chdir(place)
    names: dict[str, Any] = {}
    for block in blocks(ROOT / "docs" / "openvino.md"):
        if block.language == "python":
            exec(compile(block.text, "openvino.md", "exec"), names)
    model, tokenizer = load_pruned(place / "llama"), AutoTokenizer.from_pretrained(place / "llama")
    asked = {"max_new_tokens": 8, "min_new_tokens": 8, "do_sample": False}
    model.generation_config.eos_token_id = None
    for row, text in enumerate(("to be", "or not to be")):
        ids_BT = tokenizer(text, return_tensors="pt")["input_ids"]
        alone = model.generate(ids_BT, **asked)[0, ids_BT.shape[1] :].tolist()
        assert [int(ids[row]) for ids in names["said"]] == alone
