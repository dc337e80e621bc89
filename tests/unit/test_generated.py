"""The generated question set: reproducible, disjoint, balanced, and not to be guessed without the passage."""

import re
from collections import Counter, defaultdict

import pytest
from sklearn.feature_extraction.text import CountVectorizer
from sklearn.linear_model import LogisticRegression
from sklearn.naive_bayes import BernoulliNB
from sklearn.pipeline import make_pipeline

from sparse_trainer.errors import DataError
from sparse_trainer.generated import FORMS, Row, generate
from sparse_trainer.generated_world import DOMAINS

NEAR_CHANCE = 0.55


@pytest.fixture(scope="module")
def splits() -> tuple[list[Row], list[Row]]:
    return generate("train", 4000), generate("validation", 1000)


def test_the_seed_decides_everything() -> None:
    assert generate("train", 50, seed=1) == generate("train", 50, seed=1)
    assert generate("train", 50, seed=1) != generate("train", 50, seed=2)


def test_splits_share_no_passage_and_no_question(splits: tuple[list[Row], list[Row]]) -> None:
    train, validation = splits
    for column in ("passage", "question"):
        assert not {row[column] for row in train} & {row[column] for row in validation}
    assert len({row["passage"] for row in train}) == 4000


def test_every_question_form_is_answered_yes_as_often_as_no(splits: tuple[list[Row], list[Row]]) -> None:
    rows = generate("train", 2 * len(FORMS) * 5)
    answers: dict[str, Counter[int]] = defaultdict(Counter)
    for row in rows:
        answers[_form_of(row["question"])][row["label"]] += 1
    assert len(answers) == len({form.question for form in FORMS})
    assert all(count[0] == count[1] for count in answers.values())


def test_the_value_asked_for_is_the_one_stated_exactly_when_the_answer_is_yes() -> None:
    """Read the passage with the tables the writer used: sentence by sentence, keeping track of who is meant."""
    for row in generate("validation", 600):
        assert _read(row) == row["label"], row


@pytest.mark.parametrize("column", ["question", "passage"])
@pytest.mark.parametrize("classifier", [LogisticRegression(max_iter=2000), BernoulliNB()], ids=["logistic", "bayes"])
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


def _form_of(question: str) -> str:
    """Return the form a question was made from; the longest match is the most specific one."""
    matching = [form.question for form in FORMS if re.fullmatch(_pattern(form.question), question)]
    assert matching, question
    return max(matching, key=lambda form: len(form.replace("{n}", "").replace("{v}", "")))


def _pattern(template: str, **groups: str) -> str:
    named = {key: f"(?P<{key}>{groups.get(key, '.+')})" for key in ("n", "v", "s")}
    pattern = re.escape(template.lower()).replace("\\{", "{").replace("\\}", "}")
    for key, group in named.items():
        pattern = pattern.replace("{" + key + "}", group)
    return pattern


def _read(row: Row) -> int:
    """Answer a question by matching its form and every sentence against the tables."""
    answers = set()
    for form in FORMS:
        attribute = form.domain.attributes[form.attribute]
        values = "|".join(re.escape(value.lower()) for value in attribute.values)
        names = "|".join(
            re.escape(form.domain.name.format(a=a, b=b).lower())
            for a in form.domain.first
            for b in form.domain.second
        )
        asked = re.fullmatch(_pattern(form.question, n=names, v=values), row["question"])
        if asked is None:
            continue
        current = ""
        for sentence in row["passage"].lower().rstrip(".").split(". "):
            mentioned = re.search(names, sentence)
            current = mentioned.group() if mentioned else current
            if current != asked["n"]:
                continue
            for statement in attribute.statements:
                stated = re.fullmatch(_pattern(statement, v=values), sentence)
                if stated is not None:
                    answers.add(int(stated["v"] == asked["v"]))
    assert len(answers) == 1, (row, answers)
    return answers.pop()


def test_every_domain_offers_enough_names_for_both_splits() -> None:
    for name, domain in DOMAINS.items():
        assert len(domain.first) * len(domain.second) >= 100, name
