"""The files that a forge reads: they parse, and do not fall behind the release."""

import re
from pathlib import Path
from typing import Any

import pytest
import yaml

import sparse_trainer

ROOT = Path(__file__).parents[2]
TEMPLATES = [
    path for path in sorted((ROOT / ".github/ISSUE_TEMPLATE").glob("*.yml")) if path.stem != "config"
]


def test_the_citation_names_this_release() -> None:
    citation = yaml.safe_load((ROOT / "CITATION.cff").read_text(encoding="utf-8"))
    assert {"cff-version", "message", "title", "authors"} <= set(citation)
    assert citation["version"] == sparse_trainer.__version__


def test_the_changelog_has_this_release_below_what_is_to_come() -> None:
    text = (ROOT / "docs/CHANGELOG.md").read_text(encoding="utf-8")
    assert re.findall(r"^## (.+)$", text, re.MULTILINE)[:2] == ["Unreleased", sparse_trainer.__version__]


@pytest.mark.parametrize("path", TEMPLATES, ids=lambda path: path.stem)
def test_a_template_asks_for_something(path: Path) -> None:
    template: dict[str, Any] = yaml.safe_load(path.read_text(encoding="utf-8"))
    assert template["name"]
    assert template["description"]
    assert any(field.get("validations", {}).get("required") for field in template["body"])
    names = [field["id"] for field in template["body"]]
    assert len(names) == len(set(names))


def test_tested_versions_are_those_of_ci() -> None:
    """The table of versions says what the lists of CI install."""
    table = (ROOT / "docs/installation.md").read_text(encoding="utf-8")
    lowest = dict(
        line.split("==") for line in (ROOT / ".ci/lowest.txt").read_text().splitlines() if "==" in line
    )
    for library in ("torch", "transformers", "accelerate", "datasets", "peft"):
        row = re.search(rf"^\| {library} \|[^|]*\| ([\d.]+) \|", table, re.MULTILINE)
        assert row, library
        assert row[1] == lowest[library]
