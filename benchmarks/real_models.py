"""Time discovery, cut, loading and generation of real models and real shapes.

python benchmarks/real_models.py --threads 1 --smollm2 FOLDER [--profile] [--json]

FOLDER holds SmolLM2-135M-Instruct as a stock model folder (tests/fixtures/real_weights.py makes one). Targets:
discovery of 32 layers of Llama 7B in less than 1 s, the cut of SmolLM2 in less than 3 s, of BERT-base in less than
1.5 s.
A quarter of the KV groups and channels goes at random, another share in every layer.
"""

import argparse
import copy
import cProfile
import pstats
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from common import base_parser, environment, interleave, prepare, ratio, seconds, show, summary
from cut_and_load import touch
from torch import Tensor
from transformers import (
    AutoModelForCausalLM,
    BertConfig,
    BertForSequenceClassification,
    LlamaConfig,
    LlamaForCausalLM,
    PreTrainedModel,
)

from patchers.discovery.discover import discover
from sparse_trainer.cut.decision import Decision, Request
from sparse_trainer.cut.optimize import optimize_model
from sparse_trainer.cut.record import make_plan, measures_of
from sparse_trainer.folders.load import load_pruned
from sparse_trainer.folders.save import save_pruned
from sparse_trainer.plan.document import Plan


def random_plan(model: PreTrainedModel, share: float, seed: int) -> Plan:
    """Return a plan that keeps this share of each kind of unit, unevenly over the layers."""
    generator = torch.Generator().manual_seed(seed)
    structure = discover(model)
    keep: dict[str, Tensor] = {}
    for groups in (structure.of(["heads"]), structure.of(["channels"])):
        scores = {
            g.name: torch.rand(g.num_units, generator=generator) + 0.5 * torch.rand(1, generator=generator)
            for g in groups
        }
        whole = torch.cat(list(scores.values())).sort(descending=True).values
        bar = whole[round(share * whole.numel()) - 1]
        keep |= {name: score >= bar for name, score in scores.items()}
    sizes = measures_of(model, structure, 128)
    decision = Decision(structure=structure, keep=keep, request=Request(method="random"))
    return make_plan(model, decision, before=sizes, after=sizes)


def discovery(options: argparse.Namespace) -> dict[str, float]:
    """Time `discover` on the shapes of Llama 7B, without weights."""
    with torch.device("meta"):
        model = LlamaForCausalLM(LlamaConfig(num_hidden_layers=32))
    return summary(interleave({"llama": lambda: discover(model)}, options, warmup=1)["llama"])


def cuts(model: PreTrainedModel, plan: Plan, options: argparse.Namespace) -> dict[str, dict[str, float]]:
    """Time the cut of a copy: the copy that is cut in place is made before the clock starts."""
    arms: dict[str, dict[str, Any]] = {
        "in place": {"inplace": True, "check": False},
        "in place, checked": {"inplace": True},
        "a copy, checked": {},
    }
    times: dict[str, list[float]] = {name: [] for name in arms}
    for _ in range(options.cut_repeats):
        for name, how in arms.items():
            fresh = copy.deepcopy(model) if how.get("inplace") else model
            times[name].append(_timed(fresh, plan, how, options))
    return {name: summary(values) for name, values in times.items()}


def _timed(model: PreTrainedModel, plan: Plan, how: dict[str, Any], options: argparse.Namespace) -> float:
    return seconds(lambda: optimize_model(model, plan=plan, **how), options)


def profile(model: PreTrainedModel, plan: Plan) -> None:
    """Print where the time of a cut goes."""
    fresh = copy.deepcopy(model)
    with cProfile.Profile() as recorder:
        optimize_model(fresh, plan=plan, inplace=True, check=False)
    pstats.Stats(recorder).sort_stats("cumulative").print_stats(45)


def loading(dense: Path, compact: Path, options: argparse.Namespace) -> dict[str, dict[str, float]]:
    """Time loading until every weight is read, from the page cache."""
    stock = AutoModelForCausalLM.from_pretrained
    arms: dict[str, Callable[[], None]] = {
        "dense": lambda: touch(stock(dense)),
        "trust_remote_code": lambda: touch(stock(compact, trust_remote_code=True)),
        "load_pruned": lambda: touch(load_pruned(compact)),
    }
    times = interleave(arms, options, warmup=1)
    return {name: summary(t) | {"ratio": ratio(t, times["dense"])} for name, t in times.items()}


def generation(
    dense: PreTrainedModel, compact: PreTrainedModel, options: argparse.Namespace
) -> dict[str, dict[str, float]]:
    """Time greedy generation with a cache, one row."""
    ids_BT = torch.randint(5, dense.config.vocab_size, (1, options.prompt))
    mask_BT = torch.ones_like(ids_BT)

    def run(model: Any) -> Callable[[], object]:
        new = {"max_new_tokens": options.new_tokens, "min_new_tokens": options.new_tokens, "do_sample": False}
        return lambda: model.generate(ids_BT, attention_mask=mask_BT, **new)

    times = interleave({"dense": run(dense), "compact": run(compact)}, options, warmup=1)
    rows = {name: summary(values) for name, values in times.items()}
    rows["compact"]["speed_up"] = ratio(times["dense"], times["compact"])
    return rows


def main() -> None:
    """Print what was timed."""
    parser = base_parser(__doc__ or "", repeats=7)
    parser.add_argument("--smollm2", type=Path, required=True, help="folder of the stock model")
    parser.add_argument("--share", type=float, default=0.75, help="units that stay")
    parser.add_argument("--cut-repeats", type=int, default=5)
    parser.add_argument("--prompt", type=int, default=128)
    parser.add_argument("--new-tokens", type=int, default=32)
    parser.add_argument("--profile", action="store_true", help="print where the time of a cut goes, no more")
    options = parser.parse_args()
    prepare(options)
    llama = AutoModelForCausalLM.from_pretrained(options.smollm2, dtype=torch.float32).eval()
    plan = random_plan(llama, options.share, options.seed)
    if options.profile:
        profile(llama, plan)
        return
    bert = BertForSequenceClassification(BertConfig()).eval()
    result: dict[str, Any] = {
        "environment": environment(options),
        "discover, Llama 7B": discovery(options),
        "cut, SmolLM2": cuts(llama, plan, options),
        "cut, BERT-base": cuts(bert, random_plan(bert, options.share, options.seed), options),
    }
    with tempfile.TemporaryDirectory() as scratch:
        compact = optimize_model(llama, plan=plan)
        folder = save_pruned(compact, Path(scratch, "compact"))
        result["load, warm, SmolLM2"] = loading(options.smollm2, folder, options)
        result["folder_mb"] = {
            name: (path / "model.safetensors").stat().st_size / 1e6
            for name, path in (("dense", options.smollm2), ("compact", folder))
        }
        result["parameters"] = {"dense": plan.params["dense"], "compact": compact.num_parameters()}
        generated = generation(llama, compact, options)
        result[f"generate, 1 x {options.prompt} + {options.new_tokens}"] = generated
    show(result, options.json)


if __name__ == "__main__":
    main()
