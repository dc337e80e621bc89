"""Which safetensors files make up a checkpoint: the single file before an index, as transformers reads them."""

from pathlib import Path

from sparse_trainer.folders.load import is_patched_checkpoint
from sparse_trainer.training.arguments.arguments import SparseTrainingArguments
from sparse_trainer.training.coordinator import ModelPatchingCoordinator
from tests.architectures.tiny import tiny_model


def test_stale_shards_do_not_hide_a_patched_file(tmp_path: Path) -> None:
    model = tiny_model("llama")
    model.save_pretrained(tmp_path, max_shard_size="20KB")
    assert (tmp_path / "model.safetensors.index.json").is_file()
    stale = {p.name: p.read_bytes() for p in tmp_path.glob("model*")}
    ModelPatchingCoordinator(SparseTrainingArguments(density=0.5)).patch_model(model)
    model.save_pretrained(tmp_path)
    for name, content in stale.items():
        (tmp_path / name).write_bytes(content)
    assert is_patched_checkpoint(tmp_path)
