"""The documentation site: it builds without a warning, loads nothing from elsewhere, and holds every public name."""

import importlib
import os
import re
import subprocess
import sys
from pathlib import Path
from urllib.parse import urljoin

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

LOOKUPS = {
    "guide by goal": ("guides/faster-bert/", "BERT, twice as fast"),
    "API of SparseTrainingArguments": ("api/arguments/", "distil_temperature"),
    "SQuAD": ("tasks/question-answering/", "squad-bert"),
    "LoRA": ("lora/", "get_peft_model"),
    "depth": ("guides/depth/", "block_influence"),
    "serving": ("guides/serve/", "trust_remote_code"),
    "resuming": ("guides/resume/", "--resume"),
    "FAQ": ("faq/", "Why is the pruned model not faster?"),
    "own criterion": ("extending/#criterion", "register_criterion"),
    "several GPUs": ("several-processes/", "torchrun"),
    "density table": ("guides/choose/#which-density-fine-pruning", "speed-up"),
    "out of memory": ("faq/#out-of-memory-while-it-trains", "gradient_accumulation_steps"),
}
"""What a new user looks for: the place that answers it, and words that stand there."""
CLICKS = 2


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


def test_the_wide_tables_of_model_types_have_the_whole_page(site: Path) -> None:
    page = html.parse(site / "architectures/index.html")
    [sidebar] = page.xpath("//*[@data-md-type='toc']")
    assert "hidden" in sidebar.attrib
    assert page.xpath("//table[@data-wide]//code[text()='bert']")


def links(site: Path, address: str) -> set[str]:
    """Return where the text of a page leads, its menus left out: addresses in the site, with anchors."""
    page = address.partition("#")[0]
    article = html.parse(site / page / "index.html").find(".//article")
    found = {urljoin(f"/{page}", href) for href in article.xpath(".//a/@href") if "://" not in href}
    return {link.removeprefix("/") for link in found}


@pytest.fixture(scope="module")
def near(site: Path) -> set[str]:
    """Return what lies within `CLICKS` of the front page."""
    found = {""}
    for _ in range(CLICKS):
        found |= {link for address in found for link in links(site, address) if is_page(link)}
    return found


def is_page(address: str) -> bool:
    """Tell pages from files."""
    return address.partition("#")[0].endswith("/") or address.startswith("#")


@pytest.mark.parametrize("question", LOOKUPS)
def test_a_look_up_takes_two_clicks(question: str, site: Path, near: set[str]) -> None:
    address, words = LOOKUPS[question]
    page, _, anchor = address.partition("#")
    assert address in near
    article = html.parse(site / page / "index.html").find(".//article")
    assert words in article.text_content()
    assert not anchor or article.xpath(f".//*[@id='{anchor}']")
