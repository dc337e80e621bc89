"""What the documentation promises: its Python runs, its links and commands exist."""

import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch
from tokenizers import Tokenizer, models, pre_tokenizers, processors
from torch.utils.data import Dataset
from transformers import BertConfig, BertForSequenceClassification, EvalPrediction, PreTrainedTokenizerFast
from typer.testing import CliRunner

from sparse_trainer.cli.app import make_app
from sparse_trainer.cli.commands import COMMANDS
from tests.architectures.tiny import tiny_model
from tests.fixtures.image_text_models import tiny_image_text

ROOT = Path(__file__).parents[2]
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").rglob("*.md"))]
FENCE = re.compile(r"^```(\w*)\n(.*?)^```$", re.MULTILINE | re.DOTALL)
NEEDED = {
    "quantization.md": ("torchao",),
    "sweeps.md": ("optuna",),
    "with-other-trainers.md": ("trl", "sentence_transformers"),
}
"""What a page needs beyond the extra `dev`."""
ELSEWHERE = ("your-script-pruned.md", "onnx.md", "openvino.md", "executorch.md")
"""Pages whose Python needs what was made before: test_scripts.py and those of the conversions run them."""
LINK = re.compile(r"\[[^\]]+\]\(([^)\s]+)\)")


@dataclass(frozen=True)
class Block:
    """One fenced block of a page."""

    language: str
    line: int
    text: str


def name_of(page: Path) -> str:
    """Return what tests call a page: `guides/llm.md`."""
    return page.relative_to(ROOT).as_posix().removeprefix("docs/")


def blocks(page: Path) -> list[Block]:
    """Return the fenced blocks of a page, with the line their text starts on."""
    text = page.read_text(encoding="utf-8")
    return [
        Block(match[1], text.count("\n", 0, match.start()) + 2, match[2]) for match in FENCE.finditer(text)
    ]


def python_pages() -> list[Path]:
    """Return the pages that hold Python."""
    pages = [page for page in PAGES if page.name not in ELSEWHERE]
    return [page for page in pages if any(block.language == "python" for block in blocks(page))]


def anchors(page: Path) -> set[str]:
    """Return the anchors a Markdown viewer gives the page's headings."""
    text = FENCE.sub("", page.read_text(encoding="utf-8"))
    titles = re.findall(r"^#+ (.+)$", text, re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", title.lower()).replace(" ", "-") for title in titles}


class Pairs(Dataset[dict[str, torch.Tensor]]):
    """Rows of two token ids after the start token; the label is whether they are equal."""

    def __init__(self, rows: int, seed: int) -> None:
        self.pairs = torch.randint(4, 8, (rows, 2), generator=torch.Generator().manual_seed(seed))

    def __len__(self) -> int:
        return len(self.pairs)

    def __getitem__(self, index: int) -> dict[str, torch.Tensor]:
        ids = torch.cat([torch.tensor([2]), self.pairs[index]])
        label = (self.pairs[index, 0] == self.pairs[index, 1]).long()
        return {"input_ids": ids, "attention_mask": torch.ones_like(ids), "labels": label}


def tiny_tokenizer() -> PreTrainedTokenizerFast:
    """Return a whole-word tokenizer of eight words."""
    words = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "a", "good", "question", "?"]
    backend = Tokenizer(models.WordLevel({word: index for index, word in enumerate(words)}, "[UNK]"))
    backend.pre_tokenizer = pre_tokenizers.Whitespace()
    backend.post_processor = processors.TemplateProcessing("[CLS] $A", None, [("[CLS]", 2)])
    return PreTrainedTokenizerFast(
        tokenizer_object=backend, pad_token="[PAD]", unk_token="[UNK]", eos_token="[SEP]"
    )


def classifier() -> BertForSequenceClassification:
    """Return a tiny model for the words of `tiny_tokenizer`."""
    torch.manual_seed(0)
    config = BertConfig(
        vocab_size=8,
        hidden_size=32,
        num_hidden_layers=2,
        num_attention_heads=4,
        intermediate_size=64,
        max_position_embeddings=16,
    )
    return BertForSequenceClassification(config)


def embedder(folder: Path) -> Any:
    """Return a tiny text embedding model."""
    from sentence_transformers import SentenceTransformer
    from sentence_transformers.models import Pooling, Transformer

    classifier().bert.save_pretrained(folder)
    tokenizer = tiny_tokenizer()
    tokenizer.model_max_length = 16
    tokenizer.save_pretrained(folder)
    return SentenceTransformer(modules=[Transformer(str(folder)), Pooling(32)], device="cpu")


def count_right(prediction: EvalPrediction) -> dict[str, float]:
    """Return the accuracy."""
    return {"accuracy": float((prediction.predictions.argmax(-1) == prediction.label_ids).mean())}


def given() -> dict[str, Any]:
    """Return the names the pages take as given: a tiny model, its tokenizer, data and a metric."""
    return {
        "model": classifier(),
        "classifier": classifier(),
        "tokenizer": tiny_tokenizer(),
        "train": Pairs(64, seed=1),
        "validation": Pairs(16, seed=2),
        "compute_metrics": count_right,
        "language_model": tiny_model("llama", dtype=torch.float32),
        "calibration": [{"input_ids": torch.randint(4, 90, (2, 64))} for _ in range(4)],
    }


# A line of a script that the porting page quotes as it is: `float(loss)`.
@pytest.mark.filterwarnings("ignore:Converting a tensor with requires_grad=True to a scalar:UserWarning")
# Of other libraries, when they are imported or train.
@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::FutureWarning")
@pytest.mark.parametrize("page", python_pages(), ids=name_of)
def test_python_of_the_page_runs(page: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A page is one story: its blocks run in order, in one namespace, in an empty folder."""
    for library in NEEDED.get(page.name, ()):
        pytest.importorskip(library, reason=f"{library} is not installed")
    monkeypatch.chdir(tmp_path)
    namespace = given()
    if page.name == "with-other-trainers.md":
        namespace["embedder"] = embedder(tmp_path / "tiny")
    if page.name == "image-text.md":
        namespace["image_text_model"], namespace["processor"] = tiny_image_text("llava_next")
    for block in blocks(page):
        if block.language == "python":
            code = "\n" * (block.line - 1) + block.text
            exec(compile(code, str(page), "exec"), namespace)


@pytest.mark.parametrize("page", PAGES, ids=name_of)
def test_links_lead_somewhere(page: Path) -> None:
    text = FENCE.sub("", page.read_text(encoding="utf-8"))
    broken = []
    for link in LINK.findall(text):
        if link.startswith(("https://", "http://")):
            continue
        name, _, anchor = link.partition("#")
        target = (page.parent / name) if name else page
        if not target.exists() or (anchor and anchor not in anchors(target)):
            broken.append(link)
    assert broken == []


@pytest.mark.parametrize("page", PAGES, ids=name_of)
def test_commands_exist(page: Path) -> None:
    """Every `sparse-trainer COMMAND` of a shell block has a help page."""
    shell = "\n".join(block.text for block in blocks(page) if block.language == "bash")
    for command in sorted(set(re.findall(r"\bsparse-trainer ([a-z][a-z-]*)", shell))):
        assert CliRunner().invoke(make_app(COMMANDS), [command, "--help"]).exit_code == 0, command


def test_read_me_holds_the_command_that_ci_runs() -> None:
    commands = (ROOT / "README.md").read_text(encoding="utf-8").splitlines()
    assert 'pip install -e ".[dev]" && pytest' in commands


def test_every_page_is_in_the_menu_of_the_site() -> None:
    """A page that is not cannot be found there, and the site does not build."""
    menu = (ROOT / "docs/site/mkdocs.yml").read_text(encoding="utf-8").partition("\nnav:")[2]
    pages = [
        page.relative_to(ROOT / "docs").as_posix() for page in PAGES if page.is_relative_to(ROOT / "docs")
    ]
    assert [page for page in pages if not re.search(rf"[ :]{re.escape(page)}$", menu, re.MULTILINE)] == []
