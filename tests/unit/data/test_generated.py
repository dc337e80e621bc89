"""The generated question set: reproducible, disjoint, balanced, and not to be guessed without the passage."""

import hashlib
import json
import re
from collections import Counter, defaultdict
from dataclasses import dataclass
from functools import cache

import pytest
from sklearn.feature_extraction.text import CountVectorizer
from sklearn.linear_model import LogisticRegression
from sklearn.naive_bayes import BernoulliNB
from sklearn.pipeline import make_pipeline

from sparse_trainer.data.quickstart.generated import Row, domains, forms, generate
from sparse_trainer.errors import DataError

NEAR_CHANCE = 0.56
ROWS = "4de2b84f81813ae99e3d6fce2219d31abf96734d174de00eef2707165e3113c7"
"""SHA-256 of rows as version 0.2.0 writes them."""


@pytest.fixture(scope="module")
def splits() -> tuple[list[Row], list[Row]]:
    return generate("train", 3000), generate("validation", 1000)


def test_the_seed_decides_everything() -> None:
    assert generate("train", 50, seed=1) == generate("train", 50, seed=1)
    assert generate("train", 50, seed=1) != generate("train", 50, seed=2)


def test_rows_are_those_of_other_versions() -> None:
    text = json.dumps([generate(split, 500, seed) for split in ("train", "validation") for seed in (42, 1)])
    assert hashlib.sha256(text.encode()).hexdigest() == ROWS


def test_splits_share_no_passage_and_no_question(splits: tuple[list[Row], list[Row]]) -> None:
    train, validation = splits
    for column in ("passage", "question"):
        assert not {row[column] for row in train} & {row[column] for row in validation}
    assert len({row["passage"] for row in train}) == 3000


def test_every_question_form_is_answered_yes_as_often_as_no() -> None:
    answers: dict[int, Counter[int]] = defaultdict(Counter)
    for row in generate("train", 2 * len(forms()) * 5):
        answers[_asked(row["question"])[0].form][row["label"]] += 1
    assert [answers[form] for form in range(len(forms()))] == [Counter({0: 5, 1: 5})] * len(forms())


def test_the_value_asked_for_is_the_one_stated_exactly_when_the_answer_is_yes() -> None:
    """Read the passage with the tables the writer used: sentence by sentence, keeping track of who is meant."""
    for row in generate("validation", 600):
        assert _read(row) == row["label"], row


@pytest.mark.parametrize("column", ["question", "passage"])
@pytest.mark.parametrize(
    "classifier", [LogisticRegression(max_iter=2000), BernoulliNB()], ids=["logistic", "bayes"]
)
@pytest.mark.parametrize("ngrams", [(1, 1), (1, 2)], ids=["words", "pairs"])
def test_one_side_alone_stays_near_chance(
    splits: tuple[list[Row], list[Row]], column: str, classifier: object, ngrams: tuple[int, int]
) -> None:
    train, validation = ([(row[column], row["label"]) for row in split] for split in splits)  # type: ignore[literal-required]
    model = make_pipeline(CountVectorizer(ngram_range=ngrams, binary=True), classifier)
    model.fit(*map(list, zip(*train, strict=True)))
    assert model.score(*map(list, zip(*validation, strict=True))) < NEAR_CHANCE


def test_asking_for_fewer_than_two_rows_is_refused() -> None:
    with pytest.raises(DataError, match="1 is too few"):
        generate("train", 1)


@dataclass(frozen=True)
class _Reader:
    """Patterns of one question form, and of the statements that answer it."""

    form: int
    question: re.Pattern[str]
    statements: tuple[re.Pattern[str], ...]
    names: re.Pattern[str]


def _pattern(template: str, **groups: str) -> re.Pattern[str]:
    pattern = re.escape(template.lower()).replace("\\{", "{").replace("\\}", "}")
    for key, group in groups.items():
        pattern = pattern.replace("{" + key + "}", f"(?P<{key}>{group})")
    return re.compile(pattern)


@cache
def _readers() -> tuple[_Reader, ...]:
    readers = []
    for number, form in enumerate(forms()):
        attribute = form.domain.attributes[form.attribute]
        values = "|".join(re.escape(value.lower()) for value in attribute.values)
        parts = [(a, b) for a in form.domain.first for b in form.domain.second]
        names = "|".join(re.escape(form.domain.name.format(a=a, b=b).lower()) for a, b in parts)
        readers.append(
            _Reader(
                form=number,
                question=_pattern(form.question, n=names, v=values),
                statements=tuple(_pattern(text, s=".+", v=values) for text in attribute.statements),
                names=re.compile(names),
            )
        )
    return tuple(readers)


def _asked(question: str) -> tuple[_Reader, re.Match[str]]:
    """Return the one form that a question can have been made from."""
    matches = [(reader, match) for reader in _readers() if (match := reader.question.fullmatch(question))]
    assert len(matches) == 1, question
    return matches[0]


def _read(row: Row) -> int:
    """Answer a question by matching every sentence against the tables, keeping track of who is meant."""
    reader, asked = _asked(row["question"])
    answers, current = set(), ""
    for sentence in row["passage"].lower().rstrip(".").split(". "):
        mentioned = reader.names.search(sentence)
        current = mentioned.group() if mentioned else current
        stated = [match for pattern in reader.statements if (match := pattern.fullmatch(sentence))]
        if current == asked["n"]:
            answers |= {int(match["v"] == asked["v"]) for match in stated}
    assert len(answers) == 1, (row, answers)
    return answers.pop()


def test_every_domain_offers_enough_names_for_both_splits() -> None:
    for name, domain in domains().items():
        assert len(domain.first) * len(domain.second) >= 100, name
