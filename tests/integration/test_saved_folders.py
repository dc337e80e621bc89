"""Folders that earlier releases wrote: they load, say what they said, and are healed when they are saved again.

`tests/data/saved` holds one folder per release and sort, as `save_pruned` wrote it, with what its model said then.
"""

import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor
from transformers import PreTrainedModel

from patchers import modeling_pruned
from sparse_trainer.folders.load import load_pruned
from sparse_trainer.folders.save import save_pruned

# Shape legend: B = rows, T = tokens.

SAVED = Path(__file__).parents[1] / "data" / "saved"
FOLDERS = sorted(path.name for path in SAVED.iterdir() if path.is_dir())
OLD = [name for name in FOLDERS if name.startswith("folder_0_1_0")]

READER = """
import json, sys

sys.modules["sparse_trainer"] = sys.modules["patchers"] = None
import torch
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM, AutoModelForSequenceClassification

said = load_file(sys.argv[1])
ids_BT = said["input_ids"]
found = {}
for folder in sys.argv[2:]:
    config = json.load(open(folder + "/config.json"))
    auto = AutoModelForCausalLM if "ForCausalLM" in config["architectures"][0] else AutoModelForSequenceClassification
    model = auto.from_pretrained(folder, trust_remote_code=True).eval()
    with torch.no_grad():
        found[folder] = {"logits": model(ids_BT).logits.tolist()}
        if auto is AutoModelForCausalLM:
            first = model(ids_BT[:, :5], use_cache=True)
            name = next(n for n in ("cache", "past_key_values") if n in first)
            found[folder]["pieces"] = model(ids_BT[:, 5:], **{name: first[name]}).logits.tolist()
print(json.dumps(found))
"""


def said(name: str) -> tuple[Tensor, Tensor]:
    """Return the tokens and the logits of a folder's model when it was saved."""
    values = load_file(SAVED / "said.safetensors")
    return values["input_ids"], values[name.removeprefix("folder_0_1_0_")]


def assert_says(model: PreTrainedModel, name: str) -> None:
    ids_BT, expected = said(name)
    with torch.no_grad():
        torch.testing.assert_close(model(ids_BT).logits, expected, atol=1e-5, rtol=1e-5)


def read_elsewhere(*folders: Path) -> dict[str, Any]:
    """Load folders in a process that has transformers alone, and return what their models say."""
    environment = {**os.environ, "HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1"}
    environment.pop("PYTHONPATH", None)
    done = subprocess.run(
        [sys.executable, "-c", READER, str(SAVED / "said.safetensors"), *map(str, folders)],
        capture_output=True, text=True, env=environment, cwd=SAVED, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-4000:]
    return dict(json.loads(done.stdout.splitlines()[-1]))


@pytest.mark.parametrize("name", FOLDERS)
def test_an_old_folder_loads(name: str) -> None:
    assert_says(load_pruned(SAVED / name), name)


@pytest.fixture(scope="module")
def elsewhere(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str, str], dict[str, Any]]:
    """Save every folder again in both ways, and read all of them in one new process."""
    root = tmp_path_factory.mktemp("again")
    for name in FOLDERS:
        save_pruned(load_pruned(SAVED / name), root / "ours" / name)
        load_pruned(SAVED / name).save_pretrained(root / "stock" / name)
    found = read_elsewhere(
        *(SAVED / name for name in FOLDERS),
        *(root / form / name for form in ("ours", "stock") for name in FOLDERS),
    )
    places = {"old": SAVED, "ours": root / "ours", "stock": root / "stock"}
    return lambda form, name: {"folder": places[form] / name, **found[str(places[form] / name)]}


@pytest.mark.parametrize("form", ["old", "ours", "stock"])
@pytest.mark.parametrize("name", FOLDERS)
def test_a_folder_says_the_same_with_transformers_alone(
    name: str, form: str, elsewhere: Callable[[str, str], dict[str, Any]]
) -> None:
    torch.testing.assert_close(
        torch.tensor(elsewhere(form, name)["logits"]), said(name)[1], atol=1e-5, rtol=1e-5
    )


@pytest.mark.parametrize("form", ["ours", "stock"])
@pytest.mark.parametrize("name", FOLDERS)
def test_saving_again_heals_a_folder(
    name: str, form: str, elsewhere: Callable[[str, str], dict[str, Any]]
) -> None:
    found = elsewhere(form, name)
    own = Path(modeling_pruned.__file__).read_bytes()
    assert (found["folder"] / "modeling_pruned.py").read_bytes() == own
    assert name not in OLD or (SAVED / name / "modeling_pruned.py").read_bytes() != own
    if "pieces" in found:
        # The file of 0.1.0 found the cache by a name, and read it at wrong positions with transformers 5.24.
        whole = said(name)[1][:, 5:]
        torch.testing.assert_close(torch.tensor(found["pieces"]), whole, atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("name", FOLDERS)
def test_a_folder_is_healed_in_place(name: str, tmp_path: Path) -> None:
    folder = save_pruned(load_pruned(SAVED / name), tmp_path / name)
    (folder / "modeling_pruned.py").write_bytes((SAVED / name / "modeling_pruned.py").read_bytes())
    save_pruned(load_pruned(folder), folder, overwrite=True)
    assert (folder / "modeling_pruned.py").read_bytes() == Path(modeling_pruned.__file__).read_bytes()
    assert_says(load_pruned(folder), name)
