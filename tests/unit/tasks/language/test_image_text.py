"""Questions about images: log-likelihoods of choices, answers that are written, and what they count."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from transformers import PreTrainedModel
from typer.testing import CliRunner

from sparse_trainer.cli.app import make_app
from sparse_trainer.data.image_text.encoder import RowEncoder
from sparse_trainer.data.image_text.rows import ImageRow
from sparse_trainer.errors import (
    ArgumentError,
    CheckpointError,
    DataError,
    NonFiniteError,
    UnsupportedModelError,
)
from sparse_trainer.run.pipeline import run
from sparse_trainer.run.recipes.load import load_recipe
from sparse_trainer.tasks.language.choices import Accuracy
from sparse_trainer.tasks.language.image_text.answers import WrittenAnswers
from sparse_trainer.tasks.language.image_text.choices import log_likelihoods_of
from sparse_trainer.tasks.language.image_text.measure import image_questions
from sparse_trainer.tasks.language.measure import EvaluationOptions, compare, evaluate
from tests.architectures.tiny import tiny_model
from tests.fixtures.image_text_models import tiny_image_text, write_images, write_rows

pytestmark = pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning")
CHOICES = ["a red square", "blue", "no"]


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    write_images(tmp_path)
    return tmp_path


def asked(**columns: Any) -> list[dict[str, Any]]:
    texts = ("what is this", "is this a blue square", "a red")
    return [{"image": f"{n}.png", "question": text, **columns} for n, text in enumerate(texts)]


def choices(folder: Path) -> Path:
    return write_rows(folder, asked(choices=CHOICES, label=1), "choices.jsonl")


def by_hand(model: PreTrainedModel, encoder: RowEncoder, row: ImageRow, choice: str) -> float:
    """One whole pass, every logit: the sum over the tokens of the choice."""
    made = encoder.answered(row, choice)
    with torch.no_grad():
        logs_TV = model(**made.inputs).logits[0].double().log_softmax(-1)
    ids_T = made.inputs["input_ids"][0]
    places = range(made.first, made.first + made.count)
    return float(sum(logs_TV[place - 1, ids_T[place]] for place in places))


@pytest.mark.parametrize("model_type", ["llava", "llava_next", "paligemma", "idefics3"])
def test_choices_are_scored_behind_image_and_question(model_type: str, folder: Path) -> None:
    model, processor = tiny_image_text(model_type)
    encoder = RowEncoder(processor)
    for row in image_questions(choices(folder)):
        expected = [by_hand(model, encoder, row, choice) for choice in CHOICES]
        assert log_likelihoods_of(model, encoder, row) == pytest.approx(expected, rel=1e-5)
        assert len({len(processor.tokenizer(choice)["input_ids"]) for choice in CHOICES}) == 2


def test_the_image_counts(folder: Path) -> None:
    model, processor = tiny_image_text("llava_next")
    rows = [{**row, "question": "what is this"} for row in asked(choices=CHOICES, label=1)]
    found = image_questions(write_rows(folder, rows))
    logs = {tuple(log_likelihoods_of(model, RowEncoder(processor), row)) for row in found}
    assert len(logs) == len(rows)


def test_choices_of_one_token_share_a_pass(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    model, processor = tiny_image_text("llava_next")
    passes: list[int] = []
    forward = model.forward

    def counted(*args: Any, **kwargs: Any) -> Any:
        passes.append(1)
        return forward(*args, **kwargs)

    monkeypatch.setattr(model, "forward", counted)
    (row, *_) = image_questions(choices(folder))
    log_likelihoods_of(model, RowEncoder(processor), row)
    assert len(passes) == 2


def right_by_logs(model: PreTrainedModel, processor: Any, file: Path) -> list[int]:
    found = [log_likelihoods_of(model, RowEncoder(processor), row) for row in image_questions(file)]
    return [max(range(len(logs)), key=logs.__getitem__) for logs in found]


def test_accuracy_is_the_share_of_right_choices(folder: Path) -> None:
    model, processor = tiny_image_text("llava")
    likeliest = right_by_logs(model, processor, choices(folder))
    labels = [likeliest[0], likeliest[1], (likeliest[2] + 1) % 3]
    rows = [row | {"label": label} for row, label in zip(asked(choices=CHOICES), labels, strict=True)]
    file = str(write_rows(folder, rows))
    result = evaluate(model, processor, [file])[file]
    assert isinstance(result, Accuracy)
    assert (result.right, result.num_questions) == ((True, True, False), 3)
    assert result.acc == pytest.approx(2 / 3)
    assert evaluate(model, processor, [file], options=EvaluationOptions(limit=2))[file].acc == 1


def greedy(model: PreTrainedModel, inputs: Mapping[str, Tensor], tokens: int) -> Tensor:
    """Token after token, without a cache."""
    ids = inputs["input_ids"]
    for _ in range(tokens):
        read = {**inputs, "input_ids": ids, "attention_mask": torch.ones_like(ids)}
        if "token_type_ids" in inputs:
            read["token_type_ids"] = torch.cat(
                [inputs["token_type_ids"], torch.ones_like(ids[:, inputs["token_type_ids"].shape[1] :])], 1
            )
        with torch.no_grad():
            best = model(**read).logits[:, -1].argmax(-1, keepdim=True)
        ids = torch.cat([ids, best], 1)
    return ids[0, inputs["input_ids"].shape[1] :]


@pytest.mark.parametrize("model_type", ["llava_next", "idefics3"])
def test_answers_are_the_likeliest_tokens(model_type: str, folder: Path) -> None:
    model, processor = tiny_image_text(model_type)
    with torch.no_grad():
        # No token of an image, of padding or of an end is written.
        quiet = [i for i in range(64) if i < 12 or i >= len(processor.tokenizer)]
        head = model.get_output_embeddings()
        head.bias = torch.nn.Parameter(torch.zeros(64).index_fill(0, torch.tensor(quiet), -1e4))
    file = write_rows(folder, asked(answers=["nothing"]))
    encoder = RowEncoder(processor)
    expected = [encoder.decoded(greedy(model, encoder.prompt(row), 3)) for row in image_questions(file)]
    result = evaluate(model, processor, [str(file)], options=EvaluationOptions(answer_tokens=3))[str(file)]
    assert isinstance(result, WrittenAnswers)
    assert list(result.written) == expected
    assert (result.exact_match, result.vqa_acc, result.answer_tokens) == (0, 0, 3)
    # Both people, one of two, and nobody said the same.
    people = ([expected[0]] * 2, [expected[1], "nothing"], ["nothing"])
    rows = [row | {"answers": said} for row, said in zip(asked(), people, strict=True)]
    again = write_rows(folder, rows, "again.jsonl")
    other = evaluate(model, processor, [str(again)], options=EvaluationOptions(answer_tokens=3))[str(again)]
    assert isinstance(other, WrittenAnswers)
    assert (other.exact, other.shares) == ((True, True, False), (1.0, 0.5, 0.0))
    assert [change.change for change in compare(other, result)] == pytest.approx([2 / 3, 0.5])


def test_half_precision_is_as_right_as_its_digits(folder: Path) -> None:
    model, processor = tiny_image_text("llava")
    (row, *_) = image_questions(choices(folder))
    full = log_likelihoods_of(model, RowEncoder(processor), row)
    half = log_likelihoods_of(model.to(torch.bfloat16), RowEncoder(processor), row)
    assert half == pytest.approx(full, rel=0.05)


def test_numbers_that_are_none(folder: Path) -> None:
    model, processor = tiny_image_text("llava")
    model.get_output_embeddings().weight.data.fill_(torch.nan)
    for file in (choices(folder), write_rows(folder, asked(answer="no"), "answers.jsonl")):
        with pytest.raises(NonFiniteError, match="NaN or infinite logits"):
            evaluate(model, processor, [str(file)])


@pytest.mark.parametrize(
    ("rows", "options", "error", "what"),
    [
        (asked(), {}, DataError, "row 0: has no answer to compare with"),
        (
            [*asked(answer="no")[:1], *asked(choices=CHOICES, label=0)],
            {},
            DataError,
            "row 1: is a question of another kind",
        ),
        (
            [{"image": "none.png", "question": "a", "answer": "no"}],
            {},
            DataError,
            "1 of 1 images do not open",
        ),
        (asked(answer="no"), {"length": 64}, ArgumentError, "length: cuts text"),
        (asked(answer="no"), {"max_tokens": 64}, ArgumentError, "max_tokens: is for running text"),
    ],
)
def test_mistakes_are_told_before_the_model_runs(
    rows: list[dict[str, Any]], options: dict[str, int], error: type[Exception], what: str, folder: Path
) -> None:
    _, processor = tiny_image_text("llava")
    nothing: Any = None
    with pytest.raises(error, match=what):
        evaluate(nothing, processor, [str(write_rows(folder, rows))], options=EvaluationOptions(**options))


def test_a_model_or_processor_that_reads_no_images(folder: Path) -> None:
    model, processor = tiny_image_text("llava")
    file = str(choices(folder))
    (folder / "notes.txt").write_text("a red square")
    written = EvaluationOptions(answer_tokens=3)
    with pytest.raises(ArgumentError, match=r"processor: .* has no tokenizer"):
        evaluate(model, processor.tokenizer, [file])
    with pytest.raises(ArgumentError, match="answer_tokens: is for questions about images"):
        evaluate(model, processor, [str(folder / "notes.txt")], options=written)
    with pytest.raises(UnsupportedModelError, match="is no causal language model"):
        evaluate(tiny_model("t5"), processor, [file])


def saved(folder: Path) -> str:
    model, processor = tiny_image_text("llava")
    model.save_pretrained(folder / "dense")
    processor.save_pretrained(folder / "dense")
    return str(folder / "dense")


def test_the_command_measures_text_and_images_beside_a_baseline(folder: Path) -> None:
    dense = saved(folder)
    (folder / "notes.txt").write_text("what is this a red square " * 9)
    files = [choices(folder), write_rows(folder, asked(answer="no"), "answers.jsonl"), folder / "notes.txt"]
    asking = ["evaluate", dense, "--tasks", ",".join(map(str, files)), "--device", "cpu", "--limit", "2"]
    asking += ["--answer-tokens", "2", "--length", "16"]
    done = CliRunner().invoke(make_app({"evaluate"}), [*asking, "--against", dense, "--json"])
    assert done.exit_code == 0, done.exception
    said = json.loads(done.stdout)
    kinds = [said["results"][str(file)]["kind"] for file in files]
    assert kinds == ["multiple_choice", "vqa", "perplexity"]
    assert {each["change"] for file in files[:2] for each in said["compared"][str(file)]} == {0.0}
    shown = CliRunner().invoke(make_app({"evaluate"}), asking)
    assert "2 questions, answered in at most 2 tokens" in shown.stdout


def test_the_command_names_what_reads_no_images(folder: Path) -> None:
    file = str(choices(folder))
    dense = Path(saved(folder))
    (dense / "processor_config.json").unlink()
    failed = CliRunner().invoke(make_app({"evaluate"}), ["evaluate", str(dense), "--tasks", file]).exception
    assert isinstance(failed, CheckpointError)
    assert "no processor of images and text can be loaded" in str(failed)
    text = tiny_model("llama", dtype=torch.float32)
    text.save_pretrained(folder / "text")
    tiny_image_text("llava")[1].tokenizer.save_pretrained(folder / "text")
    failed = (
        CliRunner()
        .invoke(make_app({"evaluate"}), ["evaluate", str(folder / "text"), "--tasks", file])
        .exception
    )
    assert isinstance(failed, UnsupportedModelError)
    assert "reads no images with text" in str(failed)


def test_a_recipe_measures_before_and_after(folder: Path) -> None:
    dense, file = saved(folder), str(choices(folder))
    recipe = load_recipe(
        "llava-afr",
        [
            f"model.name_or_path={dense}", "model.device=cpu", f"calibration.source={file}", "calibration.samples=3",
            "prune.density.channels=0.5", "prune.reconstruct=null", f"evaluation.tasks=[{file}]",
            f"export.output_dir={folder / 'out'}", "export.latency_rounds=1",
        ],
    )  # fmt: skip
    result = run(recipe, lambda line: None)
    rows = {row[0]: row[1:] for row in result.comparison.rows()}
    assert f"{file} acc" in rows
    assert f"{file} acc" in (folder / "out" / "README.md").read_text()
