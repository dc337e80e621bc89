"""Texts of columns, and the dense model's embeddings of them."""

from pathlib import Path

import pytest
import torch
from datasets import Dataset
from transformers import AutoModel, AutoTokenizer, DataCollatorWithPadding

from sparse_trainer.errors import DataError
from sparse_trainer.inputs.pooling import Pooling
from sparse_trainer.tasks.embeddings.texts import distinct, encode, read_scores, read_texts, with_targets
from tests.fixtures.recipe_files import write_tiny_model


def test_targets_are_the_embeddings_of_each_text_alone(tmp_path: Path) -> None:
    write_tiny_model(tmp_path / "model")
    tokenizer = AutoTokenizer.from_pretrained(tmp_path / "model")
    model = AutoModel.from_pretrained(tmp_path / "model").train()
    texts = distinct([f"is the house {'tall and ' * count}blue" for count in range(40)])
    rows = encode(texts, tokenizer, 64, "texts")
    pooling = Pooling(normalize=True)
    found = with_targets(rows, model, DataCollatorWithPadding(tokenizer), pooling, "texts")
    assert model.training
    assert found.num_rows == 40
    assert found.features["labels"].feature.dtype == "float32"
    model.eval()
    for row in (0, 17, 39):
        tokens = tokenizer(texts[row], truncation=True, max_length=64, return_tensors="pt")
        with torch.no_grad():
            alone = pooling(model(**tokens).last_hidden_state, tokens["attention_mask"])
        torch.testing.assert_close(torch.tensor(found[row]["labels"])[None], alone, rtol=0, atol=1e-6)


def test_lines_may_be_blank_and_pairs_may_not() -> None:
    lines = Dataset.from_dict({"text": ["one\n", " \n", "two"], "other": ["a", "b", "c"]})
    assert read_texts(lines, ["text"], "train set") == [["one", "two"]]
    with pytest.raises(DataError, match=r"train set, column 'text': 1 of 3 .*the first in row 1"):
        read_texts(lines, ["other", "text"], "train set")
    with pytest.raises(DataError, match="2 of 2 entries are no text"):
        read_texts(Dataset.from_dict({"text": [1, 2]}), ["text"], "train set")
    with pytest.raises(DataError, match="all entries are empty"):
        read_texts(Dataset.from_dict({"text": [""]}), ["text"], "train set")


@pytest.mark.parametrize(
    ("scores", "message"), [([1.0, None], "row 1 has None, which is no number"), ([2, 2], "are the same")]
)
def test_scores_are_numbers_that_differ(scores: list[float | None], message: str) -> None:
    with pytest.raises(DataError, match=message):
        read_scores(Dataset.from_dict({"score": scores}), "score")
