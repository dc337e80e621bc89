"""Training with weight masks: exact densities, accumulation, resume, checkpoints, zeros in the end."""

from pathlib import Path
from typing import Any

import pytest
import torch

from patchers.patching.patch import masks_of
from sparse_trainer.cut.optimize import optimize_model
from sparse_trainer.errors import ArgumentError, CheckpointError
from sparse_trainer.folders.load import is_patched_checkpoint, load_pruned
from sparse_trainer.training.arguments.arguments import SparseTrainingArguments
from sparse_trainer.training.coordinator import ModelPatchingCoordinator
from sparse_trainer.training.load import load_patched
from sparse_trainer.training.mask_driver import MaskDriver
from sparse_trainer.training.trainer import PruningTrainer
from tests.fixtures.compact_models import logits, tiny
from tests.fixtures.training import CHECKPOINTING, quiet_model, state, trainer

BLOCKS = {"attention_block_rows": 4, "attention_block_cols": 8}
L0 = {"regularization": "l0", "regularization_final_lambda": 20.0, "mask_scores_learning_rate": 0.5}
METHODS: dict[str, dict[str, Any]] = {
    "elements": {"dense_pruning_method": "topK", "attention_pruning_method": "topK"},
    "hybrid": {"preset": "hybrid", **BLOCKS, "mask_scores_learning_rate": 0.5},
    "threshold": {"dense_pruning_method": "threshold:1d_alt", "attention_pruning_method": "threshold", **BLOCKS,
                  "regularization": "l1", "regularization_final_lambda": 20.0},
    "magnitude": {"dense_pruning_method": "magnitude:1d", "attention_pruning_method": "magnitude"},
    "l0": {"dense_pruning_method": "l0:1d_alt", "attention_pruning_method": "l0", **BLOCKS, **L0},
    "annealing": {"ampere_pruning_method": "annealing", "mask_init": "kaiming"},
}  # fmt: skip


def masking_of(run: PruningTrainer) -> MaskDriver:
    assert isinstance(run.coordinator.pruner, MaskDriver)
    return run.coordinator.pruner


def asked(name: str, **options: Any) -> SparseTrainingArguments:
    return SparseTrainingArguments(**{**METHODS[name], **options})


@pytest.mark.parametrize("name", ["elements", "hybrid", "l0"])
def test_accumulation_1x8_equals_4x2(name: str, tmp_path: Path) -> None:
    whole = trainer(tmp_path / "a", asked(name))
    whole.train()
    options = {"per_device_train_batch_size": 2, "gradient_accumulation_steps": 4}
    split = trainer(tmp_path / "b", asked(name), **options)
    split.train()
    for (entry, a), b in zip(state(whole.model).items(), state(split.model).values(), strict=True):
        # Adam makes rounding visible where the gradients of loss and penalty cancel.
        patch = "weight_mask" in entry or "gate" in entry
        torch.testing.assert_close(a, b, rtol=0, atol=1e-4 if patch else 1e-6, msg=entry)
    assert masking_of(whole).density() < 1


@pytest.mark.parametrize("step", [5, 10])  # while the threshold moves, and in the final stretch
@pytest.mark.parametrize("name", ["hybrid", "l0", "annealing"])
def test_resume_equals_uninterrupted(name: str, step: int, tmp_path: Path) -> None:
    options: dict[str, Any] = {"save_strategy": "steps", "save_steps": 5}
    straight = trainer(tmp_path, asked(name), tiny().train(), **options)
    straight.train()
    resumed = trainer(tmp_path, asked(name), tiny().train(), **options)
    resumed.train(resume_from_checkpoint=str(tmp_path / f"checkpoint-{step}"))
    for (entry, a), b in zip(state(straight.model).items(), state(resumed.model).values(), strict=True):
        assert torch.equal(a, b), entry


@pytest.mark.parametrize("name", METHODS)
def test_the_end_is_written_into_the_parameters(name: str, tmp_path: Path) -> None:
    run = trainer(tmp_path, asked(name), save_strategy="steps", save_steps=6)
    run.train()
    parameters = dict(run.model.named_parameters())
    masking = masking_of(run)
    for path, mask in masking.masks.items():
        weight = parameters[f"{path}.weight"]
        closed = mask.keep_OI(weight.shape[1]) == 0
        assert closed.any()
        assert (weight[closed] == 0).all()
        assert (weight[~closed] != 0).float().mean() > 0.9
    for group, gate in masking.gates.items():
        layer = group.removesuffix(".channels")
        closed = gate.keep_U == 0
        assert (parameters[f"{layer}.intermediate.dense.weight"][closed] == 0).all()
        assert (parameters[f"{layer}.output.dense.weight"][:, closed] == 0).all()
    run.model.eval()
    expected = logits(run.model)
    compact = optimize_model(run.model)
    torch.testing.assert_close(logits(compact), expected, rtol=0, atol=1e-10)
    # The last checkpoint holds the masks, and dense weights behind them.
    folder = tmp_path / "checkpoint-12"
    assert is_patched_checkpoint(folder)
    with pytest.raises(CheckpointError, match="middle of pruning"):
        load_pruned(folder)
    loaded = load_patched(folder)
    assert masks_of(loaded) or masking.gates
    torch.testing.assert_close(logits(loaded), expected, rtol=0, atol=1e-10)
    torch.testing.assert_close(logits(optimize_model(loaded)), expected, rtol=0, atol=1e-10)


@pytest.mark.parametrize("every", [7, 1000])  # the threshold is the final one from step 9 of 12
@pytest.mark.parametrize("name", ["elements", "l0"])
def test_masks_close_however_seldom_they_are_renewed(name: str, every: int, tmp_path: Path) -> None:
    often, seldom = (trainer(tmp_path, asked(name, update_every=n)) for n in (1, every))
    for run in (often, seldom):
        run.train()
    reached = masking_of(seldom).density()
    if name == "elements":
        assert reached == masking_of(often).density() == pytest.approx(0.5, abs=1e-3)
        return
    assert reached < 1
    for site in masking_of(seldom).sites:
        values = site.holder.train()().detach()
        assert set(values.unique().tolist()) <= {0.0, 1.0}
        assert torch.equal(values, site.holder.eval()())


def test_l0_keeps_its_structure_in_the_final_stretch() -> None:
    coordinator = ModelPatchingCoordinator(
        SparseTrainingArguments(dense_pruning_method="l0:1d_alt", attention_pruning_method="l0", **L0)
    )
    model = coordinator.patch_model(tiny().train())
    masking = coordinator.pruner
    assert isinstance(masking, MaskDriver)
    generator = torch.Generator().manual_seed(5)
    for score in masking.score_parameters():
        score.data.copy_(torch.randn(score.shape, generator=generator))
    coordinator.begin(10)
    coordinator.step(6)
    assert masking.penalty() is not None
    coordinator.step(7)
    assert masking.finished
    assert masking.density() < 0.7
    before = state(model)
    for score in masking.score_parameters():
        score.data.fill_(-1.0)
    coordinator.step(8)
    assert masking.penalty() is None
    assert all(torch.equal(before[n], tensor) for n, tensor in state(model).items() if "score" not in n)


def test_the_penalty_of_a_fixed_structure_is_gone_and_the_others_keep_their_share() -> None:
    coordinator = ModelPatchingCoordinator(
        SparseTrainingArguments(dense_pruning_method="topK:1d_alt", attention_pruning_method="l0",
                                attention_output_with_dense=False, **L0)
    )  # fmt: skip
    coordinator.patch_model(tiny())
    masking = coordinator.pruner
    assert isinstance(masking, MaskDriver)
    coordinator.begin(10)
    gradients = {}
    for step in (6, 7):
        coordinator.step(step)
        for score in masking.score_parameters():
            score.grad = None
        penalty = masking.penalty()
        assert penalty is not None
        penalty.backward()
        share = 1 - masking.schedule.remaining(masking.progress)
        gradients[step] = {
            (site.part, n): 0.0 if site.score.grad is None else float(site.score.grad.sum()) / share
            for n, site in enumerate(masking.sites)
            if site.score is not None
        }
    for (part, n), before in gradients[6].items():
        assert before > 0
        assert gradients[7][part, n] == (0.0 if part == "attention" else pytest.approx(before))


@pytest.mark.parametrize("shape", ["", ":1d_alt"])
@pytest.mark.parametrize("fraction", [0.29, 0.5])
def test_the_density_of_a_fraction_is_exact(shape: str, fraction: float) -> None:
    asked = SparseTrainingArguments(
        dense_pruning_method=f"topK{shape}", attention_pruning_method="topK",
        attention_output_with_dense=False, final_threshold=fraction,
    )  # fmt: skip
    coordinator = ModelPatchingCoordinator(asked)
    coordinator.patch_model(tiny())
    coordinator.begin(10)
    assert coordinator.density_reached() == 1.0
    coordinator.step(10)
    assert isinstance(coordinator.pruner, MaskDriver)
    for site in coordinator.pruner.sites:
        keep = next(tensor for name, tensor in site.holder.named_buffers() if "keep" in name)
        assert int(keep.sum()) == int(fraction * keep.numel() + 1e-6)


def test_evaluation_uses_the_final_threshold_and_puts_the_masks_back(tmp_path: Path) -> None:
    run = trainer(tmp_path, asked("l0"))
    masking = masking_of(run)
    run.coordinator.begin(10)
    before = state(run.model)
    for score in masking.score_parameters():
        score.data.copy_(torch.linspace(-1, 1, score.numel()).view_as(score))
    with run.coordinator.final_masks():
        assert masking.density() < 0.6
    after = state(run.model)
    assert all(torch.equal(before[n], after[n]) for n in before if "score" not in n)


def test_the_schedule_counts_in_warmup_steps(tmp_path: Path) -> None:
    options = asked("elements", initial_warmup=1, final_warmup=2)
    run = trainer(tmp_path, options, warmup_steps=2)
    seen: dict[int, float] = {}

    def remember(*args: Any) -> None:
        seen[run.state.global_step] = masking_of(run).density()

    run.log = remember  # type: ignore[method-assign]
    run.args.logging_steps = 1
    run.state.logging_steps = 1
    run.train()
    assert seen[2] == 1.0
    assert 0.5 < seen[5] < 1.0
    assert seen[8] == pytest.approx(0.5, abs=1e-3)
    assert seen[8] == seen[12]
    late = trainer(tmp_path, asked("elements", initial_warmup=1, final_warmup=5), warmup_steps=2)
    with pytest.raises(ArgumentError, match=r"\(1 \+ 5\) x 2 warmup_steps leave none of 12 steps"):
        late.train()


def test_a_penalty_makes_masks_close(tmp_path: Path) -> None:
    densities = []
    for weight in (1.0, 200.0):
        run = trainer(tmp_path, asked("hybrid", regularization_final_lambda=weight), quiet_model())
        run.train()
        densities.append(masking_of(run).density())
        assert any("penalty" in entry for entry in run.state.log_history)
    assert densities[1] <= densities[0] <= 1


@pytest.mark.parametrize("name", ["elements", "l0"])
def test_bf16_autocast_and_recomputed_activations_train(name: str, tmp_path: Path) -> None:
    run = trainer(tmp_path, asked(name), quiet_model().float(), bf16=True, **{CHECKPOINTING: True})
    assert torch.isfinite(torch.tensor(run.train().training_loss))
    assert masking_of(run).density() < 1
