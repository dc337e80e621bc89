"""Runs damaged inputs one after the other in a process of its own, with limits of time and memory for each.

`python -m tests.fuzz.worker [SEED]` writes lines `{"subject", "number", "outcome"}` to stdout.
"""

import json
import random
import resource
import signal
import sys
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import torch
from datasets.utils import logging as datasets_logging
from datasets.utils.logging import disable_progress_bar
from transformers.utils import logging

from patchers.modeling_pruned import LayoutError, pruned_class
from sparse_trainer.cut.optimize import optimize_model
from sparse_trainer.data.corpora.read import find, rows, texts
from sparse_trainer.errors import SparseTrainerError
from sparse_trainer.folders.load import load_pruned
from sparse_trainer.folders.load_shape import load_shape
from sparse_trainer.folders.safetensors_files import Stored
from sparse_trainer.folders.save import save_pruned
from sparse_trainer.one_shot.prune import prune
from sparse_trainer.plan.document import PLAN_FILE, Plan
from sparse_trainer.run.recipes.load import load_recipe
from sparse_trainer.run.recipes.shipped import shipped
from tests.architectures.tiny import tiny_model
from tests.fuzz import mutations

Trial = Callable[[], object]
SECONDS, MEMORY = 30, 4 * 2**30
SEED = 20
ROWS = [{"question": "a b", "choices": ["a", "b"], "label": label} for label in (0, 1)]


def recipes(draw: random.Random) -> Iterator[Trial]:
    """Files."""
    files, place = list(shipped().values()), Path("mine.yaml")
    for _ in range(160):
        text = mutations.lines(draw, draw.choice(files).read_text(encoding="utf-8"))
        data = mutations.data(draw, text.encode()) if draw.random() < 0.2 else text.encode()
        yield lambda data=data: (place.write_bytes(data), load_recipe(place))  # type: ignore[misc]


def overrides(draw: random.Random) -> Iterator[Trial]:
    """Single values, of known keys and others."""
    keys = (
        "prune.density",
        "prune.criterion",
        "model.name_or_path",
        "prune.protect",
        "export",
        "x",
        "prune.a.b",
        "",
    )
    for _ in range(80):
        text = f"{draw.choice(keys)}={draw.choice((*mutations.SCALARS, *map(str, mutations.NASTY)))}"
        yield lambda text=text: load_recipe("llama-wanda", [text])  # type: ignore[misc]


def plans(draw: random.Random) -> Iterator[Trial]:
    """Plans of a model, damaged as values or as text, and cut by."""
    whole = Plan.load("good").to_dict()
    names = list(whole["groups"])
    for number in range(80):
        values = mutations.value(draw, whole, draw.randint(1, 2))
        if number % 2 and isinstance(values.get("groups"), dict):
            values = {**whole, "groups": mutations.value(draw, {n: whole["groups"][n] for n in names[:3]}, 1)}
        data = json.dumps(values).encode()
        data = mutations.data(draw, data) if number % 8 == 0 else data
        yield lambda data=data: _cut(data)  # type: ignore[misc]


def _cut(data: bytes) -> None:
    Path("plan.json").write_bytes(data)
    plan = Plan.load("plan.json")
    with torch.device("meta"):
        model = type(_dense)(_dense.config)
    optimize_model(model, plan=plan, inplace=True, check=False)


def configs(draw: random.Random) -> Iterator[Trial]:
    """The config of a pruned folder."""
    whole = json.loads(Path("good/config.json").read_text(encoding="utf-8"))
    top = {name: entry for name, entry in whole.items() if name != "pruning"}
    for number in range(80):
        data = json.dumps(
            {**mutations.value(draw, top, draw.randint(1, 2)), "pruning": whole["pruning"]}
        ).encode()
        data = mutations.data(draw, data) if number % 4 == 0 else data
        yield lambda data=data: (_put("config.json", data), load_shape("damaged"))  # type: ignore[misc]


def layouts(draw: random.Random) -> Iterator[Trial]:
    """What a config says of the cut."""
    config = load_pruned("good").config
    whole = config.pruning
    for _ in range(140):
        pruning = {**whole, "layout": mutations.value(draw, whole["layout"], draw.randint(1, 3))}
        yield lambda pruning=pruning: _build(config, pruning)  # type: ignore[misc]


def _build(config: Any, pruning: Any) -> None:
    config.pruning = pruning
    with torch.device("meta"):
        pruned_class(type(_dense))(config)


def weights(draw: random.Random) -> Iterator[Trial]:
    """Safetensors."""
    whole = Path("good/model.safetensors").read_bytes()
    for number in range(60):
        data = mutations.tensors(draw, whole) if number else b""
        yield lambda data=data: (
            _put("model.safetensors", data),
            Stored(Path("damaged")),
            load_pruned("damaged"),
        )  # type: ignore[misc]


def _put(name: str, data: bytes) -> None:
    """Lay out a folder that is good but for one file."""
    folder = Path("damaged")
    folder.mkdir(exist_ok=True)
    for file in Path("good").iterdir():
        (folder / file.name).write_bytes(data if file.name == name else file.read_bytes())


def lines(draw: random.Random) -> Iterator[Trial]:
    """Rows of JSON lines, as text and as questions."""
    for number in range(40):
        values = [*ROWS, *(mutations.value(draw, row, 1) for row in ROWS[:1])]
        data = "".join(json.dumps(row) + "\n" for row in values).encode()
        data = mutations.data(draw, data) if number % 2 else data
        yield lambda data=data, number=number: _read(data, number)  # type: ignore[misc]


def _read(data: bytes, number: int) -> None:
    file = Path(f"rows{number}.jsonl")
    file.write_bytes(data)
    for corpus in (find(str(file)), find("piqa")):
        list(texts(corpus, rows(corpus, "calibration", file)))


SUBJECTS = {f.__name__: f for f in (recipes, overrides, plans, configs, layouts, weights, lines)}


def main() -> None:
    """Judge every input of every subject."""
    global _dense
    seed = int(sys.argv[1]) if len(sys.argv) > 1 else SEED
    warnings.simplefilter("ignore")
    logging.set_verbosity_error()
    logging.disable_progress_bar()  # type: ignore[no-untyped-call]
    datasets_logging.set_verbosity_error()
    disable_progress_bar()
    resource.setrlimit(resource.RLIMIT_DATA, (MEMORY, MEMORY))
    _dense = tiny_model("llama", dtype=torch.float32)
    pruned, _ = prune(_dense, None, criterion="magnitude", density={"channels": 0.5})
    save_pruned(pruned, "good", overwrite=True)
    assert (Path("good") / PLAN_FILE).is_file()
    for subject, inputs in SUBJECTS.items():
        for number, trial in enumerate(inputs(random.Random(seed))):
            _say(subject, number, "begun")
            signal.alarm(SECONDS)
            outcome = _judge(trial)
            signal.alarm(0)
            _say(subject, number, outcome)


def _say(subject: str, number: int, outcome: str) -> None:
    sys.stdout.write(json.dumps({"subject": subject, "number": number, "outcome": outcome}) + "\n")
    sys.stdout.flush()


def _judge(trial: Trial) -> str:
    try:
        trial()
    except (SparseTrainerError, LayoutError) as error:
        return "typed" if len(str(error)) < 20_000 else "endless message"
    except BaseException as error:  # noqa: BLE001 - any other is what is looked for
        return f"{type(error).__name__}: {str(error)[:300]}"
    return "accepted"


_dense: Any = None

if __name__ == "__main__":
    sys.exit(main())
