"""Whisper's alignment heads follow a cut: layers and heads numbered anew, those that are gone dropped."""

from typing import Any

import pytest
import torch

from patchers.discovery.discover import discover
from patchers.patching.gates import Gate
from patchers.patching.patch import gates_by_group, patch
from sparse_trainer.cut.optimize import optimize_model
from tests.architectures.tiny import tiny_model

PAIRS = [[0, 1], [1, 0], [2, 2], [2, 3]]


def whisper_without(closed: dict[str, list[int]]) -> Any:
    """Return Whisper without these units, by group name."""
    model: Any = tiny_model("whisper", dtype=torch.float32)
    model.generation_config.alignment_heads = [list(pair) for pair in PAIRS]
    patch(model, discover(model), lambda group: Gate(group.num_units, scored=False))
    for name, gate in gates_by_group(model, discover(model)).items():
        keep_U = torch.ones(len(gate.keep_U), dtype=torch.bool)
        keep_U[closed.get(name, [])] = False
        gate.set_keep(keep_U)
    return optimize_model(model)


DECODER = "model.decoder.layers"


@pytest.mark.parametrize(
    ("closed", "left"),
    [
        ({f"{DECODER}.2.encoder_attn.heads": [0, 3]}, [[0, 1], [1, 0], [2, 1]]),
        ({f"{DECODER}.1.layer": [0]}, [[0, 1], [1, 2], [1, 3]]),
        ({f"{DECODER}.2.encoder_attn.attention": [0]}, [[0, 1], [1, 0]]),
        ({f"{DECODER}.2.self_attn.heads": [0, 3]}, PAIRS),
        ({f"{DECODER}.0.ffn": [0]}, PAIRS),
    ],
)
def test_alignment_heads_follow(closed: dict[str, list[int]], left: list[list[int]]) -> None:
    assert whisper_without(closed).generation_config.alignment_heads == left


def test_none_left_says_so(caplog: pytest.LogCaptureFixture) -> None:
    closed = {f"{DECODER}.{layer}.encoder_attn.heads": [0, 1, 2, 3] for layer in range(3)}
    model = whisper_without(closed)
    assert not hasattr(model.generation_config, "alignment_heads")
    assert "Times of words are not available" in caplog.text
