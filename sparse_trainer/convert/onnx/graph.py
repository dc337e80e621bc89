"""A model as one ONNX graph, by the exporters of transformers; and how the graph of a decoder is fed."""

import warnings
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from torch import Tensor
from transformers import PreTrainedModel

from sparse_trainer.errors import ConversionError, UnsupportedModelError
from sparse_trainer.inputs.evaluating import evaluating, plain_outputs
from sparse_trainer.inputs.sample import reads_tokens_only, sample_batch, tokens_for

# Shape legend: B = rows, T = new tokens, K = tokens of the cache and new ones.

GRAPH = "model.onnx"
PAST, NEXT = "input.cache.", "output.cache."
"""How the names of a cache's tensors begin: what a graph reads, and what it returns."""


def reads_cache(model: PreTrainedModel) -> bool:
    """Tell whether the graph of a model reads a cache: that of a decoder that stands alone and reads tokens."""
    return model.can_generate() and reads_tokens_only(model)


def export_graph(model: PreTrainedModel, out: Path, place: str) -> None:
    """Write the graph of a float32 model, with its weights and config, into a folder.

    Raises:
        ConversionError: It cannot be exported.
    """
    from transformers.exporters.configs import OnnxConfig  # not in all releases
    from transformers.exporters.exporter_onnx import OnnxExporter
    from transformers.exporters.utils import decompose_for_generation

    part: Any = model
    try:
        if reads_cache(model):
            # Without padding there is no mask among what `generate` hands on.
            asked = {**left_padded(model, rows=2, length=7), "do_sample": False}
            part, inputs = decompose_for_generation(model, asked, multi_token_decode=True)["decode"]
        else:
            inputs = sample_batch(model)
        with evaluating(model), plain_outputs(model), without_cache(model), quiet():
            exported = OnnxExporter().export(part, inputs, OnnxConfig(dynamic=True))
    except UnsupportedModelError as error:
        raise ConversionError(place, error.what, "Export it yourself, with inputs of your own.") from error
    except Exception as error:  # an exporter may fail with any error
        told = next(iter(str(error).strip().splitlines()), type(error).__name__)
        raise ConversionError(
            place, f"cannot be exported ({told}).", "Upgrade transformers and onnxscript; or choose gguf."
        ) from error
    exported.save_pretrained(out)


def left_padded(model: PreTrainedModel, *, rows: int, length: int) -> dict[str, Tensor]:
    """Return made-up tokens with their mask: all rows but the first begin with padding, as in generation."""
    batch = tokens_for(model, rows=rows, length=length, padding=length // 3)
    return {name: values_BT.flip(-1) for name, values_BT in batch.items()}


def step_inputs(
    session: Any, ids_BT: Any, past: Mapping[str, Any], mask_BK: Any | None = None
) -> dict[str, Any]:
    """Return what the graph of a decoder reads for new tokens after a cache, as arrays by name.

    Args:
        session: An `onnxruntime.InferenceSession`.
        ids_BT: Ids of the new tokens.
        past: The cache that the last step returned; {} = none.
        mask_BK: 0 where a token, of the cache or new, is padding; None = nowhere.
    """
    import numpy as np

    rows, count = ids_BT.shape
    named = {each.name: each for each in session.get_inputs()}
    caches = [name for name in named if name.startswith(PAST)]
    seen = past[caches[0]].shape[2] if past else 0
    mask_BK = np.ones((rows, seen + count), dtype=np.int64) if mask_BK is None else mask_BK
    places_BK = (mask_BK.cumsum(-1) - 1).clip(0)
    own = {"attention_mask": mask_BK, "position_ids": places_BK[:, seen:], "input_ids": ids_BT}
    given: dict[str, Any] = {name: value for name, value in own.items() if name in named}
    for name in caches:
        _, heads, _, width = named[name].shape  # exporters write some sizes as text
        none = (rows, int(heads), 0, int(width))
        given[name] = past[name] if past else np.zeros(none, dtype=np.float32)
    return given


def open_session(file: Path, *, threads: int = 0) -> Any:
    """Return an `onnxruntime.InferenceSession` on the CPU.

    Args:
        threads: Of one operation; 0 = as onnxruntime chooses.
    """
    import onnxruntime  # an extra

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    options.log_severity_level = 3
    return onnxruntime.InferenceSession(file, options, providers=["CPUExecutionProvider"])


@contextmanager
def without_cache(model: PreTrainedModel) -> Iterator[None]:
    """Let no cache be an output, but of a decoder whose graph reads one."""
    configs = [vars(module.config) for module in model.modules() if isinstance(module, PreTrainedModel)]
    asked = [] if reads_cache(model) else [fields for fields in configs if fields.get("use_cache")]
    for fields in asked:
        fields["use_cache"] = False
    try:
        yield
    finally:
        for fields in asked:
            fields["use_cache"] = True


@contextmanager
def quiet() -> Iterator[None]:
    """Hold back warnings of exporters about themselves: what they made is compared."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield
