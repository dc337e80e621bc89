"""ONNX Runtime as a runtime of a bench: passes, and generation with the cache of the graph."""

from pathlib import Path

import pytest
import torch

from sparse_trainer.run.bench import BenchOptions, run_bench
from sparse_trainer.run.bench_picture import draw_bench
from sparse_trainer.run.onnx_runtime import OnnxRuntime
from tests.fixtures.oneshot_models import model_of
from tests.fixtures.recipe_files import write_tiny_llama

pytest.importorskip("onnxruntime")
pytest.importorskip("onnxscript")
pytest.importorskip("transformers.exporters.runners")


def test_what_is_timed_is_what_the_model_writes(tmp_path: Path) -> None:
    model = model_of("llama").float().eval()
    runtime = OnnxRuntime.of(model, tmp_path / "graph", threads=1)
    ids_BT = torch.tensor([[5, 6, 7], [8, 9, 10]])
    said = runtime._step(ids_BT.numpy(), {})
    for _ in range(3):
        with torch.no_grad():
            wanted_BV = model(input_ids=ids_BT).logits[:, -1]
        assert torch.allclose(torch.from_numpy(said["logits"])[:, -1], wanted_BV, atol=1e-5)
        ids_BT = torch.cat([ids_BT, wanted_BV.argmax(-1, keepdim=True)], dim=1)
        said = runtime._step(said["logits"][:, -1:].argmax(-1), said)


def test_generation_is_timed_beside_torch_and_drawn(tmp_path: Path) -> None:
    place = {"device": torch.device("cpu"), "dtype": torch.float32, "rounds": 2, "threads": 1}
    llama = str(write_tiny_llama(tmp_path))
    result = run_bench(
        BenchOptions(
            model=llama,
            batch_sizes=(1, 2),
            lengths=(4,),
            runtimes="eager,onnx",
            generate=3,
            **place,  # type: ignore[arg-type]
        )
    )
    assert [(each.runtime, each.rows) for each in result.generation] == [
        ("eager", 1), ("onnx", 1), ("eager", 2), ("onnx", 2)
    ]  # fmt: skip
    assert all(each.generated.decode.low > 0 for each in result.generation)
    assert [each.beside is not None for each in result.forward] == [False, True] * 2
    draw_bench(result, tmp_path / "bench.png", None)
    assert (tmp_path / "bench.png").stat().st_size > 1000
