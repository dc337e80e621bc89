"""Data sets: read from files, checked before anything is trained."""

import csv
import gzip
from pathlib import Path
from typing import Any

import pytest
from datasets import ClassLabel, Dataset

from sparse_trainer.data import readers
from sparse_trainer.data.splits import DataOptions, check_columns, label_ids, label_names, load_splits
from sparse_trainer.errors import DataError, SparseTrainerError
from tests.fixtures.recipe_files import boolq_rows, write_rows

COLUMNS = ("question", "passage", "label")


def write_csv(path: Path, rows: list[dict[str, object]]) -> Path:
    with path.open("w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, fieldnames=list(rows[0]))
        writer.writeheader()
        writer.writerows(rows)
    return path


def write_parquet(path: Path, rows: list[dict[str, object]]) -> Path:
    Dataset.from_list(rows).to_parquet(str(path))
    return path


WRITERS = {
    "rows.json": write_rows,
    "rows.jsonl": write_rows,
    "rows.jsonl.gz": write_rows,
    "rows.csv": write_csv,
    "rows.parquet": write_parquet,
}


@pytest.mark.parametrize("name", WRITERS)
def test_every_kind_of_file_gives_the_same_rows(name: str, tmp_path: Path) -> None:
    rows = boolq_rows(6)
    file = str(WRITERS[name](tmp_path / name, rows))
    splits = load_splits(DataOptions(train_file=file, validation_file=file), COLUMNS)
    assert splits.train.to_list() == splits.validation.to_list() == rows


@pytest.mark.parametrize("name", ["text.txt", "text.raw.gz"])
def test_lines_of_a_plain_text_are_rows_with_their_ends(name: str, tmp_path: Path) -> None:
    content = "= A heading =\n\nThe first\u2028paragraph.\nThe last"
    path = tmp_path / name
    path.write_bytes(gzip.compress(content.encode()) if name.endswith(".gz") else content.encode())
    options = DataOptions(train_file=str(path), validation_file=str(path), text_columns=("text",))
    options.check_files()
    rows = load_splits(options, ["text"]).train["text"]
    assert list(rows) == ["= A heading =\n", "\n", "The first\u2028paragraph.\n", "The last"]


def test_samples_are_drawn_by_seed() -> None:
    def drawn(seed: int) -> list[str]:
        options = DataOptions(
            source="generated",
            num_train_rows=40,
            num_eval_rows=10,
            max_train_samples=5,
            max_eval_samples=3,
            seed=seed,
        )
        splits = load_splits(options, COLUMNS)
        assert (len(splits.train), len(splits.validation)) == (5, 3)
        return list(splits.train["passage"])

    assert drawn(1) == drawn(1)
    assert drawn(1) != drawn(2)


def test_a_missing_column_names_those_that_exist() -> None:
    with pytest.raises(DataError, match=r"train set: no column 'answer'\. It has question, passage, label"):
        load_splits(DataOptions(source="generated"), ("question", "answer"))


def test_an_empty_file_is_refused(tmp_path: Path) -> None:
    rows = str(write_rows(tmp_path / "rows.json", boolq_rows(4)))
    parquet = tmp_path / "empty.parquet"
    Dataset.from_dict({"question": [], "passage": [], "label": []}).to_parquet(str(parquet))
    header = tmp_path / "empty.csv"
    header.write_text("question,passage,label\n")
    for empty in (parquet, header):
        with pytest.raises(DataError, match=r"validation_file: .*empty.*(no data|is empty)"):
            load_splits(DataOptions(train_file=rows, validation_file=str(empty)), COLUMNS)


def test_an_empty_set_is_refused() -> None:
    with pytest.raises(DataError, match="here: is empty"):
        check_columns(Dataset.from_dict({"label": []}), ["label"], "here")


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("rows.jsonl", b'{"question": "a"}\n{"quest', "cannot be read"),
        ("rows.jsonl.gz", b"\x1f\x8bgarbage", "cannot be read"),
        ("rows.parquet", b"not parquet", "cannot be read"),
        ("rows.json", b"", "is empty"),
        ("rows.xlsx", b"text", r"unknown kind of file '\.xlsx'"),
    ],
)
def test_a_damaged_file_is_named(name: str, content: bytes, message: str, tmp_path: Path) -> None:
    file = tmp_path / name
    file.write_bytes(content)
    with pytest.raises(DataError, match=message) as caught:
        load_splits(DataOptions(train_file=str(file), validation_file=str(file)), COLUMNS)
    assert str(file) in str(caught.value)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({}, "no source"),
        ({"train_file": "rows.json", "validation_file": "rows.json"}, "no such file"),
        ({"train_file": "rows.json"}, "validation_file: missing"),
        ({"validation_file": "rows.json"}, "train_file: missing"),
        ({"source": "generated", "max_train_samples": 0}, "max_train_samples: 0 is too small"),
        ({"source": "generated", "seed": -1}, "seed: -1 is not"),
    ],
)
def test_options_that_give_no_data_are_refused(options: dict[str, Any], message: str) -> None:
    with pytest.raises(SparseTrainerError, match=message):
        load_splits(DataOptions(**options), COLUMNS)


def test_a_hub_data_set_is_asked_for_by_name_and_split(monkeypatch: pytest.MonkeyPatch) -> None:
    asked = []

    def load_dataset(name: str, config: str | None, split: str) -> Dataset:
        asked.append((name, config, split))
        return Dataset.from_dict({"question": ["q"], "answer": [True], "passage": ["p"]})

    monkeypatch.setattr(readers, "load_dataset", load_dataset)
    splits = load_splits(DataOptions(source="google/boolq"), ("question", "passage", "answer"))
    assert asked == [("google/boolq", None, "train"), ("google/boolq", None, "validation")]
    assert label_ids(splits.train["answer"], ("no", "yes"), "") == [1]


def test_a_hub_that_cannot_be_reached_suggests_files(monkeypatch: pytest.MonkeyPatch) -> None:
    def load_dataset(name: str, config: str | None, split: str) -> Dataset:
        raise ConnectionError("Couldn't reach it")

    monkeypatch.setattr(readers, "load_dataset", load_dataset)
    with pytest.raises(DataError, match=r"google/boolq: split 'train' .*Couldn't reach it.*data\.train_file"):
        load_splits(DataOptions(source="google/boolq"), COLUMNS)


def test_labels_may_be_names_numbers_or_true_and_false() -> None:
    assert label_ids(["no", "yes", True, False, 1], ("no", "yes"), "") == [0, 1, 1, 0, 1]


@pytest.mark.parametrize("value", [2, -1, "maybe", None, 0.5])
def test_a_label_of_no_class_is_refused_by_row(value: object) -> None:
    with pytest.raises(DataError, match=r"here: row 1 has the label .* not one of the 2 classes"):
        label_ids([0, value], ("no", "yes"), "here")


def test_names_of_classes_come_from_the_recipe_the_data_set_or_the_values() -> None:
    named = Dataset.from_dict({"label": [0, 1]}).cast_column("label", ClassLabel(names=["bad", "good"]))
    assert label_names(named, "label", ("no", "yes")) == ("no", "yes")
    assert label_names(named, "label", None) == ("bad", "good")
    assert label_names(Dataset.from_dict({"label": [0, 2]}), "label", None) == ("0", "1", "2")
    assert label_names(Dataset.from_dict({"label": ["b", "a"]}), "label", None) == ("a", "b")
