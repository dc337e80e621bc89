"""Hundreds of damaged inputs: each is a typed error or harmless, none hangs, none runs code."""

import json
import os
import subprocess
import sys
from collections import Counter
from pathlib import Path

import pytest

from tests.fuzz.mutations import CODE
from tests.fuzz.worker import SUBJECTS

ROOT = Path(__file__).parents[2]
MINUTES = 8


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return the folder in which a process has tried every input, beside code that marks that it ran."""
    folder = tmp_path_factory.mktemp("fuzz")
    (folder / CODE).mkdir()
    for file in (folder / f"{CODE}.py", folder / CODE / "__init__.py"):
        file.write_text(
            f"open({str(folder / 'ran')!r}, 'w').write('x')\ndef run(): pass\nclass Marked: pass\n"
        )
    environment = os.environ | {"HF_DATASETS_CACHE": str(folder / "cache"), "HF_HUB_OFFLINE": "1"}
    environment |= {"OMP_NUM_THREADS": "1", "PYTHONPATH": os.pathsep.join([str(ROOT), str(folder)])}
    with (folder / "outcomes.jsonl").open("w") as outcomes, (folder / "log").open("w") as log:
        subprocess.run(
            [sys.executable, "-m", "tests.fuzz.worker"], cwd=folder, env=environment, stdout=outcomes, stderr=log,
            timeout=60 * MINUTES, check=False,
        )  # fmt: skip
    return folder


def outcomes(place: Path) -> list[dict[str, str]]:
    return [json.loads(line) for line in (place / "outcomes.jsonl").read_text().splitlines()]


def test_it_went_to_the_end(place: Path) -> None:
    found = outcomes(place)
    assert found, (place / "log").read_text()[-2000:]
    assert found[-1]["outcome"] != "begun", f"hangs or kills: {found[-1]}"
    assert {row["subject"] for row in found} == set(SUBJECTS), (place / "log").read_text()[-2000:]
    assert sum(row["outcome"] != "begun" for row in found) >= 600


@pytest.mark.parametrize("subject", SUBJECTS)
def test_each_is_a_typed_error_or_harmless(place: Path, subject: str) -> None:
    counted = Counter(row["outcome"] for row in outcomes(place) if row["subject"] == subject)
    strange = {outcome: n for outcome, n in counted.items() if outcome not in ("typed", "accepted", "begun")}
    assert not strange
    assert counted["typed"] > 0


def test_none_runs_code(place: Path) -> None:
    assert outcomes(place)
    assert not (place / "ran").exists()
