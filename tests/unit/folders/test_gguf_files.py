"""Models in a GGUF file are read as folders are."""

from pathlib import Path

import pytest
import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import AutoModelForCausalLM, LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

from sparse_trainer.errors import CheckpointError
from sparse_trainer.folders import gguf_files
from sparse_trainer.folders.configs import read_config
from sparse_trainer.folders.load import load_model


def byte_tokenizer() -> PreTrainedTokenizerFast:
    """Return a BPE tokenizer like that of GPT-2, with a handful of merges."""
    words = Tokenizer(models.BPE())
    words.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    words.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=300, special_tokens=["<s>"], initial_alphabet=pre_tokenizers.ByteLevel.alphabet()
    )
    words.train_from_iterator(["a small text about the same small things"] * 4, trainer)
    return PreTrainedTokenizerFast(tokenizer_object=words, bos_token="<s>", eos_token="<s>")


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setattr(gguf_files, "HF_HOME", str(tmp_path / "cache"))
    return tmp_path / "cache"


def test_a_file_is_unpacked_once_and_says_what_the_folder_said(tmp_path: Path, cache: Path) -> None:
    pytest.importorskip("gguf")
    from sparse_trainer.convert.folder import convert_folder

    words = byte_tokenizer()
    config = LlamaConfig(
        hidden_size=32,
        intermediate_size=32,
        num_hidden_layers=2,
        num_attention_heads=2,
        vocab_size=len(words),
    )
    LlamaForCausalLM(config).save_pretrained(tmp_path / "model")
    words.save_pretrained(tmp_path / "model")
    file = tmp_path / "model.gguf"
    convert_folder(str(tmp_path / "model"), file, "gguf", quantize="f32")
    before = AutoModelForCausalLM.from_pretrained(tmp_path / "model").eval()
    after = load_model(str(file)).eval()
    tokens = torch.arange(3, 11)[None]
    with torch.no_grad():
        assert torch.allclose(before(tokens).logits, after(tokens).logits, atol=1e-4)
    (folder,) = (cache / "sparse-trainer").glob("*/*")
    assert folder.name == "model"
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


def test_a_file_of_another_architecture_is_refused_in_one_sentence(
    tmp_path: Path, cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = tmp_path / "model.gguf"
    file.touch()

    def unknown(*_: object, **__: object) -> None:
        raise ValueError(f"Unrecognized model identifier: deci. Should contain one of {'albert, ' * 500}")

    monkeypatch.setattr("importlib.util.find_spec", lambda _: True)
    monkeypatch.setattr("transformers.AutoTokenizer.from_pretrained", unknown)
    with pytest.raises(CheckpointError, match=r"identifier: deci\)\. Give the folder") as caught:
        gguf_files.unpacked(str(file))
    assert "albert" not in str(caught.value)
