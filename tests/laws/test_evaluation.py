"""Laws of evaluation: every number equals what a plain loop finds, one token and one choice at a time."""

import json
import math
from pathlib import Path

import pytest
import torch
from torch import Tensor
from transformers import PreTrainedModel

from sparse_trainer.data.corpora.read import find, questions, rows
from sparse_trainer.errors import ArgumentError, DataError, NonFiniteError, UnsupportedModelError
from sparse_trainer.tasks.language.choices import multiple_choice
from sparse_trainer.tasks.language.measure import compare, evaluate
from sparse_trainer.tasks.language.text import perplexity
from tests.architectures.tiny import tiny_model
from tests.fixtures.character_tokenizer import character_tokenizer

# Shape legend: T = tokens, V = vocabulary.

TEXT = "The cat sat.\nA dog ran far, and the bird sang loud (twice)."
ROWS = [
    {"question": "is it so", "passage": "It is so.", "label": 1},
    {"question": "does a long one fit", "passage": "No.", "label": 0},
    {"question": "x", "passage": "A passage longer than the rest.", "label": 1},
    {"question": "why", "passage": "Because.", "label": 0},
]
SOLUTIONS = [
    {"goal": "Open a jar", "sol1": "turn the lid", "sol2": "eat it", "label": 0},
    {"goal": "Boil", "sol1": "a", "sol2": "heat the water for long", "label": 1},
    {"goal": "Cut some paper", "sol1": "with scissors", "sol2": "with soup", "label": 0},
]
MODELS = ("llama", "gpt2", "mamba")


@torch.no_grad()
def log_probability(model: PreTrainedModel, context: list[int], token: int) -> float:
    """Return how likely a token is behind a context, from a pass over the context alone."""
    logits_V: Tensor = model(input_ids=torch.tensor([context])).logits[0, -1]
    return float(logits_V.double().log_softmax(0)[token])


@pytest.fixture
def text(tmp_path: Path) -> str:
    file = tmp_path / "text.txt"
    file.write_bytes(TEXT.encode())
    return str(file)


@pytest.fixture
def files(tmp_path: Path) -> dict[str, str]:
    found = {}
    for name, content in (("boolq", ROWS), ("piqa", SOLUTIONS)):
        file = tmp_path / f"{name}.jsonl"
        file.write_text("".join(json.dumps(row) + "\n" for row in content))
        found[name] = str(file)
    return found


@pytest.mark.parametrize("bos", [False, True])
def test_blocks_have_the_loss_that_the_model_itself_reports(text: str, bos: bool) -> None:
    model, tokenizer = tiny_model("llama"), character_tokenizer(bos=bos)
    result = perplexity(model, tokenizer, text, length=16, batch_size=3)
    room = 15 if bos else 16
    total, tokens = 0.0, 0
    for start in range(0, len(TEXT), room):
        ids = tokenizer(TEXT[start : start + room], return_tensors="pt")["input_ids"]
        count = ids.shape[1] - 1
        total += float(model(input_ids=ids, labels=ids).loss.detach()) * count
        tokens += count
    assert result.num_tokens == tokens == (len(TEXT) if bos else len(TEXT) - 4)
    assert result.loss == pytest.approx(total / tokens, abs=1e-6)  # the model sums in float32
    assert result.perplexity == pytest.approx(math.exp(total / tokens))
    assert result.bos is bos


@pytest.mark.parametrize("name", MODELS)
@pytest.mark.parametrize("bos", [False, True])
@pytest.mark.parametrize(("length", "stride"), [(16, 5), (12, 1), (64, 10)])
def test_moving_windows_score_each_token_once(
    name: str, bos: bool, length: int, stride: int, text: str
) -> None:
    model, tokenizer = tiny_model(name), character_tokenizer(bos=bos)
    ids = tokenizer(TEXT, add_special_tokens=False)["input_ids"]
    front, room = ([0], length - 1) if bos else ([], length)
    losses = []
    for place, token in enumerate(ids):
        start = stride * max(0, math.ceil((place + 1 - room) / stride))  # the first window that reaches it
        context = [*front, *ids[start:place]]
        if context:
            losses.append(-log_probability(model, context, token))
    result = perplexity(model, tokenizer, text, length=length, stride=stride, batch_size=4)
    assert result.num_tokens == len(losses) == len(ids) - (not bos)
    rounding = 1e-6 if name == "mamba" else 1e-10  # its logits are float32 whatever the weights are
    assert result.loss == pytest.approx(sum(losses) / len(losses), abs=rounding)


@pytest.mark.parametrize("name", MODELS)
@pytest.mark.parametrize("bos", [False, True])
@pytest.mark.parametrize("corpus", ["boolq", "piqa"])
def test_choices_score_as_one_by_one(name: str, bos: bool, corpus: str, files: dict[str, str]) -> None:
    model, tokenizer = tiny_model(name), character_tokenizer(bos=bos)
    right, right_norm = [], []
    known = find(corpus)
    for question in questions(known, rows(known, "evaluation", files[corpus])):
        logs = []
        for context, ending in zip(question.contexts, question.endings, strict=True):
            ids, more = (
                tokenizer(context)["input_ids"],
                tokenizer(ending, add_special_tokens=False)["input_ids"],
            )
            logs.append(sum(log_probability(model, ids + more[:n], token) for n, token in enumerate(more)))
        lengths = [len(ending.strip()) for ending in question.endings]
        per_character = [log / length for log, length in zip(logs, lengths, strict=True)]
        right.append(logs.index(max(logs)) == question.gold)
        right_norm.append(per_character.index(max(per_character)) == question.gold)
    for batch_size in (1, 3, 100):
        result = multiple_choice(model, tokenizer, corpus, file=files[corpus], batch_size=batch_size)
        assert result.right == tuple(right)
        assert result.right_norm == tuple(right_norm)
        assert (result.acc, result.num_questions) == (sum(right) / len(right), len(right))
        assert result.acc_norm == sum(right_norm) / len(right)


@pytest.mark.parametrize("name", MODELS)
def test_the_size_of_batches_does_not_matter(name: str, text: str) -> None:
    model, tokenizer = tiny_model(name), character_tokenizer()
    sizes = [perplexity(model, tokenizer, text, length=9, batch_size=size) for size in (1, 2, 50)]
    for other in sizes[1:]:
        assert other.num_tokens == sizes[0].num_tokens
        found, expected = ([loss for loss, _ in each.windows] for each in (other, sizes[0]))
        assert found == pytest.approx(expected, abs=1e-6 if name == "mamba" else 1e-10)


def test_a_question_that_is_too_long_keeps_its_end_and_its_bos(files: dict[str, str]) -> None:
    model, tokenizer = tiny_model("llama"), character_tokenizer(bos=True)
    short = multiple_choice(model, tokenizer, "piqa", file=files["piqa"], length=30)
    ids = tokenizer("Question: Open a jar\nAnswer: turn the lid", add_special_tokens=False)["input_ids"][-29:]
    ends = [sum(log_probability(model, [0, *ids[:n]], ids[n]) for n in range(29 - len(" turn the lid"), 29))]
    ids = tokenizer("Question: Open a jar\nAnswer: eat it", add_special_tokens=False)["input_ids"][-29:]
    ends += [sum(log_probability(model, [0, *ids[:n]], ids[n]) for n in range(29 - len(" eat it"), 29))]
    assert short.right[0] == (ends[0] > ends[1])


def test_a_model_beside_itself_does_not_differ(text: str, files: dict[str, str]) -> None:
    model, tokenizer = tiny_model("llama"), character_tokenizer()
    other = tiny_model("llama", seed=1)
    both = [
        evaluate(each, tokenizer, [text, "piqa"], files={"piqa": files["piqa"]}) for each in (model, other)
    ]
    same = compare(both[0][text], both[0][text])[0]
    assert (same.change, same.stderr) == (1.0, None)
    ratio = compare(both[1][text], both[0][text])[0]
    assert ratio.change == pytest.approx(ratio.value / ratio.baseline)
    for change in compare(both[1]["piqa"], both[0]["piqa"]):
        assert change.change == pytest.approx(change.value - change.baseline)


def test_results_are_plain_json(text: str, files: dict[str, str]) -> None:
    found = evaluate(
        tiny_model("llama"), character_tokenizer(), [text, "boolq"], files={"boolq": files["boolq"]}
    )
    values = json.loads(json.dumps({name: result.to_json() for name, result in found.items()}))
    assert values[text]["kind"] == "perplexity"
    assert values[text]["num_tokens"] == len(TEXT) - 1
    assert values["boolq"]["num_questions"] == 4


def test_training_goes_on_as_before(text: str) -> None:
    model = tiny_model("gpt2").train()
    first, second = (perplexity(model, character_tokenizer(), text).loss for _ in range(2))
    assert first == second
    assert model.training
    assert all(parameter.grad is None for parameter in model.parameters())


def test_what_cannot_be_measured_is_refused(text: str, files: dict[str, str]) -> None:
    tokenizer, model = character_tokenizer(bos=True), tiny_model("llama")
    with pytest.raises(UnsupportedModelError, match="no causal language model"):
        perplexity(tiny_model("bert"), tokenizer, text)
    with pytest.raises(ArgumentError, match=r"length: .* tokens\. Give 2 to \d+, the positions"):
        perplexity(model, tokenizer, text, length=10**6)
    with pytest.raises(ArgumentError, match=r"stride: 0 is not positive"):
        perplexity(model, tokenizer, text, length=8, stride=0)
    with pytest.raises(ArgumentError, match=r"limit: 0"):
        multiple_choice(model, tokenizer, "boolq", file=files["boolq"], limit=0)
    with pytest.raises(DataError, match="boolq: holds questions"):
        perplexity(model, tokenizer, "boolq", file=files["boolq"])
    with pytest.raises(DataError, match="holds no questions"):
        multiple_choice(model, tokenizer, text)
    with pytest.raises(ArgumentError, match=r"files: 'bolq' is not among the tasks\. Did you mean 'boolq'"):
        evaluate(model, tokenizer, ["boolq"], files={"bolq": files["boolq"]})
    with pytest.raises(ArgumentError, match="other windows"):
        compare(perplexity(model, tokenizer, text), perplexity(model, tokenizer, text, length=8))


def test_nan_is_no_perplexity(text: str) -> None:
    model = tiny_model("llama")
    with torch.no_grad():
        model.get_output_embeddings().weight.fill_(math.nan)
    with pytest.raises(NonFiniteError, match="NaN or infinite logits"):
        perplexity(model, character_tokenizer(), text)
