"""The folder of a pruned model: what is in it, and what happens when writing fails."""

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoModelForSequenceClassification, PreTrainedModel

from patchers.discovery.discover import discover
from patchers.modeling_pruned import stock_class_of
from patchers.patching.gates import Gate
from patchers.patching.patch import gates_by_group, patch
from sparse_trainer.cut.optimize import optimize_model
from sparse_trainer.cut.record import plan_of
from sparse_trainer.cut.self_check import SelfCheckError
from sparse_trainer.errors import ArgumentError, CheckpointError
from sparse_trainer.folders.padded import padded
from sparse_trainer.folders.replace import check_target
from sparse_trainer.folders.save import save_pruned
from sparse_trainer.inputs.make import forward_outputs as run
from sparse_trainer.inputs.make import inputs_for
from sparse_trainer.plan.document import PLAN_FILE, Plan
from tests.architectures.tiny import tiny_model
from tests.fixtures.compact_models import DECISIONS, FAMILIES, even_keep, logits, patched, tiny, uneven_keep
from tests.fixtures.same import assert_same


class FakeProcessor:
    """Writes one file, or fails half-way."""

    def __init__(self, error: BaseException | None = None) -> None:
        self.error = error

    def save_pretrained(self, save_directory: Any, **kwargs: Any) -> None:
        """Write the file, then fail if asked to."""
        Path(save_directory, "tokenizer.json").write_text("{}", encoding="utf-8")
        if self.error is not None:
            raise self.error


def answers(model: PreTrainedModel) -> list[torch.Tensor]:
    """Return what a model of any sort says to made-up inputs."""
    return run(model, inputs_for(model))


def compact_model(decision: str = "uneven", family: str = "bert") -> PreTrainedModel:
    """Return a small model that was cut."""
    model = tiny(family)
    return optimize_model(patched(model, DECISIONS[decision](discover(model))))


def contents(folder: Path) -> dict[str, bytes]:
    """Return every file below a folder."""
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def test_a_self_contained_folder_is_whole(tmp_path: Path) -> None:
    model = compact_model()
    folder = save_pruned(
        model,
        tmp_path / "deep" / "out",
        processor=FakeProcessor(),
        metrics={"accuracy": {"dense": 0.75, "pruned": 0.5}},
    )
    assert set(contents(folder)) == {
        ".pruning_files.json",
        "README.md",
        "config.json",
        "model.safetensors",
        "modeling_pruned.py",
        "pruning_plan.json",
        "tokenizer.json",
    }
    assert Plan.load(folder) == plan_of(model)
    assert "| accuracy | 0.75 | 0.5 |" in (folder / "README.md").read_text(encoding="utf-8")
    assert [path.name for path in folder.parent.iterdir()] == ["out"]


def test_a_native_folder_holds_no_code_of_ours(tmp_path: Path) -> None:
    folder = save_pruned(compact_model("even"), tmp_path / "out")
    assert "modeling_pruned.py" not in contents(folder)
    config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    assert not {"pruning", "auto_map"} & config.keys()
    assert "trust_remote_code" not in (folder / "README.md").read_text(encoding="utf-8")


@pytest.mark.parametrize("decision", ["uneven", "branches"])
@pytest.mark.parametrize("family", FAMILIES)
def test_padding_fits_the_stock_class_and_changes_nothing(family: str, decision: str, tmp_path: Path) -> None:
    model = compact_model(decision, family)
    folder = save_pruned(model, tmp_path / "out", export="padded")
    loaded = AutoModelForSequenceClassification.from_pretrained(folder)
    assert type(loaded) is stock_class_of(model)
    assert type(loaded) is not type(model)
    torch.testing.assert_close(logits(loaded), logits(model), rtol=0, atol=1e-10)
    assert "Zeros pad" in (folder / "README.md").read_text(encoding="utf-8")
    assert "modeling_pruned.py" not in contents(folder)


def test_padding_goes_no_wider_than_the_widest_layer() -> None:
    model = tiny()
    keep = {f"bert.encoder.layer.{i}.channels": torch.arange(48) < 10 * (i + 1) for i in range(3)}
    state = torch.get_rng_state()
    target = padded(optimize_model(patched(model, keep)).train())
    assert target.config.intermediate_size == 30
    assert target.training
    assert torch.equal(torch.get_rng_state(), state)


def test_padding_keeps_dtype_and_checks_itself(monkeypatch: pytest.MonkeyPatch) -> None:
    model = compact_model().to(torch.bfloat16)
    target = padded(model)
    assert {p.dtype for p in target.parameters()} == {torch.bfloat16}
    monkeypatch.setattr(
        "sparse_trainer.folders.padded._places",
        lambda model, whole, left: torch.arange(whole.num_units).flip(0) < (left.num_units if left else 0),
    )
    with pytest.raises(SelfCheckError, match="uneven and of the padded"):
        padded(compact_model("uneven", "mpnet"))


def test_padding_a_stock_model_is_saving_it(tmp_path: Path) -> None:
    folder = save_pruned(compact_model("even"), tmp_path / "out", export="padded")
    assert "Zeros pad" not in (folder / "README.md").read_text(encoding="utf-8")


def test_exports_that_do_not_fit_are_refused(tmp_path: Path) -> None:
    model = tiny()
    gated = patched(model, uneven_keep(discover(model)))
    with pytest.raises(CheckpointError, match="'native' needs shapes"):
        save_pruned(compact_model(), tmp_path / "out", export="native")
    with pytest.raises(CheckpointError, match="'self-contained' is for uneven"):
        save_pruned(compact_model("even"), tmp_path / "out", export="self-contained")
    with pytest.raises(ArgumentError, match="Did you mean 'padded'"):
        save_pruned(compact_model(), tmp_path / "out", export="paded")
    with pytest.raises(CheckpointError, match="carries no plan"):
        save_pruned(model, tmp_path / "out")
    with pytest.raises(CheckpointError, match="still has gates"):
        save_pruned(gated, tmp_path / "out", plan=plan_of(compact_model()))
    assert list(tmp_path.iterdir()) == []


def test_only_our_own_folders_are_replaced_and_only_when_asked(tmp_path: Path) -> None:
    model = compact_model()
    theirs = tmp_path / "theirs"
    theirs.mkdir()
    (theirs / "thesis.tex").write_text("years of work", encoding="utf-8")
    with pytest.raises(CheckpointError, match="holds no pruning_plan"):
        save_pruned(model, theirs, overwrite=True)
    with pytest.raises(CheckpointError, match="is a file"):
        save_pruned(model, theirs / "thesis.tex", overwrite=True)
    assert [path.name for path in theirs.iterdir()] == ["thesis.tex"]
    empty = tmp_path / "empty"
    empty.mkdir()
    ours = save_pruned(model, empty)
    (ours / "notes.txt").write_text("mine", encoding="utf-8")
    with pytest.raises(CheckpointError, match="overwrite=True"):
        save_pruned(model, ours)
    check_target(ours)
    save_pruned(compact_model("even"), ours, overwrite=True)
    assert (ours / "notes.txt").read_text(encoding="utf-8") == "mine"
    assert not (ours / "modeling_pruned.py").exists()
    assert {path.name for path in tmp_path.iterdir()} == {"theirs", "empty"}


def test_weights_code_and_tokenizer_of_an_earlier_save_go_and_own_files_stay(tmp_path: Path) -> None:
    folder = save_pruned(compact_model(), tmp_path / "out", processor=FakeProcessor())
    # As a save in several shards, by this version, would have left it.
    record = json.loads((folder / ".pruning_files.json").read_text())
    record["files"].append("model-00001-of-00002.safetensors")
    (folder / ".pruning_files.json").write_text(json.dumps(record))
    (folder / "model-00001-of-00002.safetensors").write_text("stale")
    (folder / "checkpoint-500").mkdir()
    (folder / "checkpoint-500" / "optimizer.pt").write_text("days of work")
    (folder / "README.md").write_text("an edited card")
    save_pruned(compact_model("even"), folder, overwrite=True)
    assert set(contents(folder)) == {
        ".pruning_files.json",
        "README.md",
        "checkpoint-500/optimizer.pt",
        "config.json",
        "model.safetensors",
        "pruning_plan.json",
    }
    AutoModelForSequenceClassification.from_pretrained(folder)


def test_the_room_that_weights_need_is_looked_at_first(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(shutil, "disk_usage", lambda place: shutil._ntuple_diskusage(10, 9, 1))
    with pytest.raises(CheckpointError, match="Make room"):
        save_pruned(compact_model(), tmp_path / "out")
    assert list(tmp_path.iterdir()) == []


def test_a_link_is_followed_not_replaced(tmp_path: Path) -> None:
    real = save_pruned(compact_model(), tmp_path / "real")
    (tmp_path / "link").symlink_to(real)
    assert save_pruned(compact_model("even"), tmp_path / "link", overwrite=True) == real
    assert (tmp_path / "link").is_symlink()
    assert not (real / "modeling_pruned.py").exists()


@pytest.mark.parametrize("error", [OSError("disk full"), KeyboardInterrupt()])
def test_an_interrupted_save_leaves_the_old_folder_intact(tmp_path: Path, error: BaseException) -> None:
    folder = save_pruned(compact_model("even"), tmp_path / "out")
    before = contents(folder)
    with pytest.raises((CheckpointError, KeyboardInterrupt)):
        save_pruned(compact_model(), folder, processor=FakeProcessor(error), overwrite=True)
    assert contents(folder) == before
    with pytest.raises((CheckpointError, KeyboardInterrupt)):
        save_pruned(compact_model(), tmp_path / "new", processor=FakeProcessor(error))
    assert [path.name for path in tmp_path.iterdir()] == ["out"]


def test_a_failing_write_of_weights_leaves_the_old_folder_intact(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = save_pruned(compact_model(), tmp_path / "out")
    before = contents(folder)

    def fail(*args: Any, **kwargs: Any) -> None:
        raise OSError("disk full")

    monkeypatch.setattr("transformers.modeling_utils.safe_save_file", fail)
    with pytest.raises(CheckpointError, match=r"out: cannot be written \(disk full\)"):
        save_pruned(compact_model("even"), folder, overwrite=True)
    assert contents(folder) == before
    assert [path.name for path in tmp_path.iterdir()] == ["out"]


def test_a_failing_rename_brings_the_old_folder_back(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = save_pruned(compact_model(), tmp_path / "out")
    before = contents(folder)
    rename = Path.rename

    def fail_on_the_new_one(self: Path, target: Path) -> Path:
        if (self / "tokenizer.json").exists() and not target.exists():
            raise OSError("no rename today")
        return rename(self, target)

    monkeypatch.setattr("sparse_trainer.folders.replace.exchange", lambda one, other: False)
    monkeypatch.setattr(Path, "rename", fail_on_the_new_one)
    with pytest.raises(CheckpointError, match="no rename today"):
        save_pruned(compact_model(), folder, processor=FakeProcessor(), overwrite=True)
    assert contents(folder) == before
    assert [path.name for path in tmp_path.iterdir()] == ["out"]


def test_the_plan_file_marks_a_folder_as_ours(tmp_path: Path) -> None:
    folder = save_pruned(compact_model(), tmp_path / "out")
    check_target(folder)
    (folder / PLAN_FILE).unlink()
    with pytest.raises(CheckpointError):
        check_target(folder)
    shutil.rmtree(folder)
    check_target(folder, overwrite=False)


def test_even_folders_load_as_stock_models(tmp_path: Path) -> None:
    model = tiny()
    compact = optimize_model(patched(model, even_keep(discover(model))))
    loaded = AutoModelForSequenceClassification.from_pretrained(save_pruned(compact, tmp_path / "out"))
    assert type(loaded) is type(model)
    assert_same(loaded, compact, logits)


@pytest.mark.parametrize("model_type", ["llama", "t5", "gpt2", "falcon", "vit", "whisper", "mixtral"])
def test_padding_serves_every_form(model_type: str) -> None:
    model = tiny_model(model_type)
    structure = discover(model, ["heads", "channels"])
    generator = torch.Generator().manual_seed(0)
    keep = {g.name: torch.rand(g.num_units, generator=generator) > 0.4 for g in structure.groups}
    for group in structure.groups:
        keep[group.name][0] = True
    keep[next(g.name for g in structure.groups if g.min_units == 0)][:] = False
    patch(model, structure, lambda group: Gate(group.num_units, scored=False))
    for name, gate in gates_by_group(model, structure).items():
        gate.set_keep(keep[name])
    compact = optimize_model(model, inplace=True)
    target = padded(compact)
    assert type(target) is stock_class_of(compact)
    for one, other in zip(answers(target), answers(compact), strict=True):
        torch.testing.assert_close(one, other, rtol=0, atol=1e-10)


def test_a_mixture_that_lost_experts_is_not_padded() -> None:
    model = tiny_model("mixtral")
    structure = discover(model, ["experts"])
    patch(model, structure, lambda group: Gate(group.num_units, scored=False))
    next(iter(gates_by_group(model, structure).values())).set_keep(torch.tensor([True, True, True, False]))
    with pytest.raises(CheckpointError, match="router could choose an expert of zeros"):
        padded(optimize_model(model))
