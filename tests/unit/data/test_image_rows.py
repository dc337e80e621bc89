"""Rows of images with text in all their forms, as a processor with a chat template and one without make them inputs."""

from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import PreTrainedModel

from sparse_trainer.data.image_text.batches import image_text_batches
from sparse_trainer.data.image_text.encoder import RowEncoder
from sparse_trainer.data.image_text.rows import ImageRow, check_image_files, holds_images, read_image_rows
from sparse_trainer.data.readers import read_table
from sparse_trainer.errors import ArgumentError, DataError
from tests.fixtures.image_text_models import tiny_image_text, write_images, write_rows

pytestmark = pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning")
IMAGE = {"type": "image"}


def text(said: str) -> dict[str, str]:
    return {"type": "text", "text": said}


def turn(role: str, *parts: dict[str, str]) -> dict[str, Any]:
    return {"role": role, "content": list(parts)}


ASKED = turn("user", IMAGE, text("what is this"))
SAID = turn("assistant", text("a red square"))


@pytest.fixture(scope="module")
def templated() -> Any:
    return tiny_image_text("llava_next")[1]


@pytest.fixture(scope="module")
def apart() -> tuple[PreTrainedModel, Any]:
    return tiny_image_text("paligemma")


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    write_images(tmp_path)
    return tmp_path


def batch(folder: Path, row: dict[str, Any], processor: Any, **options: Any) -> dict[str, torch.Tensor]:
    return image_text_batches(write_rows(folder, [row]), processor, samples=1, **options)[0]


def said(batch: dict[str, torch.Tensor], processor: Any) -> tuple[str, str]:
    """The text of a batch without its images, and the part with labels."""
    ids, labels = batch["input_ids"][0], batch["labels"][0]
    tokenizer = processor.tokenizer
    return (
        tokenizer.decode(ids, skip_special_tokens=True),
        tokenizer.decode(labels[labels != -100], skip_special_tokens=True),
    )


@pytest.mark.parametrize(
    ("row", "expected"),
    [
        ({"image": "0.png", "text": "a red"}, "user : a red end"),
        (
            {"image": "0.png", "question": "is this", "answer": "yes"},
            "user : is this end assistant : yes end",
        ),
        (
            {"image": "0.png", "question": "is this", "answers": ["no", "yes", "yes"]},
            "user : is this end assistant : yes end",
        ),
        (
            {"image": "0.png", "question": "is this", "answers": [{"answer": "no"}, {"answer": "no"}]},
            "user : is this end assistant : no end",
        ),
        (
            {"image": "0.png", "question": "is this", "choices": ["yes", "no"], "label": 1},
            "user : is this end assistant : no end",
        ),
        (
            {"image": "0.png", "question": "is this", "choices": ["yes", "no"], "answer": "yes"},
            "user : is this end assistant : yes end",
        ),
        (
            {"image": "0.png", "messages": [ASKED, SAID]},
            "user : what is this end assistant : a red square end",
        ),
        (
            {"messages": [turn("user", {**IMAGE, "path": "0.png"}, text("is this")), SAID]},
            "user : is this end assistant : a red square end",
        ),
        (
            {
                "images": ["0.png"],
                "messages": [turn("user", text("is this")), SAID, turn("user", text("no"))],
            },
            "user : is this end assistant : a red square end user : no end",
        ),
    ],
)
def test_each_form_of_row_is_filled_into_the_template(
    row: dict[str, Any], expected: str, folder: Path, templated: Any
) -> None:
    made = batch(folder, row, templated)
    _, assistant, answer = expected.rpartition("assistant : ")
    last = row.get("messages", [SAID])[-1]["role"]
    labelled = answer if assistant and last == "assistant" else expected
    assert said(made, templated) == (expected, labelled)
    assert holds_images(folder / "rows.jsonl")
    assert not bool(((made["labels"][0] != -100) & (made["input_ids"][0] == 3)).any())


def test_several_images_stand_where_the_conversation_has_them(folder: Path, templated: Any) -> None:
    messages = [turn("user", IMAGE, text("is this"), IMAGE), SAID]
    made = batch(folder, {"images": ["1.png", "0.png"], "messages": messages}, templated)
    assert len(made["pixel_values"]) == 2
    one = batch(folder, {"image": "1.png", "messages": [turn("user", IMAGE), SAID]}, templated)
    assert torch.equal(made["pixel_values"][0], one["pixel_values"][0])


def test_what_a_processor_puts_around_an_image_has_no_label(folder: Path) -> None:
    processor = tiny_image_text("idefics3")[1]
    made = batch(folder, {"image": "0.png", "text": "a red"}, processor)
    labels, ids = made["labels"][0], made["input_ids"][0]
    kept = processor.tokenizer.convert_ids_to_tokens(labels[labels != -100])
    assert kept == ["user", ":", "a", "red", "end"]
    assert {"<row_1_col_2>", "<global-img>"} <= set(processor.tokenizer.convert_ids_to_tokens(ids))


def test_where_a_prompt_is_read_both_ways_the_answer_alone_has_labels(
    folder: Path, apart: tuple[PreTrainedModel, Any]
) -> None:
    model, processor = apart
    asked = batch(folder, {"image": "0.png", "question": "is this", "answer": "a red square"}, processor)
    assert said(asked, processor) == ("is this a red square", "a red square")
    told = batch(folder, {"image": "0.png", "text": "a red square"}, processor)
    assert said(told, processor) == ("a red square", "a red square")
    # The last token of the answer does not tell what those before it are.
    changed = {**asked, "input_ids": asked["input_ids"].clone()}
    changed["input_ids"][0, -2] = processor.tokenizer.convert_tokens_to_ids("blue")
    with torch.no_grad():
        logits, others = (model(**each).logits[0, :-2] for each in (asked, changed))
    torch.testing.assert_close(logits, others)


def row_of(folder: Path, row: dict[str, Any]) -> ImageRow:
    file = write_rows(folder, [row])
    return read_image_rows(read_table(file, "rows"), file, [0])[0]


@pytest.mark.parametrize("model_type", ["llava", "llava_next", "paligemma"])
def test_an_answer_is_what_stands_behind_the_prompt(model_type: str, folder: Path) -> None:
    encoder = RowEncoder(tiny_image_text(model_type)[1])
    row = row_of(
        folder, {"image": "0.png", "question": "is this", "choices": ["a red square", "no"], "label": 0}
    )
    prompt = encoder.prompt(row)["input_ids"]
    found = encoder.answered(row, "a red square")
    ids = found.inputs["input_ids"][0]
    assert encoder.decoded(ids[found.first : found.first + found.count]) == "a red square"
    assert torch.equal(ids[: found.first], prompt[0])
    assert "labels" not in found.inputs


@pytest.mark.parametrize(
    ("row", "what"),
    [
        ({"image": "0.png", "messages": [turn("user", IMAGE, IMAGE, text("a"))]}, "1 images, and .* places for 2"),
        ({"images": ["0.png", "1.png"], "messages": [ASKED]}, "2 images, and .* places for 1"),
        ({"image": "0.png", "messages": [turn("assistant", text("a"))]}, "no message of the user"),
        ({"image": "0.png", "messages": [{"role": "user"}]}, "without role or content"),
        ({"image": "0.png", "question": "a", "choices": ["yes", "no"]}, "right one of its 2 choices is not known"),
        ({"image": "0.png", "question": "a", "choices": ["yes", "no"], "label": 2}, "right one of its 2 choices"),
        ({"image": "0.png", "question": "a", "choices": ["no", "no"], "label": 1}, "fewer than two, or equal"),
        ({"image": "0.png", "question": "a", "choices": "yes, no", "label": 1}, "no list of texts"),
        ({"image": "0.png", "question": "a", "answers": ["yes", ""]}, "no list of texts"),
        ({"images": [], "question": "a"}, "has no image"),
        ({"image": "0.png", "question": "a <image>"}, "has the token of an image"),
        ({"image": "0.png", "question": "a", "answer": "<image>"}, "has the token of an image"),
    ],
)  # fmt: skip
def test_bad_rows_are_named(row: dict[str, Any], what: str, folder: Path, templated: Any) -> None:
    with pytest.raises(DataError, match=rf"rows\.jsonl, row 0: .*{what}"):
        batch(folder, row, templated)


def test_rows_beyond_the_positions_of_the_model(folder: Path, templated: Any) -> None:
    row = {"images": ["0.png", "1.png"], "text": "what is this"}
    length = batch(folder, row, templated, positions=None)["input_ids"].shape[1]
    assert batch(folder, row, templated, positions=length)
    with pytest.raises(ArgumentError, match=rf"row 0: {length} tokens, and the model has positions for 20"):
        batch(folder, row, templated, positions=20)


def test_a_template_that_takes_no_image_is_told(folder: Path, templated: Any) -> None:
    before = templated.chat_template
    templated.chat_template = "{% for m in messages %}{{ m['role'] }}{% endfor %}"
    try:
        with pytest.raises(DataError, match="row 0: has 1 images, and LlavaNextProcessor makes places for 0"):
            batch(folder, {"image": "0.png", "text": "a"}, templated)
        templated.chat_template = "{{ raise_exception('Roles must alternate') }}"
        with pytest.raises(
            DataError, match=r"row 0: the chat template .* cannot be filled.*Roles must alternate"
        ):
            batch(folder, {"image": "0.png", "text": "a"}, templated)
    finally:
        templated.chat_template = before


def test_all_images_that_do_not_open_are_named_at_once(folder: Path) -> None:
    (folder / "bad.png").write_text("no image")
    rows = [row_of(folder, {"image": name, "text": "a"}) for name in ("0.png", "bad.png", "none.png")]
    with pytest.raises(DataError, match=r"2 of 3 images do not open: .*bad\.png.*none\.png"):
        check_image_files(rows, "rows")


def test_text_files_and_tables_of_text_hold_no_images(folder: Path) -> None:
    assert not holds_images(write_rows(folder, [{"messages": [turn("user", text("a"))]}]))
    assert not holds_images(write_rows(folder, [{"text": "a"}]))
    (folder / "notes.txt").write_text("a")
    assert not holds_images(folder / "notes.txt")
