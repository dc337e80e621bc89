"""Which auto classes of transformers lead to a model class."""

from collections.abc import Iterator
from functools import lru_cache
from typing import Any

import transformers
from transformers import PreTrainedModel
from transformers.models.auto import modeling_auto
from transformers.models.auto.auto_factory import _BaseAutoModelClass

from patchers.modeling_pruned import base_of, stock_class_of

_FILE = "modeling_pruned"


def _mappings() -> Iterator[tuple[str, Any]]:
    """Yield the auto classes with what they build; deprecated ones without "For…" lead to the same models."""
    for auto, value in sorted(vars(modeling_auto).items()):
        is_auto = isinstance(value, type) and issubclass(value, _BaseAutoModelClass)
        is_meant = is_auto and (auto == "AutoModel" or auto.startswith("AutoModelFor"))
        # Whether a mapping is true it finds out by importing the config of every model that there is.
        if is_meant and value._model_mapping is not None:
            yield auto, value._model_mapping


@lru_cache(maxsize=256)
def auto_classes_of(name: str) -> tuple[str, ...]:
    """Return the names of the auto classes that build the class with this name.

    >>> auto_classes_of("BertForSequenceClassification")
    ('AutoModelForSequenceClassification',)
    """
    return tuple(auto for auto, mapping in _mappings() if name in _names(mapping))


def _names(mapping: Any) -> set[str]:
    names: set[str] = set()
    for value in mapping._model_mapping.values():
        names.update((value,) if isinstance(value, str) else value)
    return names


@lru_cache(maxsize=256)
def heads_of(model_type: str) -> dict[str, tuple[str, ...]]:
    """Return the names of the classes that each auto class builds for a model type, the usual one first.

    >>> heads_of("bert")["AutoModelForTokenClassification"]
    ('BertForTokenClassification',)
    """
    return {
        auto: (value,) if isinstance(value, str) else tuple(value)
        for auto, mapping in _mappings()
        if (value := mapping._model_mapping.get(model_type))
    }


def auto_map_for(model: PreTrainedModel) -> dict[str, str]:
    """Return the `auto_map` of a pruned model's config: its own class, and the other heads of its type.

    Of encoder-decoders only its own: other heads have the encoder, or the decoder, alone. Empty when transformers does
    not know its class.
    """
    name, base = stock_class_of(model), stock_class_of(base_of(model))
    if not _is_known(name):
        return {}
    base = base if _is_known(base) else name
    others = {} if model.config.is_encoder_decoder else heads_of(model.config.model_type)
    heads = {auto: classes[0] for auto, classes in others.items()}
    own = dict.fromkeys(auto_classes_of(name.__name__) or ("AutoModel",), name.__name__)
    leads = {**heads, "AutoModel": base.__name__, **own}
    return {auto: f"{_FILE}.{cls}" for auto, cls in sorted(leads.items())}


def _is_known(stock: type) -> bool:
    return getattr(transformers, stock.__name__, None) is stock
