"""A speed-up asked of a recipe and of the command line: plan, card and terminal say what was asked and measured."""

import json
import sys
from dataclasses import replace
from functools import partial
from pathlib import Path

import pytest
import torch
from transformers import LlamaForCausalLM, PreTrainedModel

from patchers.units import Structure
from sparse_trainer.budget.latency import store
from sparse_trainer.budget.latency.conditions import TimingConditions
from sparse_trainer.budget.latency.foreign import read_csv
from sparse_trainer.budget.latency.measure import measure_table
from sparse_trainer.budget.latency.store import CACHE_VARIABLE
from sparse_trainer.budget.latency.table import LatencyTable
from sparse_trainer.budget.latency.trial import Pair
from sparse_trainer.budget.time_target import TimeTarget
from sparse_trainer.cli.front import main
from sparse_trainer.plan.document import Plan
from sparse_trainer.run import speed
from sparse_trainer.run.pipeline import run
from sparse_trainer.training import timed
from tests.fixtures.recipe_files import small, write_small_files, write_text, write_tiny_llama

PHONE = "kind,units,milliseconds\nrest,1,1\nlayers,1,0.2\nheads,4,2\nheads,3,1.5\nchannels,48,4\n"


@pytest.fixture(autouse=True)
def _offline(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr("sparse_trainer.tasks.metrics.hub_reachable", lambda: False)
    monkeypatch.setenv(CACHE_VARIABLE, str(tmp_path / "cache"))
    monkeypatch.setattr(store, "measure_table", partial(measure_table, seconds=0.05))


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_small_files(tmp_path_factory.mktemp("recipes"))


def phone(folder: Path) -> Path:
    file = folder / "phone.csv"
    file.write_text(PHONE)
    return file


def test_the_finished_model_is_timed_and_what_is_missed_is_said(
    files: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def measure(model: PreTrainedModel, structure: Structure, target: TimeTarget) -> LatencyTable:
        return replace(read_csv(phone(tmp_path)), conditions=TimingConditions.of(model, target))

    pair = Pair(dense=0.02, pruned=0.0195, noise=0.01)
    monkeypatch.setattr(store, "measure_table", measure)
    monkeypatch.setattr(speed, "time_pair", lambda *_: pair)
    monkeypatch.setattr(timed, "time_pair", lambda *_: pair)
    asked = ("pruning.target=latency", "pruning.speedup=1.1", "pruning.sequence_length=16")
    run(small("boolq-local", files, tmp_path, *asked, "export.verify=false"), print)
    plan = Plan.load(tmp_path / "pruned")
    assert plan.speed is not None
    assert plan.speed["speedup_measured"] == pytest.approx(0.02 / 0.0195)
    assert plan.speed["milliseconds"] == {"dense": 20.0, "compact": pytest.approx(19.5)}
    assert (
        "measured 1.03 times, 20 ms before and 19.5 ms after"
        in (tmp_path / "pruned" / "README.md").read_text()
    )
    assert "speedup=1.1 is missed by 7 %" in caplog.text


def test_the_command_line_prunes_to_a_speed_up(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    model, out = write_tiny_llama(tmp_path / "llama"), tmp_path / "out"
    text = write_text(tmp_path / "text.txt", 300)
    options = [
        "--speedup",
        "1.3",
        "--batch",
        "2",
        "--sequence-length",
        "16",
        "--device",
        "cpu",
        "--no-pictures",
    ]
    words = ["--calibration", str(text), "--samples", "4", "--length", "16", "--criterion", "wanda"]
    options += ["--latency-table", str(phone(tmp_path))]
    monkeypatch.setattr(
        sys, "argv", ["sparse-trainer", "prune", str(model), str(out), *options, *words, "--json"]
    )
    with pytest.raises(SystemExit) as ended:
        main()
    assert not ended.value.code
    facts = json.loads(capsys.readouterr().out)
    assert facts["speed"]["speedup_expected"] == pytest.approx(1.3, rel=0.06)
    assert facts["speed"] == Plan.load(out).speed


def test_the_command_line_writes_the_table_that_a_pruning_reads(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Which loads a model as it is stored, and so does what makes the table."""
    model, file = write_tiny_llama(tmp_path / "llama"), tmp_path / "table.json"
    LlamaForCausalLM.from_pretrained(model).to(torch.bfloat16).save_pretrained(model)
    options = ["timing", str(model), "--sequence-length", "8", "--out", str(file)]
    monkeypatch.setattr(sys, "argv", ["sparse-trainer", *options])
    with pytest.raises(SystemExit) as ended:
        main()
    assert not ended.value.code
    assert "heads of LlamaDecoderLayer" in capsys.readouterr().out
    conditions = json.loads(file.read_text())["conditions"]
    assert (conditions["sequence_length"], conditions["dtype"]) == (8, "bfloat16")
    other = ["prune", str(model), str(tmp_path / "out"), "--speedup", "1.1", "--latency-table", str(file)]
    monkeypatch.setattr(
        sys,
        "argv",
        ["sparse-trainer", *other, "--criterion", "magnitude", "--no-pictures", "--sequence-length", "16"],
    )
    with pytest.raises(SystemExit) as ended:
        main()
    assert ended.value.code
    assert "sequence_length: 8 there, 16 here" in capsys.readouterr().err
