"""What of a model can be pruned is looked for once, and travels along.

Allowed: one discovery of the model before a cut; one after each cut, because shapes have changed (of a single KV
group that is left the query heads are the units), which the config, the plan and the next round of `steps` share.
Stock models that are built beside it to look at are other models, and do not count.
"""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import nn

import patchers.discovery.discover as discovery
from sparse_trainer import ModelPatchingCoordinator, SparseTrainingArguments, optimize_model, prune
from sparse_trainer.cut.carry_out import carry_out
from sparse_trainer.cut.decision import Decision, Request
from tests.architectures.tiny import tiny_model
from tests.fixtures.hidden_models import hidden_model

Count = Callable[[], int]


@pytest.fixture
def looked(monkeypatch: pytest.MonkeyPatch) -> Count:
    """Count how often a model with numbers is searched for what can be pruned."""
    found: list[nn.Module] = []
    read: Any = discovery._read

    def counted(model: nn.Module) -> Any:
        if next(model.parameters()).device.type != "meta":
            found.append(model)
        return read(model)

    monkeypatch.setattr(discovery, "_read", counted)
    return lambda: len(found)


@pytest.mark.parametrize("options", [{}, {"target": "macs"}, {"steps": 3}, {"protect": ["first"]}])
def test_prune_looks_once_before_and_once_after_each_cut(looked: Count, options: dict[str, Any]) -> None:
    prune(tiny_model("llama"), criterion="magnitude", density=0.7, **options)
    assert looked() == 1 + int(options.get("steps", 1))


@pytest.mark.parametrize("target", ["params", "macs"])
@pytest.mark.parametrize("units", [("heads", "channels"), ("layers",)])
def test_a_training_looks_once(looked: Count, target: str, units: tuple[str, ...]) -> None:
    args = SparseTrainingArguments(scoring="movement", density=0.5, target=target, units=list(units))
    ModelPatchingCoordinator(args).patch_model(tiny_model("bert"))
    assert looked() == 1


def test_hidden_features_are_found_with_the_rest(looked: Count) -> None:
    args = SparseTrainingArguments(scoring="l0", density=0.5, units=["hidden", "heads", "channels"])
    coordinator = ModelPatchingCoordinator(args)
    model = coordinator.patch_model(hidden_model("bert"))
    assert looked() == 1
    coordinator.gates["bert.encoder.hidden"].keep_U[::2] = 0.0
    optimize_model(model)
    assert looked() == 3


def test_a_cut_looks_once_before_and_once_after(looked: Count) -> None:
    coordinator = ModelPatchingCoordinator(SparseTrainingArguments(scoring="movement", density=0.5))
    model = coordinator.patch_model(tiny_model("bert"))
    coordinator.begin(1)
    coordinator.step()
    before = looked()
    compact = optimize_model(model)
    assert looked() - before == 2
    optimize_model(tiny_model("bert"), plan=compact.pruning_plan)
    assert looked() - before == 4
    optimize_model(model, "heads")
    assert looked() - before == 6


@pytest.mark.parametrize("model_type", ["llama", "bert", "gpt2", "t5"])
def test_what_is_found_after_a_cut_is_what_the_finished_model_has(model_type: str) -> None:
    model = tiny_model(model_type)
    found = discovery.discover(model)
    keep = {g.name: torch.arange(g.num_units) < 1 for g in found.of(["heads", "channels"])}
    decision = Decision(structure=found, keep=keep, request=Request(method="test"))
    assert carry_out(model, decision, check=False) == discovery.discover(model)
