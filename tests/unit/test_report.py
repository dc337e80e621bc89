"""Tables and the map."""

import struct
import zlib
from pathlib import Path

from sparse_trainer.bench import Conditions, Latency
from sparse_trainer.plan import Plan
from sparse_trainer.report import Comparison, Measured, kept_lines, shape_lines, write_map

CONDITIONS = Conditions(device="cpu", dtype="float32", threads=1, sequence_length=8, rounds=1, torch="2")


def plan() -> Plan:
    return Plan(
        model_type="bert",
        architecture="BertModel",
        method="movement",
        target="params",
        scope="global",
        density_asked=0.5,
        density_reached=0.5,
        params={"dense": 100, "compact": 60},
        macs={"dense": 100, "compact": 60},
        groups={
            "layer.0.heads": {"kind": "heads", "layer": 0, "size": 4, "keep": [0, 3]},
            "layer.1.heads": {"kind": "heads", "layer": 1, "size": 4, "keep": []},
            "layer.0.channels": {"kind": "channels", "layer": 0, "size": 8, "keep": [1]},
        },
        shapes={
            "layer.0.intermediate.dense.weight": ([8, 4], [1, 4]),
            "layer.0.intermediate.dense.bias": ([8], [1]),
            "layer.1.query.weight": ([4, 4], None),
        },
        versions={},
    )


def measured(accuracy: float | None, parameters: int, median: float) -> Measured:
    return Measured(
        metrics=None if accuracy is None else {"accuracy": accuracy},
        parameters=parameters,
        file_bytes=parameters * 40_000,
        latencies={1: Latency(median=median, low=median, high=median)},
    )


def test_the_comparison_shows_values_and_ratios_to_the_first_model() -> None:
    models = {"dense": measured(0.9, 1000, 0.02), "pruned": measured(0.885, 500, 0.01)}
    assert Comparison(models=models, conditions=CONDITIONS).rows() == [
        ["", "dense", "pruned", "pruned / dense"],
        ["accuracy", "90.0 %", "88.5 %", "-1.5 points"],
        ["parameters", "1,000", "500", "0.50x"],
        ["file size", "40.0 MB", "20.0 MB", "0.50x"],
        ["latency, batch 1", "20.0 ms", "10.0 ms", "0.50x"],
    ]


def test_what_was_not_measured_is_not_shown_as_a_number() -> None:
    models = {"dense": measured(None, 1000, 0.02), "pruned": measured(0.8, 500, 0.01)}
    comparison = Comparison(models=models, conditions=CONDITIONS)
    assert comparison.rows()[1] == ["accuracy", "-", "80.0 %", "-"]
    assert comparison.to_json()["models"]["dense"]["metrics"] is None


def test_card_rows_leave_out_what_every_card_has() -> None:
    models = {"dense": measured(0.9, 1000, 0.02), "pruned": measured(0.8, 500, 0.01)}
    rows = Comparison(models=models, conditions=CONDITIONS).card_rows()
    assert rows["accuracy"] == {"dense": "90.0 %", "pruned": "80.0 %"}
    assert "parameters" not in rows


def test_shape_lines_show_matrices_and_what_is_gone() -> None:
    assert shape_lines(plan()) == [
        "[8, 4] => [1, 4] layer.0.intermediate.dense.weight",
        "[4, 4] => removed layer.1.query.weight",
    ]


def test_kept_lines_count_units_per_group() -> None:
    lines = kept_lines(plan(), width=4)
    assert [line.split()[-1] for line in lines] == ["2/4", "0/4", "1/8"]
    assert [line.count("█") for line in lines] == [2, 0, 0]


def test_the_map_is_a_picture_that_differs_where_units_do(tmp_path: Path) -> None:
    write_map(plan(), tmp_path / "kept.png")
    other = plan()
    other.groups["layer.0.heads"]["keep"] = [0, 1, 2, 3]
    write_map(other, tmp_path / "other.png")
    pictures = [_pixels(tmp_path / name) for name in ("kept.png", "other.png")]
    assert pictures[0] != pictures[1]
    assert sorted(path.name for path in tmp_path.iterdir()) == ["kept.png", "other.png"]


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
