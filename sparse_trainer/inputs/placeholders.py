"""Ids that are no words: placeholders of pictures and sound, beginnings, ends, padding."""

from collections.abc import Iterator
from typing import Final

from transformers import PreTrainedConfig

_ENDINGS: Final = ("token_id", "token_index", "patch_id", "token_ids")


def special_ids(config: PreTrainedConfig) -> frozenset[int]:
    """Return the ids that a config, and the configs inside it, name as tokens of a meaning of their own.

    >>> sorted(special_ids(PreTrainedConfig(pad_token_id=0, eos_token_id=[2, 5], image_token_id=7)))
    [0, 2, 5, 7]
    """
    return frozenset(_ids(config))


def _ids(config: PreTrainedConfig) -> Iterator[int]:
    for name, value in vars(config).items():
        if isinstance(value, PreTrainedConfig):
            yield from _ids(value)
        elif name.endswith(_ENDINGS):
            yield from (
                one for one in (value if isinstance(value, list | tuple) else [value]) if type(one) is int
            )
