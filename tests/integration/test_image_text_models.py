"""Image-text models of several families: calibrated on images, pruned, saved, and used in a fresh process."""

import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor
from transformers.utils import is_torchvision_available

from sparse_trainer.data.image_text.batches import image_text_batches
from sparse_trainer.folders.save import save_pruned
from sparse_trainer.one_shot.prune import prune
from tests.fixtures.image_text_models import FAMILIES, READ_VIDEOS, tiny_image_text, write_images, write_rows
from tests.fixtures.same import assert_same_answer

TOWERS = {"idefics3": "vision_model", "qwen2_vl": "visual", "qwen2_5_vl": "visual"}
"""What the tower is called, where it is not `vision_tower`."""
ROWS = (
    {"image": "0.png", "text": "what is this"},
    {"image": "1.png", "question": "is this a blue square", "choices": ["yes", "no"], "label": 1},
    {
        "images": ["2.png"],
        "messages": [
            {"role": "user", "content": [{"type": "image"}, {"type": "text", "text": "what is this"}]},
            {"role": "assistant", "content": [{"type": "text", "text": "a red square"}]},
        ],
    },
)
MASKED: dict[str, dict[str, Any]] = {"zeros": {"density": 0.5}, "zeros-2-4": {"pattern": "2:4"}}
"""Options of masks over single weights."""
READER = """
import pathlib, sys

sys.modules["sparse_trainer"] = sys.modules["patchers"] = None
import PIL.Image
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoModelForImageTextToText, AutoProcessor

root = pathlib.Path(sys.argv[1])
for folder in sorted(root / name for name in sys.argv[2:]):
    trust = {"trust_remote_code": True} if (folder / "modeling_pruned.py").is_file() else {}
    model = AutoModelForImageTextToText.from_pretrained(folder, **trust).eval()
    inputs = load_file(root / f"{folder.name}.inputs")
    with torch.no_grad():
        found = {"logits": model(**inputs).logits}
    for cache in (True, False):
        # Without a cache, an image's token that is generated would want an image.
        options = {"max_new_tokens": 3, "do_sample": False, "use_cache": cache, "suppress_tokens": [3, 4, 5, 6]}
        found[f"ids {cache}"] = model.generate(**inputs, **options)
    if (folder / "processor_config.json").is_file():
        processor = AutoProcessor.from_pretrained(folder)
        image = PIL.Image.open(root / "0.png").convert("RGB")
        found["seen"] = processor(images=[image], text=[processor.image_token], return_tensors="pt")["pixel_values"]
    save_file({name: value.contiguous() for name, value in found.items()}, root / f"{folder.name}.found")
"""


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("image-text")
    write_images(folder)
    write_rows(folder, ROWS)
    return folder


def unlabelled(batch: dict[str, Tensor]) -> dict[str, Tensor]:
    return {name: value for name, value in batch.items() if name != "labels"}


def widths(model: torch.nn.Module, part: str) -> list[int]:
    linears = [m for n, m in model.named_modules() if part in n and isinstance(m, torch.nn.Linear)]
    return [linear.weight.numel() for linear in linears]


def cut(model_type: str, root: Path, name: str, **options: Any) -> tuple[torch.nn.Module, Any]:
    """Prune, save under a name, and leave inputs for the fresh process."""
    model, processor = tiny_image_text(model_type)
    batches = image_text_batches(root / "rows.jsonl", processor, samples=len(ROWS))
    pruned, plan = prune(model, batches, **options)
    can_load = model_type not in READ_VIDEOS or is_torchvision_available()
    save_pruned(pruned, root / name, processor=processor if can_load else None)
    save_file(unlabelled(batches[0]), root / f"{name}.inputs")
    return pruned, plan


# The processor of PaliGemma, of transformers 5.24 with numpy 2.
@pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning")
def test_every_family_is_pruned_and_says_the_same_in_a_fresh_process(root: Path) -> None:
    expected: dict[str, dict[str, Tensor]] = {}
    for model_type in FAMILIES:
        dense, _ = tiny_image_text(model_type)
        tower = TOWERS.get(model_type, "vision_tower")
        text = "text_model" if model_type == "idefics3" else "language_model"
        half: dict[str, Any] = {"density": {"channels": 0.5, "heads": 0.5}, "scope": "layer"}
        for name, options in {
            model_type: {"criterion": "afr", **half},
            f"{model_type}-both": {"criterion": "wifv", "include": [tower, text], **half},
        }.items():
            pruned, plan = cut(model_type, root, name, **options)
            shrunk = [part for part in (tower, text) if widths(pruned, part) != widths(dense, part)]
            assert shrunk == ([tower, text] if "include" in options else [text]), name
            assert [path.rpartition(".")[2] for path in plan.untouched_towers] == (
                [] if "include" in options else [tower]
            )
            inputs = load_file(root / f"{name}.inputs")
            with torch.no_grad():
                logits = pruned(**inputs).logits
                ids = pruned.generate(
                    **inputs, max_new_tokens=3, do_sample=False, suppress_tokens=[3, 4, 5, 6]
                )
            expected[name] = {"logits": logits, "ids": ids}
    for name, options in MASKED.items():
        masked, plan = cut("llava", root, name, criterion="wanda", units=["weights"], **options)
        assert plan.untouched_towers == ("model.vision_tower",)
        inputs = load_file(root / f"{name}.inputs")
        with torch.no_grad():
            ids = masked.generate(**inputs, max_new_tokens=3, do_sample=False, suppress_tokens=[3, 4, 5, 6])
            expected[name] = {"logits": masked(**inputs).logits, "ids": ids}
    command = [sys.executable, "-c", READER, str(root), *expected]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    for name, answer in expected.items():
        found = load_file(root / f"{name}.found")
        assert_same_answer(found["logits"], answer["logits"])
        assert torch.equal(found["ids True"], answer["ids"]), name
        assert torch.equal(found["ids False"], answer["ids"]), name
        assert "seen" in found or name.startswith("qwen")
