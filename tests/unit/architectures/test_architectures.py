"""The matrix of architectures as a command: printed, filtered, measured again, written, and robust against crashes."""

import json
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest

from sparse_trainer.architectures.case import Report
from sparse_trainer.architectures.matrix import MATRIX_FILE, Matrix
from sparse_trainer.cli.front import main
from sparse_trainer.errors import ArgumentError
from tests.architectures import measure
from tests.architectures.measure import merged, save
from tests.architectures.page import page, write_matrix

PASSING = Report(
    model_type="good",
    architecture="GoodModel",
    units={"heads": 4, "layers": 3},
    forms=["q…o"],
    untouched={"blocks.*.gate": "it is a Conv1d | no linear", "blocks.*.mix": "it is a Conv1d | no linear"},
    passed=["open", "save", "native", "reload"],
    notes={"float32 inside"},
)
FAILING = Report(
    model_type="poor", units={"heads": 4}, forms=["q…o"], passed=["open"], failed={"widths": "a\nb"}
)
UNKNOWN = Report(model_type="strange", architecture="StrangeModel", reason="no module of a known form.")
ABSENT = Report(model_type="absent", is_built=False, reason="needs a library.")
VERSIONS = {"transformers": "5.23.0", "torch": "2.13.0"}


@pytest.fixture
def made() -> Matrix:
    reports = {report.model_type: report for report in (ABSENT, PASSING, FAILING, UNKNOWN)}
    return Matrix(versions=VERSIONS, reports=reports)


def call(monkeypatch: pytest.MonkeyPatch, *arguments: str) -> int:
    monkeypatch.setattr(sys, "argv", ["sparse-trainer", "architectures", *arguments])
    with pytest.raises(SystemExit) as caught:
        main()
    return int(caught.value.code or 0)


def test_the_committed_verdicts_are_printed(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    assert call(monkeypatch, "bert", "--only", "llama") == 0
    shown = capsys.readouterr().out
    assert "bert" in shown
    assert "llama" in shown
    assert "2 of the 2 model types that can be built here pass every check" in " ".join(shown.split())

    assert call(monkeypatch, "bert", "--json") == 0
    row = json.loads(capsys.readouterr().out)["types"]["bert"]
    assert row["architecture"] == "BertModel"
    assert set(row["units"]) == {"heads", "attention", "channels", "ffn", "layers"}
    assert "reload" in row["passed"]

    assert call(monkeypatch, "bart", "lama-2") == 2
    assert "lama-2: is no model type of the matrix. Did you mean llama" in capsys.readouterr().err


def test_the_summary_counts(made: Matrix) -> None:
    assert made.summary() == (
        "1 of the 3 model types that can be built here pass every check; 1 fail one, 1 have nothing of a known "
        "form. 1 more cannot be built or run here (transformers 5.23.0, torch 2.13.0)."
    )


def test_a_matrix_survives_its_file(made: Matrix, tmp_path: Path) -> None:
    save(made, tmp_path / "matrix.json")
    again = Matrix.load(tmp_path / "matrix.json")
    assert again.reports == made.reports
    assert again.versions == made.versions


def test_the_page_has_a_row_per_type_in_the_table_of_its_verdict(made: Matrix) -> None:
    tables = page(made).split("## Verdicts")[1].split("\n### ")[1:]
    assert [table.split("\n")[0] for table in tables] == [
        "Pass every check (1)",
        "Fail a check (1)",
        "Nothing of a known form (1)",
        "Cannot be built or run here (1)",
    ]
    assert (
        "| `good` | `GoodModel` | heads, layers (q…o) | open save native reload | self-contained, native | "
        "`blocks.*.gate`, `blocks.*.mix`: it is a Conv1d / no linear; float32 inside |"
    ) in tables[0]
    assert "| `poor` | heads (q…o) | widths: a b | open |" in tables[1]
    assert "| `strange` | `StrangeModel` | no module of a known form. |" in tables[2]
    assert "| `absent` | needs a library. |" in tables[3]


def test_newer_rows_replace_older_ones_of_the_same_versions(made: Matrix) -> None:
    mended = Report(model_type="poor", units={"heads": 4}, forms=["q…o"], passed=["open", "widths"])
    both = merged(made, Matrix(versions=VERSIONS, reports={"poor": mended}))
    assert both.reports["poor"] == mended
    assert both.reports["good"] == PASSING
    other = Matrix(versions={"torch": "3"}, reports={"poor": mended})
    with pytest.raises(
        ArgumentError, match=r"transformers 5\.23\.0, torch 2\.13\.0, these with torch 3\. Check all"
    ):
        merged(made, other)
    everything = Matrix(versions={"torch": "3"}, reports=made.reports)
    assert merged(made, everything) is everything


def test_a_checkout_gets_the_matrix_and_its_page(tmp_path: Path) -> None:
    with pytest.raises(ArgumentError, match=r"is no folder\. Name a checkout of the project\."):
        write_matrix(Matrix.load(), tmp_path)
    (tmp_path / "sparse_trainer/architectures").mkdir(parents=True)
    (tmp_path / "docs").mkdir()
    write_matrix(Matrix.load(), tmp_path)
    written = tmp_path / "sparse_trainer/architectures/architectures.json"
    assert written.read_bytes() == MATRIX_FILE.read_bytes()
    assert (tmp_path / "docs/architectures.md").read_text(encoding="utf-8") == page(Matrix.load())


def test_a_type_that_ends_its_process_does_not_end_the_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The process ends at `crash` while it checks, and at `stuck` while it loads."""
    started: list[tuple[str, ...]] = []

    def worker(job: str, folder: Path, types: Sequence[str]) -> tuple[dict[str, Any], str]:
        started.append((job, *types))
        deadly = {"check": "crash", "reload": "stuck"}[job]
        done = types[: types.index(deadly)] if deadly in types else types
        verdict = {"check": {"passed": ["save"]}, "reload": ""}[job]
        return {name: {**verdict, "model_type": name} if job == "check" else "" for name in done}, "killed"

    types = ("first", "crash", "stuck", "last")
    monkeypatch.setattr(measure, "_in_process", worker)
    monkeypatch.setattr(measure, "model_types", lambda: types)
    draft = tmp_path / "draft.jsonl"
    found = measure.rerun(draft=draft).reports

    assert found["crash"].failed == {"process": "killed"}
    assert found["stuck"].failed == {"reload": "killed"}
    assert found["first"].passed == found["last"].passed == ["save", "reload"]
    assert started == [
        ("check", *types), ("reload", "first"), ("check", "stuck", "last"), ("reload", "stuck", "last"),
        ("reload", "last"),
    ]  # fmt: skip

    started.clear()
    assert measure.rerun(draft=draft).reports == found
    assert started == []
    with draft.open("a", encoding="utf-8") as file:
        file.write('["cut short", {"mod')
    assert measure.rerun(draft=draft).reports == found
    with pytest.raises(ArgumentError, match="lst: is no model type that can be built"):
        measure.rerun(["lst"])


@pytest.mark.parametrize("place", [".", "text.txt", "nowhere/draft"])
def test_a_draft_that_is_none_is_told_before_anything_is_measured(place: str, tmp_path: Path) -> None:
    (tmp_path / "text.txt").write_text("no verdicts\n")
    with pytest.raises(ArgumentError, match="draft"):
        measure.rerun(["bert"], draft=tmp_path / place)
