"""What a sweep finds out before its first run starts."""

import json
from pathlib import Path
from typing import Any

import pytest
import transformers

from sparse_trainer.errors import CheckpointError, SparseTrainerError
from sparse_trainer.run.recipes.load import load_recipe
from sparse_trainer.run.resume import RUN_FILE
from sparse_trainer.run.sweep.planned import RECORD_FILE, PlannedRun
from sparse_trainer.run.sweep.planning import plan_runs
from tests.fixtures.recipe_files import boolq_rows, write_rows, write_text, write_tiny_llama, write_tiny_model


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a folder with a recipe that trains and one that does not."""
    root = tmp_path_factory.mktemp("planning")
    bert, llama = write_tiny_model(root / "bert"), write_tiny_llama(root / "llama")
    rows, text = write_rows(root / "rows.jsonl", boolq_rows(8)), write_text(root / "text.txt", 50)
    (root / "fine.yaml").write_text(
        f"model: {{name_or_path: {bert}, dense_training: {{learning_rate: 1.0e-4}}}}\n"
        f"data: {{train_file: {rows}, validation_file: {rows}, text_columns: [question, passage], max_length: 48}}\n"
        "pruning: {scoring: movement, density: 0.5}\n"
        "training: {max_steps: 2, report_to: none, use_cpu: true}\n"
        "export: {output_dir: elsewhere, latency_sequence_length: 8}\n"
    )
    (root / "once.yaml").write_text(
        f"model: {{name_or_path: {llama}, device: cpu}}\n"
        f"calibration: {{source: {text}, samples: 4, length: 16}}\n"
        "prune: {criterion: wanda, density: 0.8}\n"
        f"evaluation: {{tasks: [{text}], length: 16}}\n"
        "export: {latency_sequence_length: 8}\n"
    )
    return root


@pytest.fixture(autouse=True)
def no_work(monkeypatch: pytest.MonkeyPatch) -> None:
    """Fail where a model is loaded: planning reads recipes and configs."""

    def loaded(*_: Any, **__: Any) -> None:
        raise AssertionError("a model was loaded")

    monkeypatch.setattr(transformers.PreTrainedModel, "from_pretrained", loaded)


def planned(place: Path, out: Path, *overrides: str, recipe: str = "fine.yaml") -> list[PlannedRun]:
    return plan_runs(str(place / recipe), overrides, out)


def loaded(run: PlannedRun) -> Any:
    """Return the recipe that the process of a run loads."""
    source, *overrides = run.arguments[run.arguments.index("--") + 1 :]
    return load_recipe(source, overrides)


def test_every_run_has_folders_of_its_own_and_shares_the_dense_model_of_its_seed(
    place: Path, tmp_path: Path
) -> None:
    runs = planned(place, tmp_path / "a: b", "pruning.density=0.25,0.5", "training.seed=0,1")
    assert [run.begun for run in runs] == ["new"] * 4
    for run in runs:
        recipe = loaded(run)
        assert recipe.training.output_dir == str(run.folder) == str(tmp_path / "a: b" / run.name)
        assert recipe.export.output_dir == str(run.result)
        assert recipe.model.dense_folder == str(run.dense)
        assert recipe.pruning.density == float(run.combination.values["pruning.density"])
    assert runs[0].dense == runs[2].dense != runs[1].dense == runs[3].dense
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("override", "is_shared"),
    [
        ("pruning.scoring=movement,magnitude", True),
        ("model.prune_from=pretrained,dense", True),
        ("model.fill=true,false", True),
        ("export.latency_rounds=1,2", True),
        ("training.learning_rate=1.0e-5,2.0e-5", True),  # of which the dense fine-tune has its own
        ("training.max_steps=2,3", False),
        ("model.dense_training.learning_rate=1.0e-5,2.0e-5", False),
        ("data.max_length=32,48", False),
        ("task.metrics=[accuracy],[f1]", False),
    ],
)
def test_a_dense_model_is_shared_only_where_nothing_of_it_differs(
    override: str, is_shared: bool, place: Path, tmp_path: Path
) -> None:
    one, other = planned(place, tmp_path, override)
    assert (one.dense == other.dense) == is_shared


def test_runs_without_a_dense_model_share_none(place: Path, tmp_path: Path) -> None:
    runs = planned(place, tmp_path, "model.dense_training=null", "pruning.density=0.25,0.5")
    runs += planned(place, tmp_path, "pruning=null", "training.seed=0,1")
    runs += planned(place, tmp_path, "prune.density=0.5,0.8", recipe="once.yaml")
    assert [run.dense for run in runs] == [None] * 6
    assert [run.result.name for run in runs] == ["pruned", "pruned", "model", "model", "pruned", "pruned"]
    assert all(loaded(run).export.output_dir == str(run.result) for run in runs)


@pytest.mark.parametrize(
    ("recipe", "overrides", "message"),
    [
        ("fine.yaml", ("pruning.densty=0.25,0.5",), r"pruning\.densty.*unknown key.*density"),
        ("fine.yaml", ("prning.density=0.25,0.5",), "unknown section 'prning'.*pruning"),
        ("fine.yaml", ("pruning.density=0.5,1.5",), r"override 'pruning\.density=1\.5'"),
        ("fine.yaml", ("pruning.density=0.5,x",), r"override 'pruning\.density=x'"),
        ("fine.yaml", ("pruning.density=[0.5,0.25",), "override 'pruning.density|no option has several"),
        ("fine.yaml", ("training.seed=0,-1",), "-1 is not from 0"),
        ("fine.yaml", ("training.optim=adamw_torch,zork",), "zork"),
        ("fine.yaml", ("model.name_or_path=nowhere/x,nowhere/y",), r"override 'model\.name_or_path=nowhere/x'"),
        ("fine.yaml", ("pruning.density=0.5,0.25,0.5",), "density=0.5 and density=0.5 are the same run"),
        ("fine.yaml", ("pruning.density=0.5,0.50",), "density=0.5 and density=0.50 are the same run"),
        ("fine.yaml", ("pruning.densities=[0.5]", "training.seed=0,1"), "asks for a family"),
        ("fine.yaml", ("training.output_dir=a,b",), "a folder of its own.*--out"),
        ("fine.yaml", ("export.output_dir=a", "training.seed=0,1"), "a folder of its own.*--out"),
        ("fine.yaml", ("plugins=a,b",), "no override names code"),
        ("once.yaml", ("prune.density=0.5,1.5",), r"prune\.density=1\.5"),
        ("once.yaml", ("calibration.length=16,100",), r"calibration\.length=100"),
        ("once.yaml", ("evaluation.tasks=[nowhere.txt],[boolq]",), "nowhere.txt"),
        ("nowhere.yaml", ("training.seed=0,1",), "neither a file nor a shipped recipe"),
    ],
)  # fmt: skip
def test_a_mistake_in_any_run_is_one_error_before_the_first(
    recipe: str, overrides: tuple[str, ...], message: str, place: Path, tmp_path: Path
) -> None:
    with pytest.raises(SparseTrainerError, match=message):
        planned(place, tmp_path / "out", *overrides, recipe=recipe)
    assert not (tmp_path / "out").exists()


def test_finished_and_stopped_runs_are_known_by_their_recipe(place: Path, tmp_path: Path) -> None:
    grid = ("pruning.density=0.25,0.5", "training.seed=0,1")
    finished, stopped, *_ = planned(place, tmp_path, *grid)
    for run in (finished, stopped):
        run.folder.mkdir(parents=True)
    finished.record({"seconds": 1.0})
    (stopped.folder / RUN_FILE).write_text(stopped.recipe)
    again = planned(place, tmp_path, *grid, "description=another")
    assert [run.begun for run in again] == ["finished", "stopped", "new", "new"]
    assert again[0].measured() == {"seconds": 1.0}
    assert ["--resume" in run.arguments for run in again] == [False, True, False, False]
    with pytest.raises(
        CheckpointError, match=r"density=0\.25_seed=0: holds a run of another.*--out"
    ) as caught:
        planned(place, tmp_path, *grid, "training.max_steps=3")
    assert "training.max_steps was 2 and is 3 now" in str(caught.value)
    (finished.folder / RECORD_FILE).unlink()
    with pytest.raises(CheckpointError, match=r"density=0\.25_seed=1: holds a run of another.*max_steps"):
        planned(place, tmp_path, *grid, "training.max_steps=3")


def test_a_damaged_record_is_told_by_its_name(place: Path, tmp_path: Path) -> None:
    first, _ = planned(place, tmp_path, "training.seed=0,1")
    first.folder.mkdir(parents=True)
    for text in ("{", "[]", json.dumps({"recipe": "x: ["}), json.dumps({"result": {}})):
        (first.folder / RECORD_FILE).write_text(text)
        with pytest.raises(SparseTrainerError, match=str(first.folder)):
            planned(place, tmp_path, "training.seed=0,1")


def test_a_one_shot_run_without_a_record_is_done_anew(place: Path, tmp_path: Path) -> None:
    first, _ = planned(place, tmp_path, "prune.density=0.5,0.8", recipe="once.yaml")
    first.result.mkdir(parents=True)
    (first.result / "recipe.yaml").write_text(first.recipe)
    first, _ = planned(place, tmp_path, "prune.density=0.5,0.8", recipe="once.yaml")
    assert first.begun == "stopped"
    assert "--overwrite" in first.arguments
