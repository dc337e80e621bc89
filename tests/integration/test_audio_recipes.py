"""Audio classification, from a recipe and WAV files to a folder that the pipeline runs."""

from pathlib import Path
from typing import Any

import pytest
from transformers import AutoFeatureExtractor, pipeline

from sparse_trainer.data.sounds import read_sound
from sparse_trainer.errors import SparseTrainerError
from sparse_trainer.run.pipeline import run
from sparse_trainer.run.recipes.load import load_recipe
from sparse_trainer.run.recipes.recipe import Recipe
from tests.fixtures.sounds import PITCHES, RATE, write_sounds, write_tiny_wav2vec2

pytestmark = pytest.mark.filterwarnings("ignore")


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("audio")
    write_sounds(folder / "sounds")
    write_tiny_wav2vec2(folder / "model")
    return folder


@pytest.fixture(autouse=True)
def offline(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sparse_trainer.tasks.metrics.hub_reachable", lambda: False)


def small(files: Path, out: Path, *overrides: str) -> Recipe:
    """Load the shipped recipe with a tiny model, a few sounds and two steps."""
    rows = files / "sounds" / "rows.jsonl"
    return load_recipe(
        "wav2vec2-local",
        [
            f"model.name_or_path={files / 'model'}",
            f"data.train_file={rows}",
            f"data.validation_file={rows}",
            "task.max_seconds=0.5",
            f"training.output_dir={out}",
            "training.max_steps=2",
            "model.dense_training.max_steps=2",
            "training.per_device_train_batch_size=4",
            "training.dataloader_num_workers=0",
            "training.use_cpu=true",
            "training.report_to=none",
            "export.latency_rounds=1",
            "export.latency_batch_sizes=[2]",
            *overrides,
        ],
    )


def test_the_recipe_leaves_a_folder_that_the_pipeline_runs(files: Path, tmp_path: Path) -> None:
    result = run(small(files, tmp_path / "run"), lambda line: None)
    dense, pruned = result.comparison.models.values()
    assert pruned.parameters < dense.parameters
    assert result.comparison.conditions.sequence_length == 128
    assert result.reloaded is not None
    assert result.reloaded.same_predictions == result.reloaded.samples == 12
    assert str(files / "sounds") in result.load_lines[-1]
    assert AutoFeatureExtractor.from_pretrained(result.folder).sampling_rate == RATE
    hears = pipeline("audio-classification", model=str(result.folder), trust_remote_code=True)
    answer: Any = hears(read_sound(str(files / "sounds" / "0.wav"), RATE))
    assert {row["label"] for row in answer} == set(PITCHES)


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (["task.max_seconds=0"], r"task\.max_seconds: 0 is not positive"),
        (["data.text_columns=[audio, label]", "data.label_column=x"], r"data\.text_columns: 2 columns"),
        (["data.text_columns=[sound]"], r"no column 'sound'"),
        (["data.text_columns=[label]", "data.label_column=audio"], r"12 of 12 sounds do not open"),
        (["task.labels=[low]"], r"row 0 has the label 'high'"),
    ],
)
def test_bad_input_is_told_before_any_work(
    overrides: list[str], message: str, files: Path, tmp_path: Path
) -> None:
    with pytest.raises(SparseTrainerError, match=message):
        run(small(files, tmp_path / "run", *overrides), lambda line: None)
    assert not (tmp_path / "run").exists()
