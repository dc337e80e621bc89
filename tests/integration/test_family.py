"""A family from one training: whole folders, a table, nothing disturbed, gone on with, refused in time."""

import json
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from transformers import Trainer

from sparse_trainer.cli.front import main
from sparse_trainer.errors import ArgumentError, BudgetError, CheckpointError, RecipeError
from sparse_trainer.plan.document import Plan
from sparse_trainer.run.family import FAMILY_FILE, FamilyWriter
from sparse_trainer.run.pipeline import run, run_family
from sparse_trainer.run.recipes.recipe import Recipe
from tests.fixtures.recipe_files import small, write_small_files
from tests.unit.run.test_page import Reader

PHONE = "kind,units,milliseconds\nrest,1,1\nlayers,1,0.2\nheads,4,2\nheads,3,1.5\nchannels,32,4\n"
NAMES = ("density-0.7", "density-0.4")
STEPS = 8


@pytest.fixture(autouse=True)
def _offline(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sparse_trainer.tasks.metrics.hub_reachable", lambda: False)


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_small_files(tmp_path_factory.mktemp("recipes"))


def family(files: Path, out: Path, *overrides: str) -> Recipe:
    """Return a recipe of two densities in eight steps of dropout, from a dense model that teaches."""
    return small(
        "boolq-local", files, out, "pruning.densities=[0.7, 0.4]", f"training.max_steps={STEPS}",
        "model.dense_training={max_steps: 2}", "pruning.distil_teacher_name_or_path=dense",
        "export.latency_batch_sizes=[1]", "export.latency_rounds=2", "export.latency_sequence_length=8",
        "export.verify=false", *overrides,
    )  # fmt: skip


def same_weights(one: Path, other: Path) -> bool:
    """Tell whether the same numbers lie in two folders."""
    mine, theirs = (load_file(folder / "model.safetensors") for folder in (one, other))
    return mine.keys() == theirs.keys() and all(torch.equal(mine[name], theirs[name]) for name in mine)


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory, files: Path) -> Path:
    """Return the folder of a family that was not stopped."""
    out = tmp_path_factory.mktemp("whole")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("sparse_trainer.tasks.metrics.hub_reachable", lambda: False)
        result = run_family(family(files, out, "export.verify=true"), print)
    assert [member.folder.name for member in result.members] == list(NAMES)
    return result.folder


def test_every_member_is_a_finished_model_and_one_table_compares_them(whole: Path) -> None:
    for name, asked in zip(NAMES, (0.7, 0.4), strict=True):
        plan = Plan.load(whole / name)
        assert plan.density_asked == asked
        assert {"README.md", "report.html", "report.json", "stage.json", "config.json"} <= {
            file.name for file in (whole / name).iterdir()
        }
    table = json.loads((whole / FAMILY_FILE).read_text())["members"]
    assert [member["end"]["step"] for member in table] == [4, STEPS]
    assert table[0]["parameters"] > table[1]["parameters"]
    assert all(member["metrics"].keys() == {"accuracy", "f1"} and member["speedup"] > 0 for member in table)
    page = Reader((whole / "report.html").read_text(encoding="utf-8"))
    assert (page.open, page.crossed) == ([], [])
    assert page.headings == ["Summary", "Quality over speed", "Models"]
    assert {f"{table[0]['parameters']:,}", f"{table[1]['parameters']:,}"} <= set(page.words)
    links = [address for address in page.addresses if not address.startswith("#")]
    assert links == [f"{name}/report.html" for name in NAMES]
    assert all((whole / link).is_file() for link in links)
    assert 0 < table[0]["end"]["seconds"] < table[1]["end"]["seconds"]


def test_writing_members_changes_nothing_of_the_training(
    whole: Path, files: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write = FamilyWriter.write

    def last_only(self: FamilyWriter, stage: int, trained: Any) -> None:
        if stage == 1:
            write(self, stage, trained)

    monkeypatch.setattr(FamilyWriter, "write", last_only)
    with pytest.raises(CheckpointError, match=r"density-0\.7"):  # which nobody wrote
        run_family(family(files, tmp_path), print)
    assert same_weights(tmp_path / "family" / NAMES[1], whole / NAMES[1])


@pytest.mark.parametrize("count", [2 + 3, 2 + 7])
def test_a_family_that_was_stopped_goes_on_and_keeps_what_is_there(
    count: int, whole: Path, files: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    recipe, calls, step = family(files, tmp_path), [0], Trainer.training_step

    def counted(self: Trainer, *args: Any, **kwargs: Any) -> Any:
        calls[0] += 1
        if calls[0] > count:
            raise KeyboardInterrupt
        return step(self, *args, **kwargs)

    with monkeypatch.context() as patch:
        patch.setattr(Trainer, "training_step", counted)
        with pytest.raises(KeyboardInterrupt):
            run_family(recipe, print)
    out = tmp_path / "family"
    written = {
        name: (out / name / "model.safetensors").stat().st_mtime_ns for name in NAMES if (out / name).exists()
    }
    assert len(written) == (count > 2 + 4)
    if written:
        with pytest.raises(CheckpointError, match="holds a result already"):
            run_family(recipe, print)
    said: list[str] = []
    result = run_family(recipe, said.append, resume=True)
    assert {name: (out / name / "model.safetensors").stat().st_mtime_ns for name in written} == written
    assert [f"cutting {name}" for name in NAMES if name not in written] == [s for s in said if "cutting" in s]
    for name in NAMES:
        assert same_weights(out / name, whole / name)
    assert [member.end.step for member in result.members] == [4, STEPS]
    again = run_family(recipe, print, resume=True)  # all is there
    assert [member.metrics for member in again.members] == [member.metrics for member in result.members]


def test_the_command_line_makes_a_family_and_overwrites_none(
    files: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    phone, out = tmp_path / "phone.csv", tmp_path / "out"
    phone.write_text(PHONE)
    rows = str(files / "sst2.jsonl")
    command = [
        "sparse-trainer", "family", "sst2-local", str(out), "--model", str(files / "model"), "--data", rows,
        "--validation", rows, "--speedups", "1.2,2", "model.dense_training=null", "model.prune_from=pretrained",
        "pruning.distil_teacher_name_or_path=null", f"pruning.latency_table={phone}", "training.max_steps=8",
        "training.per_device_train_batch_size=4", "training.use_cpu=true", "export.verify=false",
        "export.latency_batch_sizes=[1]", "export.latency_rounds=2", "export.latency_sequence_length=8", "--json",
    ]  # fmt: skip
    monkeypatch.setattr(sys, "argv", command)
    with pytest.raises(SystemExit) as left:
        main()
    assert not left.value.code
    members = json.loads(capsys.readouterr().out)["members"]
    assert [member["folder"] for member in members] == ["speedup-1.2", "speedup-2"]
    assert [member["asked"] for member in members] == [1.2, 2.0]
    assert all(member["asked"] <= member["speedup"] for member in members)
    with pytest.raises(SystemExit) as left:
        main()
    assert left.value.code
    assert "holds a result already" in capsys.readouterr().err


def test_what_cannot_be_is_refused_before_any_work(files: Path, tmp_path: Path) -> None:
    phone = tmp_path / "phone.csv"
    phone.write_text(PHONE)
    with pytest.raises(
        BudgetError, match=r"speedup=50 is not reachable: of .* times faster \(.*Ask for speedup="
    ):
        run_family(
            small(
                "boolq-local",
                files,
                tmp_path / "a",
                "pruning.speedups=[1.5, 50]",
                f"pruning.latency_table={phone}",
            ),
            print,
        )
    assert not (tmp_path / "a" / "dense").exists()
    with pytest.raises(ArgumentError, match="makes several models"):
        run(family(files, tmp_path / "b"), print)
    with pytest.raises(ArgumentError, match="asks for one model"):
        run_family(small("boolq-local", files, tmp_path / "c"), print)
    with pytest.raises(RecipeError, match=r"load_best_model_at_end: chooses among the models of one budget"):
        family(
            files, tmp_path / "d", "training.load_best_model_at_end=true", "training.eval_strategy=steps",
            "training.save_strategy=steps",
        )  # fmt: skip
    for short in (["training.max_steps=2"], ["training.max_steps=-1", "training.num_train_epochs=0.01"]):
        with pytest.raises(ArgumentError, match="leaves 2 stages no step each"):
            run_family(family(files, tmp_path / "short", *short), print)
    assert not list(tmp_path.glob("short/**/*.safetensors"))
    with pytest.raises(RecipeError, match=r"pruning.densities: 0.5 comes after 0.4"):
        family(files, tmp_path / "e", "pruning.densities=[0.4, 0.5]")
