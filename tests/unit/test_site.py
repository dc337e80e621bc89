"""The documentation site: it builds without a warning, loads nothing from elsewhere, and holds every public name."""

import importlib
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
from lxml import html

ROOT = Path(__file__).parents[2]
LOADED = (
    "script/@src",
    "link[@rel='stylesheet' or @rel='preload' or @rel='icon']/@href",
    "img/@src",
    "iframe/@src",
)
"""What a browser fetches without being asked."""


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return the folder of the site, built with warnings as errors."""
    pytest.importorskip("material", reason="mkdocs-material is not installed: pip install -e '.[docs]'")
    pytest.importorskip("mkdocstrings", reason="mkdocstrings is not installed: pip install -e '.[docs]'")
    folder = tmp_path_factory.mktemp("site")
    command = [
        sys.executable,
        "-m",
        "mkdocs",
        "build",
        "--strict",
        "-f",
        "docs/site/mkdocs.yml",
        "-d",
        str(folder),
    ]
    environment = {**os.environ, "NO_MKDOCS_2_WARNING": "1"}
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    return folder


def test_pages_load_nothing_from_elsewhere(site: Path) -> None:
    foreign = [
        (page.relative_to(site), address)
        for page in site.rglob("*.html")
        for path in LOADED
        for address in html.parse(page).xpath(f"//{path}")
        if re.match(r"(\w+:)?//", address)
    ]
    assert foreign == []


@pytest.mark.parametrize("package", ["sparse_trainer", "patchers"])
def test_every_public_name_is_in_the_reference(package: str) -> None:
    shown = "\n".join(page.read_text(encoding="utf-8") for page in (ROOT / "docs/api").glob("*.md"))
    names = importlib.import_module(package).__all__
    assert [name for name in names if f"::: {package}.{name}\n" not in shown + "\n"] == []


def test_the_reference_shows_options_with_their_help(site: Path) -> None:
    page = html.parse(site / "api/arguments/index.html").getroot().text_content()
    assert "What density counts: params, macs (per token) or units." in page
