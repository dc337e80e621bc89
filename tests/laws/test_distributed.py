"""Two ranks with half the batch each take the decisions of one rank."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

ROOT = Path(__file__).parents[2]
SCRIPT = """
import sys
from pathlib import Path
from tests.laws.test_mask_training import asked
from tests.fixtures.training import sparse_args, trainer

folder, batch_size, *methods = sys.argv[1:]
for method in methods:
    masks = method.removeprefix("masks-")
    args = sparse_args(method) if masks == method else asked(masks)
    run = trainer(Path(folder) / method, args, per_device_train_batch_size=int(batch_size))
    run.train()
    run.save_model(str(Path(folder) / method))
"""
METHODS = (
    "movement-distilled",
    "taylor",
    "layer_gate",
    "l0-nested",
    "l0-hidden",
    "cheaper",
    "wanda",
    "masks-hybrid",
    "masks-l0",
)


def launch(folder: Path, ranks: int) -> None:
    script = folder / "train.py"
    script.write_text(SCRIPT)
    launcher = ["-m", "torch.distributed.run", "--standalone", f"--nproc_per_node={ranks}"]
    command = [sys.executable, *launcher, str(script), str(folder), str(8 // ranks), *METHODS]
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    done = subprocess.run(command, env=environment, cwd=folder, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr[-4000:]


@pytest.mark.slow
def test_two_ranks_equal_one(tmp_path: Path) -> None:
    for ranks in (1, 2):
        (tmp_path / str(ranks)).mkdir()
        launch(tmp_path / str(ranks), ranks)
    for method in METHODS:
        one, two = (load_file(tmp_path / ranks / method / "model.safetensors") for ranks in "12")
        for name, tensor in one.items():
            # Adam makes rounding visible where the gradients of loss and penalty cancel.
            near = 1e-4 if "_mask." in name or (method == "masks-l0" and "_gate." in name) else 1e-6
            torch.testing.assert_close(two[name], tensor, rtol=0, atol=near, msg=f"{method}: {name}")
        assert any(".keep_" in name and bool((tensor == 0).any()) for name, tensor in one.items())
