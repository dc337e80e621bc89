"""Hold what every benchmark shares: options, clock, environment, output."""

import argparse
import json
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch
import transformers

CLOCKS = {"wall": time.perf_counter, "cpu": time.process_time}
"""CPU time leaves out what other programs took; it is meaningful with `--threads 1` only, as idle threads spin."""


def base_parser(description: str, repeats: int) -> argparse.ArgumentParser:
    """Return a parser with the options every benchmark takes."""
    parser = argparse.ArgumentParser(description=description)
    parser.add_argument("--device", default="cpu", help="torch device")
    parser.add_argument("--dtype", default="float32", choices=["float32", "bfloat16", "float16"])
    parser.add_argument("--threads", type=int, default=torch.get_num_threads(), help="CPU threads of torch")
    parser.add_argument(
        "--repeats", type=int, default=repeats, help="timed rounds; every arm runs once a round"
    )
    parser.add_argument(
        "--clock",
        default="wall",
        choices=list(CLOCKS),
        help="cpu = CPU time of the process, for a busy machine",
    )
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--json", action="store_true", help="print one JSON object and nothing else")
    return parser


def prepare(options: argparse.Namespace) -> None:
    """Fix threads and seed before any model exists."""
    torch.set_num_threads(options.threads)
    torch.manual_seed(options.seed)
    transformers.logging.set_verbosity_error()
    transformers.logging.disable_progress_bar()


def environment(options: argparse.Namespace) -> dict[str, Any]:
    """Name the machine and the versions the numbers hold for."""
    on_cuda = torch.device(options.device).type == "cuda"
    return {
        "device": torch.cuda.get_device_name(options.device) if on_cuda else cpu_name(),
        "dtype": options.dtype,
        "threads": torch.get_num_threads(),
        "clock": options.clock,
        "torch": torch.__version__,
        "transformers": transformers.__version__,
    }


def cpu_name() -> str:
    """Return the processor's name, or `cpu` where the system does not tell."""
    try:
        with open("/proc/cpuinfo", encoding="utf-8") as lines:
            names = [line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")]
    except FileNotFoundError:
        names = []
    return names[0] if names else "cpu"


def seconds(action: Callable[[], object], options: argparse.Namespace) -> float:
    """Time one call, waiting for the device on both sides."""
    on_cuda, clock = torch.device(options.device).type == "cuda", CLOCKS[options.clock]
    if on_cuda:
        torch.cuda.synchronize(options.device)
    start = clock()
    action()
    if on_cuda:
        torch.cuda.synchronize(options.device)
    return clock() - start


def interleave(
    arms: Mapping[str, Callable[[], object]],
    options: argparse.Namespace,
    repeats: int | None = None,
    warmup: int = 2,
) -> dict[str, list[float]]:
    """Time the arms in turn (A B A B ...), so that a slow spell of the machine meets all of them."""
    times: dict[str, list[float]] = {name: [] for name in arms}
    for round_number in range(warmup + (repeats or options.repeats)):
        for name, action in arms.items():
            elapsed = seconds(action, options)
            if round_number >= warmup:
                times[name].append(elapsed)
    return times


def memory_bytes(key: str) -> int:
    """Read a memory figure of this process (Linux), VmRSS or VmHWM; unlike ru_maxrss it does not inherit a peak."""
    lines = Path("/proc/self/status").read_text(encoding="utf-8").splitlines()
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith(f"{key}:"))


def in_own_process(*arguments: str) -> Any:
    """Run this script again with more arguments, in a fresh interpreter, and return the JSON that it prints last."""
    done = subprocess.run([sys.executable, *sys.argv, *arguments], capture_output=True, text=True, check=True)
    return json.loads(done.stdout.splitlines()[-1])


def summary(times: list[float]) -> dict[str, float]:
    """Return the median and the interquartile range, in milliseconds."""
    if len(times) < 2:
        return {"median_ms": times[0] * 1e3, "iqr_ms": 0.0}
    low, _, high = statistics.quantiles(times, n=4)
    return {"median_ms": statistics.median(times) * 1e3, "iqr_ms": (high - low) * 1e3}


def ratio(numerator: list[float], denominator: list[float]) -> float:
    """Return the median of the ratios taken round by round."""
    return statistics.median(a / b for a, b in zip(numerator, denominator, strict=True))


def best_ratio(numerator: list[float], denominator: list[float]) -> float:
    """Return the ratio of the fastest rounds: what a busy machine disturbs least."""
    return min(numerator) / min(denominator)


def show(result: Mapping[str, Any], as_json: bool) -> None:
    """Print the result as one JSON object, or as indented lines."""
    if as_json:
        print(json.dumps(result))
        return
    for key, value in result.items():
        rows = value if isinstance(value, Mapping) else {"": value}
        print(key)
        for name, entry in rows.items():
            print(f"  {name}: {_text(entry)}" if name else f"  {_text(entry)}")


def _text(entry: object) -> str:
    """Format numbers to four digits and mappings on one line."""
    if isinstance(entry, Mapping):
        return ", ".join(f"{name} {_text(item)}" for name, item in entry.items())
    return f"{entry:.4g}" if isinstance(entry, float) else str(entry)
