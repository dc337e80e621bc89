"""Kinds of unit: they are their names, and say what they are."""

import copy
import json
import pickle

import pytest

from patchers import KINDS, Gate, Kind, SparseTrainerError, discover, kind_named, patch
from patchers.patching.patch import gated_kinds
from patchers.units import CHANNELS, EXPERTS, HEADS, HIDDEN, LAYERS
from tests.fixtures.compact_models import tiny


@pytest.mark.parametrize("kind", KINDS)
def test_a_kind_is_its_name(kind: Kind) -> None:
    name = str(kind)
    assert type(name) is str
    assert {kind: 1}[name] == 1
    assert kind_named(name) is kind
    assert (f"{kind}", repr(kind), json.dumps([kind])) == (name, repr(name), json.dumps([name]))


@pytest.mark.parametrize("kind", KINDS)
def test_copies_are_the_same_kind(kind: Kind) -> None:
    assert pickle.loads(pickle.dumps(kind)) is kind  # noqa: S301 - of our own making
    assert copy.deepcopy(kind) is kind
    assert not (kind.is_width and kind.is_whole)


def test_what_lies_in_what() -> None:
    assert EXPERTS.contains == (CHANNELS,)
    assert HEADS in LAYERS.contains
    assert LAYERS in HIDDEN.contains
    assert all(inner in LAYERS.contains for kind in LAYERS.contains for inner in kind.contains)
    assert not any(kind in kind.contains for kind in KINDS)


def test_an_unknown_kind_is_refused_by_name() -> None:
    with pytest.raises(SparseTrainerError, match=r"'head'.*heads, channels"):
        kind_named("head")
    with pytest.raises(SparseTrainerError, match="'head'"):
        discover(tiny("bert"), ["head"])


def test_the_gates_of_a_model_tell_their_kinds() -> None:
    model = tiny("bert")
    assert gated_kinds(model) == set()
    patch(model, discover(model, [HEADS, LAYERS]), lambda group: Gate(group.num_units, scored=False))
    assert gated_kinds(model) == {HEADS, LAYERS}
