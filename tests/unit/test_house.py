"""How the source is laid out: few rooms, short chains of imports, one name per thing, two files for a new thing."""

from collections.abc import Mapping
from pathlib import Path

import pytest

from benchmarks import house
from sparse_trainer.convert.registry import CONVERSIONS
from sparse_trainer.criteria.calibration.registry import WIDTH_CRITERIA
from sparse_trainer.criteria.training.registry import TRAINING_CRITERIA
from sparse_trainer.one_shot.repairs.registry import REPAIRS
from sparse_trainer.tasks.registry import TASKS

ROOT = Path(__file__).parents[2]
REGISTRIES: Mapping[str, Mapping[str, object]] = {
    "criteria/calibration": WIDTH_CRITERIA,
    "criteria/training": TRAINING_CRITERIA,
    "convert": CONVERSIONS,
    "one_shot/repairs": REPAIRS,
    "tasks": TASKS,
}
"""Folder under `sparse_trainer` -> what its dict holds."""
EDGES = house.imports(house.modules(ROOT))
SHARED = ("magnitude", "l0")
"""Weight masks score by the same sums of weights; L0 alone has flat options that need a model to be checked."""
THINGS = [(folder, name) for folder, known in REGISTRIES.items() for name in known if name not in SHARED]


def test_the_figures_stay_within_their_bounds() -> None:
    known = house.modules(ROOT)
    edges = house.imports(known)
    plan = house.rooms(edges)
    assert len(plan) <= 22
    assert len(house.longest(plan)) <= 10
    assert len(house.longest(edges)) <= 20
    assert house.untyped(known) == []
    assert len(house.twice(known)) <= 5


@pytest.mark.parametrize(("folder", "name"), THINGS, ids=[f"{folder} {name}" for folder, name in THINGS])
def test_what_a_dict_holds_is_named_in_its_own_file_and_there(folder: str, name: str) -> None:
    """Other files of the folder may build on it; nothing outside knows it, so a new one touches two files."""
    thing = REGISTRIES[folder][name]
    home = (thing if isinstance(thing, type) else type(thing)).__module__
    room = f"sparse_trainer.{folder.replace('/', '.')}."
    users = {user for user, others in EDGES.items() if home in others}
    assert [user for user in users if not user.startswith(room)] == []
