"""What the sizes of a model tell is refused before its weights, and any text, are read."""

import json
import sys
from pathlib import Path
from typing import Any, NoReturn

import pytest
import transformers

from patchers.discovery.discover import discover
from sparse_trainer.budget.latency import store
from sparse_trainer.budget.latency.measure import measure_table
from sparse_trainer.budget.time_target import TimeTarget
from sparse_trainer.cli.front import main
from sparse_trainer.folders.load import load_model
from sparse_trainer.run import options as run_options
from sparse_trainer.tasks.text_classification import TextClassification
from tests.fixtures.recipe_files import sst2_rows, write_rows, write_text, write_tiny_llama

ROWS = ("kind,units,milliseconds", "heads,4,0.2", "channels,64,0.4", "layers,1,2", "rest,1,5")


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a folder with models, text and tables of times: one of this machine, one of another."""
    root = tmp_path_factory.mktemp("early")
    llama = load_model(write_tiny_llama(root / "llama"))
    write_text(root / "text.txt", 200)
    table = measure_table(llama, discover(llama), TimeTarget(speedup=2.0, sequence_length=16), seconds=0.05)
    store.save_table(table, root / "table.json")
    values = table.values()
    conditions = {**values["conditions"], "device": "a phone"}
    (root / "other.json").write_text(json.dumps({**values, "conditions": conditions}))
    (root / "torn.json").write_text("{")
    (root / "phone.csv").write_text("\n".join(ROWS))
    (root / "once.yaml").write_text(
        f"model: {{name_or_path: {root}/llama, device: cpu}}\n"
        f"calibration: {{source: {root}/text.txt, samples: 4, length: 16}}\n"
        "prune: {criterion: wanda, density: 0.8}\n"
        "evaluation: null\n"
        f"export: {{output_dir: {root}/once, latency_rounds: 1, latency_sequence_length: 8, verify: false}}\n"
    )
    rows = {name: write_rows(root / f"{name}.jsonl", sst2_rows(8)) for name in ("train", "validation")}
    (root / "trained.yaml").write_text(
        "task: {labels: [negative, positive], metrics: [accuracy]}\n"
        f"model: {{name_or_path: {root}/llama}}\n"
        f"data: {{train_file: {rows['train']}, validation_file: {rows['validation']}, text_columns: [sentence],"
        " label_column: label, max_length: 16}\n"
        f"pruning: {{scoring: movement, target: latency, sequence_length: 16, latency_table: {root}/phone.csv}}\n"
        f"training: {{output_dir: {root}/trained, use_cpu: true}}\n"
        "export: {latency_sequence_length: 16}\n"
    )
    return root


def refused(*args: Any, **kwargs: Any) -> NoReturn:
    raise AssertionError("work before the refusal")


def complaint(
    arguments: tuple[str, ...],
    place: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> str:
    """Return what a command says that refuses its arguments, without a look at weights or text."""
    monkeypatch.setattr(transformers.PreTrainedModel, "from_pretrained", refused)
    monkeypatch.setattr(run_options, "calibration_batches", refused)
    monkeypatch.setattr(TextClassification, "prepare", refused)
    filled = [word.replace("{place}", str(place)) for word in arguments]
    monkeypatch.setattr(sys, "argv", ["sparse-trainer", *filled])
    with pytest.raises(SystemExit) as caught:
        main()
    said = capsys.readouterr().err
    assert caught.value.code == 2, said
    return said


TEXT = ("--calibration", "{place}/text.txt", "--samples", "4", "--length", "16", "--device", "cpu")
PRUNE = ("prune", "{place}/llama", "{place}/out", *TEXT)
LAYERS = ("layers", "{place}/llama", "--out", "{place}/out", *TEXT)
COMPARE = ("compare", "{place}/llama", "--criteria", "wanda,obs", *TEXT)
TIMED = ("--sequence-length", "16", "--speedup")
TRAINED = ("run", "{place}/trained.yaml")
ONCE = ("run", "{place}/once.yaml")
SHARED = (*ONCE, "prune={criterion: last, density: {layers: 0.7}}")


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (("family", "quickstart", "{place}/out", "--speedups", "2", "--densities", "0.5"), "Give one of the two"),
        (("family", "quickstart", "{place}/out", "--densities", "0.5,nan"), "'nan' in it is text"),
        ((*PRUNE, "--protect", "zz*"), "'zz*' matches no group"),
        ((*PRUNE, "--include", "zz*"), "'zz*' matches no group"),
        ((*PRUNE, "--protect", "0-99"), "everything is protected"),
        ((*PRUNE, "--density", "0.1", "--max-prune", "0.5"), "0.1 is not reachable"),
        ((*PRUNE, "--density", "layers=0.01", "--criterion", "block_influence"), "0.01 is not reachable"),
        ((*PRUNE, *TIMED, "2", "--latency-table", "{place}/other.json"), "other conditions (device: a phone there"),
        ((*PRUNE, *TIMED, "2", "--latency-table", "{place}/torn.json"), "torn.json"),
        ((*PRUNE, *TIMED, "2", "--latency-table", "{place}/nowhere.json"), "nowhere.json"),
        ((*PRUNE, *TIMED, "2", "--latency-table", "{place}/nowhere.csv"), "nowhere.csv"),
        ((*PRUNE, *TIMED, "900", "--latency-table", "{place}/table.json"), "speedup=900 is not reachable"),
        ((*PRUNE, *TIMED, "9", "--latency-table", "{place}/phone.csv"), "speedup=9 is not reachable"),
        ((*TRAINED, "pruning.speedup=9"), "speedup=9 is not reachable"),
        ((*TRAINED, "pruning.speedups=[1.1, 9]"), "speedup=9 is not reachable"),
        (
            (*TRAINED, "pruning.speedup=1.1", "pruning.sequence_length=9999", "pruning.latency_table=null"),
            "9999 tokens, and the model has positions",
        ),
        ((*TRAINED, "pruning.speedup=1.1", "pruning.latency_table={place}/nowhere.csv"), "nowhere.csv"),
        ((*PRUNE, "--speedup", "2", "--sequence-length", "9999"), "9999 tokens, and the model has positions for"),
        (("timing", "{place}/llama", "--phase", "decode", "--sequence-length", "256"), "257 tokens, and the model has"),
        ((*LAYERS, "--protect", "99"), "'99' matches no group"),
        ((*LAYERS, "--density", "0.01"), "0.01 is not reachable"),
        ((*LAYERS, "--density", "heads=0.5"), "heads=0.5 is not of layers. Give e.g. --density 0.75"),
        ((*LAYERS, "--density", "many"), "'many' is no number"),
        ((*COMPARE, "--protect", "zz*"), "'zz*' matches no group"),
        ((*COMPARE, "--density", "0.1", "--min-keep", "heads=2", "--min-keep", "channels=60"), "is not reachable"),
        ((*ONCE, "prune.protect=[zz*]"), "'zz*' matches no group"),
        ((*ONCE, "prune.density=0.01", "prune.min_keep=60"), "0.01 is not reachable"),
        ((*SHARED, "sharing={layers: [1, 2]}"), "there is no layer 2 after pruning. Layers 0 to 1 are left"),
        ((*SHARED, "sharing={size: 3}"), "sharing"),
        ((*ONCE, "sharing={layers: [8, 9]}"), "no layer 9"),
        (("bench", "{place}/llama", "--against", "{place}/llama/"), "is the model itself"),
    ],
    ids=lambda value: " ".join(value)[-60:] if isinstance(value, tuple) else None,
)  # fmt: skip
def test_nothing_is_loaded_for_what_sizes_forbid(
    arguments: tuple[str, ...],
    said: str,
    place: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    assert said in complaint(arguments, place, monkeypatch, capsys)


def test_a_table_of_this_model_is_not_refused_by_its_dtype(
    place: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    given = (*PRUNE, *TIMED, "2", "--latency-table", "{place}/table.json", "--dtype", "bfloat16")
    assert "dtype: float32 there, bfloat16 here" in complaint(given, place, monkeypatch, capsys)


def test_times_that_are_kept_refuse_a_speed_up_early(
    place: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    monkeypatch.setenv(store.CACHE_VARIABLE, str(tmp_path))
    model = load_model(place / "llama")
    store.table_for(model, discover(model), TimeTarget(speedup=2.0, sequence_length=16))
    kept = list((tmp_path / "latency").iterdir())
    if not kept:
        pytest.skip("this machine is too busy to be timed within 10 %")
    said = complaint((*PRUNE, *TIMED, "900"), place, monkeypatch, capsys)
    assert "speedup=900 is not reachable" in said
