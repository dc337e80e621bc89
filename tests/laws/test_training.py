"""Accumulation 1 x 8 = 4 x 2, resume = uninterrupted, and the rest of Trainer behaves."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from transformers import Trainer, TrainerCallback, TrainingArguments

from patchers.patching.patch import gates_of
from sparse_trainer.errors import NonFiniteError
from sparse_trainer.training.trainer import PruningTrainer, SparseTrainer
from tests.architectures.tiny import tiny_model
from tests.fixtures.compact_models import FAMILIES, tiny
from tests.fixtures.training import CHECKPOINTING, METHODS, quiet_model, rows, sparse_args, state, trainer

CASES = [("bert", method) for method in METHODS] + [
    (family, method)
    for family in FAMILIES
    if family not in ("bert", "xlm-roberta", "camembert")  # the latter two run RoBERTa's code
    for method in ("movement-distilled", "taylor")
]


@pytest.mark.parametrize(("family", "method"), CASES)
def test_accumulation_1x8_equals_4x2(family: str, method: str, tmp_path: Path) -> None:
    whole = trainer(tmp_path / "a", sparse_args(method), quiet_model(family))
    whole.train()
    options = {"per_device_train_batch_size": 2, "gradient_accumulation_steps": 4}
    split = trainer(tmp_path / "b", sparse_args(method), quiet_model(family), **options)
    split.train()
    for (name, a), b in zip(state(whole.model).items(), state(split.model).values(), strict=True):
        torch.testing.assert_close(
            a, b, rtol=0, atol=1e-6 if "gate" in name else 1e-7, msg=f"{method} {name}"
        )
    assert any((gate.keep_U == 0).any() for gate in gates_of(whole.model).values())


@pytest.mark.parametrize(("family", "method"), CASES)
def test_resume_equals_uninterrupted(family: str, method: str, tmp_path: Path) -> None:
    options: dict[str, Any] = {"save_strategy": "steps", "save_steps": 5}
    straight = trainer(tmp_path, sparse_args(method), tiny(family).train(), **options)
    straight.train()
    resumed = trainer(tmp_path, sparse_args(method), tiny(family).train(), **options)
    resumed.train(resume_from_checkpoint=str(tmp_path / "checkpoint-5"))
    for (name, a), b in zip(state(straight.model).items(), state(resumed.model).values(), strict=True):
        assert torch.equal(a, b), name


def test_density_one_trains_like_a_plain_trainer(tmp_path: Path) -> None:
    pruned = trainer(tmp_path, sparse_args("magnitude", density=1.0))
    pruned.train()
    plain = Trainer(model=quiet_model(), args=pruned.args, train_dataset=rows())
    plain.train()
    trained = dict(pruned.model.named_parameters())
    assert all(torch.equal(p, trained[name]) for name, p in plain.model.named_parameters())


def test_best_model_has_the_density_asked_for(tmp_path: Path) -> None:
    run = trainer(
        tmp_path,
        sparse_args("movement", density=0.5, cooldown_ratio=0.2),
        save_strategy="steps",
        save_steps=1,
        eval_strategy="steps",
        eval_steps=1,
        load_best_model_at_end=True,
        metric_for_best_model="accuracy",
        save_only_model=True,
    )
    run.train()
    step = int(Path(run.state.best_model_checkpoint).name.removeprefix("checkpoint-"))
    assert step >= 0.8 * run.state.max_steps - 1
    assert run.coordinator.report()["density_reached"] == pytest.approx(0.5, abs=0.05)


def test_norms_without_statistics_do_not_decay(tmp_path: Path) -> None:
    model = tiny_model("gpt2").float()  # its norms are called ln_1
    settings = TrainingArguments(str(tmp_path), report_to=[], use_cpu=True)
    expected = set(Trainer(model, settings).get_decay_parameter_names(model))
    run = trainer(tmp_path, sparse_args("movement", cheaper=["no_norm"]), model)
    assert {name for name in run.get_decay_parameter_names(model) if "_gate." not in name} == expected


def test_scores_have_their_own_rate_and_no_decay(tmp_path: Path) -> None:
    run = trainer(tmp_path, sparse_args("movement", score_learning_rate=0.02), weight_decay=0.1)
    run.create_optimizer()
    groups = [g for g in run.optimizer.param_groups if g.get("holds_scores")]
    assert len(groups) == 1
    assert (groups[0]["lr"], groups[0]["weight_decay"]) == (0.02, 0.0)
    placed = [p for g in run.optimizer.param_groups for p in g["params"]]
    assert len(placed) == len({id(p) for p in placed}) == len(list(run.model.parameters()))


def test_read_scores_stay_out_of_the_optimizer_and_of_clipping(tmp_path: Path) -> None:
    run = trainer(tmp_path, sparse_args("taylor"))
    seen: list[bool] = []

    class Watch(TrainerCallback):
        def on_pre_optimizer_step(self, *args: Any, **kwargs: Any) -> None:
            seen.append(all(p.grad is None for p in run.coordinator.score_parameters()))

    run.add_callback(Watch())
    run.train()
    scores = {id(p) for p in run.coordinator.score_parameters()}
    assert seen
    assert all(seen)
    assert not any(id(p) in scores for g in run.optimizer.param_groups for p in g["params"])
    assert all(bool((gate.saliency_U > 0).any()) for gate in gates_of(run.model).values())


@pytest.mark.parametrize("method", ["movement", "taylor", "layer_gate"])
def test_gradient_checkpointing_changes_nothing(method: str, tmp_path: Path) -> None:
    plain = trainer(tmp_path / "a", sparse_args(method))
    plain.train()
    thrifty = trainer(tmp_path / "b", sparse_args(method), **{CHECKPOINTING: True})
    thrifty.train()
    for (name, a), b in zip(state(plain.model).items(), state(thrifty.model).values(), strict=True):
        torch.testing.assert_close(a, b, rtol=0, atol=1e-9, msg=name)


@pytest.mark.parametrize("method", METHODS)
def test_bf16_autocast_trains(method: str, tmp_path: Path) -> None:
    run = trainer(tmp_path, sparse_args(method), quiet_model().float(), bf16=True)
    assert torch.isfinite(torch.tensor(run.train().training_loss))
    assert run.coordinator.report()["density_reached"] <= max(0.5, sparse_args(method).density)


def test_logs_carry_density_threshold_and_losses(tmp_path: Path) -> None:
    run = trainer(tmp_path, sparse_args("movement-distilled"))
    run.train()
    logged = [entry for entry in run.state.log_history if "loss" in entry]
    for name in ("density", "density_target", "threshold", "distillation_loss"):
        assert all(name in entry for entry in logged), name
    assert logged[-1]["density"] <= logged[0]["density"]
    gates = trainer(tmp_path, sparse_args("layer_gate"))
    gates.train()
    assert any("penalty" in entry for entry in gates.state.log_history)


def test_nan_scores_stop_and_keep_the_last_checkpoint(tmp_path: Path) -> None:
    run = trainer(tmp_path, sparse_args("movement"), save_strategy="steps", save_steps=4, logging_steps=1)

    class Poison(TrainerCallback):
        def on_pre_optimizer_step(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
            if state.global_step == 6:
                run.coordinator.score_parameters()[0].data.fill_(torch.nan)

    run.add_callback(Poison())
    with pytest.raises(NonFiniteError, match="NaN or infinite"):
        run.train()
    kept = load_file(tmp_path / "checkpoint-4" / "model.safetensors")
    assert all(tensor.isfinite().all() for tensor in kept.values())
    assert not (tmp_path / "checkpoint-8").exists()


def test_checkpoints_say_what_they_are(tmp_path: Path) -> None:
    run = trainer(tmp_path, sparse_args("movement"), save_strategy="steps", save_steps=6)
    run.train()
    saved = json.loads((tmp_path / "checkpoint-6" / "pruning_state.json").read_text())
    assert saved["sparse_args"]["scoring"] == "movement"
    assert (saved["step"], saved["total_steps"]) == (6, 12)


def test_any_trainer_subclass_can_prune(tmp_path: Path) -> None:
    class Mine(Trainer):
        def compute_loss(self, model: Any, inputs: Any, *args: Any, **kwargs: Any) -> Any:
            loss = super().compute_loss(model, inputs, *args, **kwargs)
            return (loss[0] * 2, loss[1]) if isinstance(loss, tuple) else loss * 2

    class MinePruning(SparseTrainer, Mine):
        pass

    args = TrainingArguments(str(tmp_path), max_steps=4, report_to=[], save_strategy="no", use_cpu=True)
    run = MinePruning(
        model=quiet_model(), args=args, sparse_args=sparse_args("movement"), train_dataset=rows()
    )
    run.train()
    assert run.coordinator.finished


def test_model_init_is_patched_each_time(tmp_path: Path) -> None:
    args = TrainingArguments(str(tmp_path), max_steps=4, report_to=[], save_strategy="no", use_cpu=True)
    run = PruningTrainer(
        model_init=lambda: quiet_model(), args=args, sparse_args=sparse_args("movement"), train_dataset=rows()
    )
    run.train()
    assert gates_of(run.model)
    assert run.coordinator.report()["density_reached"] <= 0.5


def test_frozen_structure_does_not_change_in_the_cool_down(tmp_path: Path) -> None:
    run = trainer(tmp_path, sparse_args("movement", cooldown_ratio=0.5))
    kept: list[dict[str, torch.Tensor]] = []

    class Watch(TrainerCallback):
        def on_step_end(self, *args: Any, **kwargs: Any) -> None:
            if run.coordinator.finished:
                kept.append({n: g.keep_U.clone() for n, g in run.coordinator.gates.items()})

    run.add_callback(Watch())
    run.train()
    assert len(kept) >= 6
    assert all(torch.equal(kept[0][name], later[name]) for later in kept for name in later)
