"""The rows of a model that belong to tokens: taken out of embeddings, head and biases, with every id in its configs."""

import copy
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor
from transformers import PreTrainedConfig, PreTrainedModel

from sparse_trainer.cut.config_fit import shapes_of
from sparse_trainer.errors import UnsupportedModelError

# Shape legend: V = tokens before, N = tokens that stay.

_SIZES = ("vocab_size", "decoder_vocab_size")
"""Fields of configs that say how many tokens there are."""
_IDS = ("token_id", "token_ids", "token_index")
"""How fields of configs end that name tokens."""
_LISTS = ("suppress_tokens", "begin_suppress_tokens", "bad_words_ids")
"""Fields of generation configs that name tokens which must not be said."""


def rows_of(model: PreTrainedModel) -> int:
    """Return how many tokens a model has embeddings for.

    Raises:
        UnsupportedModelError: It reads no tokens.
    """
    try:
        weight: Any = model.get_input_embeddings().weight
    except (NotImplementedError, AttributeError) as error:
        raise UnsupportedModelError(
            type(model).__name__, "has no embeddings of tokens.", "Give a model that reads text."
        ) from error
    return int(weight.shape[0])


def named_ids(model: PreTrainedModel) -> set[int]:
    """Return the ids of tokens that the configs of a model name."""
    named = [value for config in _configs(model.config) for value in _of_tokens(vars(config)).values()]
    if "generation_config" in vars(model):
        named += _of_tokens(vars(model.generation_config)).values()
    return {number for value in named for number in _numbers(value)}


def with_rows(model: PreTrainedModel, keep: Sequence[int]) -> PreTrainedModel:
    """Return a copy of a model that has these tokens only; the one at place `i` gets the id `i`.

    Which tensors lose rows is seen by building the class from a config with fewer tokens.

    Raises:
        UnsupportedModelError: Its class does not follow the size of the vocabulary in its config.
    """
    before = rows_of(model)
    moved = {old: new for new, old in enumerate(keep)}
    config = _smaller(model.config, before, moved)
    with torch.device("meta"):
        wanted = shapes_of(type(model)(copy.deepcopy(config)))
    keep_N = torch.tensor(keep)
    done: dict[int, Tensor] = {}
    state = {}
    for name, tensor in model.state_dict().items():
        if id(tensor) not in done:
            done[id(tensor)] = _selected(model, name, tensor, wanted.get(name), before, keep_N)
        state[name] = done[id(tensor)]
    cls: Any = type(model)
    made, info = cls.from_pretrained(
        None, config=config, state_dict=state, dtype=model.dtype, output_loading_info=True
    )
    lost = sorted({*info["missing_keys"], *info["unexpected_keys"], *map(str, info["mismatched_keys"])})
    if lost or rows_of(made) != len(keep):
        raise _unsupported(model, lost[0] if lost else "its embeddings")
    for name, buffer in model.named_buffers():
        if name not in state:  # what is computed again may be computed in another dtype than it had
            path, _, last = name.rpartition(".")
            setattr(made.get_submodule(path), last, buffer.clone())
    if "generation_config" in vars(model):
        made.generation_config = _moved_fields(copy.deepcopy(model.generation_config), moved)
    made.name_or_path, made.config.name_or_path = model.name_or_path, model.config.name_or_path
    return made.to(model.device)  # type: ignore[no-any-return]


def _selected(
    model: PreTrainedModel,
    name: str,
    tensor: Tensor,
    wanted: tuple[int, ...] | None,
    before: int,
    keep_N: Tensor,
) -> Tensor:
    """Return a tensor with the rows of the tokens that stay, along the axis that follows the vocabulary."""
    if wanted is None or len(wanted) != tensor.dim():
        raise _unsupported(model, name)
    for axis, (old, new) in enumerate(zip(tensor.shape, wanted, strict=True)):
        if old != new:
            if (old, new) != (before, len(keep_N)):
                raise _unsupported(model, name)
            tensor = tensor.index_select(axis, keep_N.to(tensor.device))
    return tensor


def _smaller(config: PreTrainedConfig, before: int, moved: Mapping[int, int]) -> PreTrainedConfig:
    """Return a config of fewer tokens, which names them by their new ids."""
    smaller = copy.deepcopy(config)
    for part in _configs(smaller):
        for name in _SIZES:
            if vars(part).get(name) == before:
                setattr(part, name, len(moved))
        _moved_fields(part, moved)
    return smaller


def _moved_fields(config: Any, moved: Mapping[int, int]) -> Any:
    """Give the tokens that a config names their new ids, in place; return it."""
    for name, value in _of_tokens(vars(config)).items():
        setattr(config, name, _moved(value, moved))
    return config


def _of_tokens(fields: Mapping[str, Any]) -> dict[str, Any]:
    return {
        name: value
        for name, value in fields.items()
        if (name.endswith(_IDS) or name in _LISTS) and isinstance(value, int | list) and value is not False
    }


def _moved(value: Any, moved: Mapping[int, int]) -> Any:
    """Return ids as they are called afterwards; an id without a token, as -1, stays."""
    if isinstance(value, list):
        return [_moved(each, moved) for each in value]
    return moved.get(value, value)


def _numbers(value: Any) -> Iterator[int]:
    if isinstance(value, list):
        for each in value:
            yield from _numbers(each)
    elif isinstance(value, int):
        yield value


def _configs(config: PreTrainedConfig) -> Iterator[PreTrainedConfig]:
    """Yield a config and those of its parts."""
    yield config
    for value in list(vars(config).values()):
        if isinstance(value, PreTrainedConfig):
            yield from _configs(value)


def _unsupported(model: PreTrainedModel, name: str) -> UnsupportedModelError:
    return UnsupportedModelError(
        type(model).__name__,
        f"{name} does not follow the size of the vocabulary that its config gives.",
        "Please report this model.",
    )
