"""A model as one ONNX graph, by the exporters of transformers; and how the graph of a decoder is fed."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from transformers import PreTrainedModel

from sparse_trainer.convert.exporting import export_by

# Shape legend: B = rows, T = new tokens, K = tokens of the cache and new ones.

GRAPH = "model.onnx"
SLOW_FUSIONS = ("SkipLayerNormFusion",)
"""What onnxruntime 1.32 makes of a sum and a norm is slower on the CPU than both, by as much whatever a cut leaves."""
PAST, NEXT = "input.cache.", "output.cache."
"""How the names of a cache's tensors begin: what a graph reads, and what it returns."""


def export_graph(model: PreTrainedModel, out: Path, place: str) -> None:
    """Write the graph of a float32 model, with its weights and config, into a folder.

    Raises:
        ConversionError: It cannot be exported.
    """
    from transformers.exporters.configs import OnnxConfig  # not in all releases
    from transformers.exporters.exporter_onnx import OnnxExporter

    instead = "Upgrade transformers and onnxscript; or choose gguf."
    export_by(model, OnnxExporter(), OnnxConfig(dynamic=True), place, instead).save_pretrained(out)


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
    return onnxruntime.InferenceSession(
        file, options, providers=["CPUExecutionProvider"], disabled_optimizers=list(SLOW_FUSIONS)
    )
