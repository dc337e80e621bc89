"""The conversion to ONNX: one graph, whose answers are compared before it is kept."""

import importlib.util
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import torch
import transformers
from torch import Tensor
from transformers import PreTrainedModel

from sparse_trainer.convert.base import Convertible
from sparse_trainer.convert.onnx.graph import (
    GRAPH,
    NEXT,
    PAST,
    export_graph,
    left_padded,
    open_session,
    quiet,
    reads_cache,
    step_inputs,
    without_cache,
)
from sparse_trainer.errors import ConversionError
from sparse_trainer.folders.processors import find_processor
from sparse_trainer.inputs.evaluating import evaluating, plain_outputs
from sparse_trainer.inputs.limits import positions_of
from sparse_trainer.inputs.sample import reads_tokens_only, sample_batch, tokens_for

# Shape legend: B = rows, T = tokens, V = vocabulary.

_INT8 = "int8"
_TOLERANCE = 1e-5
"""Of the largest output: as far as float32 of ONNX Runtime may be from that of torch."""


class Onnx:
    """A folder with one graph for ONNX Runtime, its weights, config and tokenizer; rows and lengths are free.

    A decoder reads new tokens after a cache of any length, none included; other models have no cache.
    """

    extra = "onnx"
    packages: Mapping[str, str] = {"onnx": "1.23.2", "onnxscript": "0.7.2", "onnxruntime": "1.32.0"}
    formats: tuple[str, ...] = ("float32", _INT8)
    is_file = False

    def refuse(self, origin: Convertible, numbers: str) -> None:
        """Refuse releases of transformers without these exporters, and models whose inputs are not known."""
        if importlib.util.find_spec("transformers.exporters.runners") is None:
            raise ConversionError(
                origin.place(),
                f"transformers {transformers.__version__} has no exporters that save and run what they export.",
                "Run `pip install -U transformers` (tested with 5.24.0).",
            )

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
    difference, largest = _difference(model, file)
    if not difference <= _TOLERANCE * max(1.0, largest):
        raise ConversionError(
            place,
            f"the graph differs by {difference:.2g}, at outputs up to {largest:.2g}.",
            "Please report this model; or choose gguf.",
        )
    session = open_session(file)
    return {
        "inputs": [each.name for each in session.get_inputs() if not each.name.startswith(PAST)],
        "outputs": [each.name for each in session.get_outputs() if not each.name.startswith(NEXT)],
        "reads_a_cache": any(each.name.startswith(PAST) for each in session.get_inputs()),
        "largest_output": largest,
        "difference": difference,
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
    return {"difference_of_int8": _difference(model, file)[0]}


def _difference(model: PreTrainedModel, file: Path) -> tuple[float, float]:
    """Return the largest difference between a graph's outputs and the model's, and the largest output."""
    pairs = [pair for batch in _other_batches(model) for pair in _answers(model, file, batch)]
    return (
        max(float((expected - found).abs().max()) for expected, found in pairs),
        max(float(expected.abs().max()) for expected, _ in pairs),
    )


def _other_batches(model: PreTrainedModel) -> list[dict[str, Tensor]]:
    """Return inputs of other sizes than those that were traced."""
    if not reads_tokens_only(model):
        return [{name: tensor[:2] for name, tensor in sample_batch(model).items()}]
    longest = min(11, positions_of(model.config) or 11)
    make = left_padded if reads_cache(model) else tokens_for
    return [make(model, rows=rows, length=length) for rows, length in ((3, longest), (1, longest // 2))]


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
    ids_BT, mask_BT = batch["input_ids"], batch["attention_mask"]
    places = {"position_ids": (mask_BT.cumsum(-1) - 1).clamp_min(0)}
    reads_places = any(each.name in places for each in session.get_inputs())
    with torch.no_grad():
        logits_BTV = model(**batch, **(places if reads_places else {}))["logits"]
    half = ids_BT.shape[1] // 2
    past: dict[str, Any] = {}
    for start, stop in ((0, half), (half, ids_BT.shape[1])):
        ids, mask = ids_BT[:, start:stop].numpy(), mask_BT[:, :stop].numpy()
        found = _run(session, step_inputs(session, ids, past, mask))
        past = {name.replace(NEXT, PAST): value for name, value in found.items() if name.startswith(NEXT)}
        real_BT = mask_BT[:, start:stop] != 0
        yield logits_BTV[:, start:stop][real_BT], found["logits"][real_BT]


def _run(session: Any, inputs: Mapping[str, Any]) -> dict[str, Any]:
    """Return the outputs of a graph by name, as tensors; caches as arrays."""
    known = {each.name for each in session.get_inputs()}
    names = [each.name for each in session.get_outputs()]
    values = session.run(names, {name: value for name, value in inputs.items() if name in known})
    return {
        name: value if name.startswith(NEXT) else torch.from_numpy(value)
        for name, value in zip(names, values, strict=True)
    }
