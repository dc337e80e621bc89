"""A tiny, perturbed model of every type that transformers knows."""

from collections.abc import Callable, Iterator, Mapping
from functools import lru_cache
from typing import Any, Final

import torch
from huggingface_hub.errors import StrictDataclassError
from torch import nn
from transformers import (
    CONFIG_MAPPING,
    PreTrainedConfig,
    PreTrainedModel,
)
from transformers.models.auto import modeling_auto

from sparse_trainer.architectures.perturb import perturb
from sparse_trainer.errors import SparseTrainerError
from tests.architectures.tiny_configs import FLOAT32, NOT_TESTABLE, OVERRIDES, PARTS
from tests.architectures.tiny_sizes import (
    DEPTH_LISTS,
    HEAD_LISTS,
    INDEX_LISTS,
    KEPT,
    OTHER_TOKEN,
    SIZES,
    TOKENS,
    WIDTH_LISTS,
    WIDTHS,
    ZEROED,
)

_BUILD_ERRORS: Final = (
    ValueError,
    TypeError,
    AttributeError,
    ImportError,
    LookupError,
    RuntimeError,
    StrictDataclassError,
)
# The first of these that knows a config class builds the model: the head of a language model is worth a check.
_PREFERRED: Final = (
    "AutoModelForSeq2SeqLM",
    "AutoModelForImageTextToText",
    "AutoModelForCausalLM",
    "AutoModel",
)
_ENCODERS_WITH_CAUSAL_CLASS: Final = frozenset(
    [
        "bert",
        "bert-generation",
        "big_bird",
        "camembert",
        "data2vec-text",
        "electra",
        "ernie",
        "megatron-bert",
        "rembert",
        "roberta",
        "roberta-prelayernorm",
        "roc_bert",
        "roformer",
        "xlm-roberta",
        "xlm-roberta-xl",
        "xmod",
        "ultrabert",
    ]
)


class NotTestable(SparseTrainerError):  # noqa: N818
    """A model type of which no tiny model can be built and run here."""


def model_types() -> tuple[str, ...]:
    """Return every model type that some auto class builds from a config, sorted."""
    return tuple(sorted(name for name in CONFIG_MAPPING if _auto_names(name)))


def auto_class_for(model_type: str) -> Any:
    """Return the auto class of the model with which a type is tested.

    >>> auto_class_for("llama").__name__, auto_class_for("bert").__name__, auto_class_for("bart").__name__
    ('AutoModelForCausalLM', 'AutoModel', 'AutoModelForSeq2SeqLM')
    """
    names = _auto_names(model_type)
    if not names:
        raise NotTestable(model_type, "has no auto class.", "Test the model that it is a part of.")
    return vars(modeling_auto)[names[0]]


def dtype_for(model_type: str) -> torch.dtype:
    """Return float64, or float32 for types that cannot run in it, or not in both."""
    return torch.float32 if model_type in FLOAT32 else torch.float64


def tiny_config(model_type: str) -> PreTrainedConfig:
    """Return a config of a type with every known size made small, raising `NotTestable`."""
    if model_type in NOT_TESTABLE:
        raise NotTestable(model_type, NOT_TESTABLE[model_type], "Test another type.")
    try:
        return _shrunk(CONFIG_MAPPING[model_type]())
    except _BUILD_ERRORS as error:
        raise NotTestable(
            model_type, f"has no tiny config: {error}", "Add overrides to tiny_configs."
        ) from error


def tiny_model(
    model_type: str, *, dtype: torch.dtype | None = None, seed: int = 0, exact: bool | None = None
) -> PreTrainedModel:
    """Return a seeded, perturbed model in evaluation mode: stock biases are 0 and norms 1, which hides mistakes.

    Args:
        dtype: Default: that of `dtype_for`.
        exact: Whether experts are the plain code of their class, rather than the kernels that users get; default:
            whether the dtype is float64, in which these do not compute.

    Raises:
        NotTestable: no such model can be built here.
    """
    auto = auto_class_for(model_type)
    config = tiny_config(model_type)
    dtype = dtype or dtype_for(model_type)
    exact = dtype == torch.float64 if exact is None else exact
    kernels = {"experts_implementation": "eager"} if exact else {}
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        try:
            model: PreTrainedModel = auto.from_config(config, **kernels)
        except _BUILD_ERRORS as error:
            raise NotTestable(
                model_type, f"is not built: {error}", "Add overrides to tiny_configs."
            ) from error
        perturb(model)
    nn.Module.to(model, dtype)
    model.eval()
    return model


@lru_cache(maxsize=1024)
def _auto_names(model_type: str) -> tuple[str, ...]:
    config_class = CONFIG_MAPPING[model_type]
    return tuple(
        name for name in _candidates(model_type) if config_class in vars(modeling_auto)[name]._model_mapping
    )


def _candidates(model_type: str) -> Iterator[str]:
    yield from ("AutoModel", *_PREFERRED) if model_type in _ENCODERS_WITH_CAUSAL_CLASS else _PREFERRED
    for name, value in sorted(vars(modeling_auto).items()):
        if name.startswith("AutoModelFor") and name not in _PREFERRED and value._model_mapping is not None:
            yield name


def _shrunk(base: PreTrainedConfig, given: Mapping[str, object] | None = None) -> PreTrainedConfig:
    """Return a config of the class of `base` made from its small fields: lists that depend on them are rebuilt."""
    parts = {name: tiny_config(part) for name, part in PARTS.get(base.model_type, {}).items()}
    overrides = {**OVERRIDES.get(base.model_type, {}), **parts, **(given or {})}
    fields = {name: value for name, value in vars(base).items() if not name.startswith("_")}
    small: dict[str, object] = {}
    for name, value in fields.items():
        if isinstance(value, PreTrainedConfig):
            nested = overrides.pop(name, {})
            small[name] = _shrunk(value, nested) if isinstance(nested, Mapping) else nested
        elif isinstance(value, dict) and name.endswith("_config"):
            continue
        else:
            small.update(_small_field(base, name, value))
    small.update(overrides)
    make: Any = type(base)
    config: PreTrainedConfig = make(**small)
    return config


def _small_field(base: PreTrainedConfig, name: str, value: object) -> dict[str, object]:
    """Return the small value of a field under its name, or nothing when the class shall work it out."""
    standard = {real: name for name, real in base.attribute_map.items()}.get(name, name)
    size = SIZES.get(name, SIZES.get(standard))
    if (
        any(part in name for part in ZEROED)
        and isinstance(value, (int, float))
        and not isinstance(value, bool)
    ):
        return {name: type(value)(0)}
    if name.endswith(("_token_id", "_token_index")):
        return _token(name, value)
    if name == "layer_types" and isinstance(value, list) and value:
        return {name: _each_sort(value)}
    if isinstance(value, (list, tuple)) and value and isinstance(value[0], int):
        return _small_list(name, list(value), type(value))
    if standard == "num_key_value_heads" and "kv_lora_rank" in vars(base):
        # The heads of latent attention share one key.
        return {name: SIZES["num_attention_heads"]}
    if name in KEPT or size is None or isinstance(value, bool) or not isinstance(value, int) or value <= 0:
        return {}
    if standard == "num_hidden_layers" or name == "num_hidden_layers":
        kinds = vars(base).get("layer_types")
        return {name: len(_each_sort(kinds)) if isinstance(kinds, list) and kinds else min(size, value)}
    return {name: min(size, value)}


def _token(name: str, value: object) -> dict[str, object]:
    number = TOKENS.get(name, OTHER_TOKEN)
    if isinstance(value, list):
        return {name: [number]}
    return {name: number} if isinstance(value, int) and value >= 0 else {}


def _each_sort(kinds: list[Any]) -> list[Any]:
    """Return a layer of each sort, and three layers at least.

    >>> _each_sort(["sliding", "sliding", "sliding", "full", "sliding"])
    ['sliding', 'full', 'sliding']
    """
    sorts = list(dict.fromkeys(kinds))
    return [sorts[index % len(sorts)] for index in range(max(3, len(sorts)))]


def _small_list(name: str, value: list[Any], make: Callable[[list[Any]], object]) -> dict[str, object]:
    if name in DEPTH_LISTS:
        return {name: make([min(item, 2) for item in value])}
    if name in HEAD_LISTS:
        return {name: make([min(item, 2) for item in value])}
    if name in WIDTH_LISTS:
        return {name: make([WIDTHS[index % len(WIDTHS)] for index in range(len(value))])}
    if name in INDEX_LISTS:
        return {name: make([1])}
    if name in SIZES:
        return {name: make([min(SIZES[name], item) if isinstance(item, int) else item for item in value])}
    return {}
