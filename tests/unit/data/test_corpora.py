"""Corpora: rows of the hub and of files become the same text and questions; calibration batches are what they say."""

import json
import os
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
import torch
from datasets import Dataset
from transformers import BertTokenizerFast

from sparse_trainer.data import readers
from sparse_trainer.data.corpora.base import Corpus, Question
from sparse_trainer.data.corpora.batches import calibration_batches
from sparse_trainer.data.corpora.read import find, questions, rows, texts
from sparse_trainer.data.corpora.table import CORPORA
from sparse_trainer.errors import ArgumentError, DataError
from tests.fixtures.character_tokenizer import character_tokenizer

VARIABLE = "SPARSE_TRAINER_TEST_DATA"
"""Names a folder with published data sets as local files, laid out as `REAL_FILES` says."""
REAL_FILES = {
    "wikitext2": "wikitext2/wiki.test.raw",
    "boolq": "boolq/validation.jsonl.gz",
    "hellaswag": "choices/hellaswag_validation.jsonl.gz",
    "winogrande": "choices/winogrande_validation.jsonl",
    "arc_easy": "choices/arc_easy_test.jsonl",
    "arc_challenge": "choices/arc_challenge_test.jsonl",
    "piqa": "choices/piqa_validation.jsonl",
    "mmlu": "choices/mmlu_validation.jsonl",
}

HUB_AND_FILE: dict[str, tuple[dict[str, Any], dict[str, Any]]] = {
    "boolq": (
        {"question": "is it", "passage": "T -- It is.", "label": 1},
        {"question": "is it", "title": "T", "passage": "It is.", "label": True},
    ),
    "arc_easy": (
        {"question": "Q?", "choices": {"text": ["x", "y"], "label": ["1", "2"]}, "answerKey": "2"},
        {"question": "Q?", "choices": ["x", "y"], "label": 1},
    ),
    "arc_challenge": (
        {"question": "Q?", "choices": {"text": ["x", "y"], "label": ["A", "B"]}, "answerKey": "A"},
        {"question": "Q?", "choices": ["x", "y"], "label": 0},
    ),
    "piqa": (
        {"goal": "Do it", "sol1": "so", "sol2": "thus", "label": 1},
        {"question": "Do it", "choices": ["so", "thus"], "label": 1},
    ),
    "mmlu": (
        {"question": " Q? ", "subject": "high_school_art", "choices": list("wxyz"), "answer": 3},
        {"question": "Q?", "subject": "high_school_art", "choices": list("wxyz"), "label": 3},
    ),
    "hellaswag": (
        {
            "activity_label": "Cooking",
            "ctx_a": "A man cooks.",
            "ctx_b": "he",
            "ctx": "A man cooks. he",
            "endings": ["eats [step] it.", "sleeps."],
            "label": "1",
        },
        {
            "activity": "Cooking",
            "ctx": "A man cooks. he",
            "choices": ["eats [step] it.", "sleeps."],
            "label": 1,
        },
    ),
    "winogrande": (
        {"sentence": "Ann told Bea that _ won.", "option1": "Ann", "option2": "Bea", "answer": "2"},
        {"sentence": "Ann told Bea that _ won.", "choices": ["Ann", "Bea"], "label": 1},
    ),
}


def write(path: Path, content: list[dict[str, Any]]) -> str:
    path.write_text("".join(json.dumps(row) + "\n" for row in content))
    return str(path)


def asked(name: str, row: dict[str, Any]) -> Question:
    return find(name).question_of(row)


@pytest.mark.parametrize("name", HUB_AND_FILE)
def test_rows_of_the_hub_and_of_a_file_are_the_same_question(name: str) -> None:
    hub, file = HUB_AND_FILE[name]
    assert asked(name, hub) == asked(name, file)


def test_every_set_of_questions_is_tested() -> None:
    assert {name for name, corpus in CORPORA.items() if corpus.question} == set(HUB_AND_FILE)


def test_prompts() -> None:
    found = {name: asked(name, hub) for name, (hub, _) in HUB_AND_FILE.items()}
    assert found["boolq"].text == "T -- It is.\nQuestion: is it?\nAnswer: yes"
    assert found["arc_easy"].text == "Question: Q?\nAnswer: y"
    assert found["piqa"].endings == (" so", " thus")
    assert found["mmlu"].text == (
        "The following are multiple choice questions (with answers) about high school art.\n\n"
        "Q?\nA. w\nB. x\nC. y\nD. z\nAnswer: D"
    )
    assert found["hellaswag"].contexts[0] == "Cooking: A man cooks. He"
    assert found["hellaswag"].endings == (" eats it.", " sleeps.")
    assert found["winogrande"].contexts == ("Ann told Bea that Ann", "Ann told Bea that Bea")


def test_the_hub_is_asked_for_id_configuration_split_and_file(monkeypatch: pytest.MonkeyPatch) -> None:
    calls = []

    def load_dataset(name: str, config: str | None, **options: Any) -> Dataset:
        calls.append((name, config, options))
        return Dataset.from_dict({"text": ["a"]})

    monkeypatch.setattr(readers, "load_dataset", load_dataset)
    rows(find("wikitext2"), "evaluation")
    rows(find("mmlu"), "calibration")
    rows(find("c4"), "calibration")
    assert calls[0] == ("Salesforce/wikitext", "wikitext-2-raw-v1", {"split": "test"})
    assert calls[1] == ("cais/mmlu", "all", {"split": "dev"})
    assert calls[2][2]["split"] == "train"
    assert calls[2][2]["data_files"]["train"].startswith("en/c4-train.00000")


def test_wikitext_of_the_hub_is_the_published_file() -> None:
    corpus = find("wikitext2")
    found = [{"text": text} for text in ("", " = Title = \n", "", " A line . \n")]
    assert corpus.joint.join(texts(corpus, found)) == " \n = Title = \n \n A line . \n"


@pytest.mark.parametrize("bos", [False, True])
def test_blocks_are_pieces_of_the_text_that_do_not_overlap(bos: bool, tmp_path: Path) -> None:
    text = "".join(f"{number:04d}" for number in range(500))  # every 4 characters occur once in step
    file = tmp_path / "text.txt"
    file.write_text(text)
    tokenizer = character_tokenizer(bos=bos)
    batches = calibration_batches(str(file), tokenizer, samples=9, length=101, batch_size=4)
    assert [batch["input_ids"].shape for batch in batches] == [(4, 101), (4, 101), (1, 101)]
    assert all(batch["attention_mask"].all() for batch in batches)
    places = []
    for row in torch.cat([batch["input_ids"] for batch in batches]).tolist():
        assert (row[0] == tokenizer.bos_token_id) is bos
        assert row.count(tokenizer.bos_token_id) == bos
        block = tokenizer.decode(row[bos:])
        assert block in text
        places.append(text.index(block))
    places.sort()
    assert all(later - sooner >= 101 - bos for sooner, later in pairwise(places))
    again = calibration_batches(str(file), tokenizer, samples=9, length=101, batch_size=4)
    other = calibration_batches(str(file), tokenizer, samples=9, length=101, batch_size=4, seed=1)
    assert torch.equal(batches[0]["input_ids"], again[0]["input_ids"])
    assert not torch.equal(batches[0]["input_ids"], other[0]["input_ids"])


def test_an_encoder_gets_its_special_tokens_around_each_block(tmp_path: Path) -> None:
    vocabulary = tmp_path / "vocab.txt"
    vocabulary.write_text("\n".join(["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "a", "b"]))
    (tmp_path / "text.txt").write_text("a b " * 40)
    tokenizer = BertTokenizerFast(str(vocabulary))
    (batch,) = calibration_batches(str(tmp_path / "text.txt"), tokenizer, samples=3, length=10, batch_size=3)
    assert batch["input_ids"][:, 0].tolist() == [2, 2, 2]
    assert batch["input_ids"][:, -1].tolist() == [3, 3, 3]
    assert batch["input_ids"].shape == (3, 10)


def test_questions_are_one_sequence_each(tmp_path: Path) -> None:
    content = [{"question": "q" * n, "passage": "p", "label": n % 2} for n in range(1, 7)]
    tokenizer = character_tokenizer(bos=True)
    (batch,) = calibration_batches(
        "boolq", tokenizer, samples=6, length=30, file=write(tmp_path / "rows.jsonl", content)
    )
    whole = {asked("boolq", row).text for row in content}
    for ids, mask in zip(batch["input_ids"], batch["attention_mask"], strict=True):
        real = ids[mask.bool()].tolist()
        assert real[0] == tokenizer.bos_token_id
        assert any(text.startswith(tokenizer.decode(real[1:])) for text in whole)
        assert ids[~mask.bool()].eq(tokenizer.pad_token_id).all()
    assert batch["attention_mask"].sum(1).max() == 30


def test_chat_templates_wrap_each_row(tmp_path: Path) -> None:
    file = write(tmp_path / "rows.jsonl", [{"text": "one"}, {"text": " "}, {"text": "two"}])
    tokenizer = character_tokenizer(bos=True, chat=True)
    (batch,) = calibration_batches(file, tokenizer, samples=2, length=64, chat_template=True)
    said = {
        tokenizer.decode(ids[mask.bool()])
        for ids, mask in zip(batch["input_ids"], batch["attention_mask"], strict=True)
    }
    assert said == {"[user] one</s>", "[user] two</s>"}
    with pytest.raises(DataError, match="chat_template: the tokenizer has none"):
        calibration_batches(file, character_tokenizer(), samples=2, length=64, chat_template=True)


def test_too_little_text_says_how_much_there_is(tmp_path: Path) -> None:
    file = tmp_path / "text.txt"
    file.write_text("x" * 100)
    with pytest.raises(DataError, match=r"text\.txt: has 100 tokens, and 5 x 30 = 150 are needed"):
        calibration_batches(str(file), character_tokenizer(), samples=5, length=30)
    table = write(tmp_path / "rows.jsonl", [{"text": "one"}, {"text": ""}])
    with pytest.raises(DataError, match="has 1 rows with text, and 2 are needed"):
        calibration_batches(table, character_tokenizer(chat=True), samples=2, length=30, chat_template=True)


def test_bad_input_is_named(tmp_path: Path) -> None:
    tokenizer = character_tokenizer()
    with pytest.raises(DataError, match=r"corpus 'wikitex2': .*Did you mean 'wikitext2'"):
        calibration_batches("wikitex2", tokenizer)
    with pytest.raises(ArgumentError, match="samples: 0 is too small"):
        calibration_batches("wikitext2", tokenizer, samples=0)
    file = write(tmp_path / "rows.jsonl", [{"a": "x", "b": "y"}])
    with pytest.raises(DataError, match=r"rows\.jsonl, row 0: no column 'text'\. It has a, b"):
        calibration_batches(file, tokenizer, samples=1, length=4)
    with pytest.raises(DataError, match="boolq, row 0: no column 'passage'"):
        calibration_batches("boolq", tokenizer, samples=1, length=4, file=file)
    wrong = write(tmp_path / "wrong.jsonl", [{"goal": "x", "sol1": "y", "sol2": "z", "label": 2}])
    with pytest.raises(DataError, match="piqa, row 0: answer 2 to a question with 2 choices"):
        calibration_batches("piqa", tokenizer, samples=1, length=4, file=wrong)
    (tmp_path / "rows.csv").write_text("question,choices,label\nq,xy,0\n")
    with pytest.raises(DataError, match="arc_easy, row 0: choices holds text, no list"):
        calibration_batches("arc_easy", tokenizer, samples=1, length=4, file=tmp_path / "rows.csv")
    with pytest.raises(DataError, match="no such file"):
        calibration_batches("boolq", tokenizer, file=tmp_path / "none.jsonl")
    (tmp_path / "latin.txt").write_bytes(b"caf\xe9")
    with pytest.raises(DataError, match=r"cannot be read: .*Give a complete file of UTF-8"):
        calibration_batches(str(tmp_path / "latin.txt"), tokenizer)


@pytest.mark.parametrize("name", REAL_FILES)
def test_published_data(name: str) -> None:
    folder = os.environ.get(VARIABLE)
    if not folder:
        pytest.skip(f"{VARIABLE} names no folder with published data sets")
    file = Path(folder, REAL_FILES[name])
    if not file.is_file():
        pytest.skip(f"{VARIABLE} holds no {REAL_FILES[name]}")
    corpus: Corpus = find(name)
    found = rows(corpus, "evaluation", file)
    if corpus.question is None:
        assert corpus.joint.join(texts(corpus, found)).encode() == file.read_bytes()
        return
    whole = questions(corpus, found)
    assert len(whole) == len(found) > 100
    choices = {len(question.endings) for question in whole}
    assert choices <= {2, 3, 4, 5}
    share = sum(question.gold == 0 for question in whole) / len(whole)
    assert 0.1 < share < 0.7
