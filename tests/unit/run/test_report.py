"""Tables."""

from sparse_trainer.plan.document import Plan
from sparse_trainer.run.latency import Conditions, Latency
from sparse_trainer.run.report import Comparison, Measured, kept_lines, shape_lines

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
        ["latency, batch 1", "20.0 ms", "10.0 ms", "0.50x (0.50 to 0.50)"],
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
    assert rows["latency, batch 1"] == {
        "dense": "20.0 ms",
        "pruned": "10.0 ms, 0.50x (0.50 to 0.50) of dense",
    }
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


def test_perplexities_are_shown_as_they_are_with_their_ratio() -> None:
    models = {
        name: Measured(
            metrics={"wikitext2 perplexity": value, "boolq acc": 0.5},
            parameters=10,
            file_bytes=10,
            latencies={},
        )
        for name, value in {"dense": 20.0, "pruned": 31.0}.items()
    }
    rows = Comparison(models=models, conditions=CONDITIONS).rows()
    assert rows[1:3] == [
        ["wikitext2 perplexity", "20.00", "31.00", "1.55x"],
        ["boolq acc", "50.0 %", "50.0 %", "+0.0 points"],
    ]
