"""Which auto classes of transformers lead to a model class."""

from functools import lru_cache
from typing import Any

import transformers
from torch import nn
from transformers.models.auto import modeling_auto
from transformers.models.auto.auto_factory import _BaseAutoModelClass

from patchers.modeling_pruned import base_of, stock_class_of

_FILE = "modeling_pruned"


@lru_cache(maxsize=256)
def auto_classes_of(name: str) -> tuple[str, ...]:
    """Return the names of the auto classes that build the class with this name.

    >>> auto_classes_of("BertForSequenceClassification")
    ('AutoModelForSequenceClassification',)
    """
    found = []
    for auto, value in sorted(vars(modeling_auto).items()):
        is_auto = isinstance(value, type) and issubclass(value, _BaseAutoModelClass)
        # Deprecated classes without "For…" (AutoModelWithLMHead) and private ones lead to the same models.
        if is_auto and (auto == "AutoModel" or auto.startswith("AutoModelFor")) and name in _names(value):
            found.append(auto)
    return tuple(found)


def _names(auto: Any) -> set[str]:
    mapping = auto._model_mapping
    if mapping is None:
        return set()
    names: set[str] = set()
    for value in mapping._model_mapping.values():
        names.update((value,) if isinstance(value, str) else value)
    return names


def auto_map_for(model: nn.Module) -> dict[str, str]:
    """Return the `auto_map` of a pruned model's config; empty when transformers does not know its class."""
    name, base = stock_class_of(model), stock_class_of(base_of(model))
    if getattr(transformers, name.__name__, None) is not name:
        return {}
    autos = auto_classes_of(name.__name__) or ("AutoModel",)
    leads = dict.fromkeys(autos, f"{_FILE}.{name.__name__}")
    return {"AutoModel": f"{_FILE}.{base.__name__}", **leads}
