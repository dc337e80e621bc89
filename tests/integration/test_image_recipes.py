"""Image classification, from a recipe and a folder of pictures to a folder that the pipeline runs."""

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoImageProcessor, AutoModelForImageClassification, pipeline
from transformers.utils.import_utils import is_torchvision_available

from sparse_trainer.errors import CheckpointError, SparseTrainerError
from sparse_trainer.folders.processors import load_processor
from sparse_trainer.one_shot.options import PruneOptions
from sparse_trainer.run.cut_folder import compact_folder
from sparse_trainer.run.options import SourceOptions
from sparse_trainer.run.pipeline import run
from sparse_trainer.run.prune_folder import prune_folder
from sparse_trainer.run.recipes.load import load_recipe
from sparse_trainer.run.recipes.recipe import Recipe
from tests.fixtures.pictures import CLASSES, write_pictures, write_tiny_vit

pytestmark = pytest.mark.filterwarnings("ignore")


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("images")
    write_pictures(folder / "pictures")
    write_tiny_vit(folder / "model")
    try:
        load_processor("image", str(folder / "model"))
    except CheckpointError as error:
        # Older releases of transformers load no image processor at all without torchvision.
        told = (is_torchvision_available(), error.remedy) == (False, "pip install pillow torchvision")
        pytest.skip("this release of transformers needs torchvision") if told else pytest.fail(str(error))
    return folder


@pytest.fixture(autouse=True)
def offline(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sparse_trainer.tasks.metrics.hub_reachable", lambda: False)


def small(files: Path, out: Path, *overrides: str, pictures: str = "pictures") -> Recipe:
    """Load the shipped recipe with a tiny model, pictures of a folder and two steps."""
    return load_recipe(
        "vit-classification",
        [
            f"model.name_or_path={files / 'model'}",
            f"data.source={files / pictures}",
            "data.label_column=label",
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
    result = run(small(files, tmp_path / "run", "task.metrics=[accuracy, f1]"), lambda line: None)
    dense, pruned = result.comparison.models.values()
    assert pruned.parameters < dense.parameters
    assert pruned.latencies[2].median > 0
    assert result.comparison.conditions.sequence_length is None
    assert "inputs of the models' own size" in str(result.comparison.conditions)
    assert pruned.metrics is not None
    assert 0 <= pruned.metrics["accuracy"] <= 1
    assert result.reloaded is not None
    assert result.reloaded.same_predictions == result.reloaded.samples == 16

    # The lines that are shown run, on a picture that is there.
    scope: dict[str, Any] = {}
    *lines, last = result.load_lines
    exec("\n".join(lines), scope)
    answer = eval(last.removeprefix("print(").removesuffix(")"), scope)
    assert {row["label"] for row in answer} == set(CLASSES)
    picture = next((files / "pictures" / "validation" / "leaf").iterdir())
    assert str(picture.parent) in last
    processor = AutoImageProcessor.from_pretrained(result.folder)
    assert processor.size == {"height": 16, "width": 16}
    model = AutoModelForImageClassification.from_pretrained(result.folder, trust_remote_code=True)
    assert model.num_parameters() == pruned.parameters
    card = (result.folder / "README.md").read_text()
    assert "image-classification" in card
    assert json.loads((result.folder / "report.json").read_text())["conditions"]["sequence_length"] is None


def test_a_finished_model_is_pruned_on_without_a_dense_stage(files: Path, tmp_path: Path) -> None:
    """Dense run first; then prune what it left, in bfloat16."""
    dense = run(small(files, tmp_path / "dense", "pruning=null"), lambda line: None)
    assert AutoImageProcessor.from_pretrained(dense.folder)
    more = (
        f"model.name_or_path={dense.folder}",
        "model.dense_training=null",
        "pruning.distil_teacher_name_or_path=null",
        "training.bf16=true",
        "export.verify=false",
    )
    result = run(small(files, tmp_path / "run", *more), lambda line: None)
    head = AutoModelForImageClassification.from_pretrained(result.folder, trust_remote_code=True)
    assert head.config.id2label == dict(enumerate(CLASSES))


def test_a_checkpoint_is_cut_and_a_model_pruned_with_their_image_processor(
    files: Path, tmp_path: Path
) -> None:
    saved = ("training.save_strategy=steps", "training.save_steps=2", "model.dense_training=null")
    free = ("pruning.distil_teacher_name_or_path=null", "export.verify=false")
    run(small(files, tmp_path / "run", *saved, *free), lambda line: None)
    folder, _ = compact_folder(str(tmp_path / "run" / "checkpoint-2"), tmp_path / "cut")
    assert AutoImageProcessor.from_pretrained(folder).size == {"height": 16, "width": 16}
    options = PruneOptions(criterion="magnitude", density=0.5)
    prune_folder(
        SourceOptions(name_or_path=str(folder), device="cpu"),
        tmp_path / "pruned",
        options,
        draw=False,
        tell=lambda line: None,
    )
    classify = pipeline("image-classification", model=str(tmp_path / "pruned"), trust_remote_code=True)
    picture = next((files / "pictures" / "train" / "stone").iterdir())
    assert {row["label"] for row in classify(str(picture))} == set(CLASSES)


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (["task.crop=0"], r"task\.crop: 0 is not in \(0, 1\]"),
        (["task.metrics=[pearsonr]"], r"task\.metrics: 'pearsonr' does not fit"),
        (["data.text_columns=[image, label]", "data.label_column=x"], r"data\.text_columns: 2 columns"),
        (["data.text_columns=[picture]"], r"no column 'picture'.*It has image, label"),
        (
            ["data.text_columns=[label]", "data.label_column=image"],
            r"column 'image': .* is neither the number nor the name",
        ),
        (["data.source=/no/such/folder"], r"data\.source: /no/such/folder"),
        (["data.validation_split=test"], r"data\.source: .*'test'"),
        (["task.labels=[leaf]"], r"row \d+ has the label 1, which is not one of the 1 classes"),
    ],
)
def test_bad_input_is_told_before_any_work(
    overrides: list[str], message: str, files: Path, tmp_path: Path
) -> None:
    with pytest.raises(SparseTrainerError, match=message):
        run(small(files, tmp_path / "run", *overrides), lambda line: None)
    assert not (tmp_path / "run").exists()


def test_pictures_that_do_not_open_are_counted_and_named(files: Path, tmp_path: Path) -> None:
    pictures = shutil.copytree(files / "pictures", tmp_path / "pictures")
    (pictures / "train" / "leaf" / "no-picture.png").write_bytes(b"not a picture")
    half = pictures / "train" / "stone" / "stone-1.png"
    half.write_bytes(half.read_bytes()[: half.stat().st_size // 2])
    with pytest.raises(SparseTrainerError) as told:
        run(small(files, tmp_path / "run", f"data.source={pictures}"), lambda line: None)
    assert "train set, column 'image'" in told.value.where
    assert "2 of 17 images do not open" in told.value.what
    assert "no-picture.png" in told.value.what
    assert "stone-1.png" in told.value.what
    assert not (tmp_path / "run").exists()


def test_a_model_without_an_image_processor_is_refused(files: Path, tmp_path: Path) -> None:
    model = shutil.copytree(files / "model", tmp_path / "model")
    (model / "preprocessor_config.json").unlink()
    with pytest.raises(SparseTrainerError, match=r"model\.name_or_path: .*no image processor can be loaded"):
        run(small(files, tmp_path / "run", f"model.name_or_path={model}"), lambda line: None)


def test_a_processor_that_leaves_images_as_they_are_is_refused(files: Path, tmp_path: Path) -> None:
    model = shutil.copytree(files / "model", tmp_path / "model")
    file = model / "preprocessor_config.json"
    file.write_text(json.dumps({**json.loads(file.read_text()), "do_resize": False}))
    with pytest.raises(SparseTrainerError, match="makes no pixels of one size"):
        run(small(files, tmp_path / "run", f"model.name_or_path={model}"), lambda line: None)


def test_a_head_of_other_classes_is_refused(files: Path, tmp_path: Path) -> None:
    head = AutoModelForImageClassification.from_pretrained(files / "model", num_labels=5)
    with torch.no_grad():
        head.save_pretrained(tmp_path / "model")
    AutoImageProcessor.from_pretrained(files / "model").save_pretrained(tmp_path / "model")
    with pytest.raises(SparseTrainerError, match="its head has 5 classes"):
        run(small(files, tmp_path / "run", f"model.name_or_path={tmp_path / 'model'}"), lambda line: None)
