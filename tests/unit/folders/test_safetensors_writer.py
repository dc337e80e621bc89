"""Files that are filled tensor by tensor are those that safetensors reads."""

import os
from contextlib import closing
from itertools import starmap
from pathlib import Path

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file

from sparse_trainer.folders.safetensors_writer import SafetensorsWriter

TENSORS = {
    "narrow": torch.arange(7, dtype=torch.int8),
    "half": torch.randn(3, 5).bfloat16(),
    "empty": torch.zeros(0, 4),
    "turned": torch.randn(6, 2).T,
    "wide": torch.randn(300, 400),
    "number": torch.tensor(3, dtype=torch.int64),
}


def test_tensors_come_in_any_order(tmp_path: Path) -> None:
    writer = SafetensorsWriter(tmp_path / "one", {name: t.to("meta") for name, t in TENSORS.items()})
    complete = [writer.write(name, TENSORS[name]) for name in sorted(TENSORS)]
    assert complete == [False] * 5 + [True]
    found = load_file(tmp_path / "one")
    assert found.keys() == TENSORS.keys()
    assert all(torch.equal(found[name], tensor) for name, tensor in TENSORS.items())
    assert all(found[name].dtype == tensor.dtype for name, tensor in TENSORS.items())
    with safe_open(tmp_path / "one", framework="pt") as content:
        assert content.metadata() == {"format": "pt"}
        # An entry begins at a multiple of its width, whatever stood in front of it.
        assert content.offset_keys()[0] == "number"
        assert content.offset_keys()[-1] == "narrow"


def test_another_tensor_than_was_promised_is_a_mistake_of_ours(tmp_path: Path) -> None:
    writer = SafetensorsWriter(tmp_path / "one", {"half": TENSORS["half"]})
    with pytest.raises(AssertionError, match="half"):
        writer.write("half", TENSORS["half"].float())
    writer.close()


@pytest.mark.parametrize("tensors", [1, 2])
def test_what_the_disk_did_not_take_is_an_error(
    tensors: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Also of the last tensor, and of one that another came after."""

    def fails(handle: int) -> None:
        raise OSError(5, "no disk")

    monkeypatch.setattr(os, "fsync", fails)
    names = ["half", "wide"][:tensors]
    writer = SafetensorsWriter(tmp_path / "one", {name: TENSORS[name] for name in names})
    with closing(writer), pytest.raises(OSError, match="no disk"):
        list(starmap(writer.write, [(name, TENSORS[name]) for name in names]))
