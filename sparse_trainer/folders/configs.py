"""Read the config.json of a folder or hub id, whoever wrote it, and check it before anything is built from it."""

import os
import re
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import transformers
from transformers import CONFIG_MAPPING, AutoConfig, PreTrainedConfig, PreTrainedModel
from transformers.utils.hub import cached_file

from patchers.discovery.tables.names import NUM_LAYERS
from patchers.modeling_pruned import LayoutError, pruned_class
from sparse_trainer.data.quickstart.packaged import is_packaged, packaged_place
from sparse_trainer.errors import CheckpointError, SparseTrainerError, first_line, shown
from sparse_trainer.files.json_text import read_object
from sparse_trainer.files.names import ADAPTER_CONFIG
from sparse_trainer.folders.gguf_files import is_gguf, unpacked

CONFIG_FILE = "config.json"
DAMAGED = "Save the model again, or restore the folder."
_MOST_LAYERS = 10_000
_IMPLEMENTATIONS = ("attn_implementation", "_attn_implementation", "experts_implementation")


_HUB_ID = re.compile(r"([A-Za-z0-9][\w.-]*/)?[A-Za-z0-9][\w.-]{0,95}")
_REMEDY = "Give a model folder or a hub id."


def resolve(name: str) -> str:
    """Return the folder or hub id that a model name stands for."""
    place = str(packaged_place(name)) if is_packaged(name) else name
    return unpacked(place) if is_gguf(place) else place


def check_name(where: str) -> None:
    """Raise `CheckpointError` for what is neither a folder with a config nor like a name on the hub."""
    if os.path.isdir(where):
        if not os.path.isfile(os.path.join(where, CONFIG_FILE)):
            raise CheckpointError(where, f"the folder holds no {CONFIG_FILE}.", _REMEDY)
    elif os.path.isfile(where):
        raise CheckpointError(where, "is a file.", _REMEDY)
    elif not _HUB_ID.fullmatch(where):
        place = where if where.strip() and where.isprintable() else shown(where)
        raise CheckpointError(f"{place}: {CONFIG_FILE}", "no such folder.", _REMEDY)


def read_config(name: str, revision: str = "main") -> PreTrainedConfig:
    """Return the config of a model.

    Raises:
        CheckpointError: There is none, it is damaged, or of a type that transformers does not know.
    """
    source = resolve(name)
    _refuse_own_type(source, config_values(source, {"revision": revision}))
    with refusing(f"{source}: {CONFIG_FILE}", "a config"):
        config: PreTrainedConfig = AutoConfig.from_pretrained(
            source, revision=revision, trust_remote_code=False
        )
    return config


def config_values(where: str, hub: Mapping[str, Any]) -> dict[str, Any]:
    """Return what the config.json of a folder, or of a name on the hub, holds.

    Args:
        hub: Arguments of `from_pretrained` that say how to get files.

    Raises:
        CheckpointError: There is none, a damaged one, or one that would bring code from the hub.
    """
    place = f"{where}: {CONFIG_FILE}"
    check_name(where)
    try:
        file = cached_file(where, CONFIG_FILE, **hub)
    except (OSError, ValueError) as error:
        remedy = (
            DAMAGED
            if os.path.isdir(where)
            else "Give a model folder, or the name of a hub model that can be had here."
        )
        raise CheckpointError(place, f"cannot be read ({first_line(error)}).", remedy) from error
    if file is None:
        raise CheckpointError(place, "is missing.", "Give the folder of a model, or a name on the hub.")
    _check_types(place, read_object(Path(file), DAMAGED, constants=True))
    _check_adapter(Path(where, ADAPTER_CONFIG))
    with refusing(place, "a config"):
        values: dict[str, Any] = PreTrainedConfig.get_config_dict(where, **hub)[0]
    return values


def _refuse_own_type(source: str, values: Mapping[str, Any]) -> None:
    """Raise where a config is of a type that code beside it defines, such as that of a folder in the form of DeciLM."""
    named, model_type = values.get("auto_map"), values.get("model_type")
    if isinstance(named, Mapping) and "AutoConfig" in named and model_type not in CONFIG_MAPPING:
        raise CheckpointError(
            f"{source}: {CONFIG_FILE}",
            f"is of type {shown(str(model_type))}, which code in the folder defines, and such code is not run.",
            "Give the folder that it was made of, or a model of a type that transformers knows.",
        )


def _check_types(place: str, values: Mapping[str, Any]) -> None:
    """Raise unless the entries that say what is loaded, and how, have the form that transformers writes."""
    model_type, named = values.get("model_type"), values.get("architectures")
    if model_type is not None and not isinstance(model_type, str):
        raise CheckpointError(f"{place}: model_type", f"{shown(model_type)} is no text.", DAMAGED)
    if named is not None and not (isinstance(named, list) and all(isinstance(name, str) for name in named)):
        raise CheckpointError(f"{place}: architectures", f"{shown(named)} is no list of names.", DAMAGED)
    for part in (values, *(value for value in values.values() if isinstance(value, Mapping))):
        # transformers visits every layer of a config that sizes them one by one, before any model is built.
        for name in NUM_LAYERS:
            count = part.get(name)
            if isinstance(count, int | float) and count > _MOST_LAYERS:
                raise CheckpointError(
                    f"{place}: {name}", f"{count} layers are more than any model has.", DAMAGED
                )
    for name in _IMPLEMENTATIONS:
        if "/" in str(values.get(name)):  # the name of a kernel on the hub
            raise CheckpointError(f"{place}: {name}", f"{shown(values[name])} names code.", "Take it out.")


def _check_adapter(file: Path) -> None:
    """Raise where the config of an adapter, which transformers loads with the model, names a module to import."""
    named = read_object(file, DAMAGED).get("megatron_core") if file.is_file() else None
    if named not in (None, "megatron.core"):
        raise CheckpointError(f"{file}: megatron_core", f"{shown(named)} names code.", "Take it out.")


def model_class(
    found: object, name: str, values: Mapping[str, Any], place: str, remedy: str
) -> type[PreTrainedModel]:
    """Return a class that was found in transformers; for the config of a pruned model, its pruned form.

    Raises:
        CheckpointError: `found` is no model class.
    """
    if not isinstance(found, type) or not issubclass(found, PreTrainedModel):
        what = f"{name!r} is no model class of transformers {transformers.__version__} for this config."
        raise CheckpointError(place, what, remedy)
    return pruned_class(found) if "pruning" in values else found


@contextmanager
def refusing(place: str, what: str) -> Iterator[None]:
    """Turn any error of transformers about a config or weights into one that names the place.

    Values of a config reach every line of its model's __init__, so that any error may say so.

    Raises:
        CheckpointError: It cannot.
    """
    try:
        yield
    except SparseTrainerError:
        raise
    except LayoutError as error:
        raise CheckpointError(f"{place.partition(': ')[0]}: {CONFIG_FILE}", f"{error}", DAMAGED) from error
    except Exception as error:
        raise CheckpointError(
            place, f"cannot be loaded into {what} ({first_line(error)}).", DAMAGED
        ) from error
