"""llama.cpp splits texts as the tokenizer of the folder does, and knows its special tokens and chat template."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from tokenizers import (
    AddedToken,
    Regex,
    Tokenizer,
    decoders,
    models,
    normalizers,
    pre_tokenizers,
    processors,
    trainers,
)
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

from sparse_trainer.convert.folder import convert_folder
from sparse_trainer.convert.gguf.vocabulary import SPLITS
from sparse_trainer.errors import ConversionError
from tests.fixtures.llama_cpp import LlamaCpp

gguf = pytest.importorskip("gguf")
pytest.importorskip("xllamacpp")

CORPUS = [
    "The quick brown fox doesn't jump over 12345 lazy dogs; they've slept since 1999.",
    "def run(self):\n    return [x ** 2 for x in range(10)]\n\n\t# done",
    "Größere Wörter, naïve cafés, 北京 and Москва: WE'LL see...   three  spaces!",
] * 4
TEXTS = [
    "The fox doesn't", " leading and   trailing  ", "WE'LL see 1234567 dogs", "x=3;\n\n\ty = 'ab'\r\n", "Größe 北京!!",
    "<|end|>a<|user|> <|end|>", "mixed123abc 4 5,6",
    "camelCase andHTTPServer's paths/of/files //", "IT'S naïve, I'Ll say",
]  # fmt: skip
SPECIAL = ["<unk>", "<s>", "<|end|>"]
TEMPLATE = "{% for message in messages %}<|user|>{{ message['content'] }}<|end|>{% endfor %}"


def byte_level(*steps: Any, use_regex: bool) -> Tokenizer:
    """Return a trained byte-level BPE that splits texts by these steps first."""
    tokenizer = Tokenizer(models.BPE())
    last = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=use_regex)
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence([*steps, last]) if steps else last
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=400, special_tokens=SPECIAL, initial_alphabet=pre_tokenizers.ByteLevel.alphabet()
    )
    tokenizer.train_from_iterator(CORPUS, trainer)
    return tokenizer


def split_by(name: str) -> Tokenizer:
    """Return a byte-level BPE that splits texts as the family of this name does."""
    pattern = next(pattern for pattern, called in SPLITS.items() if called == name)
    how = {"behavior": "removed", "invert": True} if name == "gpt-4o" else {"behavior": "isolated"}
    return byte_level(pre_tokenizers.Split(Regex(pattern), **how), use_regex=False)


def sentencepiece(spaces: str) -> Tokenizer:
    """Return a BPE of SentencePiece, as Llama 2 and Mistral have it, and Gemma ("plain")."""
    tokenizer = Tokenizer(models.BPE(byte_fallback=True, unk_token="<unk>", fuse_unk=True))
    replace = normalizers.Replace(" ", "▁")
    if spaces == "prepend":
        tokenizer.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), replace])
    elif spaces == "plain":
        tokenizer.normalizer = replace
        tokenizer.pre_tokenizer = pre_tokenizers.Split(" ", "merged_with_previous")
    else:
        tokenizer.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme=spaces, split=False)
    trainer = trainers.BpeTrainer(
        vocab_size=500, special_tokens=[*SPECIAL, *(f"<0x{byte:02X}>" for byte in range(256))]
    )
    tokenizer.train_from_iterator(CORPUS, trainer)
    parts = [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)]
    tokenizer.decoder = decoders.Sequence(parts)
    return tokenizer


KINDS: dict[str, Callable[[], Tokenizer]] = {
    "gpt-2": lambda: byte_level(use_regex=True),
    "smollm": lambda: byte_level(pre_tokenizers.Digits(individual_digits=True), use_regex=True),
    "llama-bpe": lambda: split_by("llama-bpe"),
    "qwen2": lambda: split_by("qwen2"),
    "tekken": lambda: split_by("tekken"),
    "gpt-4o": lambda: split_by("gpt-4o"),
    "prepend": lambda: sentencepiece("prepend"),
    "always": lambda: sentencepiece("always"),
    "first": lambda: sentencepiece("first"),
    "plain": lambda: sentencepiece("plain"),
}


def write(folder: Path, tokenizer: Tokenizer, **options: Any) -> PreTrainedTokenizerFast:
    """Write a tiny model with this tokenizer."""
    fast = PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, unk_token="<unk>", bos_token="<s>", eos_token="<|end|>", **options
    )
    fast.add_tokens([AddedToken("<|user|>", normalized=False)])
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=len(fast) + 5, hidden_size=32, intermediate_size=32, num_hidden_layers=2, num_attention_heads=2,
        num_key_value_heads=1, head_dim=16, max_position_embeddings=256, eos_token_id=2, bos_token_id=1,
    )  # fmt: skip
    LlamaForCausalLM(config).save_pretrained(folder)
    fast.save_pretrained(folder)
    return fast


@pytest.mark.parametrize("bos", [False, True], ids=["plain", "bos"])
@pytest.mark.parametrize("kind", KINDS)
def test_texts_are_split_alike(kind: str, bos: bool, tmp_path: Path) -> None:
    tokenizer = KINDS[kind]()
    if bos:
        tokenizer.post_processor = processors.TemplateProcessing(single="<s> $A", special_tokens=[("<s>", 1)])
    fast = write(tmp_path / "one", tokenizer, chat_template=TEMPLATE)
    out, _ = convert_folder(str(tmp_path / "one"), tmp_path / "model.gguf", "gguf")
    fields = gguf.GGUFReader(out)
    assert fields.get_field("tokenizer.ggml.pre").contents() == (
        kind if "-" in kind or kind in ("smollm", "qwen2", "tekken") else "default"
    )
    assert fields.get_field("tokenizer.ggml.add_bos_token").contents() is bos
    assert fields.get_field("tokenizer.ggml.eos_token_id").contents() == 2
    assert fields.get_field("tokenizer.chat_template").contents() == TEMPLATE
    runtime, size = LlamaCpp(out, context=256), len(fast) + 5
    # Metaspace puts no space in front of one, and "first" none behind special tokens; llama.cpp does.
    texts = [text for text in TEXTS if kind not in ("always", "first") or text[0] not in " <"]
    for text in texts:
        ids = fast(text)["input_ids"]
        by_text, by_ids = (runtime.generate(prompt, 1, size) for prompt in (text, ids))
        assert by_text["usage"]["prompt_tokens"] == len(ids), text
        assert by_text["choices"] == by_ids["choices"], text


def test_tokenizers_that_llama_cpp_would_not_imitate_are_refused(tmp_path: Path) -> None:
    def why(name: str, tokenizer: Tokenizer | None) -> str:
        folder = tmp_path / name
        if tokenizer is not None:
            write(folder, tokenizer)
        else:
            write(folder, byte_level(use_regex=True))
            for file in folder.glob("tokenizer*"):
                file.unlink()
        with pytest.raises(ConversionError) as told:
            convert_folder(str(folder), tmp_path / "model.gguf", "gguf")
        return str(told.value)

    words = Tokenizer(
        models.WordLevel({token: n for n, token in enumerate([*SPECIAL, "a"])}, unk_token="<unk>")
    )
    assert "is of type WordLevel, and BPE alone is written" in why("words", words)
    odd = byte_level(pre_tokenizers.Split(Regex("[0-9]"), "isolated"), use_regex=False)
    assert "splits texts in a way that is not known here" in why("odd", odd)
    assert "tokenizer: is missing." in why("none", None)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["none", "odd", "words"]
