"""ExecuTorch says of uneven models what transformers says; decoders are refused; the page's example runs."""

from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoTokenizer, BertForSequenceClassification

from sparse_trainer import load_pruned, prune, save_pruned
from sparse_trainer.convert.folder import convert_folder
from sparse_trainer.convert.registry import CONVERSIONS
from sparse_trainer.errors import ConversionError
from tests.fixtures.character_tokenizer import character_tokenizer
from tests.fixtures.oneshot_models import model_of
from tests.unit.test_docs import ROOT, blocks

# Exporters speak of releases, and of parts of torch that are to go.
pytestmark = pytest.mark.filterwarnings("ignore")
PLACE = "model-executorch"


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[str, Any]]:
    """Return a place with a pruned classifier and its program, and the facts of it."""
    for package in CONVERSIONS["executorch"].packages:
        pytest.importorskip(package)
    place = tmp_path_factory.mktemp("executorch")
    torch.manual_seed(0)
    config = model_of("bert").config
    config.num_labels = 3
    model, _ = prune(BertForSequenceClassification(config), None, criterion="magnitude", density=0.6)
    save_pruned(model, place / "model", processor=character_tokenizer())
    return place, dict(convert_folder(str(place / "model"), place / PLACE, "executorch")[1])


def test_the_program_agrees_on_other_lengths_than_were_traced(made: tuple[Path, dict[str, Any]]) -> None:
    told = made[1]
    assert told["difference"] <= 1e-5
    assert told["largest_output"] > 0.01
    assert told["inputs"] == ["input_ids", "attention_mask"]
    assert told["longest"] == load_pruned(made[0] / "model").config.max_position_embeddings


def test_the_page_runs_and_says_what_the_model_says(
    made: tuple[Path, dict[str, Any]], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(made[0])
    names: dict[str, Any] = {}
    for block in blocks(ROOT / "docs" / "executorch.md"):
        if block.language == "python":
            exec(compile(block.text, "executorch.md", "exec"), names)
    encoded = AutoTokenizer.from_pretrained(made[0] / "model")("to be or not", return_tensors="pt")
    with torch.no_grad():
        asked = {name: encoded[name] for name in ("input_ids", "attention_mask")}
        wanted = load_pruned(made[0] / "model").eval()(**asked).logits
    torch.testing.assert_close(names["logits"], wanted, rtol=0, atol=1e-5)


def test_what_generates_is_refused_with_what_to_take(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(CONVERSIONS["executorch"], "packages", {})
    save_pruned(
        prune(model_of("llama").float(), None, criterion="magnitude", density=0.6)[0], tmp_path / "llama"
    )
    with pytest.raises(ConversionError, match=r"generates text.*gguf"):
        convert_folder(str(tmp_path / "llama"), tmp_path / "out", "executorch")
    assert not (tmp_path / "out").exists()
