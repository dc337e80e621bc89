"""Tokenizers lose tokens: the same pieces for the text they are meant for, others spelled or unknown."""

import pytest
from transformers import AutoTokenizer, PreTrainedTokenizerFast
from transformers.models.byt5.tokenization_byt5 import ByT5Tokenizer

from sparse_trainer.cut.vocabulary.tokenizer import count_tokens, read_fast, rebuilt
from sparse_trainer.errors import CheckpointError
from tests.fixtures.tokenizers import KINDS, SENTENCES, STRANGE, USED


def _smaller(tokenizer: PreTrainedTokenizerFast) -> tuple[PreTrainedTokenizerFast, list[str]]:
    fast = read_fast(tokenizer)
    kept = fast.kept(set(count_tokens(tokenizer, USED)))
    made = rebuilt(tokenizer, fast.keeping(kept), {token: number for number, token in enumerate(kept)})
    return made, list(kept)


@pytest.mark.parametrize("kind", KINDS)
def test_text_of_the_corpus_is_cut_into_the_same_pieces(kind: str) -> None:
    before = KINDS[kind]()
    after, kept = _smaller(before)
    assert len(after) == len(kept) < len(before) - 5
    for text in USED:
        assert after.convert_ids_to_tokens(after(text)["input_ids"]) == before.convert_ids_to_tokens(
            before(text)["input_ids"]
        )
        assert after.decode(after(text)["input_ids"]) == before.decode(before(text)["input_ids"])


@pytest.mark.parametrize("kind", KINDS)
def test_special_and_added_tokens_stay_also_around_pairs(kind: str) -> None:
    before = KINDS[kind]()
    after, _ = _smaller(before)
    pair = (USED[0], f"{USED[1]} <image> <mask>")
    assert after.tokenize(*pair, add_special_tokens=True) == before.tokenize(*pair, add_special_tokens=True)
    for name in ("pad_token", "bos_token", "eos_token", "unk_token", "mask_token"):
        assert getattr(after, name) == getattr(before, name)
        assert after.convert_ids_to_tokens(getattr(after, f"{name}_id")) == getattr(before, name)
    padded = after([USED[0], "banana"], padding=True)["input_ids"][1]
    assert padded[-1] == after.pad_token_id


@pytest.mark.parametrize("kind", KINDS)
def test_a_saved_one_loads_as_it_was(kind: str, tmp_path) -> None:
    after, _ = _smaller(KINDS[kind]())
    after.save_pretrained(tmp_path)
    loaded = AutoTokenizer.from_pretrained(tmp_path)
    for text in (*USED, *SENTENCES, STRANGE):
        assert loaded(text)["input_ids"] == after(text)["input_ids"]


@pytest.mark.parametrize("kind", ["byte-level BPE", "BPE with bytes"])
def test_bytes_stay_so_that_nothing_is_unknown(kind: str) -> None:
    after, kept = _smaller(KINDS[kind]())
    ids = after(STRANGE)["input_ids"]
    assert after.unk_token_id not in ids
    if kind == "byte-level BPE":
        assert after.decode(ids, skip_special_tokens=True) == STRANGE
    else:
        assert sum(token.startswith("<0x") for token in kept) == 256


@pytest.mark.parametrize("kind", ["WordPiece", "Unigram"])
def test_words_that_are_new_are_spelled_with_characters_that_occur(kind: str) -> None:
    after, _ = _smaller(KINDS[kind]())
    pieces = after.tokenize("costs")
    assert "".join(pieces).replace("##", "").replace("▁", "") == "costs"
    assert after.unk_token_id in after("Q")["input_ids"]


def test_the_pieces_of_a_merge_stay_and_merges_without_result_go() -> None:
    before = KINDS["byte-level BPE"]()
    after, kept = _smaller(before)
    model = read_fast(after).values["model"]
    assert 0 < len(model["merges"]) < len(read_fast(before).values["model"]["merges"])
    for merge in model["merges"]:
        left, right = merge if isinstance(merge, list) else merge.split(" ")
        assert {left, right, left + right} <= set(kept)


def test_the_lowest_score_of_unigrams_stays_since_that_of_unknown_follows_it() -> None:
    before = KINDS["Unigram"]()
    after, _ = _smaller(before)
    scores = [[score for _, score in read_fast(each).values["model"]["vocab"]] for each in (before, after)]
    assert min(scores[0]) == min(scores[1])


def test_a_tokenizer_in_python_is_refused_by_its_kind() -> None:
    with pytest.raises(CheckpointError, match="ByT5Tokenizer: is a tokenizer in Python"):
        read_fast(ByT5Tokenizer())
