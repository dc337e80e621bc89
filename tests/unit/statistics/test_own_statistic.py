"""A statistic and a criterion of depth from a user's own file: one class each, and `collect` knows neither."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import pytest
import torch
from torch import Tensor
from torch.utils.hooks import RemovableHandle

from patchers.discovery.discover import discover
from patchers.units import CHANNELS, HEADS, LAYERS, Group, Kind
from sparse_trainer import SparseTrainingArguments, optimize_model, register_criterion
from sparse_trainer.criteria.calibration.base import Evidence, per_unit
from sparse_trainer.criteria.calibration.registry import WIDTH_CRITERIA
from sparse_trainer.errors import DataError
from sparse_trainer.one_shot.prune import prune
from sparse_trainer.statistics.block_states import BlockStates
from sparse_trainer.statistics.calibration_pass import CalibrationPass
from sparse_trainer.statistics.collect import collect
from sparse_trainer.statistics.moments import Moments
from sparse_trainer.statistics.requests import Statistic
from tests.fixtures.oneshot_models import calibration, model_of, padded, sequences, widths
from tests.fixtures.training import trainer

# Shape legend: B = sequences, T = tokens, I = input features of a consumer, U = units.


@dataclass(frozen=True)
class Largest:
    """Largest |x| of every feature that a consumer reads, by module path."""

    kinds: ClassVar[tuple[Kind, ...]] = (HEADS, CHANNELS)
    in_stacked_experts: ClassVar[bool] = False
    loss: ClassVar[None] = None

    def key(self, group: Group) -> str:
        return group.consumer

    @classmethod
    def collector(cls, requests: Sequence["Largest"], run: CalibrationPass) -> "LargestCollector":
        return LargestCollector(run)


class LargestCollector:
    one_by_one: ClassVar[bool] = False

    def __init__(self, run: CalibrationPass) -> None:
        self.run, self.paths = run, run.consumers
        self.found: dict[str, Tensor] = {}

    def attach(self) -> list[RemovableHandle]:
        return self.run.show_inputs(self.paths, self.see)

    def see(self, path: str, x: Tensor) -> None:
        x_BTI, real_BT = self.run.sequences(x.abs(), path)
        if real_BT is not None:
            x_BTI = x_BTI.masked_fill(~real_BT.unsqueeze(-1), 0.0)
        largest_I = x_BTI.amax((0, 1))
        self.found[path] = torch.maximum(self.found.get(path, largest_I), largest_I)

    def results(self) -> Mapping[Statistic[Any], Mapping[str, Tensor]]:
        return {Largest(): self.found}


@dataclass(frozen=True, kw_only=True)
class Peak:
    """Scores units by the largest activation they ever have."""

    kinds: ClassVar[tuple[Kind, ...]] = (HEADS, CHANNELS)
    standardize: ClassVar[str] = "zscore_layer"

    def requests(self) -> tuple[Statistic[Any], ...]:
        return (Largest(),)

    def scores(self, evidence: Evidence) -> dict[str, Tensor]:
        found = evidence.of(Largest())
        return {g.name: per_unit(found[g.name], g.consumer_slice) for g in evidence.structure.groups}


@dataclass(frozen=True, kw_only=True)
class BlockInfluence:
    """ShortGPT: 1 - the cosine similarity of what a block reads and says; one unit per layer."""

    kinds: ClassVar[tuple[Kind, ...]] = (LAYERS,)
    standardize: ClassVar[str] = "none"

    def requests(self) -> tuple[Statistic[Any], ...]:
        return (BlockStates(),)

    def scores(self, evidence: Evidence) -> dict[str, Tensor]:
        states = evidence.of(BlockStates())
        return {name: (1 - means.cosine).unsqueeze(0) for name, means in states.items()}


def test_a_statistic_of_ones_own_is_collected_beside_ours() -> None:
    model = model_of("llama")
    structure, single = widths(model), sequences(model, (12, 7, 9))
    alone = collect(model, structure, single, [Largest(), Moments()])
    together = collect(model, structure, [padded(single)], [Moments(), Largest()])
    for group in structure.groups:
        largest_I = alone.of(Largest())[group.consumer]
        torch.testing.assert_close(together.of(Largest())[group.consumer], largest_I)
        assert bool((largest_I.square() >= alone.of(Moments())[group.consumer].second_I).all())
    with pytest.raises(DataError, match="hold no BlockStates"):
        alone.of(BlockStates())


def test_a_criterion_over_ones_own_statistic_prunes() -> None:
    model = model_of("llama")
    batches = calibration(model)
    structure = widths(model)
    scores = Peak().scores(
        Evidence(model=model, structure=structure, statistics=collect(model, structure, batches, [Largest()]))
    )
    pruned, plan = prune(model, batches, criterion=Peak(), density=0.5, scope="layer")
    for name, entry in plan.groups.items():
        kept = set(entry["keep"])
        order = scores[name].argsort(descending=True).tolist()
        assert kept == set(order[: len(kept)])
    assert sum(p.numel() for p in pruned.parameters()) < sum(p.numel() for p in model.parameters())
    by_block, _ = prune(model, batches, criterion=Peak(), density=0.5, scope="layer", by_block=True)
    for one, other in zip(pruned.parameters(), by_block.parameters(), strict=True):
        assert torch.equal(one, other)


def test_a_criterion_of_depth_is_one_class() -> None:
    model = model_of("llama")
    still: Any = model.get_submodule("model.layers.1")
    still.self_attn.o_proj.weight.data.mul_(1e-3)
    still.mlp.down_proj.weight.data.mul_(1e-3)
    structure = discover(model, ("layers",))
    statistics = collect(model, structure, calibration(model), BlockInfluence().requests())
    scores = BlockInfluence().scores(Evidence(model=model, structure=structure, statistics=statistics))
    assert {name: score_U.shape for name, score_U in scores.items()} == {
        group.name: (group.num_units,) for group in structure.groups
    }
    least = min(scores, key=lambda name: float(scores[name]))
    assert structure[least].block == "model.layers.1"


@pytest.fixture
def registered() -> Iterator[str]:
    register_criterion("my_influence", BlockInfluence)
    yield "my_influence"
    del WIDTH_CRITERIA["my_influence"]


def test_a_criterion_of_depth_serves_fine_pruning(registered: str, tmp_path: Path) -> None:
    args = SparseTrainingArguments(
        scoring=registered, units=["layers"], density=0.67, calibration_samples=8, target="units"
    )
    run: Any = trainer(tmp_path, args)
    structure = discover(run.model, ("layers",))
    batches = [run.data_collator([row]) for row in run.train_dataset]
    found = collect(run.model, structure, batches, [BlockStates()]).by_group(BlockStates(), structure.groups)
    run.train()
    plan = optimize_model(run.model, check=False).pruning_plan
    gone = {name for name, group in plan.groups.items() if not group["keep"]}
    assert gone == {max(found, key=lambda name: float(found[name].cosine))}
