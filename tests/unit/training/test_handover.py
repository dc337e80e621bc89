"""A Trainer takes only a coordinator of its model and its arguments, and an optimizer the scores fit into."""

from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import Trainer, TrainerCallback, TrainingArguments

from patchers.patching.patch import gates_of
from sparse_trainer.errors import ArgumentError
from sparse_trainer.training.arguments.arguments import SparseTrainingArguments
from sparse_trainer.training.coordinator import ModelPatchingCoordinator
from sparse_trainer.training.trainer import PruningTrainer, SparseTrainer
from tests.fixtures.compact_models import batch, tiny
from tests.fixtures.training import quiet_model, rows, sparse_args


class Script(SparseTrainer, Trainer):
    def __init__(self, sparse_args: SparseTrainingArguments, **options: Any) -> None:
        Trainer.__init__(self, **options)
        SparseTrainer.__init__(self, sparse_args)


def settings(folder: Path, **options: Any) -> TrainingArguments:
    values = {"max_steps": 4, "report_to": [], "use_cpu": True, "save_strategy": "no", **options}
    return TrainingArguments(str(folder), **values)


def script(folder: Path, args: SparseTrainingArguments, **options: Any) -> Script:
    return Script(args, **{"model": tiny(), "args": settings(folder), "train_dataset": rows(), **options})


def test_a_coordinator_of_another_model_is_refused(tmp_path: Path) -> None:
    args = sparse_args("movement")
    coordinator = ModelPatchingCoordinator(args)
    coordinator.patch_model(tiny())
    with pytest.raises(ArgumentError, match="another BertForSequenceClassification"):
        script(tmp_path, args).set_patch_coordinator(coordinator)


def test_a_coordinator_of_no_model_is_refused(tmp_path: Path) -> None:
    args = sparse_args("movement")
    with pytest.raises(ArgumentError, match=r"patched no model.*patch_model\(model\)"):
        script(tmp_path, args).set_patch_coordinator(ModelPatchingCoordinator(args))
    with pytest.raises(ArgumentError, match="patched no model"):
        ModelPatchingCoordinator(args).begin(10)


@pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing` is deprecated:FutureWarning")
def test_a_wrapped_model_is_the_one_that_was_patched(tmp_path: Path) -> None:
    peft = pytest.importorskip("peft")
    args = sparse_args("magnitude")
    coordinator = ModelPatchingCoordinator(args)
    wrapped = peft.get_peft_model(
        coordinator.patch_model(tiny()), peft.LoraConfig(target_modules=["pooler.dense"])
    )
    run = script(tmp_path, args, model=wrapped)
    run.set_patch_coordinator(coordinator)
    assert run.coordinator is coordinator


def test_other_arguments_than_the_coordinators_are_refused(tmp_path: Path) -> None:
    coordinator = ModelPatchingCoordinator(sparse_args("movement"))
    model = coordinator.patch_model(tiny())
    run = script(tmp_path, sparse_args("movement", density=0.3), model=model)
    with pytest.raises(ArgumentError, match=r"^density: 0\.3 for the Trainer, 0\.5 for the coordinator"):
        run.set_patch_coordinator(coordinator)
    script(tmp_path, sparse_args("movement"), model=model).set_patch_coordinator(coordinator)


def test_arguments_are_checked_again_when_the_model_is_patched() -> None:
    args = SparseTrainingArguments()
    coordinator = ModelPatchingCoordinator(args)
    args.density = 2.0
    with pytest.raises(ArgumentError, match="density"):
        coordinator.patch_model(tiny())


def test_options_changed_after_patching_are_refused() -> None:
    args = SparseTrainingArguments(density={"heads": 0.5, "channels": 0.5})
    coordinator = ModelPatchingCoordinator(args)
    args.min_keep = 2
    coordinator.patch_model(tiny())
    coordinator.begin(10)
    args.density["heads"] = 0.25
    with pytest.raises(ArgumentError, match=r"^density: is .*0\.25.*patch_model"):
        coordinator.begin(10)


def test_a_second_coordinator_takes_the_place_of_the_first(tmp_path: Path) -> None:
    args = sparse_args("movement")
    coordinator = ModelPatchingCoordinator(args)
    run = script(tmp_path, args, model=coordinator.patch_model(tiny()))
    run.set_patch_coordinator(coordinator)
    run.set_patch_coordinator(coordinator)
    names = [type(callback).__name__ for callback in run.callback_handler.callbacks]
    assert names.count("PruningCallback") == 1


@pytest.mark.parametrize("method", ["movement", "l0"])
def test_a_scheduler_that_counted_too_early_is_refused(method: str, tmp_path: Path) -> None:
    model = quiet_model()
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3)
    scheduler = torch.optim.lr_scheduler.ConstantLR(optimizer)
    options: dict[str, Any] = {"model": model, "args": settings(tmp_path), "train_dataset": rows()}
    with pytest.raises(ArgumentError, match=r"optimizers.*\(optimizer, None\).*parameter_groups"):
        PruningTrainer(sparse_args=sparse_args(method), optimizers=(optimizer, scheduler), **options)


def test_an_optimizer_alone_gets_the_scores(tmp_path: Path) -> None:
    model = quiet_model()
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3)
    run = PruningTrainer(
        model=model, args=settings(tmp_path), train_dataset=rows(),
        sparse_args=sparse_args("movement"), optimizers=(optimizer, None),
    )  # fmt: skip
    run.train()
    assert run.coordinator.report()["density_reached"] == pytest.approx(0.5, abs=0.05)


@pytest.mark.parametrize("optimizer", ["adafactor", "sgd"])
def test_gates_learn_under_optimizers_that_are_not_adam(optimizer: str, tmp_path: Path) -> None:
    run = PruningTrainer(
        model=tiny(),
        args=settings(tmp_path, optim=optimizer),
        train_dataset=rows(),
        sparse_args=sparse_args("l0"),
    )
    before = [score_U.detach().clone() for score_U in run.coordinator.score_parameters()]
    run.train()
    after = run.coordinator.score_parameters()
    assert not all(torch.equal(a, b) for a, b in zip(before, after, strict=True))


def test_optimizer_and_scheduler_of_parameter_groups_are_used_as_they_are(tmp_path: Path) -> None:
    args = sparse_args("movement", score_learning_rate=0.02)
    coordinator = ModelPatchingCoordinator(args)
    model = coordinator.patch_model(quiet_model())
    optimizer = torch.optim.AdamW(coordinator.parameter_groups(lr=1e-3))
    scheduler = torch.optim.lr_scheduler.ConstantLR(optimizer, factor=1.0)
    run = script(tmp_path, args, model=model, optimizers=(optimizer, scheduler))
    run.set_patch_coordinator(coordinator)
    run.train()
    assert [group["lr"] for group in optimizer.param_groups] == [1e-3, 0.02]
    assert all(group["params"] for group in optimizer.param_groups)
    assert all(bool((gate.keep_U == 0).any()) for gate in list(gates_of(model).values())[:1])


def test_calibration_leaves_the_evaluation_set_alone(tmp_path: Path) -> None:
    """Trainer keeps loaders of persistent workers by name: the one of calibration must not be among them."""
    seen: list[int] = []

    class Watch(TrainerCallback):
        def on_prediction_step(self, *args: Any, eval_dataloader: Any = None, **kwargs: Any) -> None:
            seen.append(len(eval_dataloader.dataset))

    run = PruningTrainer(
        model=quiet_model(),
        args=settings(tmp_path, dataloader_num_workers=1, dataloader_persistent_workers=True),
        sparse_args=sparse_args("wanda"),
        train_dataset=rows(),
        eval_dataset=rows(16),
        callbacks=[Watch()],
    )
    run._calibrate()
    run.evaluate()
    assert set(seen) == {16}


def test_calibration_reads_the_rows_it_was_promised(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    run = PruningTrainer(
        model=quiet_model(),
        args=settings(tmp_path, per_device_eval_batch_size=3),
        sparse_args=sparse_args("wanda"),
        train_dataset=rows().add_column("note", ["unused"] * 48),
    )
    seen: list[dict[str, Any]] = []
    monkeypatch.setattr(run.coordinator, "calibrate", seen.extend)
    # Sharding over ranks is what accelerate's preparation does.
    monkeypatch.setattr(
        run.accelerator, "prepare", lambda *args: pytest.fail("calibration rows were sharded")
    )
    run._calibrate()
    assert [len(b["input_ids"]) for b in seen] == [3, 3, 2]
    assert all(set(b) == {"input_ids", "labels"} for b in seen)


def test_taylor_reads_unscaled_gradients_and_skips_overflows() -> None:
    def gates(scale: float | None) -> dict[str, Any]:
        coordinator = ModelPatchingCoordinator(sparse_args("taylor", taylor_order=2))
        model = coordinator.patch_model(tiny())
        inputs = {**batch(model), "labels": torch.tensor([0, 1])}
        coordinator.begin(4)
        (model(**inputs).loss * (1.0 if scale is None else scale)).backward()
        coordinator.observe(None if scale is None else torch.tensor(scale))
        return dict(coordinator.gates)

    plain, scaled = gates(None), gates(1024.0)
    for name, gate in plain.items():
        torch.testing.assert_close(scaled[name].saliency_U, gate.saliency_U, rtol=1e-6, atol=0)
    coordinator = ModelPatchingCoordinator(sparse_args("taylor"))
    coordinator.patch_model(tiny())
    gate = next(iter(coordinator.gates.values()))
    gate.saliency_U.fill_(0.5)
    for poison, seen in ((torch.inf, 0.5), (torch.nan, 0.5)):
        gate.score_U.grad = torch.full_like(gate.score_U, poison)
        coordinator.observe(torch.tensor(1024.0))
        assert bool((gate.saliency_U == seen).all())
    gate.score_U.grad = torch.full_like(gate.score_U, torch.nan)
    coordinator.observe()
    assert bool(gate.saliency_U.isnan().all())


def test_a_trainer_with_a_gradient_scaler_scores_as_one_without(tmp_path: Path) -> None:
    runs = []
    for name, scaler in (("a", None), ("b", torch.amp.GradScaler("cpu", init_scale=1024.0))):
        run = PruningTrainer(
            model=quiet_model(), args=settings(tmp_path / name, max_grad_norm=0.0),
            sparse_args=sparse_args("taylor"), train_dataset=rows(),
        )  # fmt: skip
        run.accelerator.scaler = scaler
        run.train()
        runs.append(run)
    for name, gate in runs[0].coordinator.gates.items():
        torch.testing.assert_close(
            runs[1].coordinator.gates[name].saliency_U, gate.saliency_U, rtol=1e-4, atol=1e-12
        )


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"model": "bert-base-uncased"}, "model: 'bert-base-uncased' is no model, and Trainer loads none"),
        ({"model": Path("folder")}, "is no model, and Trainer loads none.*from_pretrained"),
        ({"model": 3}, "model: 3 is no model"),
        ({"model_init": lambda: "folder"}, "model_init: returned 'folder', which is no model"),
        (
            {"model": tiny(), "teacher": "folder"},
            "teacher: 'folder' is no model.*distil_teacher_name_or_path",
        ),
        ({"model": tiny(), "sparse_args": {"density": 0.5}}, r"sparse_args: is a dict\. Give Sparse"),
    ],
)
def test_what_is_no_model_is_refused_by_name(options: dict[str, Any], message: str, tmp_path: Path) -> None:
    values = {"sparse_args": sparse_args("movement"), "train_dataset": rows(), **options}
    with pytest.raises(ArgumentError, match=message):
        PruningTrainer(args=settings(tmp_path), **values)


def test_a_trainer_that_loads_models_by_name_has_them_patched(tmp_path: Path) -> None:
    class Loads(Trainer):
        def __init__(self, model: Any, **others: Any) -> None:
            super().__init__(model=type(tiny()).from_pretrained(model), **others)

    class Prunes(SparseTrainer, Loads):
        pass

    tiny().save_pretrained(tmp_path / "model")
    run = Prunes(
        str(tmp_path / "model"),
        args=settings(tmp_path),
        train_dataset=rows(),
        sparse_args=sparse_args("magnitude"),
    )
    run.train()
    assert gates_of(run.model)
    assert run.coordinator.finished
