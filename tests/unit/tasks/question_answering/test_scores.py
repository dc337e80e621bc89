"""EM and F1 of answers, by examples counted by hand after the definition of SQuAD."""

import pytest

from sparse_trainer.tasks.question_answering.scores import exact_match, f1


@pytest.mark.parametrize(
    ("answer", "references", "exact", "overlap"),
    [
        ("The Beatles", ["beatles"], 1.0, 1.0),
        ("U.S.", ["US"], 1.0, 1.0),
        ("in 1997", ["1997", "the year 1997"], 0.0, 2 / 3),
        ("a an the", [""], 1.0, 1.0),
        ("", ["Ann"], 0.0, 0.0),
        ("Ann", [""], 0.0, 0.0),
        ("the the red", ["red red"], 0.0, 2 / 3),
        ("Ann and Bob and Cid", ["Bob and Ann", "Cid"], 0.0, 2 * 3 / 8),
        ("blue", ["red", "green"], 0.0, 0.0),
        ("naïve", ["naive"], 0.0, 0.0),
    ],
)
def test_answers_are_compared_as_squad_compares_them(
    answer: str, references: list[str], exact: float, overlap: float
) -> None:
    assert exact_match(answer, references) == exact
    assert f1(answer, references) == pytest.approx(overlap)
