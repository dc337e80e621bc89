"""Pictures and tables of widths and scores."""

import csv
import struct
import zlib
from dataclasses import replace
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from patchers.units import kind_named
from sparse_trainer.cut.decision import Decision
from sparse_trainer.files.figures import save_picture
from sparse_trainer.one_shot.prune import prune
from sparse_trainer.plan.document import Plan
from sparse_trainer.plan.parts import GroupPlan
from sparse_trainer.plan.widths import title_of, widths_figure
from sparse_trainer.run.curves import write_curves
from sparse_trainer.run.layer_pictures import draw_scores
from sparse_trainer.run.layers import compare_layers
from sparse_trainer.run.pictures import (
    FILES,
    map_figure,
    scores_by_kind,
    scores_figure,
    threshold,
    write_pictures,
    write_scores,
)
from sparse_trainer.run.report import kept_lines
from sparse_trainer.run.score_scales import AxisScale, bin_edges, scale_of
from tests.architectures.tiny import tiny_model
from tests.unit.run.test_report import plan


@pytest.fixture(scope="module")
def rounds() -> list[Decision]:
    found: list[Decision] = []
    prune(tiny_model("llama"), criterion="magnitude", density=0.7, steps=2, watch=found.append)
    return found


def test_the_map_is_a_picture_that_differs_where_units_do(tmp_path: Path) -> None:
    save_picture(map_figure(plan()), tmp_path / "kept.png")
    other = plan()
    other.groups["layer.0.heads"]["keep"] = [0, 1, 2, 3]
    save_picture(map_figure(other), tmp_path / "other.png")
    pictures = [_pixels(tmp_path / name) for name in ("kept.png", "other.png")]
    assert pictures[0] != pictures[1]
    assert sorted(path.name for path in tmp_path.iterdir()) == ["kept.png", "other.png"]


def test_all_pictures_and_tables_are_written_and_nothing_else(tmp_path: Path, rounds: list[Decision]) -> None:
    write_pictures(plan(), rounds, tmp_path)
    assert sorted(path.name for path in tmp_path.iterdir()) == sorted(FILES.values())
    for name in FILES.values():
        if name.endswith(".png"):
            _pixels(tmp_path / name)


def test_the_table_of_scores_has_every_unit_of_every_round(tmp_path: Path, rounds: list[Decision]) -> None:
    write_scores(rounds, tmp_path)
    with (tmp_path / "scores.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert len(rows) == sum(g.num_units for decision in rounds for g in decision.groups)
    assert {row["round"] for row in rows} == {"1", "2"}
    first = rounds[0].groups[0]
    shown = [float(row["score"]) for row in rows if row["round"] == "1" and row["group"] == first.name]
    assert shown == pytest.approx(rounds[0].scores[first.name].tolist())


def test_each_round_scores_what_the_one_before_left(rounds: list[Decision]) -> None:
    before, after = rounds
    left = {g.name: g.num_units for g in after.groups}
    assert left
    assert {name: int(before.keep[name].sum()) for name in left} == left


def test_the_histogram_shows_the_scores(tmp_path: Path, rounds: list[Decision]) -> None:
    write_scores(rounds[:1], tmp_path)
    first = _pixels(tmp_path / "scores.png")
    write_scores(rounds, tmp_path)
    assert _pixels(tmp_path / "scores.png") != first


def test_scores_of_a_kind_are_put_together(rounds: list[Decision]) -> None:
    found = scores_by_kind(rounds[0])
    assert set(found) == {"KV groups", "channels"}
    groups = [g for g in rounds[0].groups if g.kind == "channels"]
    assert len(found["channels"][0]) == sum(g.num_units for g in groups)
    assert int(found["channels"][1].sum()) == sum(int(rounds[0].keep[g.name].sum()) for g in groups)


@pytest.mark.parametrize(("model", "name"), [("llama", "KV groups"), ("bert", "heads")])
def test_query_heads_that_share_keys_are_called_kv_groups(model: str, name: str) -> None:
    found: list[Decision] = []
    _, plan = prune(tiny_model(model), criterion="magnitude", density=0.6, watch=found.append)
    drawn = [map_figure(plan), widths_figure(plan.by_name()), scores_figure(found[0])]
    for figure in drawn:
        assert figure.axes[0].get_title("left").startswith(f"{name}: ")
    assert Plan.from_json(plan.to_json()) == plan
    assert plan.kv_groups == (name == "KV groups")
    assert kept_lines(plan)[0].split()[0] == name.split()[0]


@pytest.mark.parametrize("scale", [AxisScale("log"), AxisScale("linear"), AxisScale("asinh", 0.5)])
@pytest.mark.parametrize("scores", [[3.0, 3.0], [1e-9, 1.0, 1e9]])
def test_bins_cover_all_scores_and_rise(scores: list[float], scale: AxisScale) -> None:
    edges = bin_edges(torch.tensor(scores, dtype=torch.float64), scale)
    assert edges == sorted(set(edges))
    assert edges[0] <= min(scores)
    assert edges[-1] >= max(scores) * (1 - 1e-12)


def test_a_tail_does_not_put_all_others_into_one_bin() -> None:
    """As z-scores of channels are, of which one layer has a few that are a thousand times the others."""
    score_N = torch.cat([torch.linspace(-1, 1, 1000), torch.tensor([300.0, 3000.0])])
    scale = scale_of(score_N)
    counts, _ = np.histogram(score_N, bins=bin_edges(score_N, scale))
    assert scale.name == "asinh"
    assert counts.max() < 250


def test_scores_below_zero_and_no_rounds_can_be_drawn(tmp_path: Path, rounds: list[Decision]) -> None:
    below = {name: score_U - score_U.mean() for name, score_U in rounds[0].scores.items()}
    negative = replace(rounds[0], compared=below)
    for decisions in ([negative], []):
        write_scores(decisions, tmp_path)
        _pixels(tmp_path / "scores.png")


@pytest.mark.parametrize("standardize", ["cost", "share", "zscore_layer", "zscore_global", "none"])
def test_scores_are_shown_as_they_were_compared_with_the_threshold(standardize: str) -> None:
    found: list[Decision] = []
    options: dict[str, Any] = {"units": ["channels"], "density": 0.6, "standardize": standardize}
    prune(tiny_model("llama"), criterion="magnitude", min_keep=0, watch=found.append, **options)
    axis = scores_figure(found[0]).axes[0]
    score_N, keep_N = scores_by_kind(found[0])["channels"]
    bar = threshold(score_N, keep_N)
    assert bar is not None
    assert axis.lines[0].get_xdata()[0] == pytest.approx(bar)
    assert f"threshold {bar:.3g}" in [text.get_text() for text in axis.get_legend().get_texts()]
    assert (standardize in axis.get_xlabel()) == (standardize != "none")
    assert bool((score_N[keep_N] >= bar).all())


def test_layers_with_thresholds_of_their_own_show_none() -> None:
    found: list[Decision] = []
    model = tiny_model("llama")
    prune(
        model,
        criterion="magnitude",
        density={"channels": 0.6},
        scope="uniform",
        standardize="none",
        watch=found.append,
    )
    assert scores_figure(found[0]).axes[0].get_lines()[:] == []


@pytest.mark.parametrize("layers", [6, 30, 80])
def test_widths_of_few_and_of_many_layers_have_room(layers: int) -> None:
    """No number below the bars runs into the next one."""
    groups = {
        f"layer.{layer}.{kind}": group_plan(kind, layer, size, layer % size)
        for kind, size in (("channels", 256), ("layers", 1))
        for layer in range(layers)
    }
    shown = replace(plan(), groups=groups)
    for figure in (widths_figure(shown.by_kind(), "a title"), map_figure(shown)):
        figure.draw_without_rendering()
        for axis in figure.axes:
            boxes = [label.get_window_extent() for label in axis.get_xticklabels() if label.get_text()]
            assert len(boxes) >= 5
            assert all(one.x1 < other.x0 for one, other in pairwise(boxes))
    assert figure.get_suptitle() == "BertModel, movement, density 0.50"


def test_every_picture_says_model_method_and_density(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    titles: dict[str, str] = {}
    for module in ("pictures", "curves", "compare", "layer_pictures"):
        monkeypatch.setattr(
            f"sparse_trainer.run.{module}.save_picture",
            lambda figure, path: titles.update({path.name: figure.get_suptitle()}),
        )
    model, rounds = tiny_model("llama"), list[Decision]()
    model.config.name_or_path = "someone/tiny"
    _, made = prune(model, criterion="magnitude", density=0.7, watch=rounds.append)
    assert Plan.from_json(made.to_json()).model == "someone/tiny"
    write_pictures(made, rounds, tmp_path)
    write_curves([{"loss": 1.0, "step": 1}], tmp_path, title_of(made))
    told = "someone/tiny, magnitude, density 0.70"
    assert titles == dict.fromkeys(("kept.png", "widths.png", "scores.png", "curves.png"), told)
    titles.clear()
    compared = compare_layers(model, criteria=["last"], density=0.7, study=False)
    draw_scores(compared, tmp_path / "layers.png")
    assert titles == {"layers.png": "someone/tiny, layers by criterion, density 0.70"}


def test_a_long_title_has_lines_that_end_inside_the_picture() -> None:
    method = "angular, repaired by least_squares, then obs, repaired by least_squares, then more"
    figure = map_figure(replace(plan(), model="someone/SmolLM2-135M-Instruct", method=method))
    figure.draw_without_rendering()
    [title] = figure.texts
    assert title.get_text().count("\n") >= 1
    assert title.get_window_extent().x1 < figure.bbox.x1
    assert title.get_window_extent().y0 > figure.axes[0].title.get_window_extent().y1


def test_many_units_are_shown_as_the_share_of_each_layer() -> None:
    wide = {f"layer.{layer}.channels": group_plan("channels", layer, 400, 100 * layer) for layer in range(4)}
    axis = map_figure(replace(plan(), groups=wide)).axes[0]
    assert axis.get_title("left") == "channels: 600 of 1,600 kept (38 %)"
    assert [round(bar.get_width()) for bar in axis.patches[4:]] == [0, 25, 50, 75]


def group_plan(kind: str, layer: int, size: int, kept: int) -> GroupPlan:
    return GroupPlan(kind=kind_named(kind), layer=layer, size=size, keep=list(range(kept)))


def _pixels(path: Path) -> bytes:
    """Return the compressed scan lines of a PNG, after checking that it is whole."""
    content = path.read_bytes()
    assert content.startswith(b"\x89PNG\r\n\x1a\n")
    data, position = b"", 8
    while position < len(content):
        length, kind = struct.unpack(">I4s", content[position : position + 8])
        body = content[position + 8 : position + 8 + length]
        assert struct.unpack(">I", content[position + 8 + length : position + 12 + length])[0] == zlib.crc32(
            kind + body
        )
        data += body if kind == b"IDAT" else b""
        position += 12 + length
    return zlib.decompress(data)
