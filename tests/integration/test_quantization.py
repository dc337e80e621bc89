"""Quantisation goes on top: pruned folders load with torchao's int8 configurations, on the CPU."""

from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoModelForCausalLM

from sparse_trainer.errors import UnsupportedModelError
from sparse_trainer.folders.load import load_pruned
from sparse_trainer.folders.save import save_pruned
from sparse_trainer.one_shot.prune import prune
from tests.fixtures.oneshot_models import calibration, model_of

torchao = pytest.importorskip("torchao.quantization", reason="torchao is not installed")


def load_stock(folder: Path, **options: Any) -> Any:
    return AutoModelForCausalLM.from_pretrained(folder, trust_remote_code=True, **options)


@pytest.mark.parametrize("load", [load_pruned, load_stock])
@pytest.mark.parametrize("name", ["Int8WeightOnlyConfig", "Int8DynamicActivationInt8WeightConfig"])
@pytest.mark.parametrize("scope", ["global", "uniform"])
def test_a_pruned_folder_loads_in_int8(tmp_path: Path, scope: str, name: str, load: Any) -> None:
    from transformers import TorchAoConfig

    model = model_of("llama").float()
    batch = {k: v for k, v in calibration(model)[0].items() if k != "labels"}
    pruned, plan = prune(model, criterion="magnitude", density={"channels": 0.6}, scope=scope)
    folder = save_pruned(pruned, tmp_path / "pruned")
    quantization = TorchAoConfig(quant_type=getattr(torchao, name)())
    quantized = load(folder, quantization_config=quantization, dtype=torch.float32).eval()
    down = quantized.model.layers[0].mlp.down_proj.weight
    assert type(down).__module__.startswith("torchao")
    assert down.shape[1] == len(plan.groups["model.layers.0.channels"]["keep"])
    with torch.no_grad():
        expected, found = pruned(**batch).logits, quantized(**batch).logits
    with pytest.raises(UnsupportedModelError, match="its weights are quantized"):
        prune(quantized, criterion="magnitude")
    assert 0 < (found - expected).norm() / expected.norm() < 0.05
