"""A pruned SmolLM2 in unmodified llama.cpp; only where its weights are at hand."""

from pathlib import Path

import pytest
from transformers import AutoTokenizer

from patchers.discovery.discover import discover
from sparse_trainer.convert.folder import convert_folder
from sparse_trainer.cut.optimize import optimize_model
from sparse_trainer.folders.save import save_pruned
from tests.fixtures import real_weights
from tests.fixtures.compact_models import patched
from tests.fixtures.llama_cpp import difference

pytest.importorskip("gguf")
pytest.importorskip("xllamacpp")


def test_thirty_layers_of_different_widths(tmp_path: Path) -> None:
    dense = real_weights.load("smollm2")
    cut = optimize_model(patched(dense, real_weights.uneven_keep(discover(dense, ("heads", "channels")))))
    save_pruned(
        cut, tmp_path / "one", processor=AutoTokenizer.from_pretrained(real_weights.folder_of("smollm2"))
    )
    out, facts = convert_folder(str(tmp_path / "one"), tmp_path / "model.gguf", "gguf", quantize="f32")
    assert facts["architecture"] == "deci"
    largest, short = difference(cut, out, exact=True, best=200)
    assert largest < 0.01
    assert short == 0
