"""What a layer more costs does not depend on how many there are: counted in calls, which no busy machine changes."""

import gc
import sys
from collections.abc import Callable
from types import FrameType
from typing import Any

import pytest
import torch
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedModel

from patchers.discovery.discover import discover
from patchers.patching.gates import Gate
from patchers.patching.patch import patch
from sparse_trainer.cut.optimize import optimize_model


def llama(layers: int) -> LlamaForCausalLM:
    config = LlamaConfig(
        vocab_size=16, hidden_size=16, intermediate_size=16, num_attention_heads=2, num_hidden_layers=layers
    )
    with torch.device("meta"):
        return LlamaForCausalLM(config)


def calls(action: Callable[[], object]) -> int:
    """Return how many functions, of Python or C, an action calls; collecting garbage is none of it."""
    count = 0

    def on_event(frame: FrameType, event: str, argument: Any) -> None:
        nonlocal count
        count += event in ("call", "c_call")

    gc.collect()
    gc.disable()
    sys.setprofile(on_event)
    try:
        action()
    finally:
        sys.setprofile(None)
        gc.enable()
    return count


def find(model: PreTrainedModel) -> Callable[[], object]:
    return lambda: discover(model)


def put_gates(model: PreTrainedModel) -> Callable[[], object]:
    structure = discover(model, ["heads", "channels"])
    return lambda: patch(model, structure, lambda group: Gate(group.num_units, scored=True))


def cut(model: PreTrainedModel) -> Callable[[], object]:
    for gate in patch(
        model, discover(model, ["channels"]), lambda g: Gate(g.num_units, scored=False)
    ).values():
        gate.to_empty(device="cpu")
        gate.set_keep(torch.arange(gate.keep_U.numel()) > 3)
    return lambda: optimize_model(model, inplace=True)


@pytest.mark.parametrize("action", [find, put_gates, cut])
def test_a_layer_more_costs_the_same_however_many_there_are(
    action: Callable[[PreTrainedModel], Callable[[], object]],
) -> None:
    calls(action(llama(2)))  # what is cached is cached now
    few, some, many = (calls(action(llama(layers))) for layers in (4, 8, 16))
    assert many - some < 2.2 * (some - few)
