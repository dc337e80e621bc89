"""Time generation: a prompt in one pass, then a token at a time after its cache, models in turn."""

import inspect
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from transformers import PreTrainedModel

from sparse_trainer.budget.latency.clock import synchronize
from sparse_trainer.errors import ArgumentError
from sparse_trainer.inputs.limits import check_positions, positions_of
from sparse_trainer.inputs.sample import reads_tokens_only, tokens_for
from sparse_trainer.run.latency import Latency, Spread, summarize

# Shape legend: B = rows, T = tokens.


@dataclass(frozen=True, kw_only=True, slots=True)
class Generated:
    """How fast a model generates."""

    prefill: Latency
    """Seconds for the prompt."""
    decode: Latency
    """Seconds per new token of all rows together."""

    @classmethod
    def of(cls, seconds: Sequence[tuple[float, float]]) -> "Generated":
        """Return it from the seconds of each round: of the prompt, and per token after it."""
        prefill, decode = zip(*seconds, strict=True)
        return cls(prefill=summarize(prefill), decode=summarize(decode))

    def faster_than(self, other: "Generated") -> tuple[Spread, Spread]:
        """Return how many times faster it reads a prompt than another model, and writes, over the rounds."""
        return other.prefill.over(self.prefill), other.decode.over(self.decode)

    def to_json(self) -> dict[str, Any]:
        """Return plain types for JSON."""
        return {"prefill": self.prefill.to_json(), "decode": self.decode.to_json()}


def check_writes_tokens(name: str, model: PreTrainedModel, length: int) -> None:
    """Raise `ArgumentError` for a model that does not write so many tokens after one another."""
    if not (model.can_generate() and reads_tokens_only(model)):
        raise ArgumentError("generate", f"{name} is no decoder that stands alone.", "Leave it out.")
    check_positions("generate", length, positions_of(model.config))


def generation(
    model: PreTrainedModel, rows: int, prompt_length: int, new_tokens: int
) -> Callable[[], tuple[float, float]]:
    """Return what generates greedily and tells the seconds of the prompt, and per token of all rows after it.

    No token ends a row early.
    """
    ids_BT = tokens_for(model, rows=rows, length=prompt_length)["input_ids"]
    # Releases of transformers call it one or the other.
    cache = "cache" if "cache" in inspect.signature(model.forward).parameters else "past_key_values"
    return lambda: _generated(model, cache, ids_BT, new_tokens)


@torch.inference_mode()
def _generated(model: Any, cache: str, ids_BT: Tensor, new_tokens: int) -> tuple[float, float]:
    device = ids_BT.device
    synchronize(device)
    start = time.perf_counter()
    outputs = model(input_ids=ids_BT, use_cache=True)
    synchronize(device)
    read = time.perf_counter()
    for _ in range(new_tokens):
        next_B1 = outputs.logits[:, -1:].argmax(-1)
        outputs = model(input_ids=next_B1, use_cache=True, **{cache: outputs[cache]})
    synchronize(device)
    return read - start, (time.perf_counter() - read) / new_tokens
