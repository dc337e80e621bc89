"""llama.cpp as a runtime of a bench: files, and folders that are converted for it."""

from pathlib import Path

import pytest
import torch

from sparse_trainer.convert.folder import convert_folder
from sparse_trainer.errors import ArgumentError
from sparse_trainer.folders.save import save_pruned
from sparse_trainer.one_shot.prune import prune
from sparse_trainer.run.bench import BenchOptions, run_bench
from sparse_trainer.run.llama_cpp import LlamaCpp, facts_of, weigh_file
from sparse_trainer.run.runtimes import Candidate, Setting, gguf_file
from tests.fixtures.character_tokenizer import character_tokenizer
from tests.fixtures.oneshot_models import model_of

pytest.importorskip("gguf")
pytest.importorskip("xllamacpp")


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """Return a dense Llama and an uneven one, in float32."""
    place = tmp_path_factory.mktemp("gguf")
    dense = model_of("llama").float()
    pruned, _ = prune(dense, None, criterion="magnitude", density=0.6)
    character_tokenizer().save_pretrained(place / "dense")
    dense.save_pretrained(place / "dense")
    save_pruned(pruned, place / "pruned", processor=character_tokenizer())
    return place / "dense", place / "pruned"


def options(model: Path, against: Path | None = None, **more: object) -> BenchOptions:
    fixed = {"batch_sizes": (1, 2), "lengths": (4, 8), "rounds": 2, "threads": 1}
    place = {"device": torch.device("cpu"), "dtype": torch.float32}
    named = {"model": str(model), "against": None if against is None else str(against)}
    return BenchOptions(**(fixed | place | named | more))  # type: ignore[arg-type]


def test_folders_are_converted_and_timed_beside_torch(folders: tuple[Path, Path]) -> None:
    dense, pruned = folders
    result = run_bench(options(pruned, dense, runtimes="eager,gguf", generate=3))
    assert {(each.model, each.runtime) for each in result.forward} == {
        (str(model), runtime) for model in folders for runtime in ("eager", "gguf")
    }
    assert len(result.forward) == len(result.generation) == 4 * 4
    assert all(each.generated.decode.low > 0 for each in result.generation)
    assert any("last token" in note for note in result.notes)


def test_what_a_file_says_is_no_part_of_loading_it(
    folders: tuple[Path, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file, _ = convert_folder(str(folders[0]), tmp_path / "model.gguf", "gguf")
    facts = facts_of(file)
    assert facts.context is not None
    monkeypatch.setattr("gguf.GGUFReader", None)  # reading a large vocabulary takes seconds, and memory
    assert LlamaCpp(file, tokens=facts.tokens, rows=1, length=4, threads=1).forward(1, 4)()
    assert weigh_file(file, threads=1).parameters == facts.parameters


def test_files_are_timed_and_weighed(folders: tuple[Path, Path], tmp_path: Path) -> None:
    files = [
        convert_folder(str(folder), tmp_path / f"{folder.name}.gguf", "gguf", quantize="f16")[0]
        for folder in folders
    ]
    result = run_bench(options(files[1], files[0], generate=2, memory=True))
    assert {each.runtime for each in result.forward} == {"gguf"}
    sizes = [result.weights[str(file)] for file in files]
    assert [each.file_bytes for each in sizes] == [file.stat().st_size for file in files]
    assert sizes[0].parameters > sizes[1].parameters
    assert all(peak is None or peak > 0 for peak in result.memory.values())
    with pytest.raises(ArgumentError, match="sequence_length: 100000 tokens"):
        run_bench(options(files[0], lengths=(100000,)))


def test_what_llama_cpp_is_not_timed_on_is_refused(folders: tuple[Path, Path]) -> None:
    candidate = Candidate(number=0, place=str(folders[0]), model=None)
    setting = Setting(
        device=torch.device("meta"), dtype=torch.float32, threads=1, rows=1, length=4, scratch=folders[0]
    )
    with pytest.raises(ArgumentError, match="runtimes: gguf is timed on the CPU in float32"):
        gguf_file(candidate, setting)
