"""Load a finished folder in a new process that knows only torch and transformers, and compare what it predicts.

That process sees config, weights and our own file, so that there is no other code that it could run.
"""

import json
import subprocess
import sys
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor
from transformers import PreTrainedModel

from sparse_trainer.errors import CheckpointError, one_of
from sparse_trainer.files.foreign_code import CODE_FILE, needs_our_code
from sparse_trainer.tasks.base import Outputs

_SEEN = ("config.json", "generation_config.json", "*.safetensors", "*.safetensors.index.json")
_SCRIPT = """
import json, sys
import torch, transformers
from safetensors.torch import load_file, save_file
auto_class, folder, trust, names, inputs, outputs = sys.argv[1:]
model = getattr(transformers, auto_class).from_pretrained(folder, trust_remote_code=trust == "ours").eval()
with torch.inference_mode():
    found = model(**load_file(inputs))
save_file({name: found[name].clone() for name in names.split(",")}, outputs)
ours = sorted(name for name in sys.modules if name.split(".")[0] in ("sparse_trainer", "patchers"))
print(json.dumps({"ours": ours, "parameters": model.num_parameters()}))
"""


@dataclass(frozen=True, kw_only=True, slots=True)
class Reloaded:
    """How the reloaded model compares with the one in memory."""

    samples: int
    """Predictions: one per example, of language models one per token."""
    same_predictions: int
    largest_difference: float
    """Largest absolute difference of what is compared."""
    parameters: int


def verify_reload(
    folder: Path,
    auto_class: str,
    model: PreTrainedModel,
    inputs: Mapping[str, Tensor],
    outputs: Outputs,
) -> Reloaded:
    """Compare `model` with what a new process loads from `folder` with stock transformers.

    Args:
        auto_class: Name of the auto class in transformers.
        inputs: A batch without labels, where the model lies.

    Raises:
        CheckpointError: The folder does not load there, needs our packages, or predicts otherwise.
    """
    model.train(False)
    with torch.inference_mode():
        found = model(**{name: value.to(model.device) for name, value in inputs.items()})
    for name in outputs.names:
        one_of("outputs", name, found)
    here = {name: found[name].cpu() for name in outputs.names}
    there, facts = _predict_elsewhere(folder, auto_class, inputs, outputs.names)
    if facts["ours"]:
        raise CheckpointError(
            str(folder),
            f"loading it imported {', '.join(facts['ours'])}.",
            "Please report this: the folder must load with transformers alone.",
        )
    same = _without_padding(outputs.same(here, there), inputs)
    reloaded = Reloaded(
        samples=same.numel(),
        same_predictions=int(same.sum()),
        largest_difference=max(float((here[name] - there[name]).abs().max()) for name in outputs.names),
        parameters=facts["parameters"],
    )
    if reloaded.same_predictions != reloaded.samples:
        raise CheckpointError(
            str(folder),
            f"predicts otherwise after loading: {reloaded.same_predictions} of {reloaded.samples} agree, logits differ "
            f"by up to {reloaded.largest_difference:.3g}.",
            "Do not use it; save again, and report this if it persists.",
        )
    return reloaded


def _without_padding(same: Tensor, inputs: Mapping[str, Tensor]) -> Tensor:
    """Leave out predictions at padding: where there is one per token, the mask over the tokens says which."""
    is_read = "decoder_input_ids" in inputs
    mask = inputs.get("decoder_attention_mask" if is_read else "attention_mask")
    return same[mask.bool().cpu()] if mask is not None and mask.shape == same.shape else same


def _predict_elsewhere(
    folder: Path, auto_class: str, inputs: Mapping[str, Tensor], names: Sequence[str]
) -> tuple[dict[str, Tensor], Any]:
    """Return the outputs of the new process and what it says about itself."""
    with tempfile.TemporaryDirectory() as scratch:
        batch, outputs = Path(scratch, "inputs.safetensors"), Path(scratch, "outputs.safetensors")
        save_file({name: value.cpu().contiguous() for name, value in inputs.items()}, batch)
        trust = _lay_out(folder, Path(scratch, "model"))
        # -I keeps the working directory and PYTHONPATH out: what it finds is what is installed.
        command = [
            sys.executable,
            "-I",
            "-c",
            _SCRIPT,
            auto_class,
            f"{scratch}/model",
            trust,
            ",".join(names),
            str(batch),
            str(outputs),
        ]
        process = subprocess.run(command, capture_output=True, text=True, check=False)
        if process.returncode != 0:
            reason = process.stderr.strip().splitlines()[-1:] or ["no message"]
            raise CheckpointError(
                str(folder),
                f"does not load with transformers alone: {reason[0]}.",
                "Export it in another form.",
            )
        return load_file(outputs), json.loads(process.stdout.strip().splitlines()[-1])


def _lay_out(folder: Path, view: Path) -> str:
    """Make a folder of links to what the new process may see; return whether it may run code: `ours` or `none`."""
    view.mkdir()
    config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    is_ours = needs_our_code(folder, config)
    for pattern in (*_SEEN, *([CODE_FILE] if is_ours else [])):
        for file in folder.glob(pattern):
            (view / file.name).symlink_to(file.resolve())
    return "ours" if is_ours else "none"
