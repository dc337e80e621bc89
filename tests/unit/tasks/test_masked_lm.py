"""Masked language modelling: blocks, masks that stay in evaluation, and metrics over masked tokens alone."""

from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from transformers import AutoTokenizer, EvalPrediction, PreTrainedTokenizerBase

from sparse_trainer.data.splits import DataOptions
from sparse_trainer.errors import ArgumentError, DataError, RecipeError
from sparse_trainer.tasks.language.masked_tokens import guesses, guessing_metrics
from sparse_trainer.tasks.masked_lm import MaskedLM
from tests.fixtures.recipe_files import write_text, write_tiny_llama, write_tiny_model


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("masked")
    write_tiny_model(root / "model")
    write_text(root / "text.txt", 40)
    return root


@pytest.fixture(scope="module")
def tokenizer(place: Path) -> PreTrainedTokenizerBase:
    loaded: PreTrainedTokenizerBase = AutoTokenizer.from_pretrained(place / "model")
    return loaded


def options(file: Path, **changes: Any) -> DataOptions:
    given: dict[str, Any] = {"text_columns": ("text",), "max_length": 16, **changes}
    return DataOptions(train_file=str(file), validation_file=str(file), **given)


def test_blocks_hold_the_whole_text_between_special_tokens(
    place: Path, tokenizer: PreTrainedTokenizerBase
) -> None:
    data = MaskedLM().prepare(options(place / "text.txt"), tokenizer)
    blocks = data.train["input_ids"][:]
    assert {len(block) for block in blocks[:-1]} == {16}
    assert all((block[0], block[-1]) == (tokenizer.cls_token_id, tokenizer.sep_token_id) for block in blocks)
    text = (place / "text.txt").read_text()
    assert [token for block in blocks for token in block[1:-1]] == tokenizer(text, add_special_tokens=False)[
        "input_ids"
    ]
    assert str(data.example).split().count("[MASK]") == 1


def test_masks_are_drawn_anew_in_training_and_stay_in_evaluation(
    place: Path, tokenizer: PreTrainedTokenizerBase
) -> None:
    data = MaskedLM().prepare(options(place / "text.txt"), tokenizer)
    trained = [data.collator([data.train[row] for row in range(8)])["labels"] for _ in range(2)]
    assert not torch.equal(*trained)
    evaluated = [data.collator([data.validation[row] for row in range(8)]) for _ in range(2)]
    assert all(torch.equal(evaluated[0][name], evaluated[1][name]) for name in evaluated[0])
    again = MaskedLM().prepare(options(place / "text.txt"), tokenizer)
    assert again.validation[:] == data.validation[:]
    other = MaskedLM().prepare(options(place / "text.txt", seed=7), tokenizer)
    assert other.validation[:] != data.validation[:]
    labels, ids = evaluated[0]["labels"], evaluated[0]["input_ids"]
    assert (labels[:, [0, 15]] == -100).all()
    assert (ids[labels != -100] == tokenizer.mask_token_id).float().mean() > 0.6
    assert 0.08 < float((labels != -100).float().mean()) < 0.22


def test_drawing_masks_leaves_the_random_numbers_of_training_alone(
    place: Path, tokenizer: PreTrainedTokenizerBase
) -> None:
    torch.manual_seed(3)
    before = torch.rand(1)
    torch.manual_seed(3)
    MaskedLM().prepare(options(place / "text.txt"), tokenizer)
    assert torch.equal(torch.rand(1), before)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_metrics_are_those_of_all_masked_tokens(dtype: torch.dtype) -> None:
    torch.manual_seed(0)
    logits, labels = torch.randn(5, 7, 11).to(dtype), torch.randint(11, (5, 7))
    labels[torch.rand(5, 7) < 0.5] = -100
    labels[2] = -100  # a row where nothing is masked
    counted = labels != -100
    left = torch.cat([guesses(logits[:2], labels[:2]), guesses((logits[2:],), labels[2:])])
    found = guessing_metrics(EvalPrediction(predictions=left.numpy(), label_ids=labels.numpy()))
    loss = F.cross_entropy(logits[counted].float(), labels[counted])
    right = (logits.argmax(-1) == labels)[counted].float().mean()
    assert found == pytest.approx({"perplexity": float(loss.exp()), "accuracy": float(right)}, rel=1e-5)


def test_what_cannot_be_learned_is_refused(
    place: Path, tokenizer: PreTrainedTokenizerBase, tmp_path: Path
) -> None:
    with pytest.raises(ArgumentError, match=r"mask_probability: 1\.0 is not in \(0, 1\)"):
        MaskedLM(mask_probability=1.0)
    decoder = AutoTokenizer.from_pretrained(write_tiny_llama(tmp_path / "llama"))
    with pytest.raises(RecipeError, match=r"no token for masked places.*task\.name=causal-lm"):
        MaskedLM().prepare(options(place / "text.txt"), decoder)
    with pytest.raises(RecipeError, match=r"data\.max_length: blocks of 2 hold no text"):
        MaskedLM().prepare(options(place / "text.txt", max_length=2), tokenizer)
    (tmp_path / "blank.txt").write_text(" \n")
    with pytest.raises(DataError, match="no text"):
        MaskedLM().prepare(options(tmp_path / "blank.txt"), tokenizer)
    (tmp_path / "word.txt").write_text("blue")
    with pytest.raises(DataError, match="no token of it is masked"):
        MaskedLM(mask_probability=1e-9).prepare(options(tmp_path / "word.txt"), tokenizer)


def test_blocks_beyond_the_positions_are_refused(place: Path, tokenizer: PreTrainedTokenizerBase) -> None:
    data = MaskedLM().prepare(options(place / "text.txt", max_length=65), tokenizer)
    with pytest.raises(ArgumentError, match=r"data\.max_length: 65 tokens, .* positions for 64"):
        MaskedLM().load_model(str(place / "model"), "main", data)
