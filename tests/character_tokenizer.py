"""A tokenizer with one token per character, for the vocabulary of the tiny models."""

from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors
from transformers import PreTrainedTokenizerFast

_SPECIAL = ("<s>", "</s>", "<unk>")
_TEMPLATE = (
    "{% for message in messages %}[{{ message['role'] }}] {{ message['content'] }}{{ eos_token }}{% endfor %}"
)


def character_tokenizer(*, bos: bool = False, chat: bool = False) -> PreTrainedTokenizerFast:
    """Return a tokenizer of printable ASCII, space and line end.

    Args:
        bos: Whether it puts <s> in front of a text.
        chat: Whether it has a chat template.
    """
    characters = [chr(code) for code in range(33, 127)] + [
        "Ġ",
        "Ċ",
    ]  # as byte-level BPE writes space and line end
    vocabulary = {token: number for number, token in enumerate([*_SPECIAL, *characters])}
    tokenizer = Tokenizer(models.BPE(vocab=vocabulary, merges=[], unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    if bos:
        tokenizer.post_processor = processors.TemplateProcessing(
            single="<s> $A", pair="<s> $A $B", special_tokens=[("<s>", 0)]
        )
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        bos_token="<s>",
        eos_token="</s>",
        unk_token="<unk>",
        pad_token="</s>",
        chat_template=_TEMPLATE if chat else None,
    )
