"""Every model type again, against the committed verdicts: `pytest -m matrix`."""

from pathlib import Path

import pytest

from sparse_trainer.architectures.matrix import Matrix
from tests.architectures.measure import rerun


@pytest.mark.matrix
def test_no_type_that_passed_fails(tmp_path: Path) -> None:
    committed = Matrix.load()
    found = rerun(draft=tmp_path / "verdicts.jsonl").reports
    passed = [name for name, report in committed.reports.items() if report.ok]
    broken = {name: found[name].failed or found[name].reason for name in passed if not found[name].ok}
    assert broken == {}
    assert sum(report.ok for report in found.values()) >= len(passed)
