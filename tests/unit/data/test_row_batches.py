"""Calibration batches of rows that stand by themselves."""

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from transformers import AutoTokenizer

from sparse_trainer.data.corpora.row_batches import row_batches
from sparse_trainer.errors import ArgumentError, DataError
from sparse_trainer.run.options import CalibrationOptions
from tests.fixtures.recipe_files import write_rows, write_text, write_tiny_model

ROWS = [
    {"id": number, "first": "is it " + "so " * number, "second": "yes it is", "label": number % 2}
    for number in range(12)
]


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory: pytest.TempPathFactory) -> Any:
    return AutoTokenizer.from_pretrained(write_tiny_model(tmp_path_factory.mktemp("rows") / "model"))


@pytest.fixture
def table(tmp_path: Path) -> str:
    write_rows(tmp_path / "rows.jsonl", ROWS)
    return str(tmp_path / "rows.jsonl")


def texts(batches: list[dict[str, Tensor]], tokenizer: Any) -> list[str]:
    """What the sequences say, in the order of the alphabet."""
    return sorted(
        tokenizer.decode(ids_T[mask_T == 1])
        for batch in batches
        for ids_T, mask_T in zip(batch["input_ids"], batch["attention_mask"], strict=True)
    )


def test_each_row_is_a_sequence_whatever_the_batches(table: str, tokenizer: Any) -> None:
    read = [
        row_batches(table, tokenizer, columns=["first"], samples=12, batch_size=size) for size in (1, 4, 5)
    ]
    assert [len(batches) for batches in read] == [12, 3, 3]
    expected = sorted(tokenizer.decode(tokenizer(row["first"])["input_ids"]) for row in ROWS)
    assert all(texts(batches, tokenizer) == expected for batches in read)


def test_a_pair_is_one_sequence_and_an_encoder_reads_two(table: str, tokenizer: Any) -> None:
    columns = ["first", "second"]
    pairs = row_batches(table, tokenizer, columns=columns, samples=12)
    assert all(set(batch) == {"input_ids", "token_type_ids", "attention_mask"} for batch in pairs)
    assert any(bool(batch["token_type_ids"].any()) for batch in pairs)
    apart = row_batches(table, tokenizer, columns=columns, samples=24, pairs=False)
    single = tokenizer.decode(tokenizer("yes it is")["input_ids"])
    assert texts(apart, tokenizer).count(single) == 12


def test_sequences_are_cut_and_drawn_by_the_seed(table: str, tokenizer: Any) -> None:

    def drawn(seed: int) -> list[str]:
        rows = row_batches(table, tokenizer, columns=["first"], samples=4, length=5, seed=seed)
        assert max(batch["input_ids"].shape[1] for batch in rows) <= 5
        return texts(rows, tokenizer)

    assert drawn(0) == drawn(0)
    whole = [
        texts(row_batches(table, tokenizer, columns=["first"], samples=4, seed=s), tokenizer) for s in (0, 1)
    ]
    assert whole[0] != whole[1]


@pytest.mark.parametrize(
    ("options", "error", "what"),
    [
        ({}, DataError, "2 columns hold text: first, second"),
        ({"columns": ["third"]}, DataError, "no column 'third'"),
        ({"columns": ["label"]}, DataError, "'label' is no text"),
        ({"columns": ["first", "second", "id"]}, ArgumentError, "3 columns"),
        ({"columns": ["first"], "samples": 13}, DataError, "has 12 texts, and 13 are needed"),
    ],
)
def test_bad_columns_are_told(
    table: str, tokenizer: Any, options: dict[str, Any], error: type[Exception], what: str
) -> None:
    with pytest.raises(error, match=what):
        row_batches(table, tokenizer, **{"samples": 4, **options})


def test_only_models_that_read_row_by_row_have_a_table_read_so(
    table: str, tokenizer: Any, tmp_path: Path
) -> None:
    write_rows(tmp_path / "one.jsonl", [{"text": row["first"]} for row in ROWS])
    write_text(tmp_path / "text.txt", 40)
    rows = CalibrationOptions(source=str(tmp_path / "one.jsonl"), samples=4, length=16)
    by_row = rows.batches(tokenizer, by_row=True)[0]["attention_mask"].sum(1)
    assert len(set(by_row.tolist())) > 1
    assert torch.equal(rows.batches(tokenizer)[0]["attention_mask"].sum(1), torch.full((4,), 16))
    text = CalibrationOptions(source=str(tmp_path / "text.txt"), samples=4, length=16)
    assert text.batches(tokenizer, by_row=True)[0]["input_ids"].shape == (4, 16)
    named = CalibrationOptions(source=table, samples=4, text_columns=("first",))
    assert len(named.batches(tokenizer)[0]["input_ids"]) == 4
    with pytest.raises(ArgumentError, match="beside a chat template"):
        CalibrationOptions(source=table, text_columns=("first",), chat_template=True)
