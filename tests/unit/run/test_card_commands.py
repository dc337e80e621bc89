"""Cards give the commands that write this very model for other runtimes, and no others."""

import importlib.util
import re
import shlex
from pathlib import Path

import pytest
import torch
from transformers import BertConfig, BertForMaskedLM, LlamaConfig, LlamaForCausalLM, PreTrainedModel

from sparse_trainer.cli import main
from sparse_trainer.convert.registry import CONVERSIONS
from sparse_trainer.folders.save import CARD_FILE, save_pruned
from sparse_trainer.one_shot.prune import prune
from sparse_trainer.run.card_commands import add_commands, advised_forms
from tests.fixtures.character_tokenizer import character_tokenizer

HAS_EXPORTERS = importlib.util.find_spec("transformers.exporters") is not None
TRACED = ("onnx", "openvino") if HAS_EXPORTERS else ()


def llama() -> PreTrainedModel:
    torch.manual_seed(0)
    sizes = {"hidden_size": 64, "intermediate_size": 64, "num_hidden_layers": 2}
    heads = {"num_attention_heads": 4, "num_key_value_heads": 2, "max_position_embeddings": 64}
    return LlamaForCausalLM(
        LlamaConfig(vocab_size=99, bos_token_id=0, eos_token_id=1, **sizes, **heads)
    ).eval()


def bert() -> PreTrainedModel:
    torch.manual_seed(0)
    sizes = {"hidden_size": 64, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 4}
    return BertForMaskedLM(BertConfig(vocab_size=99, max_position_embeddings=64, **sizes)).eval()


def saved(model: PreTrainedModel, folder: Path, *, scope: str = "global", kind: str = "channels") -> Path:
    """Prune a model, and save it with a tokenizer and a card that says what this model can become."""
    cut, _ = prune(model, None, criterion="magnitude", density={kind: 0.5}, scope=scope)
    return save_pruned(cut, folder, processor=character_tokenizer(), beside=add_commands)


def commands(folder: Path) -> dict[str, str]:
    """Return conversion -> its command in the card."""
    found = re.findall(r"^(sparse-trainer convert .* --to (\w+))$", (folder / CARD_FILE).read_text(), re.M)
    return {name: command for command, name in found}


@pytest.mark.parametrize(
    ("model", "options", "expected"),
    [
        (llama, {}, {"decilm", "gguf", *TRACED}),
        (llama, {"scope": "uniform"}, {"gguf", *TRACED}),  # even layers need no DeciLM
        (llama, {"kind": "heads"}, {"gguf", *TRACED}),  # nor can it hold fewer query heads
        (bert, {}, {*TRACED}),
    ],
)
def test_a_card_gives_what_the_converters_can_hold(
    model: object, options: dict[str, str], expected: set[str], tmp_path: Path
) -> None:
    assert callable(model)
    folder = saved(model(), tmp_path / "out", **options)
    assert set(commands(folder)) == expected
    text = (folder / CARD_FILE).read_text()
    for name in expected:
        extra = CONVERSIONS[name].extra
        assert not extra or f'pip install "sparse-trainer[{extra}]"\n{commands(folder)[name]}' in text


def test_the_commands_of_a_card_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("gguf")
    saved(llama(), tmp_path / "this-folder")
    monkeypatch.chdir(tmp_path)
    for name, command in commands(tmp_path / "this-folder").items():
        if all(importlib.util.find_spec(package) for package in CONVERSIONS[name].packages):
            monkeypatch.setattr("sys.argv", shlex.split(command))
            with pytest.raises(SystemExit) as done:
                main()
            assert not done.value.code
            assert (tmp_path / shlex.split(command)[3]).exists()


def test_what_no_tokenizer_or_family_allows_is_not_promised(tmp_path: Path) -> None:
    cut, _ = prune(llama(), None, criterion="magnitude", density={"channels": 0.5})
    folder = save_pruned(cut, tmp_path / "out", beside=add_commands)
    assert "gguf" not in commands(folder)  # llama.cpp needs a tokenizer
    assert advised_forms(str(tmp_path / "missing")) == ()


def test_what_was_written_is_said_once_and_takes_the_place_of_what_was_said(tmp_path: Path) -> None:
    folder = saved(bert(), tmp_path / "out")
    before = (folder / CARD_FILE).read_text()
    add_commands(folder)
    assert (folder / CARD_FILE).read_text() == before
    add_commands(folder, ["onnx"])
    assert "onnx" in commands(folder)
    assert (folder / CARD_FILE).read_text().count("## Other runtimes") == 1
