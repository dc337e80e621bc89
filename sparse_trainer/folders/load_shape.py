"""Build a model from its config alone, without weights: a folder or hub id, ours or stock."""

from typing import Any

import torch
import transformers
from transformers import AutoModel, PreTrainedConfig, PreTrainedModel

from sparse_trainer.files.foreign_code import drop_code_names
from sparse_trainer.folders.configs import CONFIG_FILE, DAMAGED, model_class, read_config, refusing, resolve
from sparse_trainer.folders.nn_pruning_format import complete, cut_shape, is_of_nn_pruning, removed_heads


def load_shape(name: str, *, revision: str = "main", dtype: torch.dtype | None = None) -> PreTrainedModel:
    """Build a model on the meta device from its config alone; of a pruned folder, with its pruned shapes.

    Args:
        revision: Branch, tag or commit on the hub.
        dtype: Number type; None = the one in the config, and `model.config.dtype` is None where that has none.

    Raises:
        CheckpointError: No readable config.
    """
    source, config = resolve(name), read_config(name, revision)
    place = f"{source}: {CONFIG_FILE}"
    cls, values = _model_class(config, place), config.to_dict()
    drop_code_names(config)
    if is_of_nn_pruning(values, source):
        shape = cut_shape(cls, config, removed_heads(values, source), source)
        complete(shape.model, shape)
        return shape.model
    with refusing(place, cls.__name__), torch.device("meta"):
        model: PreTrainedModel = cls._from_config(config, dtype=dtype or config.dtype)
    return model


def _model_class(config: PreTrainedConfig, place: str) -> Any:
    """Return the class that the config names as its architecture, or else the bare model of its type."""
    known = [name for name in config.architectures or [] if getattr(transformers, str(name), None)]
    with refusing(place, "a model class of transformers"):
        stock: Any = getattr(transformers, known[0]) if known else AutoModel._model_mapping[type(config)]
    name = known[0] if known else type(config).__name__
    return model_class(stock, name, config.to_dict(), f"{place}: architectures", DAMAGED)
