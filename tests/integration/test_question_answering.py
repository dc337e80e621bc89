"""A folder of a question-answering model answers in `pipeline()` with nothing but transformers."""

import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from transformers import AutoModelForQuestionAnswering, AutoTokenizer, TrainingArguments, pipeline

from patchers.discovery.discover import discover
from sparse_trainer import load_pruned, optimize_model, save_pruned
from sparse_trainer.data.splits import DataOptions
from sparse_trainer.files.pipelines.question_answering import best_spans
from sparse_trainer.tasks.question_answering.scores import exact_match, f1
from sparse_trainer.tasks.question_answering.task import QuestionAnswering
from tests.fixtures.compact_models import patched
from tests.fixtures.recipe_files import squad_rows, write_rows, write_tiny_model

ROWS = [{"question": str(row["question"]), "context": str(row["context"]) * 3} for row in squad_rows(6)]
ASK = """
import json, sys
from transformers import pipeline
answer = pipeline("question-answering", model=sys.argv[1], trust_remote_code=True)
print(json.dumps(answer(json.loads(sys.argv[2]), max_seq_len=40, doc_stride=8)))
print(json.dumps(sorted(name for name in sys.modules if name.split(".")[0] in ("sparse_trainer", "patchers"))))
"""


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a folder of an uneven model."""
    dense = write_tiny_model(tmp_path_factory.mktemp("qa") / "dense")
    torch.manual_seed(0)
    model = AutoModelForQuestionAnswering.from_pretrained(dense).eval()
    model.config.question_answering = {"max_seq_len": 40, "doc_stride": 8, "max_answer_len": 3}
    groups = discover(model).of(["heads", "channels"])
    keep = {group.name: torch.arange(group.num_units) > number for number, group in enumerate(groups)}
    compact = optimize_model(patched(model, keep))
    return save_pruned(compact, dense.parent / "compact", processor=AutoTokenizer.from_pretrained(dense))


def reference(folder: Path, question: str, context: str) -> tuple[float, int, int]:
    """Return the best span of all chunks, tried one by one, and its probability over the whole context."""
    tokenizer = AutoTokenizer.from_pretrained(folder)
    model = load_pruned(folder).eval()
    chunks = tokenizer(
        question,
        context,
        truncation="only_second",
        max_length=40,
        stride=8,
        return_overflowing_tokens=True,
        return_offsets_mapping=True,
        return_tensors="pt",
        padding=True,
    )
    sides: tuple[list[float], list[float]] = ([], [])
    spans = []
    for chunk in range(len(chunks["input_ids"])):
        inputs = {
            name: chunks[name][chunk : chunk + 1]
            for name in ("input_ids", "attention_mask", "token_type_ids")
        }
        with torch.no_grad():
            found = model(**inputs)
        inside = [t for t, of in enumerate(chunks.sequence_ids(chunk)) if of == 1]
        starts, ends = found["start_logits"][0].tolist(), found["end_logits"][0].tolist()
        sides[0].extend(starts[t] for t in inside)
        sides[1].extend(ends[t] for t in inside)
        places = chunks["offset_mapping"][chunk].tolist()
        spans += [
            (starts[first] + ends[last], places[first][0], places[last][1])
            for first in inside
            for last in inside
            if first <= last < first + 3
        ]
    logit, start, end = max(spans)
    total = sum(float(torch.tensor(side).logsumexp(0)) for side in sides)
    return float(torch.tensor(logit - total).exp()), start, end


def test_a_new_process_answers_as_a_search_over_all_spans_does(folder: Path) -> None:
    command = [sys.executable, "-I", "-c", ASK, str(folder), json.dumps(ROWS)]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    answers, ours = map(json.loads, done.stdout.strip().splitlines()[-2:])
    assert ours == []
    for row, answer in zip(ROWS, answers, strict=True):
        score, start, end = reference(folder, row["question"], row["context"])
        assert (answer["start"], answer["end"]) == (start, end)
        assert answer["answer"] == row["context"][start:end] != ""
        assert answer["score"] == pytest.approx(score, rel=1e-4)


def test_batches_lists_and_keywords_are_the_same(folder: Path) -> None:
    answer = pipeline("question-answering", model=str(folder), trust_remote_code=True)
    alone = [answer(row) for row in ROWS]
    together = answer(ROWS, batch_size=4)
    words = answer(question=[row["question"] for row in ROWS], context=[row["context"] for row in ROWS])
    for one, many, worded in zip(alone, together, words, strict=True):
        assert one["answer"] == many["answer"] == worded["answer"]
        assert one["score"] == pytest.approx(many["score"], rel=1e-4)
    assert answer(question=ROWS[0]["question"], context=ROWS[0]["context"]) == alone[0]
    best = answer(ROWS[0], top_k=4)
    assert best[0] == alone[0]
    assert len({(one["start"], one["end"]) for one in best}) == 4
    assert [one["score"] for one in best] == sorted((one["score"] for one in best), reverse=True)


def test_no_answer_is_one_of_the_answers_where_it_may_be(folder: Path) -> None:
    answer = pipeline("question-answering", model=str(folder), trust_remote_code=True)
    every = answer(ROWS[0], top_k=500, max_answer_len=1, handle_impossible_answer=True)
    assert [one["answer"] for one in every].count("") == 1
    assert sum(one["score"] for one in every) < 1
    assert all(one["answer"] for one in answer(ROWS[0], top_k=500, max_answer_len=1))


def test_the_model_in_bfloat16_answers(folder: Path) -> None:
    answer = pipeline("question-answering", model=str(folder), trust_remote_code=True, dtype=torch.bfloat16)
    assert 0 < answer(ROWS[0])["score"] <= 1


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"question": "who"}, "no text under 'context'"),
        ({"question": "", "context": "ann"}, "no text under 'question'"),
        ("who", "no text under"),
    ],
)
def test_what_is_no_question_is_refused(given: object, message: str, folder: Path) -> None:
    answer = pipeline("question-answering", model=str(folder), trust_remote_code=True)
    with pytest.raises(ValueError, match=message):
        answer(given)
    with pytest.raises(ValueError, match="2 questions, 1 contexts"):
        answer(question=["a", "b"], context=["c"])
    with pytest.raises(TypeError, match="no option colour"):
        answer(ROWS[0], colour=1)
    with pytest.raises(ValueError, match="leaves no room"):
        answer(ROWS[0], max_seq_len=4)


def test_another_save_keeps_our_pipeline_and_drops_foreign_ones(folder: Path, tmp_path: Path) -> None:
    config = json.loads((folder / "config.json").read_text())
    assert set(config["custom_pipelines"]) == {"question-answering"}
    config["custom_pipelines"]["evil"] = {"impl": "evil.Pipeline", "pt": ["AutoModel"], "type": "text"}
    (folder / "config.json").write_text(json.dumps(config))
    again = save_pruned(load_pruned(folder), tmp_path / "again")
    found = json.loads((again / "config.json").read_text())
    assert set(found["custom_pipelines"]) == {"question-answering"}
    assert found["question_answering"] == config["question_answering"]
    assert (again / "question_answering.py").read_bytes() == (folder / "question_answering.py").read_bytes()


@pytest.mark.parametrize("no_answer", [False, True])
@pytest.mark.parametrize("by_length", [False, True])
def test_the_pipeline_answers_what_the_metrics_measure(
    no_answer: bool, by_length: bool, folder: Path, tmp_path: Path
) -> None:
    rows = squad_rows(24)
    for row, other in zip(rows[::2], rows[1::2], strict=True):
        row["context"] = f"{row['context']} {other['context']}"  # chunks of many lengths
    answer = pipeline("question-answering", model=str(folder), trust_remote_code=True)
    found = answer(
        [{"question": row["question"], "context": row["context"]} for row in rows],
        handle_impossible_answer=no_answer,
    )
    # What it answers is right for two of three rows.
    for number, (row, one) in enumerate(zip(rows, found, strict=True)):
        if number % 3:
            one_or_none = [one] if one["answer"] else []
            row["answers"] = {
                "text": [one["answer"] for one in one_or_none],
                "answer_start": [one["start"] for one in one_or_none],
            }
    file = str(write_rows(tmp_path / "rows.jsonl", rows))
    data = DataOptions(
        train_file=file,
        validation_file=file,
        text_columns=("question", "context"),
        label_column="answers",
        max_length=40,
    )
    task = QuestionAnswering(stride=8, max_answer_length=3, no_answer=no_answer)
    tokenizer = AutoTokenizer.from_pretrained(folder)
    prepared = task.prepare(data, tokenizer)
    trainer = task.trainer(
        model=load_pruned(folder),
        args=TrainingArguments(
            str(tmp_path / "run"),
            use_cpu=True,
            report_to="none",
            per_device_eval_batch_size=5,
            train_sampling_strategy="group_by_length" if by_length else "random",
        ),
        eval_dataset=prepared.validation,
        data_collator=prepared.collator,
        processing_class=tokenizer,
        compute_metrics=prepared.compute_metrics,
    )
    measured = trainer.evaluate()
    texts = [row["answers"]["text"] for row in rows]  # type: ignore[index]
    for name, score in (("f1", f1), ("exact_match", exact_match)):
        scores = [score(one["answer"], given or [""]) for one, given in zip(found, texts, strict=True)]
        assert measured[f"eval_{name}"] == pytest.approx(sum(scores) / len(scores))
        assert measured[f"eval_{name}"] > 0.5


def test_spans_of_all_chunks_are_ranked_once() -> None:
    import numpy as np

    offsets = np.array([[0, 0], [0, 3], [4, 7]])
    chunk = (np.array([9.0, 1.0, 2.0]), np.array([9.0, 1.0, 3.0]), offsets)
    assert best_spans([chunk, chunk], 2, top_k=9) == [(5.0, 4, 7), (4.0, 0, 7), (2.0, 0, 3)]
    assert best_spans([chunk], 1, top_k=9) == [(5.0, 4, 7), (2.0, 0, 3)]
    assert best_spans([(*chunk[:2], offsets * 0)], 2) == []
