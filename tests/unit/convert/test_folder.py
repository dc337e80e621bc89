"""What `convert_folder` does for every conversion: checks come first, and the output appears whole or not at all."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from sparse_trainer.cli.app import make_app
from sparse_trainer.convert.base import Convertible
from sparse_trainer.convert.folder import convert_folder
from sparse_trainer.convert.registry import CONVERSIONS
from sparse_trainer.errors import ArgumentError, CheckpointError, ConversionError
from tests.fixtures.language_models import write_language_model


class Listing:
    """Names and shapes, as text."""

    extra = "listing"
    packages: Mapping[str, str] = {"torch": "2.13"}
    formats = ("short", "long")

    def __init__(self, is_file: bool) -> None:
        self.is_file = is_file
        self.calls: list[str] = []

    def refuse(self, origin: Convertible, numbers: str) -> None:
        assert all(tensor.is_meta for tensor in origin.skeleton.parameters())
        self.calls.append(f"refuse {numbers}")
        if numbers == "long":
            raise ConversionError(origin.place(), "is too long.", "Take another one.")

    def write(self, origin: Convertible, out: Path, numbers: str) -> Mapping[str, Any]:
        self.calls.append(f"write {numbers}")
        model = origin.load()
        assert not model.training
        place = out if self.is_file else out / "names.txt"
        place.write_text("\n".join(model.state_dict()))
        return {"tensors": len(model.state_dict())}


@pytest.fixture(params=[True, False], ids=["file", "folder"])
def listing(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Listing:
    form = Listing(request.param)
    monkeypatch.setitem(CONVERSIONS, "listing", form)
    return form


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> str:
    return str(write_language_model("llama", tmp_path_factory.mktemp("llama")))


def test_the_output_appears_with_what_was_written(listing: Listing, source: str, tmp_path: Path) -> None:
    place, facts = convert_folder(source, tmp_path / "out", "listing")
    written = place if listing.is_file else place / "names.txt"
    assert place == tmp_path / "out"
    assert len(written.read_text().splitlines()) == facts["tensors"] > 10
    assert listing.calls == ["refuse short", "write short"]
    assert [path.name for path in tmp_path.iterdir()] == ["out"]


def test_an_output_that_exists_is_left_alone(listing: Listing, source: str, tmp_path: Path) -> None:
    out = tmp_path / "out"
    out.write_text("mine")
    with pytest.raises(CheckpointError, match=r"is there already|is a file"):
        convert_folder(source, out, "listing")
    assert out.read_text() == "mine"
    assert listing.calls == []


def test_a_refusal_comes_before_anything_is_written(listing: Listing, source: str, tmp_path: Path) -> None:
    with pytest.raises(ConversionError, match="too long"):
        convert_folder(source, tmp_path / "out", "listing", quantize="long")
    assert listing.calls == ["refuse long"]
    assert list(tmp_path.iterdir()) == []


def test_a_failed_conversion_leaves_nothing(
    listing: Listing, source: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*given: Any) -> Mapping[str, Any]:
        raise ConversionError("out", "differs.", "Tell us.")

    monkeypatch.setattr(listing, "write", fail)
    with pytest.raises(ConversionError, match="differs"):
        convert_folder(source, tmp_path / "out", "listing")
    assert list(tmp_path.iterdir()) == []


def test_mistakes_are_told_by_name(listing: Listing, source: str, tmp_path: Path) -> None:
    out = tmp_path / "out"
    with pytest.raises(ArgumentError, match=r"to: unknown value 'listin'. Did you mean 'listing'"):
        convert_folder(source, out, "listin")
    with pytest.raises(ArgumentError, match="quantize: unknown value 'q9'"):
        convert_folder(source, out, "listing", quantize="q9")
    listing.packages = {"no-such-thing": "1.0"}
    with pytest.raises(ArgumentError, match=r"no-such-thing is not installed.*sparse-trainer\[listing\]"):
        convert_folder(source, out, "listing")
    listing.packages = {}
    with pytest.raises(CheckpointError, match="no such folder"):
        convert_folder(str(tmp_path / "nowhere"), out, "listing")
    packed = tmp_path / "packed"
    packed.mkdir()
    (packed / "config.json").write_text('{"model_type": "llama", "quantization_config": {"bits": 4}}')
    with pytest.raises(CheckpointError, match="is quantized"):
        convert_folder(str(packed), out, "listing")
    assert listing.calls == []


def test_the_command_says_what_lies_there(listing: Listing, source: str, tmp_path: Path) -> None:
    run = CliRunner()
    out = str(tmp_path / "out")
    done = run.invoke(make_app({"convert"}), ["convert", source, out, "--to", "listing", "--json"])
    assert done.exit_code == 0, done.output
    assert json.loads(done.stdout) == {"out": out, "tensors": 21}
    again = run.invoke(make_app({"convert"}), ["convert", source, out, "--to", "listing"])
    assert again.exit_code != 0
    assert listing.calls == ["refuse short", "write short"]
