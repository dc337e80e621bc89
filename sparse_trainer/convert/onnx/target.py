"""The conversion to ONNX: one graph, whose answers are compared before it is kept."""

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from transformers import PreTrainedModel

from sparse_trainer.convert.base import Convertible
from sparse_trainer.convert.exporting import (
    compared,
    decoding_steps,
    is_exported,
    other_batches,
    quiet,
    refuse_old_exporters,
    without_cache,
)
from sparse_trainer.convert.onnx.graph import GRAPH, NEXT, PAST, export_graph, open_session, step_inputs
from sparse_trainer.errors import ConversionError
from sparse_trainer.folders.processors import find_processor
from sparse_trainer.inputs.evaluating import evaluating, plain_outputs

# Shape legend: B = rows, T = tokens, V = vocabulary.

_INT8 = "int8"


class Onnx:
    """A folder with one graph for ONNX Runtime, its weights, config and tokenizer; rows and lengths are free.

    A decoder reads new tokens after a cache of any length, none included; other models have no cache.
    """

    runtime = "ONNX Runtime"
    extra = "onnx"
    packages: Mapping[str, str] = {"onnx": "1.23.2", "onnxscript": "0.7.2", "onnxruntime": "1.32.0"}
    formats: tuple[str, ...] = ("float32", _INT8)
    is_file = False

    def refuse(self, origin: Convertible, numbers: str) -> None:
        """Refuse releases of transformers without these exporters."""
        refuse_old_exporters(origin.place())

    def is_advised(self, origin: Convertible) -> bool:
        """Advise models of a type that the tests export: of others only an export tells."""
        return is_exported(origin.skeleton)

    def write(self, origin: Convertible, out: Path, numbers: str) -> Mapping[str, Any]:
        """Export in float32, compare on other rows and lengths, and quantize the weights where that is asked.

        Raises:
            ConversionError: The model cannot be exported, or the graph computes something else.
        """
        model = origin.load(torch.float32)
        place = origin.place()
        with evaluating(model), plain_outputs(model), without_cache(model), quiet():
            export_graph(model, out, place)
            facts = _checked(model, out / GRAPH, place)
            if numbers == _INT8:
                facts = {**facts, **_quantized(model, out / GRAPH)}
        processor = find_processor(origin.name)
        if processor is not None:
            processor.save_pretrained(out)
        return {**facts, "bytes": sum(file.stat().st_size for file in out.glob(f"{GRAPH}*"))}


def _checked(model: PreTrainedModel, file: Path, place: str) -> dict[str, Any]:
    """Return facts about a graph; raise `ConversionError` where it is further from the model than rounding."""
    session = open_session(file)
    if any(len(each.shape) != 4 for each in session.get_inputs() if each.name.startswith(PAST)):
        raise ConversionError(
            place, "the graph reads a cache of a window, not of keys and values alone.", "Choose gguf."
        )
    found = compared(_pairs(model, file), place)
    return {
        "inputs": [each.name for each in session.get_inputs() if not each.name.startswith(PAST)],
        "outputs": [each.name for each in session.get_outputs() if not each.name.startswith(NEXT)],
        "reads_a_cache": any(each.name.startswith(PAST) for each in session.get_inputs()),
        **found,
    }


def _quantized(model: PreTrainedModel, file: Path) -> dict[str, Any]:
    """Put the weights of matrix products into 8 bits in place; activations are quantized as they come."""
    from onnxruntime.quantization import QuantType, quantize_dynamic  # an extra

    whole = file.with_name("whole.onnx")
    data = file.with_name(f"{GRAPH}.data")
    file.rename(whole)
    quantize_dynamic(whole, file, weight_type=QuantType.QInt8, use_external_data_format=False)
    whole.unlink()
    data.unlink(missing_ok=True)
    pairs = _pairs(model, file)
    return {"difference_of_int8": max(float((wanted - found).abs().max()) for wanted, found in pairs)}


def _pairs(model: PreTrainedModel, file: Path) -> list[tuple[Tensor, Tensor]]:
    """Return outputs of the model and of its graph, on other sizes than were traced."""
    return [pair for batch in other_batches(model) for pair in _answers(model, file, batch)]


def _answers(
    model: PreTrainedModel, file: Path, batch: Mapping[str, Tensor]
) -> Iterator[tuple[Tensor, Tensor]]:
    """Yield the outputs of the model and of the graph; of a decoder for the tokens in two parts, with a cache."""
    session = open_session(file)
    if not any(each.name.startswith(PAST) for each in session.get_inputs()):
        with torch.no_grad():
            expected = model(**batch)
        found = _run(session, {name: tensor.numpy() for name, tensor in batch.items()})
        yield from ((expected[name], value) for name, value in found.items() if name in expected)
        return
    past: dict[str, Any] = {}
    reads = [each.name for each in session.get_inputs()]
    for given, wanted_BTV, real_BT in decoding_steps(model, batch, reads):
        ids_BT, mask_BK = given["input_ids"].numpy(), given["attention_mask"].numpy()
        found = _run(session, step_inputs(session, ids_BT, past, mask_BK))
        past = {name.replace(NEXT, PAST): value for name, value in found.items() if name.startswith(NEXT)}
        yield wanted_BTV[real_BT], found["logits"][real_BT]


def _run(session: Any, inputs: Mapping[str, Any]) -> dict[str, Any]:
    """Return the outputs of a graph by name, as tensors; caches as arrays."""
    known = {each.name for each in session.get_inputs()}
    names = [each.name for each in session.get_outputs()]
    values = session.run(names, {name: value for name, value in inputs.items() if name in known})
    return {
        name: value if name.startswith(NEXT) else torch.from_numpy(value)
        for name, value in zip(names, values, strict=True)
    }
