"""ROUGE by hand and as rouge_score counts it; BLEU and chrF are those of sacrebleu."""

import random

import pytest

from sparse_trainer.errors import ArgumentError, RecipeError
from sparse_trainer.tasks.generation import scores
from sparse_trainer.tasks.generation.rouge import longest_common, rouge_l, rouge_n, words_of
from sparse_trainer.tasks.generation.scores import SCORES, check_scores, installed_scores

WRITTEN = ["The cat sat on the mat.", "Nothing in common", "", "a b a b", "Über-große 3,5% steps"]
REFERENCES = ["A cat sat on that mat!", "all else", "some words", "b a b a", "uber große 3.5 % Steps, the"]


def test_by_hand() -> None:
    # Unigrams in common: cat, sat, on, mat; of 6 and 6. Pairs: cat sat, sat on. The subsequence: cat sat on mat.
    pair = (WRITTEN[0], REFERENCES[0])
    assert rouge_n(*pair, 1) == pytest.approx(4 / 6)
    assert rouge_n(*pair, 2) == pytest.approx(2 / 5)
    assert rouge_l(*pair) == pytest.approx(4 / 6)
    assert rouge_n("a a a", "a b", 1) == pytest.approx(2 * (1 / 3) * (1 / 2) / (5 / 6))  # one of three counts
    assert rouge_n("", "a", 1) == rouge_l("a", "") == rouge_n("a", "a", 2) == 0
    assert longest_common([], ["a"]) == 0
    assert words_of("Don't -- stop") == ["don", "t", "stop"]


def test_of_several_texts_it_is_the_mean() -> None:
    assert SCORES["rouge1"](["a b", "c"], ["a b", "d"]) == pytest.approx(0.5)


def test_the_numbers_are_those_of_rouge_score() -> None:
    rouge_scorer = pytest.importorskip("rouge_score.rouge_scorer", reason="rouge_score is not installed")
    known = ("rouge1", "rouge2", "rougeL")
    scorer = rouge_scorer.RougeScorer(known, use_stemmer=False)
    drawn = random.Random(0)
    words = ["a", "b", "C", "d.e", "é", "f-1", ","]
    texts = [" ".join(drawn.choices(words, k=drawn.randrange(12))) for _ in range(400)]
    for written, reference in [
        *zip(WRITTEN, REFERENCES, strict=True),
        *zip(texts[::2], texts[1::2], strict=True),
    ]:
        theirs = scorer.score(reference, written)
        for name in known:
            assert SCORES[name]([written], [reference]) == pytest.approx(theirs[name].fmeasure, abs=1e-12)


def test_bleu_and_chrf_are_those_of_sacrebleu() -> None:
    sacrebleu = pytest.importorskip("sacrebleu", reason="sacrebleu is not installed")
    found = {name: score(WRITTEN, REFERENCES) for name, score in installed_scores(("bleu", "chrf")).items()}
    assert found["bleu"] == pytest.approx(sacrebleu.corpus_bleu(WRITTEN, [REFERENCES]).score / 100)
    assert found["chrf"] == pytest.approx(sacrebleu.corpus_chrf(WRITTEN, [REFERENCES]).score / 100)
    assert 0 < found["chrf"] < 1
    assert SCORES["bleu"](["the cat sat on it"], ["the cat sat on it"]) == pytest.approx(1)


def test_what_cannot_be_scored_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(ArgumentError, match=r"metrics: names none"):
        check_scores(())
    with pytest.raises(ArgumentError, match=r"metrics: .*'rogue1'.*rouge1"):
        check_scores(("rogue1",))
    monkeypatch.setattr(scores, "find_spec", lambda name: None)
    with pytest.raises(
        RecipeError,
        match=r"task\.metrics: bleu is computed by sacrebleu.*pip install 'sparse-trainer\[transl",
    ):
        installed_scores(("rouge1", "bleu"))
