"""What runs a model that is timed: torch as it is, compiled, or ONNX Runtime."""

import tempfile
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch
from transformers import PreTrainedModel

from sparse_trainer.convert.folder import check_packages
from sparse_trainer.convert.onnx.graph import GRAPH, PAST, export_graph, open_session, step_inputs
from sparse_trainer.convert.registry import CONVERSIONS
from sparse_trainer.errors import ArgumentError, one_of

Call = Callable[..., Any]
"""Takes the inputs of a model by name."""


def _as_it_is(model: PreTrainedModel) -> Call:
    return model


def _compiled(model: PreTrainedModel) -> Call:
    compiled: Call = torch.compile(model)
    return compiled


def _in_onnx_runtime(model: PreTrainedModel) -> Call:
    """Return a call of the model's graph; of a decoder for a prompt without a cache."""
    if model.device.type != "cpu" or model.dtype != torch.float32:
        raise ArgumentError("runtimes 'onnx'", "is timed on the CPU in float32.", "Leave onnx out.")
    check_packages("onnx", CONVERSIONS["onnx"])
    with tempfile.TemporaryDirectory() as scratch:
        export_graph(model, Path(scratch), type(model).__name__)
        session = open_session(Path(scratch) / GRAPH, threads=torch.get_num_threads())
    known = {each.name for each in session.get_inputs()}
    reads_cache = any(name.startswith(PAST) for name in known)

    def call(**inputs: Any) -> Any:
        arrays = {name: tensor.numpy() for name, tensor in inputs.items() if name in known}
        return session.run(None, step_inputs(session, arrays["input_ids"], {}) if reads_cache else arrays)

    return call


RUNTIMES: Mapping[str, Callable[[PreTrainedModel], Call]] = {
    "eager": _as_it_is,
    "compile": _compiled,
    "onnx": _in_onnx_runtime,
}
"""Name -> what makes a model ready to be called."""


def find_runtimes(names: str) -> dict[str, Callable[[PreTrainedModel], Call]]:
    """Return the runtimes that a list with commas names.

    Raises:
        ArgumentError: An unknown one, or one whose packages are missing.
    """
    found = {name: RUNTIMES[one_of("runtimes", name, RUNTIMES)] for name in names.split(",")}
    if "onnx" in found:
        check_packages("onnx", CONVERSIONS["onnx"])
    return found
