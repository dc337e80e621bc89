"""Every law on a tiny model of each form of attention and feed-forward; and the committed verdicts on all types."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

from sparse_trainer.architectures.matrix import MATRIX_FILE, Matrix
from tests.architectures.measure import save
from tests.architectures.page import page
from tests.architectures.worker import check_type

ROOT = Path(__file__).parents[2]
# At least one type per form, and per arrangement of blocks.
TYPES = (
    "albert", "bart", "bert", "bloom", "clip", "deberta-v2", "distilbert", "falcon", "gemma2", "gpt2", "gpt_neox",
    "gpt_oss", "llama", "llava", "mixtral", "modernbert", "mpnet", "mpt", "phi3", "qwen2_moe", "qwen3", "swin", "t5",
    "vit", "whisper", "zamba",
)  # fmt: skip
PROMISED = (
    "albert", "bart", "bert", "blip_2_qformer", "bloom", "camembert", "clip", "cohere", "cohere2", "deberta-v2",
    "deit", "dinov2", "distilbert", "electra", "falcon", "gemma", "gemma2", "gemma3", "gpt2", "gpt_bigcode", "gpt_neo",
    "gpt_neox", "gpt_oss", "gptj", "granite", "llama", "llava", "longt5", "m2m_100", "marian", "mbart", "mistral",
    "mixtral", "modernbert", "mpnet", "mt5", "olmo2", "opt", "pegasus", "phi", "phi3", "qwen2", "qwen2_moe", "qwen3",
    "qwen3_moe", "roberta", "roformer", "siglip", "smollm3", "stablelm", "starcoder2", "t5", "vit", "wav2vec2",
    "whisper", "xglm", "xlm-roberta",
)  # fmt: skip
HIDDEN = (
    "bert", "camembert", "deberta-v2", "distilbert", "electra", "gpt2", "llama", "mistral", "mpnet", "phi3", "qwen2",
    "qwen3", "roberta", "xlm-roberta",
)  # fmt: skip
LEAST = 200


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("conformance")


@pytest.fixture(scope="module")
def committed() -> Matrix:
    return Matrix.load()


@pytest.mark.parametrize("model_type", TYPES)
def test_every_law_holds(model_type: str, folder: Path) -> None:
    report = check_type(model_type, folder)
    assert report.ok, report.failed or report.reason
    assert {"open", "widths", "kinds", "backward", "save"} <= set(report.passed)


def test_a_fresh_process_loads_what_was_cut(folder: Path) -> None:
    # Whatever this process has checked so far, which may be nothing where several share the tests.
    for model_type in ("bert", "llama"):
        if not (folder / model_type).is_dir():
            check_type(model_type, folder)
    saved = [path.name for path in sorted(folder.iterdir())]
    answers = folder.parent / f"{folder.name}.jsonl"
    subprocess.run(
        [
            sys.executable,
            "-m",
            "tests.architectures.worker",
            "reload",
            str(answers),
            str(folder),
            *saved,
        ],
        check=True,
        capture_output=True,
    )
    found = dict(json.loads(line) for line in answers.read_text(encoding="utf-8").splitlines())
    assert found == dict.fromkeys(saved, "")
    assert found


def test_the_committed_matrix_keeps_its_promises(committed: Matrix) -> None:
    passing = {name for name, report in committed.reports.items() if report.ok}
    assert set(PROMISED) - passing == set()
    assert len(passing) >= LEAST
    assert all("reload" in committed.reports[name].passed for name in passing)
    assert all("hidden" in committed.reports[name].passed for name in HIDDEN)
    assert str(len(passing)) in committed.summary()


def test_every_type_has_one_verdict(committed: Matrix) -> None:
    for name, report in committed.reports.items():
        assert report.model_type == name
        assert bool(report.reason) != bool(report.passed or report.failed), name
        assert report.is_built or report.reason, name
        assert not report.passed or (report.units and report.forms and report.architecture), name
    assert set(TYPES) <= committed.reports.keys()


def test_the_page_is_made_from_the_matrix(committed: Matrix, tmp_path: Path) -> None:
    assert (ROOT / "docs/architectures.md").read_text(encoding="utf-8") == page(committed)
    save(committed, tmp_path / "again.json")
    assert (tmp_path / "again.json").read_bytes() == MATRIX_FILE.read_bytes()
