"""What conversions by the exporters of transformers share: what is traced, and what its answers are held against."""

import importlib.util
import io
import logging
import warnings
from collections.abc import Collection, Iterator, Mapping
from contextlib import contextmanager, redirect_stdout
from typing import Any, Final

import torch
import transformers
from torch import Tensor
from transformers import PreTrainedModel

from sparse_trainer.errors import ConversionError, UnsupportedModelError
from sparse_trainer.inputs.evaluating import evaluating, plain_outputs
from sparse_trainer.inputs.limits import positions_of
from sparse_trainer.inputs.sample import reads_tokens_only, sample_batch, tokens_for

# Shape legend: B = rows, T = tokens, V = vocabulary.

_TOLERANCE: Final = 1e-5
"""Of the largest output: as far as float32 of another runtime may be from that of torch."""


EXPORTED_TYPES: Final = (
    "bert", "deberta-v2", "distilbert", "llama", "modernbert", "qwen2", "qwen3", "roberta",
)  # fmt: skip
"""Model types, by `model_type`, whose uneven models the tests export by every exporter, and compare."""


def is_exported(model: PreTrainedModel) -> bool:
    """Tell whether models of this type are among those that the tests export."""
    return model.config.model_type in EXPORTED_TYPES


def refuse_old_exporters(place: str) -> None:
    """Raise `ConversionError` for releases of transformers that do not save and run what they export."""
    if importlib.util.find_spec("transformers.exporters.runners") is None:
        raise ConversionError(
            place,
            f"transformers {transformers.__version__} has no exporters that save and run what they export.",
            "Run `pip install -U transformers` (tested with 5.24.0).",
        )


def reads_cache(model: PreTrainedModel) -> bool:
    """Tell whether the graph of a model reads a cache: that of a decoder that stands alone and reads tokens."""
    return model.can_generate() and reads_tokens_only(model)


def left_padded(model: PreTrainedModel, *, rows: int, length: int) -> dict[str, Tensor]:
    """Return made-up tokens with their mask: all rows but the first begin with padding, as in generation."""
    batch = tokens_for(model, rows=rows, length=length, padding=length // 3)
    return {name: values_BT.flip(-1) for name, values_BT in batch.items()}


def export_by(
    model: PreTrainedModel,
    exporter: Any,
    config: Any,
    place: str,
    instead: str,
    *,
    inputs: Mapping[str, Tensor] | None = None,
) -> Any:
    """Return a model as an exporter of transformers writes it, which has `save_pretrained`.

    Args:
        place: What errors call the model.
        instead: What else may be done where the exporter fails.
        inputs: What is traced; None = made up: of a decoder with a cache, else a batch.

    Raises:
        ConversionError: It cannot be exported.
    """
    from transformers.exporters.utils import decompose_for_generation  # not in all releases

    part: Any = model
    try:
        if inputs is not None:
            given: Any = dict(inputs)
        elif reads_cache(model):
            # Without padding there is no mask among what `generate` hands on.
            asked = {**left_padded(model, rows=2, length=7), "do_sample": False}
            part, given = decompose_for_generation(model, asked, multi_token_decode=True)["decode"]
        else:
            given = sample_batch(model)
        with evaluating(model), plain_outputs(model), without_cache(model), quiet():
            return exporter.export(part, given, config)
    except UnsupportedModelError as error:
        raise ConversionError(place, error.what, "Export it yourself, with inputs of your own.") from error
    except Exception as error:  # an exporter may fail with any error
        told = next(iter(str(error).strip().splitlines()), type(error).__name__)
        raise ConversionError(place, f"cannot be exported ({told}).", instead) from error


def other_batches(model: PreTrainedModel) -> list[dict[str, Tensor]]:
    """Return inputs of other sizes than those that were traced."""
    if not reads_tokens_only(model):
        return [{name: tensor[:2] for name, tensor in sample_batch(model).items()}]
    longest = min(11, positions_of(model.config) or 11)
    make = left_padded if reads_cache(model) else tokens_for
    return [make(model, rows=rows, length=length) for rows, length in ((3, longest), (1, longest // 2))]


def decoding_steps(
    model: PreTrainedModel, batch: Mapping[str, Tensor], reads: Collection[str]
) -> Iterator[tuple[dict[str, Tensor], Tensor, Tensor]]:
    """Yield a padded batch in two parts: inputs of a decoder, the logits wanted, and which tokens are real.

    Args:
        reads: Names of what the graph reads.
    """
    ids_BT, mask_BT = batch["input_ids"], batch["attention_mask"]
    places_BT = (mask_BT.cumsum(-1) - 1).clamp_min(0)
    places = {"position_ids": places_BT} if "position_ids" in reads else {}
    with torch.no_grad():
        logits_BTV = model(**batch, **places)["logits"]
    half, length = ids_BT.shape[1] // 2, ids_BT.shape[1]
    for start, stop in ((0, half), (half, length)):
        part = {"input_ids": ids_BT[:, start:stop], "attention_mask": mask_BT[:, :stop]}
        given = {**part, "position_ids": places_BT[:, start:stop]}
        yield given, logits_BTV[:, start:stop], mask_BT[:, start:stop] != 0


def compared(pairs: Collection[tuple[Tensor, Tensor]], place: str) -> dict[str, float]:
    """Return how far outputs are from those wanted; raise `ConversionError` where that is further than rounding.

    Args:
        pairs: What is wanted, and what a graph said.
    """
    difference = max(float((wanted - found).abs().max()) for wanted, found in pairs)
    largest = max(float(wanted.abs().max()) for wanted, _ in pairs)
    if not difference <= _TOLERANCE * max(1.0, largest):
        raise ConversionError(
            place,
            f"the graph differs by {difference:.2g}, at outputs up to {largest:.2g}.",
            "Please report this model; or choose gguf.",
        )
    return {"largest_output": largest, "difference": difference}


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
    """Hold back what exporters print, log and warn of about themselves: what they made is compared."""
    before = logging.root.manager.disable
    logging.disable(logging.WARNING)
    try:
        with warnings.catch_warnings(), redirect_stdout(io.StringIO()):
            warnings.simplefilter("ignore")
            yield
    finally:
        logging.disable(before)
