"""Models in a GGUF file are read as folders are."""

from pathlib import Path

import pytest
import torch
from transformers import AutoModelForCausalLM

from sparse_trainer.errors import CheckpointError
from sparse_trainer.folders import gguf_files
from sparse_trainer.folders.configs import read_config
from sparse_trainer.folders.load import load_model
from tests.fixtures.recipe_files import write_tiny_llama


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setattr(gguf_files, "HF_HOME", str(tmp_path / "cache"))
    return tmp_path / "cache"


def test_a_file_is_unpacked_once_and_says_what_the_folder_said(tmp_path: Path, cache: Path) -> None:
    pytest.importorskip("gguf")
    from sparse_trainer.convert.folder import convert_folder

    write_tiny_llama(tmp_path / "model")
    file = tmp_path / "model.gguf"
    convert_folder(str(tmp_path / "model"), file, "gguf", quantize="f32")
    before = AutoModelForCausalLM.from_pretrained(tmp_path / "model").eval()
    after = load_model(str(file)).eval()
    tokens = torch.arange(3, 11)[None]
    with torch.no_grad():
        assert torch.allclose(before(tokens).logits, after(tokens).logits, atol=1e-4)
    (folder,) = (cache / "sparse-trainer").iterdir()
    made = (folder / "config.json").stat().st_mtime_ns
    assert read_config(str(file)).num_hidden_layers == before.config.num_hidden_layers
    assert (folder / "config.json").stat().st_mtime_ns == made


def test_without_the_package_the_extra_is_named(
    tmp_path: Path, cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "model.gguf").write_bytes(b"GGUF")
    monkeypatch.setattr(gguf_files.importlib.util, "find_spec", lambda name: None)
    with pytest.raises(CheckpointError, match=r"sparse-trainer\[gguf\]"):
        load_model(str(tmp_path / "model.gguf"))


def test_a_damaged_file_is_refused_and_leaves_nothing(tmp_path: Path, cache: Path) -> None:
    pytest.importorskip("gguf")
    (tmp_path / "model.gguf").write_bytes(b"GGUF" + bytes(64))
    with pytest.raises(CheckpointError, match="cannot read it"):
        load_model(str(tmp_path / "model.gguf"))
    assert not list(cache.glob("sparse-trainer/*/config.json"))
