"""Time what large models need: decisions on the meta device, and a cut from disk to disk.

python benchmarks/large_models.py [--gigabytes 2] [--json]

Meta device: the shapes of Llama-2-7B, Llama-3-70B and Mixtral-8x22B are built, discovered, decided upon at random down
to `--density`, and cut to their plan and layout; each shape in a process of its own, with its largest resident memory.
Targets: seconds, less than 2 GB; discovery of the 32-layer model in less than 1 s.

Streaming: a sharded Llama of random numbers is cut from folder to folder, next to `shutil.copytree` of it, in turn.
Targets: as fast as the copy; memory near the largest shard. Megabytes a second count what is read. Both end with
`sync`.
"""

import argparse
import json
import os
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from common import base_parser, environment, prepare, show
from transformers import AutoModelForCausalLM, LlamaConfig, MixtralConfig, PreTrainedConfig, PreTrainedModel

from patchers.discovery.discover import discover
from patchers.units import Structure
from sparse_trainer.budget.cost import unit_cost
from sparse_trainer.budget.selection import Selector
from sparse_trainer.cut.optimize import optimize_model
from sparse_trainer.cut.record import plan_of
from sparse_trainer.folders.streaming import cut_checkpoint
from sparse_trainer.training.arguments.arguments import SparseTrainingArguments

SHAPES: dict[str, Callable[[], PreTrainedConfig]] = {
    "Llama-2-7B": lambda: LlamaConfig(),
    "Llama-3-70B": lambda: LlamaConfig(
        num_hidden_layers=80, hidden_size=8192, num_attention_heads=64, num_key_value_heads=8,
        intermediate_size=28672, vocab_size=128256,
    ),
    "Mixtral-8x22B": lambda: MixtralConfig(
        num_hidden_layers=56, hidden_size=6144, num_attention_heads=48, num_key_value_heads=8,
        intermediate_size=16384, num_local_experts=8, vocab_size=32768,
    ),
}  # fmt: skip
_BYTES_PER_LAYER = 2 * (4 * 2048**2 + 3 * 2048 * 8192)


def meta_model(config: PreTrainedConfig) -> PreTrainedModel:
    """Return a model without numbers."""
    with torch.device("meta"):
        model: PreTrainedModel = AutoModelForCausalLM.from_config(config, dtype=torch.bfloat16)
    return model


def peak_mb() -> float:
    """Return the largest resident memory of this process so far; `getrusage` would count its parent's too."""
    lines = Path("/proc/self/status").read_text(encoding="utf-8").splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith("VmHWM:")) / 1024


def decided(model: PreTrainedModel, structure: Structure, density: float) -> dict[str, Any]:
    """Return a plan that keeps random heads and channels, by the budget of a training."""
    args = SparseTrainingArguments(density=density)
    groups = structure.of(args.kinds)
    costs = {g.name: unit_cost(model, g, args.target, args.sequence_length) for g in groups}
    scores = {g.name: torch.rand(g.num_units) for g in groups}
    keep = Selector(groups, costs, args.budget).select(scores).keep
    nothing = {"dense": 0, "compact": 0}
    return {
        "format": 1, "model_type": model.config.model_type, "architecture": type(model).__name__, "method": "random",
        "target": "params", "scope": "global", "density_asked": density, "density_reached": None, "params": nothing,
        "macs": nothing, "shapes": {}, "versions": {},
        "groups": {
            g.name: {"kind": g.kind, "layer": g.layer, "size": g.num_units, "keep": _places(keep[g.name])}
            for g in groups
        },
    }  # fmt: skip


def _places(keep_U: torch.Tensor) -> list[int]:
    return keep_U.nonzero().flatten().tolist()


def decide(shape: str, density: float, clock: Callable[[], float]) -> dict[str, float]:
    """Return the seconds of each step on the meta device, and the memory of this process."""
    before, start = peak_mb(), clock()
    model = meta_model(SHAPES[shape]())
    built = clock()
    structure = discover(model)
    found = clock()
    plan = decided(model, structure, density)
    chosen = clock()
    compact = optimize_model(model, plan=plan, inplace=True, check=False)
    end = clock()
    made = plan_of(compact)
    assert made is not None
    return {
        "parameters_e9": made.params["dense"] / 1e9,
        "kept_e9": made.params["compact"] / 1e9,
        "build_s": built - start,
        "discover_s": found - built,
        "select_s": chosen - found,
        "plan_and_layout_s": end - chosen,
        "imports_mb": before,
        "peak_mb": peak_mb(),
    }


def in_fresh_process(options: argparse.Namespace, *arguments: str) -> dict[str, Any]:
    """Run a part of this script in a process of its own, for its memory, and return what it measured."""
    command = [
        sys.executable,
        __file__,
        "--threads",
        str(options.threads),
        "--clock",
        options.clock,
        *arguments,
    ]
    done = subprocess.run(command, check=True, capture_output=True, text=True)
    result: dict[str, Any] = json.loads(done.stdout)
    return result


def write_source(folder: Path, gigabytes: float) -> None:
    """Write a sharded Llama of random numbers."""
    layers = max(1, round(gigabytes * 1e9 / _BYTES_PER_LAYER))
    config = LlamaConfig(
        hidden_size=2048, intermediate_size=8192, num_attention_heads=16, num_hidden_layers=layers, vocab_size=1000,
    )  # fmt: skip
    AutoModelForCausalLM.from_config(config, dtype=torch.bfloat16).save_pretrained(
        folder, max_shard_size="500MB"
    )


def sizes_mb(folder: Path) -> list[float]:
    """Return the sizes of the weight files of a folder."""
    return [file.stat().st_size / 1e6 for file in folder.glob("*.safetensors")]


def cut_folder(source: Path, plan: Path, target: Path) -> dict[str, float]:
    """Cut a folder, and return seconds of wall time, seconds of CPU time and memory."""
    before, wall, cpu = peak_mb(), time.perf_counter(), time.process_time()
    cut_checkpoint(source, plan, target, max_shard_size="500MB")
    os.sync()
    return {
        "wall_s": time.perf_counter() - wall,
        "cpu_s": time.process_time() - cpu,
        "imports_mb": before,
        "peak_mb": peak_mb(),
    }


def copy_folder(source: Path, target: Path) -> float:
    """Copy a folder, and return seconds of wall time."""
    start = time.perf_counter()
    shutil.copytree(source, target)
    os.sync()
    return time.perf_counter() - start


def stream(options: argparse.Namespace) -> dict[str, Any]:
    """Cut and copy a folder in turn."""
    with tempfile.TemporaryDirectory(dir=options.scratch) as scratch:
        source, plan = Path(scratch, "source"), Path(scratch, "plan.json")
        write_source(source, options.gigabytes)
        model = meta_model(LlamaConfig.from_pretrained(source))
        plan.write_text(json.dumps(decided(model, discover(model), options.density)), encoding="utf-8")
        cuts, copies, written = [], [], []
        for number in range(options.repeats):
            target, copied = Path(scratch, f"cut{number}"), Path(scratch, f"copy{number}")
            arguments = ("--cut", str(source), str(plan), str(target))
            turns = [
                lambda arguments=arguments: cuts.append(in_fresh_process(options, *arguments)),
                lambda copied=copied: copies.append(copy_folder(source, copied)),
            ]
            # What comes second writes into memory that the first has just given back.
            for turn in turns if number % 2 else reversed(turns):
                turn()
            written = sizes_mb(target)
            shutil.rmtree(copied)
            shutil.rmtree(target)
        read = sizes_mb(source)
    cut_s = statistics.median(cut["wall_s"] for cut in cuts)
    return {
        "read_mb": sum(read),
        "written_mb": sum(written),
        "largest_shard_mb": max(read),
        "cut_mb_per_s": sum(read) / cut_s,
        "cut_mb_per_cpu_s": sum(read) / statistics.median(cut["cpu_s"] for cut in cuts),
        "copy_mb_per_s": sum(read) / statistics.median(copies),
        "time_cut_over_copy": statistics.median(c["wall_s"] / t for c, t in zip(cuts, copies, strict=True)),
        "imports_mb": cuts[0]["imports_mb"],
        "peak_mb": max(cut["peak_mb"] for cut in cuts),
    }


def main() -> None:
    """Print seconds and memory of decisions on the meta device, and the speed of a cut on disk."""
    parser = base_parser(__doc__ or "", repeats=3)
    parser.add_argument("--density", type=float, default=0.8)
    parser.add_argument("--gigabytes", type=float, default=2.0, help="size of the folder to cut; 0 = none")
    parser.add_argument(
        "--scratch", default=None, help="where to put it; default: the place for temporary files"
    )
    parser.add_argument("--shape", choices=list(SHAPES), help="only this one, and in this process")
    parser.add_argument("--cut", nargs=3, metavar=("SOURCE", "PLAN", "TARGET"), help="only cut this folder")
    options = parser.parse_args()
    prepare(options)
    if options.shape is not None:
        clock = time.process_time if options.clock == "cpu" else time.perf_counter
        print(json.dumps(decide(options.shape, options.density, clock)))
    elif options.cut is not None:
        print(json.dumps(cut_folder(*map(Path, options.cut))))
    else:
        result: dict[str, Any] = {"environment": environment(options)}
        for shape in SHAPES:
            result[shape] = in_fresh_process(options, "--density", str(options.density), "--shape", shape)
        if options.gigabytes > 0:
            result["streaming"] = stream(options)
        show(result, options.json)


if __name__ == "__main__":
    main()
