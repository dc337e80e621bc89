"""The learned layer map takes the best assignment, of open layers, and its projection is trained and thrown away."""

import itertools
from pathlib import Path

import pytest
import torch

from patchers.patching.patch import unpatch
from sparse_trainer.cut.optimize import optimize_model
from sparse_trainer.errors import ArgumentError
from sparse_trainer.training.arguments.arguments import SparseTrainingArguments
from sparse_trainer.training.coordinator import ModelPatchingCoordinator
from sparse_trainer.training.distillation.layer_map import match
from sparse_trainer.training.load import load_patched
from tests.fixtures.compact_models import batch, logits, tiny
from tests.fixtures.training import trainer


def map_args(**options: object) -> SparseTrainingArguments:
    return SparseTrainingArguments(
        distil_teacher_name_or_path="self",
        distil_alpha_hidden=1.0,
        distil_alpha_teacher=0.0,
        distil_layer_map="learned",
        **options,  # type: ignore[arg-type]
    )


@pytest.mark.parametrize("in_order", [True, False])
def test_match_never_reads_a_tensor_on_the_host(in_order: bool) -> None:
    error_KL, open_L = torch.rand(3, 5, device="meta"), torch.ones(5, device="meta")
    assert match(error_KL, open_L, in_order=in_order).shape == (3,)


@pytest.mark.parametrize("seed", range(6))
@pytest.mark.parametrize("in_order", [True, False])
def test_match_is_the_best_of_all_assignments(seed: int, in_order: bool) -> None:
    generator = torch.Generator().manual_seed(seed)
    error_KL = torch.rand(3, 5, generator=generator)
    open_L = torch.tensor([1.0, 0.0, 1.0, 1.0, 0.0])
    chosen = match(error_KL, open_L, in_order=in_order).tolist()
    allowed = [
        pick for pick in itertools.product([0, 2, 3], repeat=3) if not in_order or list(pick) == sorted(pick)
    ]
    total = {pick: sum(float(error_KL[k, layer]) for k, layer in enumerate(pick)) for pick in allowed}
    assert tuple(chosen) == min(total, key=lambda pick: total[pick])


def test_equal_models_cost_nothing_and_a_lost_layer_is_mapped_around() -> None:
    model = tiny()
    coordinator = ModelPatchingCoordinator(map_args(scoring="magnitude", units=["layers"]))
    coordinator.patch_model(model)
    inputs = batch(model)
    assert coordinator.distiller is not None

    def loss() -> float:
        extra = coordinator.extra_losses(inputs, model(**inputs, output_hidden_states=True))
        assert extra.distillation is not None
        return float(extra.distillation.detach())

    assert loss() == pytest.approx(0.0, abs=1e-6)
    coordinator.gates["bert.encoder.layer.0.layer"].keep_U.zero_()
    mapped = loss()
    coordinator.distiller.layer_map = None
    assert mapped > 1e-4
    assert torch.isfinite(torch.tensor(loss()))


def test_projection_is_trained_stored_and_not_exported(tmp_path: Path) -> None:
    run = trainer(tmp_path, map_args(), tiny().train(), save_strategy="steps", save_steps=6)
    run.train()
    weights = {n: p for n, p in run.model.named_parameters() if "projection" in n}
    assert len(weights) == 1
    weight = next(iter(weights.values()))
    assert not torch.equal(weight, torch.eye(32, dtype=weight.dtype))
    again = load_patched(tmp_path / "checkpoint-6")
    assert any("projection" in name for name, _ in again.named_parameters())
    compact = optimize_model(run.model)
    assert not any("projection" in name for name in compact.state_dict())
    unpatch(run.model)
    assert not any("projection" in name for name in run.model.state_dict())
    assert logits(compact).isfinite().all()


def test_unknown_map_is_refused() -> None:
    with pytest.raises(ArgumentError, match=r"distil_layer_map.*fixed, learned"):
        SparseTrainingArguments(distil_layer_map="best")
