"""Models lose tokens with their tokenizers: what they say of the tokens that stay is the same, and the plan knows."""

from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoModelForMaskedLM, AutoModelForSeq2SeqLM, PreTrainedModel

from sparse_trainer import load_pruned, optimize_model, prune, save_pruned
from sparse_trainer.architectures.perturb import perturb
from sparse_trainer.cut.record import plan_of
from sparse_trainer.cut.vocabulary.trim import Trimmed, trim_vocabulary
from sparse_trainer.data.text_files import TextFiles
from sparse_trainer.errors import ArgumentError, CheckpointError, DataError
from sparse_trainer.plan.document import Plan
from tests.architectures.tiny import tiny_config
from tests.fixtures.tokenizers import KINDS, USED

_BUCKETS = {"relative_attention_num_buckets": 32, "relative_attention_max_distance": 128}
CASES = {
    "bert": ("WordPiece", AutoModelForMaskedLM, {}),
    "llama": ("byte-level BPE", AutoModelForCausalLM, {"tie_word_embeddings": True}),
    "gemma2": ("BPE with bytes", AutoModelForCausalLM, {}),
    "gpt2": ("BPE with ends", AutoModelForCausalLM, {}),
    "t5": ("Unigram", AutoModelForSeq2SeqLM, {"tie_word_embeddings": False, **_BUCKETS}),
    "mt5": ("Unigram", AutoModelForSeq2SeqLM, {"tie_word_embeddings": True, **_BUCKETS}),
    "xlm-roberta": ("Unigram", AutoModelForMaskedLM, {}),
    "albert": ("Unigram", AutoModelForMaskedLM, {}),
    "bart": ("byte-level BPE", AutoModelForSeq2SeqLM, {}),
    "qwen3_moe": ("byte-level BPE", AutoModelForCausalLM, {"tie_word_embeddings": False}),
}
SPARE = 7
"""Rows of the embeddings without a token, as many models have them."""


def _pair(model_type: str) -> tuple[PreTrainedModel, Any]:
    kind, auto_class, options = CASES[model_type]
    tokenizer = KINDS[kind]()
    config = tiny_config(model_type)
    names = {
        "vocab_size": len(tokenizer) + SPARE, "pad_token_id": tokenizer.pad_token_id,
        "bos_token_id": tokenizer.bos_token_id, "eos_token_id": tokenizer.eos_token_id,
    }  # fmt: skip
    if config.is_encoder_decoder:
        names["decoder_start_token_id"] = tokenizer.convert_tokens_to_ids("<image>")
    for name, value in {**names, **options}.items():
        setattr(config, name, value)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = auto_class.from_config(config, attn_implementation="eager", experts_implementation="eager")
        perturb(model)
    return model.double().eval(), tokenizer


def _logits(model: PreTrainedModel, tokenizer: Any, texts: Any = USED) -> torch.Tensor:
    inputs = tokenizer(list(texts), padding=True, return_tensors="pt")
    inputs.pop("token_type_ids", None)
    if model.config.is_encoder_decoder:
        inputs["decoder_input_ids"] = inputs["input_ids"]
    with torch.no_grad():
        return model(**inputs, use_cache=False).logits if model.can_generate() else model(**inputs).logits


def _same(model: PreTrainedModel, tokenizer: Any, done: Trimmed) -> None:
    expected = _logits(model, tokenizer)[..., done.kept["keep"]]
    torch.testing.assert_close(_logits(done.model, done.tokenizer), expected, rtol=0, atol=1e-10)


@pytest.mark.parametrize("model_type", CASES)
def test_logits_over_the_tokens_that_stay_are_equal(model_type: str) -> None:
    model, tokenizer = _pair(model_type)
    done = trim_vocabulary(model, tokenizer, USED)
    kept = done.kept["keep"]
    assert len(done.tokenizer) == len(kept) < len(tokenizer)
    assert done.model.get_input_embeddings().weight.shape[0] == len(kept) == done.model.config.vocab_size
    _same(model, tokenizer, done)
    assert done.recut == 0
    assert model.config.vocab_size == len(tokenizer) + SPARE
    for name in ("_attn_implementation", "_experts_implementation"):
        assert getattr(done.model.config, name) == getattr(model.config, name)


@pytest.mark.parametrize("model_type", ["llama", "t5", "bart"])
def test_ids_in_configs_follow_and_greedy_tokens_are_the_same(model_type: str) -> None:
    model, tokenizer = _pair(model_type)
    banned = list(range(len(tokenizer) + SPARE))
    done = trim_vocabulary(model, tokenizer, USED)
    kept = done.kept["keep"]
    for name in ("pad_token_id", "bos_token_id", "eos_token_id", "decoder_start_token_id"):
        for old, new in (
            (model.config, done.model.config),
            (model.generation_config, done.model.generation_config),
        ):
            number = getattr(old, name, None)
            if number is not None:
                assert kept[getattr(new, name)] == number
    # What went cannot be said: the model that has it must not say it either.
    model.generation_config.suppress_tokens = sorted(set(banned) - set(kept))
    asked = {"max_new_tokens": 12, "do_sample": False}
    said = [
        each.generate(**names(USED[0], return_tensors="pt"), **asked)[0].tolist()
        for each, names in ((model, tokenizer), (done.model, done.tokenizer))
    ]
    assert [kept[number] for number in said[1]] == said[0]


@pytest.mark.parametrize("model_type", ["llama", "bert", "t5"])
def test_cut_models_lose_tokens_and_trimmed_ones_units(model_type: str, tmp_path: Path) -> None:
    """Uneven folders stay uneven; the plan of two cuts says both, in either order."""
    model, tokenizer = _pair(model_type)
    cut, _ = prune(model, None, criterion="magnitude", density=0.6)
    done = trim_vocabulary(cut, tokenizer, USED)
    _same(cut, tokenizer, done)
    save_pruned(done.model, tmp_path / "a", processor=done.tokenizer)
    loaded = load_pruned(tmp_path / "a")
    torch.testing.assert_close(
        _logits(loaded, done.tokenizer), _logits(done.model, done.tokenizer), rtol=0, atol=1e-5
    )
    plan = plan_of(loaded)
    assert plan is not None
    assert plan.vocabulary == done.kept
    assert plan.groups == plan_of(cut).groups
    assert plan.method == "magnitude, then vocabulary"
    assert plan.params == {"dense": model.num_parameters(), "compact": loaded.num_parameters()}

    other, other_plan = prune(
        trim_vocabulary(model, tokenizer, USED).model, None, criterion="magnitude", density=0.6
    )
    assert other_plan.vocabulary == done.kept
    assert other_plan.groups == plan.groups
    assert other.config.vocab_size == loaded.config.vocab_size


def test_two_trims_name_the_tokens_of_the_first_model() -> None:
    model, tokenizer = _pair("llama")
    once = trim_vocabulary(model, tokenizer, USED, corpora={"a.txt": "0"})
    twice = trim_vocabulary(once.model, once.tokenizer, USED[:1], corpora={"b.txt": "1"})
    direct = trim_vocabulary(model, tokenizer, USED[:1])
    plan = plan_of(twice.model)
    assert plan is not None
    assert plan.vocabulary is not None
    assert plan.vocabulary["keep"] == direct.kept["keep"]
    assert plan.vocabulary["size"] == model.config.vocab_size
    assert plan.vocabulary["corpora"] == {"a.txt": "0", "b.txt": "1"}
    assert Plan.from_json(plan.to_json()) == plan


def test_rare_tokens_go_where_that_is_asked_and_texts_cut_otherwise_are_counted() -> None:
    model, tokenizer = _pair("llama")
    texts = [*USED, *USED, "needless"]
    all_of_it = trim_vocabulary(model, tokenizer, texts)
    common = trim_vocabulary(model, tokenizer, texts, keep_minimum_count=2)
    assert len(common.kept["keep"]) < len(all_of_it.kept["keep"])
    assert common.recut == 1
    assert common.kept["minimum_count"] == 2


def test_what_a_chat_template_says_stays() -> None:
    template = (
        "{% for message in messages %}missing {{ message['role'] }}: {{ message['content'] }}</s>{% endfor %}"
    )
    model, _ = _pair("llama")
    tokenizer = KINDS["byte-level BPE"](chat_template=template)
    done = trim_vocabulary(model, tokenizer, USED)
    chat = [{"role": "user", "content": USED[0]}, {"role": "assistant", "content": USED[1]}]
    said = [
        each.apply_chat_template(chat, tokenize=True, return_dict=True)["input_ids"]
        for each in (tokenizer, done.tokenizer)
    ]
    assert [done.kept["keep"][number] for number in said[1]] == said[0]


def test_tokens_that_a_config_names_keep_their_rows() -> None:
    """Of an image-text model, say; also a row that no token of the tokenizer has."""
    model, tokenizer = _pair("llama")
    model.config.image_token_id = len(tokenizer) + 2
    model.generation_config.suppress_tokens = [len(tokenizer) - 2]
    done = trim_vocabulary(model, tokenizer, USED)
    kept = done.kept["keep"]
    assert kept[done.model.config.image_token_id] == len(tokenizer) + 2
    assert [kept[number] for number in done.model.generation_config.suppress_tokens] == [len(tokenizer) - 2]
    _same(model, tokenizer, done)


def test_bad_input_is_told_before_any_work() -> None:
    model, tokenizer = _pair("llama")
    with pytest.raises(ArgumentError, match="keep_minimum_count"):
        trim_vocabulary(model, tokenizer, USED, keep_minimum_count=0)
    with pytest.raises(ArgumentError, match="once only"):
        trim_vocabulary(model, tokenizer, iter(USED))
    with pytest.raises(DataError, match="holds no text"):
        trim_vocabulary(model, tokenizer, [""])
    with pytest.raises(CheckpointError, match="beyond the 99"):
        trim_vocabulary(AutoModelForCausalLM.from_config(tiny_config("llama")), tokenizer, USED)


def test_a_plan_with_a_damaged_vocabulary_is_refused() -> None:
    model, tokenizer = _pair("llama")
    values = plan_of(trim_vocabulary(model, tokenizer, USED).model).to_dict()
    values["vocabulary"]["keep"][0] = 10**6
    with pytest.raises(CheckpointError, match="vocabulary"):
        Plan.from_dict(values)


def test_optimize_by_such_a_plan_cuts_units_only() -> None:
    model, tokenizer = _pair("llama")
    cut, _ = prune(model, None, criterion="magnitude", density=0.6)
    plan = plan_of(trim_vocabulary(cut, tokenizer, USED).model)
    again = optimize_model(model, plan=plan)
    assert again.config.vocab_size == model.config.vocab_size
    assert plan_of(again).vocabulary is None


def test_a_chat_template_does_not_count_text_again() -> None:
    model, tokenizer = _pair("llama")
    plain = trim_vocabulary(model, tokenizer, USED, keep_minimum_count=3).kept["keep"]
    assert len(plain) < len(trim_vocabulary(model, tokenizer, USED).kept["keep"])
    tokenizer.chat_template = "{% for m in messages %}<s>{{ m['content'] }}</s>{% endfor %}"
    assert trim_vocabulary(model, tokenizer, USED, keep_minimum_count=3).kept["keep"] == plain


@pytest.mark.parametrize("model_type", ["gemma2", "llama", "t5"])
def test_lines_of_a_text_are_texts_too(model_type: str) -> None:
    model, tokenizer = _pair(model_type)
    whole = trim_vocabulary(model, tokenizer, ["\n".join(USED)]).kept["keep"]
    assert set(trim_vocabulary(model, tokenizer, USED).kept["keep"]) <= set(whole)


@pytest.mark.parametrize("text", ["", " \n\n "])
def test_white_space_is_no_text(text: str) -> None:
    with pytest.raises(DataError, match="holds no text"):
        trim_vocabulary(*_pair("llama"), [text])


def test_files_of_the_same_name_are_both_in_the_plan(tmp_path: Path) -> None:
    for name in ("a", "b"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "train.txt").write_text(name)
    (tmp_path / "more.txt").write_text("c")
    files = [tmp_path / "a" / "train.txt", tmp_path / "b" / "train.txt", tmp_path / "more.txt"]
    named = TextFiles(tuple(files)).hashes()
    assert list(named) == [files[0].as_posix(), files[1].as_posix(), "more.txt"]
    assert len(set(named.values())) == 3
