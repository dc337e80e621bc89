"""Regenerate every figure of docs/benchmarks.md with one command: a JSON file with all numbers, and one to read.

    python benchmarks/all.py OUT --quick
    python benchmarks/all.py OUT --smollm2 FOLDER --train TRAIN --validation VALIDATION \\
        --dense-gguf FILE --pruned-gguf FILE

`--quick` runs every script on the smallest shapes: it proves that they run, in less than two minutes, and its numbers
mean nothing. Without it each takes the arguments of the documentation, hours in all on one core; `--only` takes
scripts by name. What needs a folder or a file that is not given is left out, and said. A script that fails is named,
the others go on, and the exit code is 1. `FIGURES` is the table of what is run.
"""

import argparse
import json
import shlex
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

HERE = Path(__file__).parent
COMMON = "--threads 1 --clock cpu"
JSON_FILE, TEXT_FILE = "benchmarks.json", "benchmarks.md"
GIVEN = ("smollm2", "train", "validation", "dense-gguf", "pruned-gguf")
"""Options that name what no script brings along; upper case in `FIGURES`."""


@dataclass(frozen=True, kw_only=True)
class Figure:
    """A command that makes some of the numbers."""

    section: str
    """Heading of docs/benchmarks.md."""
    script: str
    full: str
    """Arguments of the documentation, beside `COMMON`; words like SMOLLM2 stand for what is given."""
    quick: str | None
    """Arguments for the smallest shapes; None = it needs what no script brings along."""
    common: str = COMMON

    def command(self, *, is_quick: bool) -> str:
        """Return the command as the documentation writes it."""
        words = (f"benchmarks/{self.script}.py", self.common, self.quick if is_quick else self.full)
        return " ".join(("python", *(part for part in words if part)))


STEP, LORA, DEPTH = "A training step with gates", "Beside LoRA", "Criteria of depth, and element masks"
LEFT = "What is left beside the model's own arithmetic"
TINY_STEP = "--layers 1 --batch 1 --length 16 --repeats 1"
FIGURES = (
    Figure(section="Start-up", script="startup", full="--repeats 15", quick="--repeats 1"),
    Figure(
        section="Asked speed-ups",
        script="asked_speedup",
        full="--model bert --batches 1 --layers 3 --tries 10 --repeats 7",
        quick="--model bert --batches 1 --layers 1 --tries 1 --most 1.3 --repeats 1",
    ),
    Figure(section=STEP, script="training_step", full="--repeats 7", quick=f"{TINY_STEP} --arms patched"),
    Figure(section=STEP, script="training_step", full="--batch 4 --repeats 3", quick=None),
    Figure(
        section=STEP,
        script="training_step",
        full="--arms l0 hidden --batch 4 --repeats 15",
        quick=f"{TINY_STEP} --arms hidden",
    ),
    Figure(
        section=STEP,
        script="training_step",
        full="--arms patched l0 hidden distilled --batch 4 --repeats 7",
        quick=None,
    ),
    *(
        Figure(
            section=LORA,
            script="lora_step",
            full=f"--family {family} --layers 2 --batch {batch} --repeats 5 --arms movement loraprune",
            quick=f"--family {family} {TINY_STEP} --arms loraprune" if batch == 4 else None,
        )
        for family, batch in (("llama", 4), ("bert", 4), ("bert", 8))
    ),
    Figure(
        section="Speed of a cut model",
        script="compact_latency",
        full="--repeats 7",
        quick="--layers 1 --batches 1 --length 16 --repeats 1",
    ),
    Figure(
        section="Cutting and loading",
        script="cut_and_load",
        full="--repeats 15",
        quick="--layers 1 --repeats 1",
    ),
    Figure(
        section=LEFT,
        script="training_step",
        full="--arms patched distilled --layers 12 --repeats 9",
        quick=None,
    ),
    Figure(
        section=LEFT,
        script="runtimes",
        full="--runtimes eager compile onnx --batches 1 4 --repeats 15",
        quick="--runtimes eager --batches 1 --layers 1 --length 16 --repeats 1",
        common="--threads 1",
    ),
    Figure(
        section=LEFT,
        script="gguf_decoding",
        full="DENSE-GGUF PRUNED-GGUF --rounds 11 --clock cpu",
        quick=None,
        common="",
    ),
    Figure(section="Real models", script="real_models", full="--smollm2 SMOLLM2", quick=None),
    Figure(
        section="Large models",
        script="large_models",
        full="--gigabytes 2 --repeats 2",
        quick="--shape Llama-2-7B",
    ),
    Figure(
        section="Growth",
        script="growth",
        full="--sizes 4 8 16 --repeats 3",
        quick="--sizes 4 8 --repeats 1",
    ),
    Figure(
        section="Cheaper layers",
        script="cheaper_layers",
        full="--repeats 9",
        quick="--layers 1 --batch 1 --length 16 --repeats 1",
    ),
    Figure(
        section="Cheaper layers",
        script="cheaper_accuracy",
        full="--train TRAIN --validation VALIDATION --threads 1",
        quick=None,
        common="",
    ),
    Figure(
        section=DEPTH,
        script="depth_cost",
        full="--tokens 128 --repeats 3 --arms block_influence angular relative_norm avss",
        quick="--tokens 8 --repeats 1 --rounds 1 --arms block_influence",
    ),
    Figure(
        section=DEPTH,
        script="mask_memory",
        full="--hidden 512",
        quick="--hidden 256 --depths 1 2 --tokens 16 --batches 1",
        common="--threads 1",
    ),
)


@dataclass(frozen=True, kw_only=True)
class Outcome:
    """What became of a figure."""

    section: str
    command: str
    seconds: float
    result: Any = None
    error: str | None = None
    """Why there is no result, in one line."""


def run(figure: Figure, given: Mapping[str, str | None], *, is_quick: bool) -> Outcome:
    """Run a script, and return what it printed as JSON."""
    shown = figure.command(is_quick=is_quick)
    words = shlex.split(shown)[2:]
    missing = [name for name in GIVEN if name.upper() in words and given[name] is None]
    if missing:
        told = f"left out: needs {', '.join('--' + name for name in missing)}"
        return Outcome(section=figure.section, command=shown, seconds=0.0, error=told)
    words = [given[word.lower()] or word if word.lower() in GIVEN else word for word in words]
    start = time.perf_counter()
    command = [sys.executable, str(HERE / f"{figure.script}.py"), *words, "--json"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    seconds = round(time.perf_counter() - start, 1)
    try:
        result = json.loads(done.stdout.splitlines()[-1]) if done.returncode == 0 else None
    except (IndexError, ValueError):
        result = None
    if result is None:
        lines = (done.stderr or done.stdout).strip().splitlines() or ["it printed nothing"]
        told = f"failed with exit code {done.returncode}: {lines[-1]}"
        return Outcome(section=figure.section, command=shown, seconds=seconds, error=told)
    return Outcome(section=figure.section, command=shown, seconds=seconds, result=result)


def leaves(value: Any, path: tuple[str, ...] = ()) -> Iterator[tuple[str, str]]:
    """Yield the numbers of a result, each with the names that lead to it."""
    if isinstance(value, Mapping):
        for name, part in value.items():
            yield from leaves(part, (*path, name))
    else:
        yield " / ".join(path), f"{value:.4g}" if isinstance(value, float) else str(value)


def markdown(outcomes: list[Outcome]) -> str:
    """Return all results as a page: a table for each command."""
    lines = ["# Figures"]
    for outcome in outcomes:
        lines += ["", f"## {outcome.section}", "", f"`{outcome.command}`, {outcome.seconds:.0f} s", ""]
        if outcome.error is not None:
            lines.append(outcome.error)
            continue
        lines += ["| | |", "|---|---|"]
        lines += [f"| {name} | {text} |" for name, text in leaves(outcome.result)]
    return "\n".join(lines) + "\n"


def main() -> int:
    """Run what was asked for, and return the exit code."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("out", type=Path, help=f"folder for {JSON_FILE} and {TEXT_FILE}")
    parser.add_argument("--quick", action="store_true", help="smallest shapes, two scripts at a time")
    parser.add_argument("--only", nargs="+", choices=sorted({figure.script for figure in FIGURES}))
    for name in GIVEN:
        parser.add_argument(f"--{name}")
    options = parser.parse_args()
    given = {name: vars(options)[name.replace("-", "_")] for name in GIVEN}
    asked = [figure for figure in FIGURES if options.only is None or figure.script in options.only]
    if options.quick:
        asked = [figure for figure in asked if figure.quick is not None]
    options.out.mkdir(parents=True, exist_ok=True)
    outcomes = []
    with ThreadPoolExecutor(2 if options.quick else 1) as pool:
        for outcome in pool.map(lambda figure: run(figure, given, is_quick=options.quick), asked):
            outcomes.append(outcome)
            print(f"{outcome.command}: {outcome.error or f'{outcome.seconds:.0f} s'}", flush=True)
            # What is there is kept when a later one is stopped.
            (options.out / JSON_FILE).write_text(json.dumps([asdict(each) for each in outcomes], indent=2))
            (options.out / TEXT_FILE).write_text(markdown(outcomes), encoding="utf-8")
    without = [outcome for outcome in outcomes if outcome.error is not None]
    print(f"{len(outcomes) - len(without)} of {len(outcomes)} regenerated")
    return 1 if any((each.error or "").startswith("failed") for each in without) else 0


if __name__ == "__main__":
    sys.exit(main())
