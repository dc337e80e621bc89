"""Checkpoints of trainings with adapters: gates are saved beside them, come back, and are missed where gone."""

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from transformers import TrainerCallback

from sparse_trainer.cut.optimize import optimize_model
from sparse_trainer.errors import CheckpointError
from sparse_trainer.training.coordinator import ModelPatchingCoordinator
from sparse_trainer.training.gate_file import GATE_FILE
from sparse_trainer.training.trainer import PruningTrainer
from tests.fixtures.compact_models import batch
from tests.fixtures.training import quiet_model, sparse_args, trainer

peft = pytest.importorskip("peft")

pytestmark = [
    # peft 0.21 asks transformers 5.24 for a property by its old name.
    pytest.mark.filterwarnings("ignore:.*is_gradient_checkpointing:FutureWarning"),
    # There is no folder of the base model to ask for its vocabulary.
    pytest.mark.filterwarnings("ignore:Could not find a config file:UserWarning"),
]

METHODS: dict[str, dict[str, Any]] = {
    "movement": {},
    "taylor-2nd": {},
    "wanda": {},
    "l0-hidden": {},
    "cheaper": {},
    "masks": {
        "scoring": "movement",
        "attention_pruning_method": "topK",
        "attention_block_rows": 8,
        "attention_block_cols": 8,
        "distil_teacher_name_or_path": "self",
    },
}


def asked(method: str) -> Any:
    if method == "masks":
        return sparse_args("movement", **METHODS["masks"])
    return sparse_args(method)


def config(**options: Any) -> Any:
    """Return adapters on every linear that is a consumer, but for masked ones."""
    return peft.LoraConfig(
        **{"target_modules": ["query", "output.dense"], "r": 4, "task_type": "SEQ_CLS", **options}
    )


def run(
    folder: Path, method: str, order: str = "adapters first", lora: Any = None, **options: Any
) -> PruningTrainer:
    """Return a trainer of 12 steps of a model with adapters: put on before, or after it was patched."""
    model = quiet_model()
    lora = lora or (config(target_modules=["pooler.dense"]) if method == "masks" else config())
    if order == "adapters first":
        return trainer(folder, asked(method), peft.get_peft_model(model, lora), **options)
    coordinator = ModelPatchingCoordinator(asked(method))
    wrapped = peft.get_peft_model(coordinator.patch_model(model), lora)
    plain = trainer(folder, asked(method), quiet_model(), **options)
    plain.model = plain.model_wrapped = wrapped.train()
    plain.set_patch_coordinator(coordinator)
    return plain


def everything(model: nn.Module) -> dict[str, Tensor]:
    return {
        name.removeprefix("base_model.model."): t.detach().clone() for name, t in model.state_dict().items()
    }


@pytest.mark.parametrize(
    ("method", "order"),
    [
        ("movement", "adapters first"),
        ("movement", "gates first"),
        ("taylor-2nd", "gates first"),
        ("wanda", "adapters first"),
        ("l0-hidden", "gates first"),
        ("cheaper", "adapters first"),
        ("masks", "gates first"),
    ],
)
def test_a_resumed_training_equals_an_uninterrupted_one(method: str, order: str, tmp_path: Path) -> None:
    whole = run(tmp_path / "whole", method, order, save_strategy="steps", save_steps=7)
    whole.train()
    resumed = run(tmp_path / "resumed", method, order)
    resumed.train(resume_from_checkpoint=str(tmp_path / "whole" / "checkpoint-7"))
    ours, theirs = everything(whole.coordinator.model), everything(resumed.coordinator.model)
    assert ours.keys() == theirs.keys()
    for name, tensor in ours.items():
        assert torch.equal(tensor, theirs[name]), name
    assert resumed.coordinator.density_reached() == whole.coordinator.density_reached() < 0.9


def test_the_best_model_comes_back_with_its_gates(tmp_path: Path) -> None:
    """Gates move on after the best evaluation; what is loaded at the end are those of that step."""
    kept: dict[int, dict[str, Tensor]] = {}

    class Worse(TrainerCallback):
        """Lets the first evaluation of a final structure be the best, and moves the gates afterwards."""

        def on_evaluate(self, args: Any, state: Any, control: Any, metrics: Any, **kwargs: Any) -> None:
            metrics["eval_rank"] = -float(state.global_step)
            kept[state.global_step] = {n: g.keep_U.clone() for n, g in training.coordinator.gates.items()}

        def on_save(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
            for gate in training.coordinator.gates.values():
                gate.set_keep(gate.keep_U.flip(0))

    training = run(
        tmp_path, "movement", eval_strategy="steps", eval_steps=1, save_strategy="steps", save_steps=1,
        load_best_model_at_end=True, metric_for_best_model="rank", greater_is_better=True, max_steps=12,
    )  # fmt: skip
    training.add_callback(Worse())
    training.train()
    best = int(str(training.state.best_model_checkpoint).rpartition("-")[2])
    assert 6 < best < 12
    now = {name: gate.keep_U for name, gate in training.coordinator.gates.items()}
    assert all(torch.equal(now[name], kept[best][name]) for name in now)
    assert not all(torch.equal(now[name], kept[12][name]) for name in now)


def several(folder: Path, names: list[str], active: list[str], **options: Any) -> PruningTrainer:
    """Return a trainer of a model with adapters of these names, on other linears and of other ranks each."""
    model = peft.get_peft_model(quiet_model(), config(task_type=None), adapter_name=names[0])
    for number, name in enumerate(names[1:]):
        model.add_adapter(
            name, config(target_modules=["value", "output.dense"], r=5 + number, task_type=None)
        )
    model.base_model.set_adapter(active)
    return trainer(folder, asked("movement"), model, **options)


@pytest.mark.parametrize(
    ("names", "active"),
    [
        (["default", "second"], ["second"]),
        (["default", "second"], ["default", "second"]),
        (["mine"], ["mine"]),
    ],
    ids=["second of two", "both", "another name"],
)
def test_every_adapter_comes_back_from_its_own_folder(
    names: list[str], active: list[str], tmp_path: Path
) -> None:
    options: dict[str, Any] = {"save_strategy": "steps", "save_steps": 7}
    whole = several(tmp_path / "whole", names, active, **options)
    whole.train()
    resumed = several(tmp_path / "resumed", names, active)
    resumed.train(resume_from_checkpoint=str(tmp_path / "whole" / "checkpoint-7"))
    ours, theirs = everything(whole.coordinator.model), everything(resumed.coordinator.model)
    assert ours.keys() == theirs.keys()
    for name, tensor in ours.items():
        assert torch.equal(tensor, theirs[name]), name

    whole.state.best_model_checkpoint = str(tmp_path / "whole" / "checkpoint-7")
    whole._load_best_model()
    fresh = several(tmp_path / "fresh", names, active)
    fresh._load_from_checkpoint(str(tmp_path / "whole" / "checkpoint-7"))
    best, loaded = everything(whole.coordinator.model), everything(fresh.coordinator.model)
    assert any(not torch.equal(best[name], ours[name]) for name in ours)
    for name, tensor in best.items():
        assert torch.equal(tensor, loaded[name]), name


@pytest.mark.parametrize(
    ("spoil", "reason"),
    [
        (lambda file: file.unlink(), "cannot be read"),
        (lambda file: file.write_bytes(file.read_bytes()[:-9]), "cannot be read"),
        (lambda file: shutil.copy(file.parent / "adapter_model.safetensors", file), "missing, unknown"),
    ],
)
def test_a_training_does_not_resume_without_its_gates(
    spoil: Callable[[Path], object], reason: str, tmp_path: Path
) -> None:
    run(tmp_path, "movement", save_strategy="steps", save_steps=6).train()
    spoil(tmp_path / "checkpoint-6" / GATE_FILE)
    with pytest.raises(CheckpointError, match=rf"{GATE_FILE}.*{reason}.*earlier checkpoint"):
        run(tmp_path, "movement").train(resume_from_checkpoint=str(tmp_path / "checkpoint-6"))


@pytest.mark.parametrize("order", ["adapters first", "gates first"])
@pytest.mark.parametrize("options", [{}, {"use_dora": True}, {"target_modules": ["value"]}])
def test_stock_loaders_refuse_an_adapter_of_a_gated_model(
    options: dict[str, Any], order: str, tmp_path: Path
) -> None:
    training = run(tmp_path, "movement", order, config(**options))
    training.model.save_pretrained(tmp_path / "bare")
    training.save_model(str(tmp_path / "saved"))
    for folder in ("bare", "saved"):
        with pytest.raises(RuntimeError, match="size mismatch"):
            peft.PeftModel.from_pretrained(quiet_model(), tmp_path / folder)
        assert (tmp_path / folder / GATE_FILE).exists() == (folder == "saved")
    before = everything(training.model)
    training.model.load_adapter(tmp_path / "saved", "default")
    assert all(torch.equal(t, before[n]) for n, t in everything(training.model).items())


@pytest.mark.parametrize("scoring", ["movement", "l0-nested"])
def test_scores_learn_whatever_peft_freezes(scoring: str, tmp_path: Path) -> None:
    training = run(tmp_path, scoring, "gates first")
    started = {n: p.detach().clone() for n, p in training.model.named_parameters() if "_gate." in n}
    training.train()
    moved = {
        n for n, p in training.model.named_parameters() if n in started and not torch.equal(p, started[n])
    }
    assert moved == started.keys()
    frozen = [p for n, p in training.model.named_parameters() if n.endswith("base_layer.weight")]
    assert frozen
    assert not any(p.requires_grad for p in frozen)


def test_a_loop_of_ones_own_prunes_with_adapters_put_on_afterwards() -> None:
    coordinator = ModelPatchingCoordinator(sparse_args("movement"))
    model = peft.get_peft_model(coordinator.patch_model(quiet_model()), config())
    coordinator.begin(8)
    optimizer = torch.optim.AdamW(coordinator.parameter_groups(lr=1e-3))
    inputs = {**batch(model), "labels": torch.tensor([0, 1])}
    for _ in range(8):
        model(**inputs).loss.backward()
        coordinator.observe()
        optimizer.step()
        coordinator.step()
        optimizer.zero_grad()
    assert all(gate.score_U.abs().sum() > 0 for gate in coordinator.gates.values())
    compact = optimize_model(model)
    torch.testing.assert_close(
        compact(**batch(model)).logits, model(**batch(model)).logits, rtol=0, atol=1e-9
    )
    assert compact.pruning_plan.method == "movement"
    assert compact.pruning_plan.density_asked == 0.5
