"""Time the command line until it has answered, beside Python that imports typer and rich.

python benchmarks/startup.py --repeats 15

Every arm is a process of its own. With `--clock cpu` what counts is the CPU time of that process.
"""

import argparse
import resource
import subprocess
import sys
import time

from common import base_parser, environment, interleave, prepare, ratio, show, summary

REFERENCE = "import typer, rich"
ARMS = {
    "--version": ["--version"],
    "--help": ["--help"],
    "a typo": ["prnue"],
    "recipes": ["recipes"],
    "run --help": ["run", "--help"],
}


def answered(command: list[str]) -> None:
    """Run a command to its end; what it says goes nowhere."""
    subprocess.run(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, check=False)


def children_seconds() -> float:
    """Return the CPU time of all processes that have ended."""
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    return used.ru_utime + used.ru_stime


def measured(options: argparse.Namespace) -> dict[str, list[float]]:
    """Return the seconds of every arm, round by round."""
    program = ["-c", "from sparse_trainer.cli import main; main()"]
    arms = {REFERENCE: ["-c", REFERENCE], "import transformers": ["-c", "import transformers"]}
    arms |= {"import sparse_trainer": ["-c", "import sparse_trainer"]}
    arms |= {name: [*program, *words] for name, words in ARMS.items()}
    clock = children_seconds if options.clock == "cpu" else time.perf_counter
    times: dict[str, list[float]] = {name: [] for name in arms}

    def timed(name: str) -> None:
        start = clock()
        answered([sys.executable, *arms[name]])
        times[name].append(clock() - start)

    interleave({name: lambda name=name: timed(name) for name in arms}, options, warmup=1)
    return {name: each[1:] for name, each in times.items()}


def main() -> None:
    """Parse options, time, print."""
    options = base_parser(__doc__ or "", repeats=15).parse_args()
    prepare(options)
    times = measured(options)
    result = {name: summary(each) | {"times": ratio(each, times[REFERENCE])} for name, each in times.items()}
    packages = ratio(times["import sparse_trainer"], times["import transformers"])
    show(
        {"environment": environment(options), **result, "sparse_trainer over transformers": packages},
        options.json,
    )


if __name__ == "__main__":
    main()
