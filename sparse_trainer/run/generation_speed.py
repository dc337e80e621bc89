"""Time generation: a prompt in one pass, then a token at a time after its cache, models in turn."""

import inspect
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from transformers import PreTrainedModel

from sparse_trainer.budget.latency.clock import synchronize
from sparse_trainer.errors import ArgumentError
from sparse_trainer.fields import check_counts
from sparse_trainer.inputs.evaluating import evaluating
from sparse_trainer.inputs.limits import check_positions, positions_of
from sparse_trainer.inputs.sample import reads_tokens_only, tokens_for
from sparse_trainer.run.latency import (
    WARMUP_ROUNDS,
    Latency,
    common_place,
    cpu_threads,
    summarize,
)

# Shape legend: B = rows, T = tokens.


@dataclass(frozen=True, kw_only=True, slots=True)
class Generated:
    """How fast a model generates."""

    prefill: Latency
    """Seconds for the prompt."""
    decode: Latency
    """Seconds per new token of all rows together."""

    def to_json(self) -> dict[str, Any]:
        """Return plain types for JSON."""
        return {"prefill": self.prefill.to_json(), "decode": self.decode.to_json()}


def time_generation(
    models: Mapping[str, PreTrainedModel],
    *,
    new_tokens: int,
    prompt_length: int,
    batch_sizes: Sequence[int],
    rounds: int,
    threads: int | None = None,
) -> dict[str, dict[int, Generated]]:
    """Return, by model and batch size, how fast it reads a prompt and writes greedily, in turn within each round.

    Args:
        new_tokens: Per row; no token ends a row early.
        prompt_length: Tokens per row.

    Raises:
        ArgumentError: A count below 1; a model that does not generate from tokens alone, or has too few positions;
            models in different places.
    """
    check_counts(generate=new_tokens, prompt_length=prompt_length, rounds=rounds)
    check_writes_tokens(models, prompt_length + new_tokens)
    device, _ = common_place(models)
    found: dict[str, dict[int, Generated]] = {name: {} for name in models}
    with cpu_threads(threads), evaluating(*models.values()):
        for rows in batch_sizes:
            seconds: dict[str, list[tuple[float, float]]] = {name: [] for name in models}
            names = list(models)
            for number in range(WARMUP_ROUNDS + rounds):
                turn = number % len(names)
                for name in names[turn:] + names[:turn]:
                    ids_BT = tokens_for(models[name], rows=rows, length=prompt_length)["input_ids"]
                    seconds[name].append(_generated(models[name], ids_BT, new_tokens, device))
            for name, pairs in seconds.items():
                prefill, decode = zip(*pairs[WARMUP_ROUNDS:], strict=True)
                found[name][rows] = Generated(prefill=summarize(prefill), decode=summarize(decode))
    return found


def check_writes_tokens(models: Mapping[str, PreTrainedModel], length: int) -> None:
    """Raise `ArgumentError` for a model that does not write so many tokens after one another."""
    for name, model in models.items():
        if not (model.can_generate() and reads_tokens_only(model)):
            raise ArgumentError("generate", f"{name} is no decoder that stands alone.", "Leave it out.")
        check_positions("generate", length, positions_of(model.config))


@torch.inference_mode()
def _generated(model: Any, ids_BT: Tensor, new_tokens: int, device: torch.device) -> tuple[float, float]:
    """Return the seconds of the prompt, and per token after it."""
    # Releases of transformers call it one or the other.
    cache = "cache" if "cache" in inspect.signature(model.forward).parameters else "past_key_values"
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
