"""Running text in blocks: what is joined by what, what is drawn, what is refused."""

import json
from pathlib import Path
from typing import Any

import pytest
from datasets import Dataset

from sparse_trainer.data import splits
from sparse_trainer.data.splits import DataOptions
from sparse_trainer.errors import DataError, RecipeError, UnsupportedModelError
from sparse_trainer.tasks.base import Prepared
from sparse_trainer.tasks.causal_lm import CausalLM
from tests.fixtures.character_tokenizer import character_tokenizer
from tests.fixtures.language_models import write_language_model
from tests.fixtures.recipe_files import write_rows, write_tiny_model

PARTS = ("ab cd\n", " \n", "ef\n")


def prepared(file: Path, task: CausalLM | None = None, **options: Any) -> Prepared:
    data = DataOptions(train_file=str(file), validation_file=str(file), **{"max_length": 5, **options})
    return (task or CausalLM()).prepare(data, character_tokenizer(bos=True))


def text_of(data: Prepared) -> str:
    return "".join(character_tokenizer().decode(ids[1:]) for ids in data.train["input_ids"])


def test_a_plain_text_stays_as_it_is(tmp_path: Path) -> None:
    file = tmp_path / "text.raw"
    file.write_text("".join(PARTS))
    data = prepared(file)
    assert text_of(data) == "".join(PARTS)
    assert [len(ids) for ids in data.train["input_ids"]] == [5, 5, 4]
    assert all(ids[0] == 0 for ids in data.train["input_ids"])  # each behind BOS
    assert data.example == "ab cd ef"


@pytest.mark.parametrize(("separator", "between"), [(None, "\n\n"), ("", ""), ("</s>", "</s>")])
def test_rows_of_a_table_are_joined(separator: str | None, between: str, tmp_path: Path) -> None:
    file = write_rows(tmp_path / "rows.jsonl", [{"body": part} for part in PARTS])
    data = prepared(file, CausalLM(separator=separator), text_columns=("body",))
    assert text_of(data) == between.join(PARTS)
    if separator == "</s>":  # a special token stays one
        assert sum(ids.count(1) for ids in data.train["input_ids"]) == 2


def test_a_corpus_is_taken_by_its_name(monkeypatch: pytest.MonkeyPatch) -> None:
    asked = []

    def read_hub(source: str, config: str | None, split: str, **others: Any) -> Dataset:
        asked.append((source, config, split))
        return Dataset.from_dict({"text": [" = A = \n", "", "bc\n"]})

    monkeypatch.setattr(splits, "read_hub", read_hub)
    data = CausalLM().prepare(
        DataOptions(source="wikitext2", validation_split="test", max_length=5), character_tokenizer(bos=True)
    )
    assert text_of(data) == " = A = \n \nbc\n"
    assert asked == [("Salesforce/wikitext", "wikitext-2-raw-v1", split) for split in ("train", "test")]


def test_samples_are_blocks(tmp_path: Path) -> None:
    file = tmp_path / "text.txt"
    file.write_text("abcdefghijklmnopqrstuvwx")
    whole = prepared(file).train["input_ids"]
    few = prepared(file, max_train_samples=2, max_eval_samples=3)
    assert (len(few.train), len(few.validation)) == (2, 3)
    assert all(ids in list(whole) for ids in few.train["input_ids"])


@pytest.mark.parametrize(
    ("rows", "options", "error", "message"),
    [
        ([{"text": ""}], {}, DataError, r"data: train set: 0 tokens of text\. Give more text"),
        (
            [{"text": "ab"}, {"text": None}],
            {},
            DataError,
            r"train set, row 1: None in column 'text' is no text",
        ),
        ([{"text": ["ab"]}], {}, DataError, r"row 0: \['ab'\] in column 'text' is no text"),
        ([{"body": "ab"}], {}, DataError, "no column 'text'"),
        ([{"text": "ab"}], {"text_columns": ("text", "body")}, RecipeError, r"data\.text_columns: 2 columns"),
        ([{"text": "ab"}], {"max_length": 1}, RecipeError, r"data\.max_length: blocks of 1 leave nothing"),
    ],
)
def test_what_is_no_text_is_refused(
    rows: list[dict[str, object]],
    options: dict[str, Any],
    error: type[Exception],
    message: str,
    tmp_path: Path,
) -> None:
    with pytest.raises(error, match=message):
        prepared(write_rows(tmp_path / "rows.jsonl", rows), **options)


def test_questions_are_no_text() -> None:
    with pytest.raises(
        RecipeError, match=r"data\.source: the corpus 'boolq' is not for training\. Give wikitext2"
    ):
        CausalLM().prepare(DataOptions(source="boolq"), character_tokenizer())


def test_models_that_cannot_be_trained_so_are_refused(tmp_path: Path) -> None:
    file = tmp_path / "text.txt"
    file.write_text("abcdefghijklmnopqrstuvwx" * 10)
    data = prepared(file, max_length=200)
    llama = write_language_model("llama", tmp_path / "llama")
    with pytest.raises(
        RecipeError, match=r"data\.max_length: sequences of 200 .* positions for 128\. Give 128"
    ):
        CausalLM().load_model(str(llama), "main", data)
    bert = write_tiny_model(tmp_path / "bert")
    with pytest.raises(UnsupportedModelError, match="BertLMHeadModel: looks ahead"):
        CausalLM().load_model(str(bert), "main", data)
    bart = write_language_model("bart", tmp_path / "bart")
    with pytest.raises(UnsupportedModelError, match=r"BartForCausalLM: takes labels that are shifted"):
        CausalLM().load_model(str(bart), "main", data)
    config = json.loads((llama / "config.json").read_text())
    (llama / "config.json").write_text(json.dumps(config | {"max_position_embeddings": 200}))
    assert CausalLM().load_model(str(llama), "main", data).can_generate()
