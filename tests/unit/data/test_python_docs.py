"""The corpus that comes with Python."""

from sparse_trainer.data.corpora.read import find, rows, texts


def test_its_parts_share_no_topic_and_hold_english_text() -> None:
    corpus = find("python-docs")
    calibration, evaluation = (
        list(texts(corpus, rows(corpus, part))) for part in ("calibration", "evaluation")
    )
    assert not set(calibration) & set(evaluation)
    assert sum(map(len, calibration)) > 200_000
    assert sum(map(len, evaluation)) > 40_000
    assert any("function definition" in text for text in calibration + evaluation)
