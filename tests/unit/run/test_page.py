"""The page of a run: whole, without a network, with all figures of the tables."""

import re
from dataclasses import replace
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest

from sparse_trainer.cut.decision import Decision
from sparse_trainer.one_shot.prune import prune
from sparse_trainer.plan.document import Plan
from sparse_trainer.plan.parts import Recovered
from sparse_trainer.run.latency import Latency
from sparse_trainer.run.page import PAGE_FILE, Page, render, write_page
from sparse_trainer.run.report import Comparison, Measured
from tests.architectures.tiny import tiny_model
from tests.unit.run.test_report import CONDITIONS, plan

VOID = {"meta", "br", "hr", "img", "input", "link", "path", "use"}
LOG = (
    {"loss": 0.7, "density": 0.9, "density_target": 0.9, "threshold": 0.1, "step": 10},
    {"eval_loss": 0.65, "eval_accuracy": 0.8, "eval_runtime": 1.0, "step": 15},
    {
        "loss": 0.6,
        "density": 0.5,
        "density_target": 0.5,
        "threshold": 0.2,
        "distillation_loss": 0.3,
        "step": 20,
    },
)


class Reader(HTMLParser):
    """Reads text and addresses, and notes elements that are not closed."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.crossed: list[str] = []
        self.words: list[str] = []
        self.addresses: list[str] = []
        self.headings: list[str] = []
        self.feed(text)
        self.close()

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.addresses += [
            value or "" for name, value in attrs if name in ("href", "src", "xlink:href", "action")
        ]
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.handle_starttag(tag, attrs)
        if tag not in VOID:
            self.open.pop()

    def handle_endtag(self, tag: str) -> None:
        if tag in VOID:
            return
        if not self.open or self.open.pop() != tag:
            self.crossed.append(tag)

    def handle_data(self, data: str) -> None:
        if self.open and self.open[-1] not in ("style", "script"):
            self.words.append(data.strip())
        if self.open and self.open[-1] == "h2":
            self.headings.append(data.strip())


def comparison() -> Comparison:
    def one(accuracy: float, parameters: int, median: float) -> Measured:
        latency = Latency(median=median, low=0.9 * median, high=1.25 * median)
        return Measured(
            metrics={"accuracy": accuracy, "f1": accuracy - 0.1},
            parameters=parameters,
            file_bytes=4 * parameters,
            latencies={1: latency, 16: replace(latency, median=1.1 * median)},
        )

    models = {"dense": one(0.913, 22_713_986, 0.0172), "pruned": one(0.905, 17_396_961, 0.0109)}
    return Comparison(models=models, conditions=CONDITIONS)


@pytest.fixture(scope="module")
def pruned() -> tuple[Plan, list[Decision]]:
    decisions: list[Decision] = []
    _, found = prune(tiny_model("llama"), criterion="magnitude", density=0.7, watch=decisions.append)
    return found, decisions


def test_a_page_holds_every_figure_of_the_table_and_closes_what_it_opens() -> None:
    page = Page(name="squad-bert", plan=plan(), comparison=comparison(), recipe="task: {name: x}", log=LOG)
    read = Reader(render(page))
    assert (read.open, read.crossed) == ([], [])
    words = " ".join(read.words)
    for row in comparison().rows():
        for cell in row:
            assert cell in words, cell
    for latency in comparison().models["pruned"].latencies.values():
        for seconds in (latency.median, latency.low, latency.high):
            assert f"{1e3 * seconds:.2f} ms" in words
    assert read.headings == [
        "Summary", "Widths and depth", "Training", "Quality against latency", "Latency", "Plan", "Recipe", "Versions",
    ]  # fmt: skip
    for line in ("loss", "distillation_loss", "density", "threshold", "accuracy"):
        assert line in words.split(), line
    assert "runtime" not in words


def test_a_page_loads_nothing(pruned: tuple[Plan, list[Decision]]) -> None:
    found, decisions = pruned
    text = render(Page(name="m", plan=found, comparison=comparison(), log=LOG, decisions=decisions))
    read = Reader(text)
    assert [address for address in read.addresses if not address.startswith("#")] == []
    assert re.findall(r"https?://|@import|url\((?!#)", text) == []
    assert "<script" not in text


def test_a_page_of_a_pruning_alone_shows_sizes_and_scores(
    pruned: tuple[Plan, list[Decision]], tmp_path: Path
) -> None:
    found, decisions = pruned
    write_page(tmp_path, Page(name="models/mine", plan=found, decisions=decisions))
    read = Reader((tmp_path / PAGE_FILE).read_text(encoding="utf-8"))
    assert read.headings == ["Summary", "Widths and depth", "Scores", "Plan", "Versions"]
    words = " ".join(read.words)
    assert f"{found.params['dense']:,}" in words
    assert f"{found.params['compact']:,}" in words
    assert found.versions["torch"] in words


def test_a_page_of_a_pruning_alone_shows_what_was_measured_and_calibrated(pruned: Any) -> None:
    page = Page(
        name="m",
        plan=pruned[0],
        metrics={"perplexity": {"dense": 12.0, "pruned": 15.0}},
        conditions="perplexity on 16 sequences",
        settings={"calibrated on": "8 x 64 tokens"},
    )
    words = Reader(render(page)).words
    assert words[words.index("Summary") :][:20].count("perplexity") == 1
    for word in ("12.00", "15.00", "1.25x", "perplexity on 16 sequences", "calibrated on", "8 x 64 tokens"):
        assert word in words, word


def test_a_page_shows_what_a_recovery_did(pruned: Any) -> None:
    done = Recovered(
        train="lora", data="text.txt", teacher=None, steps=1200, tokens=34567, perplexity_before=20.0,
        perplexity_after=15.5,
    )  # fmt: skip
    read = Reader(render(Page(name="m", plan=replace(pruned[0], recoveries=(done,)), log=LOG)))
    assert read.headings == ["Summary", "Widths and depth", "Training", "Recovery", "Plan", "Versions"]
    assert {"lora", "text.txt", "none", "1,200", "34,567", "20.00", "15.50"} <= set(read.words)


def test_what_others_wrote_stays_text() -> None:
    text = render(Page(name="<script>alert(1)</script>", plan=plan(), recipe="x: </pre><img src=http://a>"))
    assert "<script" not in text
    assert "<img" not in text
    assert (Reader(text).open, Reader(text).crossed) == ([], [])


def test_a_page_suits_dark_and_narrow_windows() -> None:
    text = render(Page(name="m", plan=plan(), comparison=comparison()))
    assert "prefers-color-scheme: dark" in text
    assert 'name="viewport"' in text
    # Axes and letters of pictures have the colour of the page's text.
    assert "currentColor" in text
    assert "#414a57" not in text
