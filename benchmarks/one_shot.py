"""Measure one-shot pruning: perplexity of the pruned model over that of the dense one, on the same tokens.

    python benchmarks/one_shot.py MODEL_FOLDER TEXT_FOLDER --threads 1

TEXT_FOLDER holds `*train*` and `*test*` text or parquet files of WikiText-2 raw. One calibration pass serves all rows.
"""

import copy
import json
import math
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from common import base_parser, environment, prepare
from torch import Tensor
from transformers import AutoModelForCausalLM, AutoTokenizer

from patchers.discovery.discover import discover
from sparse_trainer.criteria.calibration.base import WidthCriterion
from sparse_trainer.criteria.calibration.mixture import criterion_of
from sparse_trainer.one_shot.prune import prune
from sparse_trainer.statistics.collect import collect
from sparse_trainer.statistics.moments import Moments
from sparse_trainer.statistics.requests import Statistics

# Shape legend: B = windows, T = tokens.


@dataclass(frozen=True)
class Row:
    """One way to prune: [allocation>]criterion[(option=value, ...)][:repair[+bias]]."""

    criterion: WidthCriterion
    allocation: WidthCriterion | None
    repair: str | None
    bias: bool | None
    """Whether the repair writes biases, which are added where there are none; None = where there are some."""

    @classmethod
    def read(cls, text: str) -> "Row":
        """Parse `fisher>obs(rounds=16):least_squares`."""
        names, _, repair = text.partition(":")
        allocation, _, criterion = names.rpartition(">")
        repair, plus, _ = repair.partition("+")
        return cls(
            criterion=criterion_of(criterion),
            allocation=criterion_of(allocation) if allocation else None,
            repair=repair or None,
            bias=True if plus else None,
        )


def windows(folder: Path, part: str, tokenizer: Any, tokens: int, length: int) -> Tensor:
    """Return the first tokens of a part of the corpus as windows, [B, T]."""
    text = ""
    for file in sorted(folder.glob(f"*{part}*")):
        text += read(file)
        ids = tokenizer(text[: tokens * 8], add_special_tokens=False)["input_ids"]
        if len(ids) >= tokens:
            return torch.tensor(ids[: tokens // length * length]).view(-1, length)
    raise SystemExit(f"{folder}: fewer than {tokens} tokens of {part}")


def read(file: Path) -> str:
    """Return the text of a file."""
    if file.suffix == ".parquet":
        from datasets import Dataset

        return "".join(Dataset.from_parquet(str(file))["text"])
    return file.read_text(encoding="utf-8")


@torch.no_grad()
def perplexity(model: Any, windows_BT: Tensor, device: str) -> float:
    """Return exp of the mean loss per token; the windows stand by themselves."""
    total = 0.0
    for window_T in windows_BT:
        ids = window_T.unsqueeze(0).to(device)
        total += float(model(input_ids=ids, labels=ids, use_cache=False).loss)
    return math.exp(total / len(windows_BT))


def batches(windows_BT: Tensor, size: int) -> Iterator[dict[str, Tensor]]:
    """Yield calibration batches."""
    for part_BT in windows_BT.split(size):
        yield {"input_ids": part_BT}


def gather(
    model: Any, rows: Sequence[Row], units: Sequence[str], calibration_BT: Tensor, size: int
) -> Statistics:
    """Collect in one pass what all rows need."""
    criteria = [c for row in rows for c in (row.criterion, row.allocation) if c is not None]
    requests = {need for criterion in criteria for need in criterion.requests()}
    if any(row.repair for row in rows):
        requests.add(Moments(covariance=True))
    structure = discover(model, units)
    ordered = sorted(requests, key=str)
    return collect(model, structure, list(batches(calibration_BT, size)), ordered)


def main() -> None:
    """Print the table."""
    parser = base_parser(__doc__.splitlines()[0], repeats=1)
    parser.add_argument("model")
    parser.add_argument("text", type=Path)
    parser.add_argument("--rows", nargs="+", default=["wanda", "wanda:least_squares"])
    parser.add_argument("--density", type=float, default=0.7)
    parser.add_argument("--units", nargs="+", default=["channels"])
    parser.add_argument("--joint", action="store_true", help="one density for all kinds, by parameters")
    parser.add_argument("--scope", default="uniform", help="of rows without allocation")
    parser.add_argument("--standardize", help="makes scores comparable; default: by criterion")
    parser.add_argument("--calibration", type=int, default=16384, help="tokens")
    parser.add_argument("--evaluation", type=int, default=16384, help="tokens")
    parser.add_argument("--window", type=int, default=512)
    parser.add_argument("--batch-size", type=int, default=4)
    parser.add_argument("--damping", type=float, default=0.1)
    parser.add_argument("--min-keep", type=int, default=1)
    options = parser.parse_args()
    prepare(options)
    rows = [Row.read(text) for text in options.rows]
    tokenizer = AutoTokenizer.from_pretrained(options.model)
    dtype = getattr(torch, options.dtype)
    model = AutoModelForCausalLM.from_pretrained(options.model, dtype=dtype).to(options.device).eval()
    calibration_BT = windows(options.text, "train", tokenizer, options.calibration, options.window)
    evaluation_BT = windows(options.text, "test", tokenizer, options.evaluation, options.window)
    dense = perplexity(model, evaluation_BT, options.device)
    print(
        json.dumps({**environment(options), "dense perplexity": dense, "options": str(vars(options))}),
        flush=True,
    )
    start = time.perf_counter()
    statistics = gather(model, rows, options.units, calibration_BT, options.batch_size)
    print(f"calibration {time.perf_counter() - start:.0f} s", flush=True)
    density = options.density if options.joint else dict.fromkeys(options.units, options.density)
    for text, row in zip(options.rows, rows, strict=True):
        start = time.perf_counter()
        pruned, plan = prune(
            copy.deepcopy(model),
            criterion=row.criterion,
            allocation=row.allocation,
            reconstruct=row.repair,
            reconstruct_bias=row.bias,
            units=options.units,
            density=density,
            scope="global" if row.allocation else options.scope,
            standardize=options.standardize,
            damping=options.damping,
            min_keep=options.min_keep,
            statistics=statistics,
            inplace=True,
        )
        spent = time.perf_counter() - start
        found = perplexity(pruned, evaluation_BT, options.device)
        ratio = found / dense
        print(
            f"{text:40s} {found:10.2f} ratio {ratio:8.3f} density {plan.density_reached:.4f} {spent:.0f} s",
            flush=True,
        )


if __name__ == "__main__":
    main()
