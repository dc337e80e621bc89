"""Conversations: which tokens are answers, with templates that say so and those that do not; what is refused."""

import logging
from pathlib import Path
from typing import Any

import pytest

from sparse_trainer.data.splits import DataOptions
from sparse_trainer.errors import ArgumentError, DataError, RecipeError
from sparse_trainer.tasks.base import Prepared
from sparse_trainer.tasks.instruction_tuning import InstructionTuning
from tests.fixtures.character_tokenizer import character_tokenizer
from tests.fixtures.recipe_files import write_rows

MARKED = (
    "{{ bos_token }}{% for message in messages %}[{{ message.role }}]{% if message.role == 'assistant' %}"
    "{% generation %}{{ message.content }}{{ eos_token }}{% endgeneration %}"
    "{% else %}{{ message.content }}{{ eos_token }}{% endif %}{% endfor %}"
    "{% if add_generation_prompt %}[assistant]{% endif %}"
)
UNMARKED = MARKED.replace("{% generation %}", "").replace("{% endgeneration %}", "")
REWRITING = (
    "{% for message in messages %}[{{ message.role }}]"
    "{% if message.role == 'assistant' and not loop.last %}...{% else %}{{ message.content }}{% endif %}{% endfor %}"
)
CHAT = [
    {"role": "system", "content": "Be kind."},
    {"role": "user", "content": "Two and two?"},
    {"role": "assistant", "content": "4"},
    {"role": "user", "content": "Sure?"},
    {"role": "assistant", "content": "Yes, 4"},
]


def prepared(
    folder: Path, rows: list[dict[str, Any]], template: str | None = UNMARKED, **options: Any
) -> Prepared:
    task = InstructionTuning(**{name: options.pop(name) for name in ("plain",) if name in options})
    file = str(write_rows(folder / "rows.jsonl", rows))
    tokenizer = character_tokenizer(bos=True)
    tokenizer.chat_template = template
    columns = {"text_columns": ("messages",)} | options
    return task.prepare(DataOptions(train_file=file, validation_file=file, **columns), tokenizer)


def answers(data: Prepared, row: int = 0) -> str:
    """Return the tokens that count, as text; each stands where its label stands."""
    ids, labels = data.train[row]["input_ids"], data.train[row]["labels"]
    assert all(label in (-100, token) for token, label in zip(ids, labels, strict=True))
    return str(character_tokenizer().decode([label for label in labels if label != -100]))


def text(data: Prepared, row: int = 0) -> str:
    return str(character_tokenizer().decode(data.train[row]["input_ids"]))


@pytest.mark.parametrize("template", [MARKED, UNMARKED])
def test_every_answer_counts_and_nothing_else(template: str, tmp_path: Path) -> None:
    data = prepared(tmp_path, [{"messages": CHAT}], template)
    assert answers(data) == "4</s>Yes, 4</s>"
    assert text(data).startswith("<s>[system]Be kind.</s>[user]Two and two?</s>[assistant]4</s>[user]")
    assert data.train[0]["input_ids"].count(0) == 1  # the template writes BOS, the tokenizer adds none
    assert data.example == CHAT[:2]


def test_of_prompts_with_answers_the_answers_count(tmp_path: Path) -> None:
    rows: list[dict[str, Any]] = [{"prompt": "Two and two?", "completion": "4"}]
    columns = {"text_columns": ("prompt",), "label_column": "completion"}
    data = prepared(tmp_path, rows, **columns)
    assert (text(data), answers(data)) == ("<s>[user]Two and two?</s>[assistant]4</s>", "4</s>")
    assert data.example == [{"role": "user", "content": "Two and two?"}]
    longer = [{"prompt": CHAT[:4], "completion": CHAT[4:]}]
    data = prepared(tmp_path, longer, MARKED, **columns)
    assert answers(data) == "Yes, 4</s>"  # not the answer that the prompt quotes


def test_plain_texts_stand_one_behind_the_other(tmp_path: Path) -> None:
    rows: list[dict[str, Any]] = [{"prompt": "Q: 2+2 A:", "completion": " 4"}]
    columns = {"text_columns": ("prompt",), "label_column": "completion", "plain": True}
    data = prepared(tmp_path, rows, None, **columns)
    assert (text(data), answers(data)) == ("<s>Q: 2+2 A: 4</s>", " 4</s>")
    assert data.example == "Q: 2+2 A:"


def test_long_rows_are_cut_and_those_without_an_answer_left_out(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    long = [{"role": "user", "content": "x" * 90}, {"role": "assistant", "content": "no room"}]
    with caplog.at_level(logging.WARNING):
        data = prepared(tmp_path, [{"messages": long}, {"messages": CHAT}], max_length=65)
    assert len(data.train) == 1
    assert len(data.train[0]["input_ids"]) == 65
    assert answers(data) == "4</s>"
    assert "1 of 2 rows have no answer within 65 tokens" in caplog.text
    with pytest.raises(DataError, match=r"no row has an answer within 20 tokens\. Raise data\.max_length"):
        prepared(tmp_path, [{"messages": long}], max_length=20)


def test_a_template_is_given_as_a_file_and_kept(tmp_path: Path) -> None:
    file = tmp_path / "chat.jinja"
    file.write_text(MARKED)
    tokenizer = character_tokenizer()
    rows = str(write_rows(tmp_path / "rows.jsonl", [{"messages": CHAT}]))
    data = DataOptions(train_file=rows, validation_file=rows, text_columns=("messages",))
    InstructionTuning(chat_template_file=str(file)).prepare(data, tokenizer)
    assert tokenizer.chat_template == MARKED
    with pytest.raises(ArgumentError, match=r"chat_template_file: .*nowhere.*no such file"):
        InstructionTuning(chat_template_file=str(tmp_path / "nowhere"))
    with pytest.raises(ArgumentError, match="is of no use with plain=True"):
        InstructionTuning(chat_template_file=str(file), plain=True)


PROMPTS = {"text_columns": ("prompt",), "label_column": "completion"}


@pytest.mark.parametrize(
    ("row", "template", "options", "message"),
    [
        ({"messages": CHAT[:2]}, UNMARKED, {}, r"train set, row 1: no message of the assistant"),
        ({"messages": CHAT}, REWRITING, {}, r"row 0: chat_template: writes other text before message 2"),
        ({"messages": CHAT}, None, {}, r"has no chat template\. Give task\.chat_template_file"),
        ({"messages": CHAT}, "{{ nothing.at.all }}", {}, r"row 0: chat_template: cannot be applied"),
        ({"messages": []}, UNMARKED, {}, r"row 1: \[\] is no list of messages"),
        (
            {"messages": [{"role": "user", "content": None}]},
            UNMARKED,
            {},
            r"row 1: .* is no list of messages",
        ),
        ({"messages": CHAT}, None, {"plain": True}, r"data\.label_column: no column 'label'"),
        ({"messages": CHAT}, UNMARKED, {"text_columns": ("chat",)}, "no column 'chat'"),
        ({"messages": CHAT}, UNMARKED, {"text_columns": ("messages", "a")}, r"data\.text_columns: 2 columns"),
        ({"prompt": "a", "completion": None}, UNMARKED, PROMPTS, r"row 1: None is no list of messages"),
        (
            {"prompt": "a", "completion": " "},
            None,
            PROMPTS | {"plain": True},
            r"row 1: 'a' and ' ' are no prompt",
        ),
    ],
)
def test_what_is_no_conversation_is_refused(
    row: dict[str, Any], template: str | None, options: dict[str, Any], message: str, tmp_path: Path
) -> None:
    fine = {"messages": CHAT} if "messages" in row else {"prompt": "a", "completion": "b"}
    with pytest.raises((DataError, RecipeError), match=message):
        prepared(tmp_path, [fine, row], template, **options)
