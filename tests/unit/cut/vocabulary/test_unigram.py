"""Unigram loses pieces and keeps every best segmentation: ties, unknown characters, bytes, the classes that have it."""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import transformers
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, trainers

from sparse_trainer.cut.vocabulary.families import FAMILIES
from sparse_trainer.cut.vocabulary.tokenizer import FastTokenizer, count_tokens, pieces_of, read_fast, rebuilt

PAGES = Path(__file__).parents[4] / "docs"
SCORES = (0.0, -0.5, -1.0, -1.5, -2.0, -3.0, -7.25)
"""Sums of these are exact, so that many segmentations are equally good."""
LETTERS = "abc"
UNKNOWN = "<unk>"

Pieces = list[tuple[str, float]]
_SPECIAL = ("<s>", "<pad>", "</s>", UNKNOWN)
_BRACKETS = ("<pad>", UNKNOWN, "[CLS]", "[SEP]", "[MASK]")
CLASSES: dict[str, tuple[Sequence[str], Sequence[str]]] = {
    "XLMRobertaTokenizer": (_SPECIAL, ["<mask>"]),
    "T5Tokenizer": (("<pad>", "</s>", UNKNOWN), [f"<extra_id_{number}>" for number in range(99, -1, -1)]),
    "AlbertTokenizer": (_BRACKETS, []),
    "DebertaV2Tokenizer": (("[PAD]", "[CLS]", "[SEP]", "[UNK]"), ["[MASK]"]),
    "CamembertTokenizer": (("<s>NOTUSED", "<pad>", "</s>NOTUSED", UNKNOWN, "<unk>NOTUSED"), ["<mask>"]),
    "MBartTokenizer": (_SPECIAL, []),
    "PegasusTokenizer": (
        ("<pad>", "</s>", "<mask_1>", "<mask_2>", *(f"<unk_{number}>" for number in range(2, 103)), UNKNOWN),
        [],
    ),
}
"""Class of transformers -> special tokens before and behind its pieces. They differ in normalizers, too."""


@pytest.fixture(scope="module")
def lines() -> list[str]:
    """Return real text: pages of the documentation, line by line."""
    pages = ("serving.md", "architecture.md", "vocabulary.md")
    texts = [(PAGES / page).read_text(encoding="utf-8") for page in pages if (PAGES / page).exists()]
    return [line for text in texts for line in text.splitlines() if line]


@pytest.fixture(scope="module")
def learned(lines: list[str]) -> Pieces:
    """Return pieces and scores that were learned on it."""
    tokenizer = Tokenizer(models.Unigram())
    tokenizer.normalizer = normalizers.NFKC()
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace()
    trainer = trainers.UnigramTrainer(vocab_size=600, special_tokens=[UNKNOWN], unk_token=UNKNOWN)
    tokenizer.train_from_iterator(lines, trainer)
    return [(piece, score) for piece, score in json.loads(tokenizer.to_str())["model"]["vocab"][1:]]


@pytest.mark.parametrize("name", CLASSES)
def test_real_text_is_cut_as_before_by_every_class(
    name: str, lines: list[str], learned: Pieces, tmp_path: Path
) -> None:
    first, last = ([(token, 0.0) for token in tokens] for tokens in CLASSES[name])
    getattr(transformers, name)(vocab=[*first, *learned, *last]).save_pretrained(tmp_path)
    before = getattr(transformers, name).from_pretrained(tmp_path)
    used = [*lines[:60], "ﬁve ½ \uff26ull cafe\u0301 東京 ``quoted''"]
    fast = read_fast(before)
    kept = fast.kept({*count_tokens(before, used), *before.all_special_ids})
    after = rebuilt(before, fast.keeping(kept), {token: number for number, token in enumerate(kept)})
    old = list(kept.values())
    assert len(after) < 0.8 * len(before)
    for wanted, found in zip(pieces_of(before, used), pieces_of(after, used), strict=True):
        assert [old[number] for number in found] == wanted
    pair = [each(used[0], used[1])["input_ids"] for each in (before, after)]
    assert [old[number] for number in pair[1]] == pair[0]
    assert after.unk_token_id in after("京")["input_ids"]
    after.save_pretrained(tmp_path / "after")
    loaded = transformers.AutoTokenizer.from_pretrained(tmp_path / "after")
    assert list(pieces_of(loaded, lines)) == list(pieces_of(after, lines))


def _tokenizer(pieces: Pieces, *, unknown: int | None, byte_fallback: bool) -> Tokenizer:
    return Tokenizer(models.Unigram(pieces, unk_id=unknown, byte_fallback=byte_fallback))


@settings(max_examples=100, deadline=None)
@given(data=st.data())
def test_whatever_pieces_score_and_tie_the_corpus_is_cut_as_before(data: st.DataObject) -> None:
    pieces_of_letters = st.text(LETTERS, min_size=1, max_size=4)
    scored = data.draw(st.dictionaries(pieces_of_letters, st.sampled_from(SCORES), min_size=1, max_size=14))
    byte_fallback = data.draw(st.booleans())
    raw = [(f"<0x{number:02X}>", -9.0) for number in range(256)] if byte_fallback else []
    before = _tokenizer([(UNKNOWN, 0.0), *raw, *scored.items()], unknown=0, byte_fallback=byte_fallback)
    texts = data.draw(st.lists(st.text(f"{LETTERS}é", max_size=12), min_size=1, max_size=3))
    values: Any = json.loads(before.to_str())
    fast = FastTokenizer(values=values, family=FAMILIES["Unigram"])
    kept = fast.kept({number for text in texts for number in before.encode(text).ids})
    after = Tokenizer.from_str(json.dumps(fast.keeping(kept)))
    assert after.get_vocab() == {token: number for number, token in enumerate(kept)}
    for text in texts:
        assert after.encode(text).tokens == before.encode(text).tokens
    assert len([token for token in kept if token.startswith("<0x")]) == len(raw)


def test_of_paths_that_tie_the_same_one_stays_the_best() -> None:
    """`abc` is `ab` + `c` or `a` + `bc`, with one score; neither of the losers is needed for text of `abc` alone."""
    pieces = [(UNKNOWN, 0.0), ("a", -1.0), ("bc", -1.0), ("ab", -1.0), ("c", -1.0), ("b", -1.0), ("z", -9.0)]
    before = _tokenizer(pieces, unknown=0, byte_fallback=False)
    fast = FastTokenizer(values=json.loads(before.to_str()), family=FAMILIES["Unigram"])
    kept = fast.kept(set(before.encode("abc").ids))
    after = Tokenizer.from_str(json.dumps(fast.keeping(kept)))
    assert after.encode("abc").tokens == before.encode("abc").tokens
    assert len(kept) < len(pieces)


def test_a_model_without_an_unknown_piece_is_trimmed_too() -> None:
    before = _tokenizer(
        [("a", -1.0), ("b", -2.0), ("ab", -2.5), ("ba", -6.0)], unknown=None, byte_fallback=False
    )
    fast = FastTokenizer(values=json.loads(before.to_str()), family=FAMILIES["Unigram"])
    values = fast.keeping(fast.kept(set(before.encode("abab").ids)))
    assert values["model"]["unk_id"] is None
    assert Tokenizer.from_str(json.dumps(values)).encode("abab").tokens == before.encode("abab").tokens
