"""Measure how the memory of element masks grows with depth: the statistics of one block at a time should be held.

python benchmarks/mask_memory.py --threads 1 [--criterion obs --hidden 512]

Random Llamas of one wide shape and two depths, pruned in place, each in a process of its own. What is measured is the
peak above what the process held before, over the weights of one block. Target: the same at both depths, but for the
hidden states of the calibration tokens, of which there is one set.
"""

import argparse
import gc
import json
from pathlib import Path
from typing import Any

import torch
from common import base_parser, environment, in_own_process, memory_bytes, prepare, show
from transformers import LlamaConfig, LlamaForCausalLM

from sparse_trainer.one_shot.prune import prune


def peak_over_block(layers: int, options: argparse.Namespace) -> float:
    """Return the peak memory that masking adds, over the weights of one block."""
    on_cuda = torch.device(options.device).type == "cuda"
    shape: dict[str, Any] = {
        "hidden_size": options.hidden,
        "intermediate_size": options.hidden * 43 // 16,  # as in Llama 7B
        "num_attention_heads": options.hidden // 128,
    }
    config = LlamaConfig(vocab_size=512, num_hidden_layers=layers, **shape)
    model = LlamaForCausalLM(config).to(options.device, getattr(torch, options.dtype)).eval()
    block = sum(p.numel() * p.element_size() for p in model.model.layers[0].parameters())
    batches = [{"input_ids": torch.randint(0, 512, (1, options.tokens))} for _ in range(options.batches)]
    gc.collect()
    if on_cuda:
        torch.cuda.reset_peak_memory_stats(options.device)
        before = torch.cuda.memory_allocated(options.device)
    else:
        Path("/proc/self/clear_refs").write_text("5")
        before = memory_bytes("VmRSS")
    prune(
        model, batches, criterion=options.criterion, units=["weights"], density=0.5, inplace=True, check=False
    )
    peak = torch.cuda.max_memory_allocated(options.device) if on_cuda else memory_bytes("VmHWM")
    return (peak - before) / block


def main() -> None:
    """Print the peaks at each depth, and what one layer more adds."""
    parser = base_parser(__doc__.splitlines()[0], repeats=1)
    parser.add_argument("--criterion", default="wanda")
    parser.add_argument("--hidden", type=int, default=2048)
    parser.add_argument("--depths", type=int, nargs=2, default=[2, 6])
    parser.add_argument("--tokens", type=int, default=128, help="per sequence")
    parser.add_argument("--batches", type=int, default=4)
    parser.add_argument("--depth-of", type=int, help=argparse.SUPPRESS)
    options = parser.parse_args()
    prepare(options)
    if options.depth_of is not None:
        print(json.dumps(peak_over_block(options.depth_of, options)))
        return
    few, many = options.depths
    peaks = {layers: in_own_process("--depth-of", str(layers)) for layers in (few, many)}
    result: dict[str, Any] = {
        **environment(options),
        "criterion": options.criterion,
        "hidden": options.hidden,
    }
    result["peak over a block"] = {f"{layers} layers": peak for layers, peak in peaks.items()}
    result["growth per layer, over a block"] = (peaks[many] - peaks[few]) / (many - few)
    show(result, options.json)


if __name__ == "__main__":
    main()
