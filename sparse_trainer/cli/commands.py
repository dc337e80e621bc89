"""The commands: where each is defined, and what the list of commands says of it. Nothing but this list is imported."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from importlib import import_module

ABOUT = "Structured fine-pruning for Hugging Face Transformers."


@dataclass(frozen=True, slots=True)
class Command:
    """Where a command is defined, and what the list of commands says of it: the first line of its docstring."""

    module: str
    function: str
    says: str

    def load(self) -> Callable[..., None]:
        """Return the function; importing it may take seconds, since it imports models and training."""
        found: Callable[..., None] = getattr(import_module(self.module), self.function)
        return found

    def listed(self) -> Callable[..., None]:
        """Return a function that stands for the command in help."""

        def stand_in() -> None: ...

        stand_in.__doc__ = self.says
        return stand_in


COMMANDS = {
    "run": Command(
        "sparse_trainer.cli.run",
        "run_command",
        "Run a recipe: train where it says so, prune, cut, save, reload in a new process, measure.",
    ),
    "prune": Command(
        "sparse_trainer.cli.prune",
        "prune_command",
        "Prune a pretrained model in one shot: score on calibration text, cut, repair, save. No training.",
    ),
    "compare": Command(
        "sparse_trainer.cli.compare",
        "compare_command",
        "Prune by several criteria on one pass over the text; show what each costs on text held out. Nothing is saved.",
    ),
    "layers": Command(
        "sparse_trainer.cli.layers",
        "layers_command",
        "Show what every criterion of depth says of each layer, and which it would take. Nothing is cut.",
    ),
    "recover": Command(
        "sparse_trainer.cli.recover",
        "recover_command",
        "Train a model that was cut briefly, by LoRA that is merged, and save it with its plan continued.",
    ),
    "optimize": Command(
        "sparse_trainer.cli.optimize",
        "optimize_command",
        "Cut a checkpoint: a smaller dense model with the same outputs.",
    ),
    "convert": Command(
        "sparse_trainer.cli.convert",
        "convert_command",
        "Write a model folder, dense or pruned, in the form of another runtime.",
    ),
    "merge-kv-heads": Command(
        "sparse_trainer.cli.merge_kv_heads",
        "merge_kv_heads_command",
        "Merge KV heads of layers and keep all query heads: a smaller cache, which stock engines serve.",
    ),
    "trim-vocabulary": Command(
        "sparse_trainer.cli.trim_vocabulary",
        "trim_vocabulary_command",
        "Take tokens that a corpus does not use out of embeddings, head and tokenizer.",
    ),
    "sweep": Command(
        "sparse_trainer.cli.sweep",
        "sweep_command",
        "Run a recipe for every combination of some options; collect one table, and quality over speed in a picture.",
    ),
    "family": Command(
        "sparse_trainer.cli.family",
        "family_command",
        "Train once through several speed-ups or densities; write a finished model at each, and one table.",
    ),
    "recipes": Command(
        "sparse_trainer.cli.recipes",
        "recipes_command",
        "List the recipes that come with the project.",
    ),
    "inspect": Command(
        "sparse_trainer.cli.inspection",
        "inspect_command",
        "Show what of a model can be pruned, what it costs, and what stays untouched and why.",
    ),
    "evaluate": Command(
        "sparse_trainer.cli.evaluate",
        "evaluate_command",
        "Measure perplexity on running text, accuracy on multiple-choice questions, and answers about images.",
    ),
    "bench": Command(
        "sparse_trainer.cli.bench",
        "bench_command",
        "Measure size, load time, latency, throughput, generation and memory, models and runtimes in turn.",
    ),
    "timing": Command(
        "sparse_trainer.cli.timing",
        "timing_command",
        "Measure what heads, channels, blocks and the rest of a model take: the table behind --speedup.",
    ),
    "architectures": Command(
        "sparse_trainer.cli.architectures",
        "architectures_command",
        "Show which model types of transformers can be pruned, as measured.",
    ),
    "env": Command(
        "sparse_trainer.cli.environment",
        "env_command",
        "Print versions and hardware, for a bug report.",
    ),
}


def named_command(arguments: Sequence[str]) -> str:
    """Return the command that arguments name, "" where they name none."""
    return next((word for word in arguments if not word.startswith("-")), "")
