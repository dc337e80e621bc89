"""The conversion to OpenVINO: one model, whose answers are compared before it is kept."""

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, Final

import torch
from torch import Tensor
from transformers import PreTrainedModel

from sparse_trainer.convert.base import Convertible
from sparse_trainer.convert.exporting import (
    compared,
    decoding_steps,
    export_by,
    is_exported,
    other_batches,
    quiet,
    reads_cache,
    refuse_old_exporters,
    without_cache,
)
from sparse_trainer.folders.processors import find_processor
from sparse_trainer.inputs.evaluating import evaluating, plain_outputs

MODEL_FILE: Final = "openvino_model.xml"
_PRECISE: Final = {"INFERENCE_PRECISION_HINT": "f32"}
"""Processors with bfloat16 compute in it where nobody says: then the comparison would be with its rounding."""


class OpenVino:
    """A folder with one model for OpenVINO, its weights, config and tokenizer; rows and lengths are free.

    A decoder keeps its cache inside, from one call to the next; `beam_idx` says which row each row goes on from.
    """

    runtime = "OpenVINO"
    extra = "openvino"
    packages: Mapping[str, str] = {"openvino": "2026.4.1"}
    formats: tuple[str, ...] = ("float32",)
    is_file = False

    def refuse(self, origin: Convertible, numbers: str) -> None:
        """Refuse releases of transformers without these exporters."""
        refuse_old_exporters(origin.place())

    def is_advised(self, origin: Convertible) -> bool:
        """Advise models of a type that the tests export: of others only an export tells."""
        return is_exported(origin.skeleton)

    def write(self, origin: Convertible, out: Path, numbers: str) -> Mapping[str, Any]:
        """Export in float32, and compare on other rows and lengths.

        Raises:
            ConversionError: The model cannot be exported, or what was made computes something else.
        """
        from transformers.exporters.configs import OpenVINOConfig  # not in all releases
        from transformers.exporters.exporter_openvino import OpenVINOExporter

        model, place = origin.load(torch.float32), origin.place()
        config = OpenVINOConfig(dynamic=True)
        instead = "Convert to onnx, which OpenVINO reads, too."
        with quiet():
            export_by(model, OpenVINOExporter(), config, place, instead).save_pretrained(out)
        compiled = _compiled(out / MODEL_FILE)
        with evaluating(model), plain_outputs(model), without_cache(model), quiet():
            pairs = [pair for batch in other_batches(model) for pair in _answers(model, compiled, batch)]
            facts = compared(pairs, place)
        processor = find_processor(origin.name)
        if processor is not None:
            processor.save_pretrained(out)
        return {
            "inputs": _names(compiled.inputs),
            "outputs": _names(compiled.outputs),
            "keeps_a_cache": reads_cache(model),
            **facts,
            "bytes": sum(file.stat().st_size for file in out.glob("openvino_model.*")),
        }


def _compiled(file: Path) -> Any:
    """Return an `openvino.CompiledModel` on the CPU that computes in float32."""
    import openvino  # an extra

    return openvino.Core().compile_model(file, "CPU", _PRECISE)


def _names(ports: Any) -> list[str]:
    return [port.any_name for port in ports]


def _answers(
    model: PreTrainedModel, compiled: Any, batch: Mapping[str, Tensor]
) -> Iterator[tuple[Tensor, Tensor]]:
    """Yield the outputs of the model and of its conversion; of a decoder for the tokens in two parts."""
    request, reads = compiled.create_infer_request(), _names(compiled.inputs)
    if not reads_cache(model):
        with torch.no_grad():
            wanted = model(**batch)
        found = _said(request, batch)
        yield from ((wanted[name], value) for name, value in found.items() if name in wanted)
        return
    rows = {"beam_idx": torch.arange(len(batch["input_ids"]), dtype=torch.int32)}
    for given, wanted_BTV, real_BT in decoding_steps(model, batch, reads):
        yield wanted_BTV[real_BT], _said(request, {**given, **rows})["logits"][real_BT]


def _said(request: Any, inputs: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Return the outputs of one call by name, as copies: the next call writes over them."""
    reads = _names(request.model_inputs)
    values = request.infer({name: tensor.numpy() for name, tensor in inputs.items() if name in reads})
    return {port.any_name: torch.tensor(value) for port, value in values.items()}
