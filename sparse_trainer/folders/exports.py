"""The forms in which `save_pruned` writes a model, by name; a new one is a class and a line of `EXPORTS`."""

from pathlib import Path
from typing import Protocol

from transformers import PreTrainedModel

from patchers.modeling_pruned import stock_class_of
from sparse_trainer.cut.layout import earlier_layout
from sparse_trainer.errors import ArgumentError, CheckpointError, one_of, shown
from sparse_trainer.folders.padded import check_paddable, padded
from sparse_trainer.registration import check_entry


class Export(Protocol):
    """A form of a saved model: which files hold it, and how they are loaded.

    `save_pruned` writes processor, plan and card around them, and makes the folder appear whole or not at all.
    """

    def check(self, model: PreTrainedModel) -> None:
        """Raise `CheckpointError` for a model that this form cannot hold: before anything is written."""

    def write(self, model: PreTrainedModel, folder: Path) -> None:
        """Write config and weights into an empty folder."""

    def card(self, model: PreTrainedModel, loader: str) -> str:
        """Return, as Markdown, what the model card says of this form: how it is loaded, and what there is to know.

        Args:
            loader: The auto class of the model's task, e.g. `AutoModelForCausalLM`.
        """


class Native:
    """A stock checkpoint: shapes that the class in transformers can build."""

    def check(self, model: PreTrainedModel) -> None:
        """Refuse uneven layers and replaced norms."""
        _check_norms(model, "native")
        if _is_uneven(model):
            raise CheckpointError(
                "export",
                f"'native' needs shapes that {type(model).__name__} can build, and the layers are uneven, or "
                "share weights.",
                "Use 'self-contained' or 'padded'; or prune with `scope='uniform'` and no heads.",
            )

    def write(self, model: PreTrainedModel, folder: Path) -> None:
        """Write config and weights as transformers does."""
        model.save_pretrained(folder)

    def card(self, model: PreTrainedModel, loader: str) -> str:
        """Return how a stock checkpoint is loaded."""
        return f"{_lines(loader)}This is a stock checkpoint: no code comes with it."


class SelfContained:
    """Any shapes, with the one file of code that builds them."""

    def check(self, model: PreTrainedModel) -> None:
        """Refuse a model that needs no code."""
        if not _is_uneven(model):
            raise CheckpointError(
                "export",
                "'self-contained' is for uneven layers, and the stock class builds these.",
                "Use 'native'.",
            )

    def write(self, model: PreTrainedModel, folder: Path) -> None:
        """Write config, weights and `modeling_pruned.py`: the class of a pruned model knows how."""
        model.save_pretrained(folder)

    def card(self, model: PreTrainedModel, loader: str) -> str:
        """Return how it is loaded, by transformers and by us."""
        return (
            f"{_lines(loader, ', trust_remote_code=True')}Its layers are uneven, share weights, or are of another sort "
            "than those of its class in transformers, so `modeling_pruned.py` comes with it, which imports only torch "
            "and transformers. "
            f'`sparse_trainer.load_pruned("this-folder")` loads it without `trust_remote_code`.{_vllm(model, loader)}'
        )


class Padded:
    """A stock checkpoint with zeros: compatible with every tool, less gain. A model without need of zeros is native."""

    def check(self, model: PreTrainedModel) -> None:
        """Refuse replaced norms, and what zeros cannot stand for."""
        _check_norms(model, "padded")
        if _is_uneven(model):
            check_paddable(model)

    def write(self, model: PreTrainedModel, folder: Path) -> None:
        """Write the model filled up with zeros."""
        (padded(model) if _is_uneven(model) else model).save_pretrained(folder)

    def card(self, model: PreTrainedModel, loader: str) -> str:
        """Return how it is loaded, and what the zeros cost."""
        if not _is_uneven(model):
            return EXPORTS["native"].card(model, loader)
        return (
            f"{_lines(loader)}This is a stock checkpoint. Zeros pad its uneven layers to the widest one and to all "
            "heads, and layers that share weights have a copy each, so it runs where only the stock class is known, "
            "larger and slower than it has to be. Parameters and multiply-accumulates are counted without the zeros."
        )


class Automatic:
    """Native where the shapes allow it, else self-contained."""

    def check(self, model: PreTrainedModel) -> None:
        """Refuse nothing."""

    def write(self, model: PreTrainedModel, folder: Path) -> None:
        """Write config and weights, and the file of code where it is needed."""
        model.save_pretrained(folder)

    def card(self, model: PreTrainedModel, loader: str) -> str:
        """Return how the form that fits is loaded."""
        return EXPORTS["self-contained" if _is_uneven(model) else "native"].card(model, loader)


EXPORTS: dict[str, Export] = {
    "auto": Automatic(),
    "native": Native(),
    "padded": Padded(),
    "self-contained": SelfContained(),
}


def find_export(name: str) -> Export:
    """Return the export of this name.

    Raises:
        ArgumentError: there is none; the nearest known one is given.
    """
    return EXPORTS[one_of("export", name, EXPORTS)]


def register_export(name: str, export: Export) -> None:
    """Make a form known by a name, to `save_pruned`, to recipes (`export: {export: NAME}`) and to the command line.

    Args:
        name: Letters, digits, hyphens and underscores.
        export: An object with the three methods of `Export`.

    Raises:
        ArgumentError: no name, one that another class has, or an object without these methods.
    """
    where = f"export {shown(name)}"
    if not str(name).replace("-", "_").isidentifier():
        raise ArgumentError(where, "is no name.", "Use letters, digits, hyphens and underscores.")
    if isinstance(export, type):
        raise ArgumentError(
            where, f"{export.__name__} is a class.", f"Give an instance: {export.__name__}()."
        )
    taken = type(EXPORTS[name]) if name in EXPORTS else None
    lists = "sparse_trainer.folders.exports.Export"
    check_entry(where, type(export), dir(export), ("check", "write", "card"), lists, taken)
    EXPORTS[name] = export


def fills_up(export: Export, model: PreTrainedModel) -> bool:
    """Tell whether this form writes zeros where units were cut."""
    return isinstance(export, Padded) and _is_uneven(model)


def _lines(loader: str, options: str = "") -> str:
    """Return the lines of Python that load a model from its folder."""
    call = f'model = {loader}.from_pretrained("this-folder"{options})'
    return f"```python\nfrom transformers import {loader}\n\n{call}\n```\n\n"


def _vllm(model: PreTrainedModel, loader: str) -> str:
    """Return how vLLM serves an uneven language model, nothing where its config does not say the sizes of layers."""
    if loader != "AutoModelForCausalLM" or "per_layer" not in model.config.pruning:
        return ""
    if earlier_layout(model.config)["skips"]:
        return "\n\nvLLM does not serve it: some of its layers have no attention."
    return (
        "\n\nFor vLLM there is its Transformers backend, not a class of its own (read in its source, not run):\n\n"
        "```bash\nvllm serve this-folder --model-impl transformers --trust-remote-code\n```"
    )


def _is_uneven(model: PreTrainedModel) -> bool:
    """Tell whether only a class of ours builds the shapes of a model."""
    return stock_class_of(model) is not type(model)


def _check_norms(model: PreTrainedModel, name: str) -> None:
    if earlier_layout(model.config)["norms"]:
        raise CheckpointError(
            "export",
            f"{name!r} is for {type(model).__name__} as it stands in transformers, which has LayerNorm where this "
            "model has NoNorm.",
            "Use 'self-contained'.",
        )
