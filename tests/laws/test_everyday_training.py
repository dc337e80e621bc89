"""What Trainer can do beside training, it can do while it prunes."""

from pathlib import Path
from typing import Any

import datasets
import pytest
import torch
from transformers import TrainerCallback

from sparse_trainer.training.arguments.arguments import SparseTrainingArguments
from sparse_trainer.training.coordinator import ModelPatchingCoordinator
from sparse_trainer.training.trainer import PruningTrainer
from tests.architectures.tiny import tiny_model
from tests.fixtures.training import CHECKPOINTING, METHODS, quiet_model, state, trainer

PRUNING: dict[str, dict[str, Any]] = {
    "movement": {"scoring": "movement"},
    "distilled": METHODS["movement-distilled"],
    "distilled-logits": {"distil_teacher_name_or_path": "self"},
    "taylor": {"scoring": "taylor"},
    "wanda": {"scoring": "wanda", "calibration_samples": 8},
    "cut-once": METHODS["cut-once"],
    "layer_gate": {"scoring": "layer_gate", **METHODS["layer_gate"]},
    "l0-nested": METHODS["l0-nested"],
    "cheaper": METHODS["cheaper"],
    "masks": {"dense_pruning_method": "topK:1d_alt", "attention_pruning_method": "topK"},
}
SPLIT = {"per_device_train_batch_size": 2, "gradient_accumulation_steps": 4}
SMOOTHED = {"label_smoothing_factor": 0.1}


def training(folder: Path, method: str, reads: str = "labels", **options: Any) -> PruningTrainer:
    """Return a training of a classifier, on rows of one length; or of a language model, on rows of many."""
    model = quiet_model() if reads == "labels" else tiny_model("llama", dtype=torch.float64).train()
    run = trainer(folder, SparseTrainingArguments(**PRUNING[method]), model, **options)
    if reads == "tokens":
        run.train_dataset, run.data_collator = texts(), padded
    return run


def texts() -> datasets.Dataset:
    """Return texts of many lengths."""
    generator = torch.Generator().manual_seed(5)
    rows = [torch.randint(5, 90, (3 + 7 * row % 13,), generator=generator).tolist() for row in range(48)]
    return datasets.Dataset.from_list([{"input_ids": row, "labels": row} for row in rows])


def padded(examples: list[dict[str, list[int]]]) -> dict[str, torch.Tensor]:
    """Fill texts up to one length; what was filled in counts nowhere."""
    longest = max(len(example["input_ids"]) for example in examples)

    def filled(name: str, value: int) -> torch.Tensor:
        return torch.tensor([e[name] + [value] * (longest - len(e[name])) for e in examples])

    ids, labels = filled("input_ids", 0), filled("labels", -100)
    return {"input_ids": ids, "labels": labels, "attention_mask": (labels != -100).long()}


def assert_close(one: PruningTrainer, other: PruningTrainer, atol: float) -> None:
    """Check weights, gates and scores of two trainings."""
    for (name, a), b in zip(state(one.model).items(), state(other.model).values(), strict=True):
        torch.testing.assert_close(a, b, rtol=0, atol=atol, msg=name)


class RunsOutOfMemory(TrainerCallback):
    """Fails once, in the middle of a training, as CUDA does."""

    def __init__(self, step: int) -> None:
        self.step, self.begun = step, 0

    def on_train_begin(self, *args: Any, **kwargs: Any) -> None:
        self.begun += 1

    def on_step_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        if self.begun == 1 and state.global_step == self.step:
            raise RuntimeError("CUDA out of memory.")


@pytest.mark.parametrize("method", ["taylor", "wanda", "cheaper", "l0-nested", "masks"])
def test_a_smaller_batch_after_out_of_memory_begins_the_pruning_anew(method: str, tmp_path: Path) -> None:
    # Weights that do not move: Trainer goes on with those it has.
    options: dict[str, Any] = {"learning_rate": 0.0, "auto_find_batch_size": True}
    run, failing = training(tmp_path, method, **options), RunsOutOfMemory(9)
    run.add_callback(failing)
    run.train()
    size = run.state.train_batch_size
    assert failing.begun == 2
    assert size < 8
    fresh = training(tmp_path, method, **options, per_device_train_batch_size=size)
    fresh.train()
    assert fresh.state.max_steps == run.state.max_steps > 12
    assert_close(run, fresh, atol=1e-9)


@pytest.mark.parametrize("reads", ["labels", "tokens"])
@pytest.mark.parametrize("method", ["distilled-logits", "layer_gate"])
def test_accumulation_1x8_equals_4x2_with_label_smoothing(reads: str, method: str, tmp_path: Path) -> None:
    whole = training(tmp_path / "a", method, reads, **SMOOTHED)
    split = training(tmp_path / "b", method, reads, **SMOOTHED, **SPLIT)
    plain = training(tmp_path / "c", method, reads)
    for run in (whole, split, plain):
        run.train()
    assert_close(whole, split, atol=1e-6)
    unsmoothed = state(plain.model)
    assert any(not torch.equal(a, unsmoothed[name]) for name, a in state(whole.model).items())


@pytest.mark.parametrize("method", ["movement", "distilled"])
def test_noise_on_the_embeddings_resumes_and_goes(method: str, tmp_path: Path) -> None:
    options: dict[str, Any] = {
        "neftune_noise_alpha": 5.0,
        "save_strategy": "steps",
        "save_steps": 5,
        **SMOOTHED,
    }
    straight, resumed, plain = (training(tmp_path, method, **options) for _ in range(3))
    straight.train()
    resumed.train(resume_from_checkpoint=str(tmp_path / "checkpoint-5"))
    assert_close(straight, resumed, atol=0)
    embeddings = straight.model.get_input_embeddings()
    assert not embeddings._forward_hooks
    plain.neftune_noise_alpha = None
    plain.train()
    assert not torch.equal(embeddings.weight, plain.model.get_input_embeddings().weight)


@pytest.mark.parametrize("use_reentrant", [True, False])
@pytest.mark.parametrize("method", ["distilled", "taylor", "l0-nested", "masks"])
def test_activations_that_are_computed_again_change_nothing(
    use_reentrant: bool, method: str, tmp_path: Path
) -> None:
    plain = training(tmp_path / "a", method)
    again = {CHECKPOINTING: True, f"{CHECKPOINTING}_kwargs": {"use_reentrant": use_reentrant}}
    thrifty = training(tmp_path / "b", method, **again)
    for run in (plain, thrifty):
        run.train()
    assert_close(plain, thrifty, atol=1e-9)


def test_the_optimizer_of_a_class_that_was_given_learns_the_scores(tmp_path: Path) -> None:
    given = (torch.optim.Adagrad, {"lr": 1e-2})
    run = PruningTrainer(
        model=quiet_model(),
        args=trainer(tmp_path, SparseTrainingArguments()).args,
        sparse_args=SparseTrainingArguments(score_learning_rate=0.03),
        train_dataset=trainer(tmp_path, SparseTrainingArguments()).train_dataset,
        optimizer_cls_and_kwargs=given,
    )
    run.train()
    scores = [group for group in run.optimizer.param_groups if group.get("holds_scores")]
    assert [group["initial_lr"] for group in scores] == [0.03]
    assert any(bool(score_U.abs().sum() > 0) for score_U in run.coordinator.score_parameters())
    assert run.coordinator.density_reached() == pytest.approx(0.5, abs=0.05)


@pytest.mark.parametrize("step", [5, 10])  # in the first epoch, and in the second
def test_rows_of_like_length_are_grouped_and_resume(step: int, tmp_path: Path) -> None:
    options: dict[str, Any] = {
        "train_sampling_strategy": "group_by_length",
        "save_strategy": "steps",
        "save_steps": 5,
    }
    straight, resumed = (training(tmp_path, "taylor", "tokens", **options) for _ in range(2))
    straight.train()
    resumed.train(resume_from_checkpoint=str(tmp_path / f"checkpoint-{step}"))
    assert_close(straight, resumed, atol=0)


# Of torch, while it traces an autograd function.
@pytest.mark.filterwarnings("ignore:.*should not be instantiated:DeprecationWarning")
@pytest.mark.parametrize("method", ["movement", "layer_gate", "l0-nested", "masks"])
def test_gates_break_no_graph(method: str) -> None:
    # No teacher: with hidden states asked for, transformers breaks its own graph.
    asked = {name: value for name, value in PRUNING[method].items() if not name.startswith("distil")}
    pruning = SparseTrainingArguments(**asked)
    model = ModelPatchingCoordinator(pruning).patch_model(quiet_model())
    found = torch._dynamo.explain(model)(torch.ones(2, 8, dtype=torch.long))
    torch._dynamo.reset()
    assert (found.graph_break_count, found.graph_count) == (0, 1)


# Of torch, while it traces an autograd function.
@pytest.mark.filterwarnings("ignore:.*should not be instantiated:DeprecationWarning")
def test_a_compiled_model_trains_as_one_that_is_not(tmp_path: Path) -> None:
    options: dict[str, Any] = {"max_steps": 4}
    plain = training(tmp_path / "a", "movement", **options)
    plain.train()
    torch._dynamo.utils.counters.clear()
    compiled = training(tmp_path / "b", "movement", torch_compile_backend="eager", **options)
    compiled.train()
    assert_close(plain, compiled, atol=1e-9)
    # Masks and budgets change in place: nothing is compiled again for them.
    graphs = torch._dynamo.utils.counters["stats"]["unique_graphs"]
    torch._dynamo.reset()
    assert 1 <= graphs <= 2
