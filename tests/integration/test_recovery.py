"""Recovery of a model that was cut: from the command line and in recipes, to a folder that loads in a new process."""

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn
from transformers import AutoModelForCausalLM, PreTrainedModel

from sparse_trainer.cli.front import main
from sparse_trainer.errors import (
    ArgumentError,
    CheckpointError,
    DataError,
    NonFiniteError,
    SparseTrainerError,
)
from sparse_trainer.folders.load import load_pruned
from sparse_trainer.plan.document import Plan
from sparse_trainer.run import recovery
from sparse_trainer.run.options import CalibrationOptions, PruneSection, SourceOptions
from sparse_trainer.run.pipeline import run
from sparse_trainer.run.prune_folder import prune_folder
from sparse_trainer.run.recipes.load import load_recipe
from sparse_trainer.run.recover_folder import recover_folder
from sparse_trainer.run.recovery_options import RecoveryOptions
from tests.fixtures.recipe_files import write_text, write_tiny_llama
from tests.unit.run.test_page import Reader

pytest.importorskip("peft", reason="peft is not installed")
TRAINS = ("lora", "norms-and-biases", "all")


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Write a model, one that lost a layer and channels unevenly, one with zeros, and text."""
    folder = tmp_path_factory.mktemp("recovery")
    write_tiny_llama(folder / "dense")
    write_text(folder / "text.txt", 60)
    text = CalibrationOptions(source=str(folder / "text.txt"), samples=6, length=24)
    layers = PruneSection(criterion="block_influence", density={"layers": 0.67})
    widths = PruneSection(criterion="magnitude", density={"channels": 0.7}, scope="global")
    weights = PruneSection(criterion="magnitude", density=0.5, units=("weights",))
    for before, after, options, calibration in (
        ("dense", "shorter", layers, text),
        ("shorter", "cut", widths, None),
        ("dense", "zeros", weights, None),
    ):
        source = SourceOptions(name_or_path=str(folder / before), device="cpu")
        prune_folder(source, folder / after, options, calibration, draw=False, tell=lambda line: None)
    return folder


def recover(files: Path, out: Path, *, model: str = "cut", dtype: Any = "auto", **options: Any) -> Any:
    """Recover a tiny model with few steps; return what was said of it."""
    known = RecoveryOptions(**{**small(files), **options})
    source = SourceOptions(name_or_path=str(files / model), device="cpu", dtype=dtype)
    return recover_folder(source, out, known, tell=lambda line: None)[1]


def small(files: Path) -> dict[str, Any]:
    return {
        "data": str(files / "text.txt"),
        "length": 24,
        "batch_size": 4,
        "steps": 12,
        "learning_rate": 1e-2,
    }


def weights(folder: Path, **options: Any) -> dict[str, torch.Tensor]:
    return {name: p.detach() for name, p in load_pruned(folder, **options).named_parameters()}


@pytest.mark.parametrize("train", TRAINS)
def test_a_recovered_model_says_better_what_was_held_out(train: str, files: Path, tmp_path: Path) -> None:
    done = recover(
        files, tmp_path / "out", train=train, teacher=str(files / "dense") if train == "lora" else None
    )
    assert done["perplexity_after"] < done["perplexity_before"]
    before, after = weights(files / "cut"), weights(tmp_path / "out")
    assert {name: w.shape for name, w in before.items()} == {name: w.shape for name, w in after.items()}
    changed = {name for name, w in before.items() if not torch.equal(w, after[name])}
    small_ones = {name for name, w in before.items() if w.ndim <= 1}
    if train == "norms-and-biases":
        assert changed == small_ones
    elif train == "lora":
        assert changed
        assert not changed & {*small_ones, "model.embed_tokens.weight", "lm_head.weight"}
    then, now = Plan.load(files / "cut"), Plan.load(tmp_path / "out")
    assert now.recoveries == (done,)
    assert now.groups == then.groups
    card = (tmp_path / "out" / "README.md").read_text()
    assert f"| {train} | text.txt | {'dense' if train == 'lora' else '–'} | 12 |" in card
    assert str(tmp_path) not in card
    assert "split: validation" not in card
    assert "type: perplexity" in card
    text = (tmp_path / "out" / "report.html").read_text(encoding="utf-8")
    page = Reader(text)
    assert (page.open, page.crossed) == ([], [])
    assert {"Summary", "Training", "Recovery", "Plan", "Versions"} <= set(page.headings)
    assert {"loss", f"{done['perplexity_after']:.2f}", "text.txt"} <= set(page.words)
    assert str(files) not in text
    assert (tmp_path / "out" / "curves.png").is_file()


def test_the_folder_loads_in_a_process_without_our_packages(files: Path, tmp_path: Path) -> None:
    recover(files, tmp_path / "out", steps=1)
    script = (
        "import sys, transformers\n"
        "model = transformers.AutoModelForCausalLM.from_pretrained(sys.argv[1], trust_remote_code=True)\n"
        "assert not any(name.split('.')[0] in ('sparse_trainer', 'patchers', 'peft') for name in sys.modules)\n"
        "print(sum(p.double().sum().item() for p in model.parameters()))"
    )
    done = subprocess.run(
        [sys.executable, "-I", "-c", script, str(tmp_path / "out")],
        capture_output=True,
        text=True,
        check=True,
    )
    here = sum(w.double().sum().item() for w in weights(tmp_path / "out").values())
    assert float(done.stdout) == pytest.approx(here, abs=1e-9)


@pytest.mark.parametrize("train", TRAINS)
def test_bfloat16_stays_and_learns(train: str, files: Path, tmp_path: Path) -> None:
    done = recover(files, tmp_path / "out", train=train, dtype="bfloat16")
    assert done["perplexity_after"] < done["perplexity_before"]
    assert {w.dtype for w in weights(tmp_path / "out", dtype="auto").values()} == {torch.bfloat16}


@pytest.mark.parametrize("train", TRAINS)
def test_zeros_of_masks_stay_zero(train: str, files: Path, tmp_path: Path) -> None:
    recover(files, tmp_path / "out", model="zeros", train=train)
    before, after = weights(files / "zeros"), weights(tmp_path / "out")
    masked = Plan.load(tmp_path / "out").zeros
    assert masked
    for name in masked:
        assert torch.equal(before[name] == 0, after[name] == 0)


def test_adapters_that_overflow_where_they_are_merged_are_refused(files: Path) -> None:
    """Both are finite: float32 adapters, and the float16 weight that they are added to."""
    model = load_pruned(files / "cut").half()
    options = RecoveryOptions(**small(files))
    with pytest.raises(NonFiniteError, match="nothing was written"):
        overflow(model, options)


def overflow(model: PreTrainedModel, options: RecoveryOptions) -> None:
    with recovery._learning(model, options) as student:
        for name, parameter in student.named_parameters():
            if "lora_" in name:
                parameter.data.fill_(300.0)


@pytest.mark.parametrize("train", TRAINS)
def test_a_loss_that_is_no_number_stops_and_the_last_good_folder_stays(
    train: str, files: Path, tmp_path: Path
) -> None:
    recover(files, tmp_path / "out", steps=1)
    good = {path.name: path.read_bytes() for path in (tmp_path / "out").iterdir()}
    source = SourceOptions(name_or_path=str(files / "cut"), device="cpu")
    wild = RecoveryOptions(**{**small(files), "train": train, "learning_rate": 1e38, "steps": 40})
    with pytest.raises(NonFiniteError, match="nothing was written"):
        recover_folder(source, tmp_path / "out", wild, overwrite=True, tell=lambda line: None)
    assert {path.name: path.read_bytes() for path in (tmp_path / "out").iterdir()} == good


def test_a_recovery_goes_on_and_refuses_other_options(files: Path, tmp_path: Path) -> None:
    source = SourceOptions(name_or_path=str(files / "cut"), device="cpu")

    def go(out: str, resume: bool = False, **options: Any) -> Any:
        known = RecoveryOptions(**{**small(files), **options})
        return recover_folder(
            source,
            tmp_path / out,
            known,
            checkpoints=tmp_path / "steps",
            save_steps=4,
            resume=resume,
            tell=print,
        )

    with pytest.raises(CheckpointError, match="no complete checkpoint"):
        go("out", resume=True)
    go("whole")
    with pytest.raises(CheckpointError, match="work of an earlier recovery"):
        go("again")
    with pytest.raises(CheckpointError, match="rank was 8 and is 4 now"):
        go("again", resume=True, rank=4)
    go("again", resume=True)  # all steps are taken: what is left is to merge and to save
    one, other = weights(tmp_path / "whole"), weights(tmp_path / "again")
    assert all(torch.equal(w, other[name]) for name, w in one.items())


def test_minutes_end_a_training(files: Path, tmp_path: Path) -> None:
    assert 1 <= recover(files, tmp_path / "out", steps=None, minutes=1e-4)["steps"] < 1000


def test_mistakes_are_found_before_a_model_is_loaded(
    files: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("sparse_trainer.run.options.load_model", _no_loading)
    told: tuple[tuple[type[SparseTrainerError], str, dict[str, Any]], ...] = (
        (ArgumentError, r"targets: no module is called 'q_prj'", {"targets": ("q_prj",)}),
        (DataError, r"data: .*no such file", {"data": str(tmp_path / "none.txt")}),
        (ArgumentError, r"length: ", {"length": 10**6}),
        (ArgumentError, r"teacher: 'dense' is of recipes", {"teacher": "dense"}),
        (ArgumentError, r"answers: belongs to instructions", {"answers": "reply"}),
    )
    for error, message, options in told:
        with pytest.raises(error, match=message):
            recover(files, tmp_path / "out", **options)
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "thesis.tex").write_text("years of work")
    with pytest.raises(CheckpointError, match="not ours to replace"):
        recover(files, tmp_path / "full")
    monkeypatch.setattr("sparse_trainer.run.lora.importlib.util.find_spec", lambda name: None)
    with pytest.raises(ArgumentError, match=r"peft is not installed\. Run `pip install"):
        recover(files, tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_a_model_that_was_not_cut_is_refused(files: Path, tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match="carries no plan"):
        recover(files, tmp_path / "out", model="dense")


def _no_loading(*_: Any, **__: Any) -> nn.Module:
    raise AssertionError("the model was loaded")


def test_the_command_line_recovers(
    files: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    asked = [files / "cut", tmp_path / "out", "--data", files / "text.txt", "--length", 24, "--steps", 2]
    asked += ["--batch-size", 4, "--targets", "q_proj", "--targets", "down_proj", "--device", "cpu", "--json"]
    monkeypatch.setattr(sys, "argv", ["sparse-trainer", "recover", *map(str, asked)])
    for code, key in ((0, "perplexity_after"), (2, "error")):
        with pytest.raises(SystemExit) as caught:
            main()
        assert caught.value.code == code
        assert key in json.loads(capsys.readouterr().out)


def test_a_recipe_prunes_in_stages_and_recovers(
    files: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # Drawing takes longer than all else here; other tests draw.
    monkeypatch.setattr(
        "sparse_trainer.run.pictures.save_picture", lambda figure, path: path.write_bytes(b"drawn")
    )
    recipe = load_recipe(
        "llama-staged-lora",
        [
            f"model.name_or_path={files / 'dense'}",
            "model.device=cpu",
            f"calibration.file={files / 'text.txt'}",
            "calibration.samples=6",
            "calibration.length=24",
            "stages.0.density={layers: 0.67}",
            f"recovery.data={files / 'text.txt'}",
            "recovery.length=24",
            "recovery.tokens=400",
            f"evaluation.files.wikitext2={files / 'text.txt'}",
            "evaluation.max_tokens=120",
            f"export.output_dir={tmp_path / 'out'}",
            "export.latency_rounds=1",
            "export.latency_sequence_length=8",
            "export.verify_samples=2",
        ],
    )
    result = run(recipe, lambda line: None)
    assert result.plan is not None
    assert result.reloaded is not None
    assert result.reloaded.same_predictions == result.reloaded.samples
    (done,) = Plan.load(tmp_path / "out").recoveries
    assert (done["train"], done["teacher"], done["steps"]) == ("lora", "dense", 3)
    assert "## Recovered" in (tmp_path / "out" / "README.md").read_text()
    loaded = AutoModelForCausalLM.from_pretrained(tmp_path / "out", trust_remote_code=True)
    assert loaded.config.num_hidden_layers == 2


def test_checkpoints_of_others_stay_and_none_lie_in_the_result(files: Path, tmp_path: Path) -> None:
    foreign = tmp_path / "steps" / "checkpoint-5"
    foreign.mkdir(parents=True)
    (foreign / "trainer_state.json").write_text("{}")
    source = SourceOptions(name_or_path=str(files / "cut"), device="cpu")
    options = RecoveryOptions(**small(files))
    for place, message in (
        (tmp_path / "steps", "not ours"),
        (tmp_path / "out" / "steps", "Name a folder beside"),
    ):
        with pytest.raises(SparseTrainerError, match=message):
            recover_folder(
                source, tmp_path / "out", options, checkpoints=place, overwrite=True, tell=lambda line: None
            )
    assert foreign.is_dir()
    assert not (tmp_path / "out").exists()


def test_options_of_adapters_are_refused_without_them(files: Path) -> None:
    for option in ({"targets": ("q_proj",)}, {"rank": 4}, {"alpha": 1.0}):
        with pytest.raises(ArgumentError, match="is of adapters"):
            RecoveryOptions(**{**small(files), "train": "all", **option})
