"""The conversion to ExecuTorch: one program for the CPU of a device, whose answers are compared before it is kept."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any, Final

import torch
from torch import Tensor
from transformers import PreTrainedModel

from sparse_trainer.convert.base import Convertible
from sparse_trainer.convert.exporting import compared, export_by, quiet, refuse_old_exporters, without_cache
from sparse_trainer.errors import ConversionError
from sparse_trainer.folders.processors import find_processor
from sparse_trainer.inputs.evaluating import evaluating, plain_outputs
from sparse_trainer.inputs.limits import positions_of
from sparse_trainer.inputs.sample import reads_tokens_only, tokens_for

PROGRAM: Final = "model.pte"
_LONGEST: Final = 512
"""Tokens that memory is planned for where a model has more positions, or any number."""
_TRACED: Final = 7


class ExecuTorch:
    """A folder with one program for XNNPACK, its config and tokenizer; it reads one row of any length up to a limit.

    A program plans its memory for its largest inputs when it is written, so rows are one and the length has a limit.
    """

    runtime = "ExecuTorch"
    extra = "executorch"
    packages: Mapping[str, str] = {"executorch": "1.5.1"}
    formats: tuple[str, ...] = ("float32",)
    is_file = False

    def refuse(self, origin: Convertible, numbers: str) -> None:
        """Refuse models that generate or read more than text, and releases of transformers without exporters."""
        if origin.skeleton.can_generate():
            raise ConversionError(
                origin.place(),
                "generates text, and a program for ExecuTorch is one call of fixed memory, without a growing cache.",
                "Convert to gguf, onnx or openvino.",
            )
        if not reads_tokens_only(origin.skeleton):
            raise ConversionError(
                origin.place(), "reads other inputs than text, which was not tried.", "Convert to onnx."
            )
        refuse_old_exporters(origin.place())

    def is_advised(self, origin: Convertible) -> bool:
        """Advise nobody: an export takes minutes, and is for devices."""
        return False

    def write(self, origin: Convertible, out: Path, numbers: str) -> Mapping[str, Any]:
        """Export in float32, and compare on other lengths.

        Raises:
            ConversionError: The model cannot be exported, or the program computes something else.
        """
        from transformers.exporters.configs import ExecutorchConfig  # not in all releases
        from transformers.exporters.exporter_executorch import ExecutorchExporter

        model, place = origin.load(torch.float32), origin.place()
        longest = min(_LONGEST, positions_of(model.config) or _LONGEST)
        inputs = _one_text(model, length=min(_TRACED, longest - 1))
        config = ExecutorchConfig(dynamic_shapes=_shapes(inputs, longest))
        instead = "Convert to onnx or openvino."
        with quiet():
            export_by(model, ExecutorchExporter(), config, place, instead, inputs=inputs).save_pretrained(out)
        batches = [_one_text(model, length=length) for length in (2, 5, longest)]
        with evaluating(model), plain_outputs(model), without_cache(model), quiet():
            facts = compared([pair for batch in batches for pair in _answers(model, out, batch)], place)
        processor = find_processor(origin.name)
        if processor is not None:
            processor.save_pretrained(out)
        told = {"inputs": list(inputs), "longest": longest, **facts}
        return {**told, "bytes": (out / PROGRAM).stat().st_size}


def _one_text(model: PreTrainedModel, *, length: int) -> dict[str, Tensor]:
    """Return one made-up text of which the last third is padding."""
    batch = tokens_for(model, rows=2, length=length, padding=length // 3)
    return {name: values_BT[1:] for name, values_BT in batch.items()}


def _shapes(inputs: Mapping[str, Tensor], longest: int) -> dict[str, Any]:
    """Return which axes may change: the last one, up to a limit."""
    length = torch.export.Dim("length", min=2, max=longest)
    return {name: {tensor.dim() - 1: length} for name, tensor in inputs.items()}


def _answers(
    model: PreTrainedModel, folder: Path, batch: Mapping[str, Tensor]
) -> list[tuple[Tensor, Tensor]]:
    """Return the outputs of the model, each beside that of the program in ExecuTorch's runtime."""
    from executorch.runtime import Runtime  # an extra

    method = Runtime.get().load_program(folder / PROGRAM).load_method("forward")
    with torch.no_grad():
        wanted = [value for value in model(**batch).values() if isinstance(value, Tensor)]
    found = method.execute([tensor.contiguous() for tensor in batch.values()])
    return list(zip(wanted, (value.clone() for value in found), strict=True))
