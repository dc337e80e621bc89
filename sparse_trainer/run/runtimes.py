"""What runs a model that is timed: torch as it is, compiled, ONNX Runtime, or llama.cpp."""

from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import torch
from transformers import PreTrainedModel

from sparse_trainer.convert.folder import check_installed, convert_folder, find_origin
from sparse_trainer.convert.registry import CONVERSIONS
from sparse_trainer.errors import ArgumentError, one_of
from sparse_trainer.inputs.timed import has_length
from sparse_trainer.run.generation_speed import generation
from sparse_trainer.run.latency import forward
from sparse_trainer.run.llama_cpp import PACKAGES, LlamaCpp, facts_of
from sparse_trainer.run.onnx_runtime import OnnxRuntime
from sparse_trainer.run.side_by_side import LAST_LOGITS, Ready

COMPILE: Final = "compile"
GGUF: Final = LAST_LOGITS
_FORMATS: Final = {torch.float32: "f32", torch.bfloat16: "bf16", torch.float16: "f16"}
"""Dtype -> format of the GGUF file that is made for the time of a bench."""
_DTYPES: Final[Mapping[str, Sequence[torch.dtype]]] = {"onnx": (torch.float32,), GGUF: tuple(_FORMATS)}
"""Runtimes that are timed on the CPU alone -> dtypes that they are timed in."""


@dataclass(frozen=True, kw_only=True)
class Candidate:
    """A model that is timed."""

    number: int
    """The models of a bench are counted: files that are made of them are named by it."""
    place: str
    """Folder, hub id or GGUF file."""
    model: PreTrainedModel | None
    """None of a GGUF file."""


@dataclass(frozen=True, kw_only=True)
class Setting:
    """What a runtime has to know beforehand."""

    device: torch.device
    dtype: torch.dtype
    threads: int
    rows: int
    """The most sequences of a pass."""
    length: int
    """The most tokens of a sequence, new ones included."""
    scratch: Path
    """A folder that is thrown away at the end."""


@dataclass(frozen=True)
class _InTorch:
    """A model, and what is called in its stead."""

    model: PreTrainedModel
    call: Callable[..., Any]
    writes: bool = False

    @property
    def reads_length(self) -> bool:
        return has_length(self.model)

    def forward(self, rows: int, length: int) -> Callable[[], object]:
        return forward(self.model, self.call, rows, length)

    def generate(self, rows: int, length: int, new_tokens: int) -> Callable[[], tuple[float, float]] | None:
        return generation(self.model, rows, length, new_tokens) if self.writes else None


def _model_of(candidate: Candidate, runtime: str) -> PreTrainedModel:
    if candidate.model is None:
        raise ArgumentError(
            "runtimes",
            f"{runtime} does not run {candidate.place}, a GGUF file.",
            "Name the folder, or take gguf alone.",
        )
    return candidate.model


def _as_it_is(candidate: Candidate, setting: Setting) -> Ready:
    model = _model_of(candidate, "eager")
    return _InTorch(model, model, writes=True)


def _compiled(candidate: Candidate, setting: Setting) -> Ready:
    model = _model_of(candidate, COMPILE)
    return _InTorch(model, torch.compile(model))


def _in_onnx_runtime(candidate: Candidate, setting: Setting) -> Ready:
    model = _model_of(candidate, "onnx")
    return OnnxRuntime.of(model, setting.scratch / f"{candidate.number}-onnx", threads=setting.threads)


def gguf_file(candidate: Candidate, setting: Setting) -> Path:
    """Return the GGUF file of a model: itself, or one that is made of its folder in the setting's dtype."""
    _check_place(GGUF, setting.device, setting.dtype)
    if candidate.model is None:
        return Path(candidate.place)
    file = setting.scratch / f"{candidate.number}.gguf"
    if not file.exists():
        convert_folder(candidate.place, file, GGUF, quantize=_FORMATS[setting.dtype])
    return file


def _in_llama_cpp(candidate: Candidate, setting: Setting) -> Ready:
    file, sizes = gguf_file(candidate, setting), {"rows": setting.rows, "length": setting.length}
    return LlamaCpp(file, tokens=facts_of(file).tokens, threads=setting.threads, **sizes)


def check_runs(
    runtimes: Collection[str], names: Sequence[str], device: torch.device, dtype: torch.dtype
) -> None:
    """Raise for what runtimes cannot run, before a model is loaded.

    Args:
        names: Folders and hub ids.

    Raises:
        ArgumentError: A runtime that is not timed there, or in this dtype.
        ConversionError: A model that cannot be a GGUF file.
    """
    for runtime in _DTYPES.keys() & runtimes:
        _check_place(runtime, device, dtype)
    if GGUF in runtimes:
        for name in names:
            CONVERSIONS[GGUF].refuse(find_origin(name), _FORMATS[dtype])


def _check_place(runtime: str, device: torch.device, dtype: torch.dtype) -> None:
    dtypes = _DTYPES[runtime]
    if device.type != "cpu" or dtype not in dtypes:
        known = " or ".join(str(dtype).removeprefix("torch.") for dtype in dtypes)
        raise ArgumentError("runtimes", f"{runtime} is timed on the CPU in {known}.", f"Leave {runtime} out.")


Runtime = Callable[[Candidate, Setting], Ready]
RUNTIMES: Mapping[str, Runtime] = {
    "eager": _as_it_is,
    COMPILE: _compiled,
    "onnx": _in_onnx_runtime,
    GGUF: _in_llama_cpp,
}
"""Name -> what makes a model ready to be timed."""
_NEEDED: Mapping[str, tuple[str, Mapping[str, str]]] = {
    "onnx": (CONVERSIONS["onnx"].extra, CONVERSIONS["onnx"].packages),
    GGUF: ("llamacpp", PACKAGES),
}
"""Name -> the extra that brings what it needs, and its packages."""


def find_runtimes(names: str) -> dict[str, Runtime]:
    """Return the runtimes that a list with commas names.

    Raises:
        ArgumentError: An unknown one, or one whose packages are missing.
    """
    found = {name: RUNTIMES[one_of("runtimes", name, RUNTIMES)] for name in map(str.strip, names.split(","))}
    for name in found:
        extra, packages = _NEEDED.get(name, ("", {}))
        check_installed("runtimes", extra, packages)
    return found
