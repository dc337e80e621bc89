"""Statistics block by block: the same numbers as in one pass, from running every block a few times only."""

from collections import Counter
from collections.abc import Sequence
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from patchers.patching.patch import gated
from patchers.units import Group, Structure
from sparse_trainer.errors import UnsupportedModelError
from sparse_trainer.inputs.make import inputs_for
from sparse_trainer.statistics.blockwise import Blockwise
from sparse_trainer.statistics.collect import collect
from sparse_trainer.statistics.moments import Moments
from sparse_trainer.statistics.requests import Statistics
from tests.fixtures.oneshot_models import calibration, model_of, widths

TYPES = (
    "llama",
    "bert",
    "gpt2",
    "t5",
    "bart",
    "mistral",
    "gemma2",
    "vit",
    "qwen3_vl",
    "gemma3n_text",
    "hiera",
)
NEEDS = [Moments(covariance=True)]


def batches_for(model: PreTrainedModel) -> list[dict[str, Tensor]]:
    if model.config.model_type in ("llama", "bert", "gpt2"):
        return calibration(model, rows=4, length=12)
    return [
        {k: v for k, v in inputs_for(model, rows=2, seed=seed).items() if k != "labels"} for seed in range(2)
    ]


def same(found: Statistics, expected: Statistics, groups: Sequence[Group]) -> None:
    for group in groups:
        one, other = (s.of(NEEDS[0])[group.consumer] for s in (found, expected))
        assert torch.equal(one.tokens, other.tokens)
        torch.testing.assert_close(one.mean_I, other.mean_I, rtol=1e-9, atol=1e-12)
        torch.testing.assert_close(one.second_II, other.second_II, rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("name", TYPES)
def test_statistics_are_those_of_one_pass(name: str) -> None:
    model = model_of(name)
    structure, batches = widths(model), batches_for(model)
    expected = collect(model, structure, batches, NEEDS)
    seen: list[str] = []
    walk = Blockwise(model, structure, batches, changing=False)
    for groups in walk:
        names = [g.name for g in groups]
        same(walk.collect(groups, NEEDS), expected, groups)
        seen += names
    assert sorted(seen) == sorted(g.name for g in structure.groups)


@pytest.mark.parametrize("name", ["llama", "bert", "t5", "bart"])
def test_later_blocks_read_what_changed_ones_say(name: str) -> None:
    model, twin = model_of(name), model_of(name)
    structure, batches = widths(model), batches_for(model)
    keep = {g.name: torch.arange(g.num_units) > 0 for g in structure.groups}
    with gated(model, structure, keep):
        walk = Blockwise(model, structure, batches, changing=True)
        for groups in walk:
            with gated(twin, structure, keep):
                expected = collect(twin, structure, batches, NEEDS)
            same(walk.collect(groups, NEEDS), expected, groups)
            for changed in (model, twin):
                with torch.no_grad():
                    changed.get_parameter(f"{groups[0].consumer}.weight").mul_(1.5)


def test_every_block_runs_once() -> None:
    model = model_of("llama")
    runs: Counter[nn.Module] = Counter()
    for block in model.get_submodule("model.layers").children():
        block.self_attn.register_forward_hook(lambda module, *_: runs.update([module]))
    batches = calibration(model, rows=8)
    structure = widths(model)
    walk = Blockwise(model, structure, batches, changing=False)
    runs.clear()
    for groups in walk:
        walk.collect(groups, NEEDS)
    assert set(runs.values()) == {len(batches)}


def test_a_device_needs_blocks_in_a_row() -> None:
    model = model_of("gemma3n_text")
    with pytest.raises(UnsupportedModelError, match="outside of blocks"):
        Blockwise(model, widths(model), batches_for(model), changing=False, device="cpu")


def test_blocks_come_home(monkeypatch: pytest.MonkeyPatch) -> None:
    """The CPU is the only device here: count the moves."""
    model = model_of("llama")
    moved: list[Any] = []
    monkeypatch.setattr(
        nn.Module, "to", lambda self, device: moved.append((self, torch.device(device))) or self
    )
    structure: Structure = widths(model)
    walk = Blockwise(model, structure, calibration(model), changing=False, device="cpu")
    for groups in walk:
        walk.collect(groups, NEEDS)
    blocks = list(model.get_submodule("model.layers").children())
    assert [block for block, _ in moved] == [block for block in blocks for _ in range(2)]
