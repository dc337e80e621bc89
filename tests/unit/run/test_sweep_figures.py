"""The table and the picture of a sweep, and which runs no other one beats."""

import csv
import itertools
from pathlib import Path
from typing import Any

import pytest

from sparse_trainer.run.page import PAGE_FILE
from sparse_trainer.run.sweep.figures import Figures, columns, front
from sparse_trainer.run.sweep.picture import write_picture
from sparse_trainer.run.sweep.sweep import Sweep
from tests.unit.run.test_page import Reader
from tests.unit.run.test_sweep_processes import runs


def figures(
    quality: float | None, seconds: float, dense: float | None = 0.9, metric: str = "accuracy"
) -> Figures:
    """Return what a run measured that takes so long for a batch of one; the dense model takes 8 seconds."""

    def model(value: float | None, parameters: int, latency: float) -> dict[str, Any]:
        return {
            "metrics": None if value is None else {metric: value, "f1": 0.5},
            "parameters": parameters,
            "file_bytes": 4 * parameters,
            "latencies": {
                "1": {"median": latency, "low": latency, "high": latency},
                "16": {"median": 16 * latency, "low": 0.0, "high": 99.0},
            },
        }

    conditions = {"device": "cpu", "dtype": "float32", "threads": 1, "sequence_length": 8, "rounds": 2}
    models = {"dense": model(dense, 100, 8.0), "pruned": model(quality, 40, seconds)}
    return Figures(result={"models": models, "conditions": conditions, "density_reached": 0.5})


def fine_tuned() -> Figures:
    """Return what a run without pruning measured."""
    whole = figures(0.8, 4.0).result
    return Figures(result={**whole, "models": {"dense": whole["models"]["dense"]}, "density_reached": None})


def test_cells_hold_what_was_measured_of_both_models() -> None:
    cells = figures(0.8, 4.0).cells()
    assert cells == {
        "accuracy": 0.8, "f1": 0.5, "dense_accuracy": 0.9, "dense_f1": 0.5, "density_reached": 0.5,
        "speedup_batch_1": 2.0, "speedup_batch_16": 2.0, "parameters": 40, "file_bytes": 160,
        "latency_batch_1": 4.0, "latency_batch_16": 64.0, "dense_parameters": 100, "dense_file_bytes": 400,
        "dense_latency_batch_1": 8.0, "dense_latency_batch_16": 128.0,
        "device": "cpu", "dtype": "float32", "threads": 1, "sequence_length": 8,
    }  # fmt: skip
    alone = fine_tuned()
    assert (alone.metrics, alone.dense_metrics, alone.speedups) == ({"accuracy": 0.9, "f1": 0.5}, {}, {})
    assert "dense_parameters" not in alone.cells()
    assert figures(None, 4.0, dense=None).metrics == {}


@pytest.mark.parametrize("seed", range(5))
def test_the_front_is_what_no_point_beats(seed: int) -> None:
    points = [((7 * i + seed) % 11 / 10, (5 * i + seed * i) % 13 / 10) for i in range(12)]
    best = front(points)
    for place, (x, y) in enumerate(points):
        beaten = any(a >= x and b >= y and (a, b) != (x, y) for a, b in points)
        assert ((x, y) in [points[i] for i in best]) == (not beaten), place
    assert all(
        points[i][0] < points[j][0] and points[i][1] > points[j][1] for i, j in itertools.pairwise(best)
    )
    assert front([]) == []


def test_columns_are_those_of_any_row() -> None:
    assert columns([{"a": 1, "b": 2}, {"a": 1, "c": 3}]) == ["a", "b", "c"]


def test_a_picture_needs_a_run_with_quality_and_speed(tmp_path: Path) -> None:
    assert not write_picture({}, tmp_path / "sweep.png")
    assert not write_picture({"a": fine_tuned(), "b": figures(None, 4.0)}, tmp_path / "sweep.png")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("dense", [0.9, None])
@pytest.mark.parametrize("metric", ["accuracy", "perplexity"])
def test_the_picture_shows_every_run_and_the_front(
    metric: str, dense: float | None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    drawn: list[Any] = []
    monkeypatch.setattr(
        "sparse_trainer.run.sweep.picture.save_picture", lambda figure, path: drawn.append(figure)
    )
    shown = {
        "a": figures(0.8, 4.0, dense, metric),
        "b": figures(0.5, 2.0, dense, metric),
        "c": figures(0.6, 4.0, dense, metric),
    }
    assert write_picture({**shown, "x": fine_tuned()}, tmp_path / "sweep.png")
    first, second = drawn[0].axes
    assert (first.get_title("left"), second.get_title("left")) == ("batch 1", "batch 16")
    assert first.get_ylabel() == metric
    assert [text.get_text() for text in first.texts] == ["a", "b", "c"]
    pruned = first.collections[0].get_offsets().tolist()
    assert pruned == [[2.0, 0.8], [4.0, 0.5], [2.0, 0.6]]
    assert len(first.collections) == (1 if dense is None else 2)
    points = [tuple(point) for point in first.lines[0].get_xydata().tolist()]
    most = {"accuracy": [(2.0, 0.8), (4.0, 0.5)], "perplexity": [(4.0, 0.5)]}[metric]
    assert points == ([(1.0, 0.9)] if dense and metric == "accuracy" else []) + most


def test_the_table_has_a_row_for_every_run_whatever_came_of_it(tmp_path: Path) -> None:
    planned = runs(tmp_path, 3)
    done = Sweep(runs=planned, root=tmp_path)
    done.write()
    assert [row["status"] for row in read(tmp_path)] == ["waiting"] * 3
    assert not done.picture.exists()
    done.finished["seed=0"], done.failed["seed=1"] = figures(0.8, 4.0), 'data: "x", y. Give rows.'
    done.write()
    rows = read(tmp_path)
    assert [row["status"] for row in rows] == ["finished", "failed", "waiting"]
    assert [row["training.seed"] for row in rows] == ["0", "1", "2"]
    assert [row["accuracy"] for row in rows] == ["0.8", "", ""]
    assert [row["error"] for row in rows] == ["", 'data: "x", y. Give rows.', ""]
    assert list(rows[0])[-2:] == ["folder", "error"]
    assert done.picture.read_bytes().startswith(b"\x89PNG")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["report.html", "sweep.csv", "sweep.png"]
    page = Reader(done.page.read_text(encoding="utf-8"))
    assert (page.open, page.crossed, page.headings) == ([], [], ["Summary", "Quality over speed"])
    assert {"seed=0", "seed=1", "80.0 %", "failed", "waiting"} <= set(page.words)
    (planned[0].result).mkdir(parents=True)
    (planned[0].result / PAGE_FILE).touch()
    done.write()
    page = Reader(done.page.read_text(encoding="utf-8"))
    assert [address for address in page.addresses if not address.startswith("#")] == [
        "seed=0/pruned/report.html"
    ]
    told = done.to_json()["runs"]
    assert [run["overrides"] for run in told] == [
        ["training.seed=0"],
        ["training.seed=1"],
        ["training.seed=2"],
    ]


def read(folder: Path) -> list[dict[str, str]]:
    with (folder / "sweep.csv").open(newline="") as file:
        return list(csv.DictReader(file))
