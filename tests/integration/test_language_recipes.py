"""Recipes of language models run from their data to a folder that answers as the model in memory, also with a cache."""

from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from transformers import AutoTokenizer, PreTrainedModel, pipeline

from sparse_trainer.cut.share import share_layers
from sparse_trainer.errors import SparseTrainerError
from sparse_trainer.folders.load import load_pruned
from sparse_trainer.folders.save import save_pruned
from sparse_trainer.plan.document import Plan
from sparse_trainer.run.fine_pruning import FinePruningJob
from sparse_trainer.run.pipeline import run
from sparse_trainer.run.preparation import prepare_fine_pruning
from sparse_trainer.run.recipes.fine_pruning import DENSE, FinePruningRecipe
from sparse_trainer.run.recipes.load import load_recipe
from sparse_trainer.run.recipes.recipe import Recipe
from sparse_trainer.run.stages import PRUNED, State
from tests.fixtures.language_models import VOCABULARY, write_language_model
from tests.fixtures.recipe_files import write_rows, write_tiny_llama

STEPS = 4
"""Dense, pruning and frozen phase: the fewest steps in which the schedule can do all of its work."""
TEXT = "".join(
    f"The number {n} is {'even' if n % 2 == 0 else 'odd'}, says line {n * n}.\n" for n in range(40)
)


def recipe_of(name: str, folder: Path, model: Path, file: Path, *overrides: str) -> Recipe:
    """Load a shipped recipe with a tiny model, local files and a few steps."""
    return load_recipe(
        name,
        [
            f"model.name_or_path={model}",
            "data.source=null",
            "data.config=null",
            f"data.train_file={file}",
            f"data.validation_file={file}",
            f"training.output_dir={folder / 'run'}",
            f"training.max_steps={STEPS}",
            "training.per_device_train_batch_size=2",
            "training.gradient_accumulation_steps=1",
            "training.learning_rate=1e-3",
            "training.use_cpu=true",
            "training.report_to=none",
            'training.save_strategy="no"',
            "export.latency_rounds=1",
            "export.latency_sequence_length=8",
            *overrides,
        ],
    )


def finished(recipe: Recipe) -> State:
    """Run the stages of a recipe, and keep the models."""
    assert isinstance(recipe, FinePruningRecipe)
    state = prepare_fine_pruning(recipe, lambda line: None, overwrite=False, resume=False)
    for stage in state.job.stages:
        state = stage(state)
    return state


def generated(model: PreTrainedModel, **options: Any) -> list[list[int]]:
    """Return what a model writes about two inputs, the first one padded."""
    torch.manual_seed(1)
    ids = torch.randint(3, VOCABULARY, (2, 7))
    mask = torch.ones_like(ids)
    mask[0, :3] = 0
    found: torch.Tensor = model.eval().generate(  # type: ignore[operator]
        input_ids=ids, attention_mask=mask, max_new_tokens=12, do_sample=False, min_new_tokens=12, **options
    )
    return found.tolist()


def check_folder(state: State) -> None:
    """Check that the folder holds the model of the run: same units, same predictions, same texts."""
    job, pruned = state.job, state.models[PRUNED]
    assert isinstance(job, FinePruningJob)
    plan = Plan.load(job.result)
    assert plan.params["compact"] < plan.params["dense"]
    assert state.reloaded is not None
    assert state.reloaded.same_predictions == state.reloaded.samples
    auto_class: Any = getattr(transformers, job.auto_class(plan))
    loaded = auto_class.from_pretrained(job.result, trust_remote_code=True)
    assert loaded.num_parameters() == plan.params["compact"] == pruned.num_parameters()
    assert generated(loaded, use_cache=True) == generated(pruned, use_cache=True)
    assert generated(loaded, use_cache=False) == generated(pruned, use_cache=True)


@pytest.fixture
def text(tmp_path: Path) -> Path:
    file = tmp_path / "text.raw"
    file.write_text(TEXT)
    return file


@pytest.fixture
def pairs(tmp_path: Path) -> Path:
    rows: list[dict[str, object]] = [
        {
            "article": f"The number {n} is {'even' if n % 2 == 0 else 'odd'}.",
            "highlights": f"{n} it is",
            "translation": {"en": f"{n} it is", "ro": f"este {n}"},
        }
        for n in range(12)
    ]
    return write_rows(tmp_path / "pairs.jsonl", rows)


@pytest.mark.parametrize("kind", ["t5", "bart"])
def test_an_encoder_decoder_is_cut_saved_and_writes_the_same(kind: str, pairs: Path, tmp_path: Path) -> None:
    model = write_language_model(kind, tmp_path / kind)
    more = ("data.max_length=40", "task.max_target_length=12", "pruning.density=0.6")
    state = finished(recipe_of("summarization-t5", tmp_path, model, pairs, *more))
    check_folder(state)
    dense, pruned = state.metrics.values()
    assert dense is not None
    assert pruned is not None
    assert set(dense) == set(pruned) == {"rouge1", "rouge2", "rougeL"}
    assert state.reloaded is not None
    lengths = [len(labels) for labels in state.job.data.validation["labels"][:8]]  # type: ignore[attr-defined]
    assert state.reloaded.samples == sum(
        lengths
    )  # a prediction per token of the answers, none at their padding
    lines = state.job.load_lines(None)
    scope: dict[str, Any] = {}
    exec("\n".join(lines[:-1]), scope)
    assert scope["written"].shape[1] <= 13  # the folder knows how much to write
    assert "summarize: The number 0 is even." in lines[-2]


def test_a_translation_is_read_from_the_parts_of_a_column(pairs: Path, tmp_path: Path) -> None:
    pytest.importorskip("sacrebleu", reason="sacrebleu is not installed")
    model = write_language_model("t5", tmp_path / "t5")
    more = ("data.max_length=60", "task.max_target_length=12")
    result = run(recipe_of("translation-t5", tmp_path, model, pairs, *more), lambda line: None)
    metrics = result.comparison.models["pruned"].metrics
    assert metrics is not None
    assert set(metrics) == {"bleu", "chrf"}


@pytest.mark.parametrize("kind", ["llama", "gpt2"])
def test_a_causal_model_is_cut_saved_and_writes_the_same(kind: str, text: Path, tmp_path: Path) -> None:
    model = write_language_model(kind, tmp_path / kind)
    state = finished(
        recipe_of("causal-lm-llama", tmp_path, model, text, "data.max_length=32", "pruning.density=0.6")
    )
    check_folder(state)
    dense, pruned = state.metrics.values()
    assert dense is not None  # nobody has to train a language model before its perplexity says something
    assert pruned is not None
    assert set(dense) == set(pruned) == {"perplexity"}
    assert state.reloaded is not None
    assert state.reloaded.samples == 2 * 32  # a prediction per token of as many blocks as are compared
    assert state.comparison is not None
    assert "%" not in state.comparison.rows()[1][1]


def test_gates_and_scales_learn_on_a_frozen_model(text: Path, tmp_path: Path) -> None:
    model = write_language_model("llama", tmp_path / "llama")
    state = finished(recipe_of("llama-gates", tmp_path, model, text, "data.max_length=32"))
    check_folder(state)
    dense, pruned = (state.models[name].state_dict() for name in (DENSE, PRUNED))
    same = [name for name in pruned if dense[name].shape == pruned[name].shape]
    assert any("norm" in name for name in same)
    assert all(torch.equal(dense[name], pruned[name]) for name in same)
    kept = [layer.mlp.down_proj.in_features for layer in state.models[PRUNED].model.layers]
    assert sum(kept) == 40


def test_scales_learn_after_a_cut(text: Path, tmp_path: Path) -> None:
    dense = write_language_model("llama", tmp_path / "llama")
    cut = run(
        recipe_of("llama-gates", tmp_path, dense, text, "data.max_length=32", "export.verify=false"),
        lambda line: None,
    )
    more = (
        "data.max_length=32",
        f"training.output_dir={tmp_path / 'scaled'}",
        "pruning.density=1.0",
        "pruning.start_scoring=null",
        f"pruning.distil_teacher_name_or_path={dense}",
    )
    result = run(recipe_of("llama-gates", tmp_path, cut.folder, text, *more), lambda line: None)
    before, after = (load_pruned(folder).state_dict() for folder in (cut.folder, result.folder))
    assert {name: tensor.shape for name, tensor in before.items()} == {
        name: tensor.shape for name, tensor in after.items()
    }
    changed = {
        name.rpartition(".weight")[0][-9:] for name in before if not torch.equal(before[name], after[name])
    }
    assert changed == {"down_proj", "tn.o_proj"}


def test_the_lines_that_a_run_prints_write_text(text: Path, tmp_path: Path) -> None:
    model = write_language_model("llama", tmp_path / "llama", bos=True)
    more = ("data.max_length=32", "pruning=null", "model.dense_training.max_steps=2")
    result = run(recipe_of("causal-lm-llama", tmp_path, model, text, *more), lambda line: None)
    scope: dict[str, Any] = {"pipeline": pipeline}
    exec("\n".join(result.load_lines[:2]), scope)
    assert "print(model('The number 0 is even, says line 0.'))" in result.load_lines[2]
    (answer,) = scope["model"]("The number 0", max_new_tokens=3)
    assert answer["generated_text"].startswith("The number 0")


def test_an_instruct_model_learns_answers_and_is_asked_by_its_pipeline(tmp_path: Path) -> None:
    model = write_language_model("llama", tmp_path / "llama", chat=True)
    chats: list[dict[str, object]] = [
        {
            "messages": [
                {"role": "user", "content": f"Is {n} even?"},
                {"role": "assistant", "content": "yes" if n % 2 == 0 else "no, it is odd"},
            ]
        }
        for n in range(12)
    ]
    file = write_rows(tmp_path / "chats.jsonl", chats)
    more = (
        "data.max_length=64",
        "pruning.density=0.6",
        "data.train_split=train",
        "data.validation_split=validation",
    )
    state = finished(recipe_of("instruct-llama", tmp_path, model, file, *more))
    check_folder(state)
    lines = state.job.load_lines(None)
    scope: dict[str, Any] = {}
    exec("\n".join(lines[:2]), scope)
    (answer,) = scope["model"]([{"role": "user", "content": "Is 0 even?"}], max_new_tokens=3)
    assert answer["generated_text"][-1]["role"] == "assistant"
    assert "[{'role': 'user', 'content': 'Is 0 even?'}]" in lines[2]


def test_a_pruned_model_recovers_by_learning_from_its_dense_self(text: Path, tmp_path: Path) -> None:
    dense = write_language_model("llama", tmp_path / "llama")
    cut = run(
        recipe_of("causal-lm-llama", tmp_path, dense, text, "data.max_length=32", "export.verify=false"),
        lambda line: None,
    )
    more = ("data.max_length=32", f"training.output_dir={tmp_path / 'recovery'}")
    taught = recipe_of("recover-llama", tmp_path, cut.folder, text, *more, f"distillation.teacher={dense}")
    result = run(taught, lambda line: None)
    assert Plan.load(result.folder) == Plan.load(cut.folder)
    recovered, before = (load_pruned(folder) for folder in (result.folder, cut.folder))
    assert recovered.num_parameters() == before.num_parameters()
    assert any(
        not torch.equal(*pair) for pair in zip(recovered.parameters(), before.parameters(), strict=True)
    )
    assert generated(recovered, use_cache=True) == generated(recovered, use_cache=False)

    state = prepare_fine_pruning(taught, lambda line: None, overwrite=True, resume=False)  # type: ignore[arg-type]
    assert isinstance(state.job, FinePruningJob)
    assert state.job.teacher is not None
    assert state.job.teacher.num_parameters() > before.num_parameters()


def test_shared_layers_stay_shared_while_they_learn_from_the_last_layers_of_a_teacher(
    text: Path, tmp_path: Path
) -> None:
    dense = write_language_model("llama", tmp_path / "llama")
    shared = share_layers(load_pruned(dense), 2)
    folder = save_pruned(shared, tmp_path / "shared", processor=AutoTokenizer.from_pretrained(dense))
    recipe = recipe_of(
        "recover-llama", tmp_path, folder, text, "data.max_length=32", f"distillation.teacher={dense}",
        "distillation.alpha_hidden=0.1", "distillation.tail_layers=1",
    )  # fmt: skip
    result = run(recipe, lambda line: None)
    trained: Any = load_pruned(result.folder)
    assert trained.num_parameters() == shared.num_parameters()
    weights = [layer.mlp.up_proj.weight for layer in trained.model.layers]
    assert weights[0] is weights[1]
    assert not torch.equal(weights[0], shared.get_parameter("model.layers.0.mlp.up_proj.weight"))
    assert generated(trained, use_cache=True) == generated(trained, use_cache=False)


def test_teachers_that_cannot_teach_are_refused_before_any_work(text: Path, tmp_path: Path) -> None:
    model = write_language_model("llama", tmp_path / "llama")
    other = write_tiny_llama(tmp_path / "other")
    told: tuple[tuple[str, str], ...] = (
        (
            f"distillation.teacher={other}",
            r"distillation\.teacher: the teacher's vocab_size is \d+, the student's 99",
        ),
        ("distillation.teacher=/nowhere", r"distillation\.teacher: .*nowhere"),
        (
            "pruning={density: 0.5}",
            r"distillation: is for runs without pruning\. Set pruning\.distil_teacher",
        ),
    )
    for override, message in told:
        with pytest.raises(SparseTrainerError, match=message):
            run(recipe_of("recover-llama", tmp_path, model, text, "data.max_length=32", override))
