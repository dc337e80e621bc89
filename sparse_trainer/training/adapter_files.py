"""Adapters of peft in a folder: where each lies, and how those of a model that trains come back from it."""

import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Final, Protocol, runtime_checkable

from torch import nn

from patchers.patching.merging import active_adapters, base_model
from sparse_trainer.errors import CheckpointError
from sparse_trainer.files.names import ADAPTER_CONFIG

DEFAULT: Final = "default"


@runtime_checkable
class _Adapted(Protocol):
    """Models of peft that know their adapters by name."""

    peft_config: dict[str, Any]
    base_model: Any

    def load_adapter(self, model_id: str, adapter_name: str, is_trainable: bool = ...) -> Any: ...


def adapters_in(folder: Path, remedy: str) -> Iterator[tuple[str, Path]]:
    """Yield names and folders of the adapters: `default` lies in the checkpoint itself, others in folders of theirs.

    Raises:
        CheckpointError: There is none.
    """
    found = [(DEFAULT, folder)] if (folder / ADAPTER_CONFIG).is_file() else []
    found += [(file.parent.name, file.parent) for file in sorted(folder.glob(f"*/{ADAPTER_CONFIG}"))]
    if not found:
        raise CheckpointError(str(folder / ADAPTER_CONFIG), "is missing.", remedy)
    yield from found


def lie_apart(model: nn.Module) -> bool:
    """Tell whether a model has adapters beside `default`, or another one alone.

    Trainer loads what lies in the checkpoint itself into the first active adapter (transformers 5.24): of several that
    is the wrong one, and of another one alone nothing.
    """
    return isinstance(model, _Adapted) and set(model.peft_config) != {DEFAULT}


def restore_adapters(folder: str | os.PathLike[str], model: nn.Module, remedy: str) -> None:
    """Load every adapter of a model from its own folder; those that are active stay so, and train on.

    Raises:
        CheckpointError: One is not there.
    """
    assert isinstance(model, _Adapted)
    active = active_adapters(base_model(model))
    places = dict(adapters_in(Path(folder), remedy))
    missing = next((name for name in model.peft_config if name not in places), None)
    if missing is not None:
        raise CheckpointError(str(folder), f"holds no adapter {missing!r}, which the model has.", remedy)
    for name in model.peft_config:
        model.load_adapter(str(places[name]), name, is_trainable=name in active)
    model.base_model.set_adapter(active)
