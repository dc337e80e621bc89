"""What a user can do wrong on the command line: one error that says where, what and the remedy, before any work."""

import json
import shutil
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import transformers

from sparse_trainer.cli.front import main
from tests.fixtures.recipe_files import boolq_rows, write_rows, write_text, write_tiny_llama, write_tiny_model

LONG = "x" * 5000


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a folder with models, data and recipes, whole and damaged."""
    root = tmp_path_factory.mktemp("mistakes")
    bert, llama = write_tiny_model(root / "bert"), write_tiny_llama(root / "llama")
    text = write_text(root / "text.txt", 200)
    rows = write_rows(root / "rows.jsonl", boolq_rows(40))
    contents = {
        "empty.txt": b"",
        "empty.jsonl": b"",
        "blank.txt": b"  \n \n",
        "binary.txt": b"\xff\xfe\x00\x81" * 50,
        "torn.jsonl": b"{not json\n",
        "columns.jsonl": b'{"a": 1, "b": "x"}\n',
        "few.txt": b"hi there",
        "plan.json": b"{}",
    }
    for name, content in contents.items():
        (root / name).write_bytes(content)
    (root / "empty").mkdir()
    (root / "broken").symlink_to(root / "nowhere")
    (root / "loop").symlink_to(root / "loop")
    damages: dict[str, tuple[str, bytes | None]] = {
        "torn-config": ("config.json", b"{"),
        "list-config": ("config.json", b"[]"),
        "unknown-type": ("config.json", b'{"model_type": "zork"}'),
        "ill-typed": ("config.json", b'{"model_type": "llama", "hidden_size": "many"}'),
        "torn-weights": ("model.safetensors", b"12345678"),
        "no-weights": ("model.safetensors", None),
        "torn-tokenizer": ("tokenizer.json", b"{"),
    }
    for name, (file, content) in damages.items():
        for kind, source in (("", llama), ("bert-", bert)):
            folder = Path(shutil.copytree(source, root / f"{kind}{name}"))
            if content is None:
                (folder / file).unlink()
            else:
                (folder / file).write_bytes(content)
    (root / "fine.yaml").write_text(
        f"model: {{name_or_path: {bert}, dense_training: {{}}}}\n"
        f"data: {{train_file: {rows}, validation_file: {rows}, text_columns: [question, passage], max_length: 64}}\n"
        "pruning: {scoring: movement, density: 0.5}\n"
        f"training: {{output_dir: {root}/run, max_steps: 2, report_to: none, use_cpu: true, disable_tqdm: true}}\n"
        "export: {latency_batch_sizes: [1], latency_rounds: 1, latency_sequence_length: 8, verify: false}\n"
    )
    (root / "once.yaml").write_text(
        f"model: {{name_or_path: {llama}, device: cpu}}\n"
        f"calibration: {{source: {text}, samples: 4, length: 16}}\n"
        "prune: {criterion: wanda, density: 0.8}\n"
        f"evaluation: {{tasks: [{text}], length: 16, max_tokens: 100}}\n"
        f"export: {{output_dir: {root}/once, latency_rounds: 1, latency_sequence_length: 8, verify: false}}\n"
    )
    return root


@pytest.fixture(autouse=True)
def work(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Note every training and every pass through a model: there must be none before a mistake is told."""
    begun: list[str] = []
    train, call = transformers.Trainer.train, transformers.PreTrainedModel.__call__

    def trained(self: Any, *args: Any, **kwargs: Any) -> Any:
        begun.append("a training")
        return train(self, *args, **kwargs)

    def called(self: Any, *args: Any, **kwargs: Any) -> Any:
        begun.append("a forward pass")
        return call(self, *args, **kwargs)

    monkeypatch.setattr(transformers.Trainer, "train", trained)
    monkeypatch.setattr(transformers.PreTrainedModel, "__call__", called)
    return begun


MODELS = (
    "{place}/nowhere", "no-such-org/no-such-model", "{place}/text.txt", "{place}/empty",
    "{place}/broken", "{place}/loop",
    "a\0b", LONG, "", "a b", "package:no_such_package/x", "https://a.b/c", "{place}/{kind}torn-config",
    "{place}/{kind}list-config", "{place}/{kind}unknown-type", "{place}/{kind}ill-typed",
)  # fmt: skip
WEIGHTS = ("{place}/{kind}torn-weights", "{place}/{kind}no-weights")
FILES = (
    "{place}/nowhere.txt", "{place}", "{place}/broken", "{place}/loop", "a\0b", LONG + ".txt", "",
    "{place}/empty.txt",
    "{place}/binary.txt", "{place}/torn.jsonl", "{place}/blank.txt", "{place}/plan.json",
)  # fmt: skip
PLUGINS = (
    "{place}/nowhere.py", "{place}", "{place}/broken", "{place}/loop", "a\0b", LONG + ".py", "",
    "{place}/binary.txt", "{place}/torn.jsonl",
)  # fmt: skip
PRUNE = ("prune", "{place}/llama", "{place}/out", "--device", "cpu")
TEXT = ("--calibration", "{place}/text.txt", "--samples", "4", "--length", "16")
EVALUATE = ("evaluate", "{place}/llama", "--device", "cpu")
BENCH = ("bench", "{place}/llama", "--rounds", "1", "--batch-size", "1", "--sequence-length", "8")
FINE = ("run", "{place}/fine.yaml")
ONCE = ("run", "{place}/once.yaml")
SWEEP = ("sweep", "{place}/fine.yaml", "--out", "{place}/out")


def yaml_of(text: str) -> str:
    return json.dumps(text)


def mistakes() -> Iterator[tuple[str, ...]]:
    """Yield command lines, each with one mistake."""
    for name in (*MODELS, *WEIGHTS):
        if name not in WEIGHTS:
            yield "inspect", name
        yield "bench", name, "--rounds", "1"
        yield "prune", name, "{place}/out", "--device", "cpu", "--criterion", "magnitude"
        yield "evaluate", name, "--device", "cpu", "--tasks", "{place}/text.txt"
        yield "evaluate", "{place}/llama", "--device", "cpu", "--tasks", "{place}/text.txt", "--against", name
        yield "optimize", name, "{place}/out"
        yield *FINE, f"model.name_or_path={yaml_of(name.replace('{kind}', 'bert-'))}"
        yield *FINE, f"pruning.distil_teacher_name_or_path={yaml_of(name.replace('{kind}', 'bert-'))}"
        yield *ONCE, f"model.name_or_path={yaml_of(name)}"
    for name in FILES:
        yield *PRUNE, "--calibration", name, *TEXT[2:]
        yield *PRUNE, "--calibration-file", name, *TEXT[2:]
        yield *EVALUATE, "--tasks", "wikitext2", "--data", f"wikitext2={name}"
        yield *EVALUATE, "--tasks", "boolq", "--data", f"boolq={name}"
        yield *FINE, f"data.train_file={yaml_of(name)}"
        yield *FINE, f"data.validation_file={yaml_of(name)}"
        yield *FINE, f"model.rewind={yaml_of(name)}"
        yield *FINE, f"training.resume_from_checkpoint={yaml_of(name)}"
        yield *ONCE, f"calibration.source={yaml_of(name)}"
        yield *ONCE, f"evaluation.tasks=[{yaml_of(name)}]"
        yield "optimize", "{place}/llama", "{place}/out", "--plan", name
        yield "run", name
    for name in PLUGINS:
        yield *PRUNE, "--criterion", "magnitude", "--plugin", name
    for option in ("--samples", "--length", "--batch-size", "--steps", "--density", "--max-prune"):
        for value in ("0", "-1", "nan", "many"):
            yield *PRUNE, *TEXT, option, value
    for option, values in {
        "--density": ("1", "inf", "heads=x", "heds=0.5"),
        "--criterion": (
            "wnda", "", "wanda +", "0 wanda", "obs(", "obs(rounds=0)", "obs(damping=.nan)",
            "wanda(x=1)", "taylor(form=zz)",
            "refer_svd(trim=7)", "afr(power=.nan)",
        ),
        "--steps": ("99999999999",),
        "--seed": ("-1", "99999999999999999999"),
        "--length": ("4096",),
        "--samples": ("100000",),
        "--allocation": ("wnda",),
        "--target": ("flops",),
        "--scope": ("all",),
        "--standardize": ("zz",),
        "--units": ("layers", "heds"),
        "--protect": ("first-last", "99", "", "zz*", "0-99"),
        "--reconstruct": ("svd", ""),
        "--damping": ("0.2", "nan", "-1"),
        "--dtype": ("float64", "int8"),
        "--device": ("gpu", "cuda:99", "meta", "hpu", ""),
        "--export": ("onnx",),
        "--multiple-of": ("0", "1.5", "nan"),
        "--min-keep": ("-1", "nan"),
    }.items():  # fmt: skip
        for value in values:
            yield *PRUNE, *TEXT, option, value
    for extra in (
        ("--sequential",), ("--reconstruct-bias",), ("--chat-template",), ("--reconstruct",
        "scale", "--reconstruct-bias"),
        ("--criterion", "taylor", "--by-block"), ("--scope", "uniform", "--allocation", "wanda"),
        ("--no-such-option",),
    ):  # fmt: skip
        yield *PRUNE, *TEXT, *extra
    for option in ("--samples", "--length", "--seed", "--batch-size"):
        yield *PRUNE, "--criterion", "magnitude", option, "4"  # of a text that is not given
    yield PRUNE
    yield *PRUNE, "--criterion", "magnitude", "--calibration", "nosuch"
    yield *PRUNE, "--calibration", "wikitext2"  # the hub is out of reach
    for option, values in {
        "--limit": ("0", "3"),
        "--max-tokens": ("0", "1", "many"),
        "--length": ("0", "1", "4096", "nan"),
        "--stride": ("0", "-1", "17"),
        "--batch-size": ("0", "-1"),
        "--dtype": ("float64", ""),
        "--device": ("gpu", "meta", ""),
        "--data": ("x", "=y", "boolq={place}/rows.jsonl"),
        "--tasks": ("", ",", "wikitex2", "wikitext2", "{place}/columns.jsonl,nosuch"),
    }.items():
        for value in values:
            yield *EVALUATE, "--tasks", "{place}/text.txt", "--length", "16", option, value
    for option in ("--stride", "--max-tokens"):
        yield *EVALUATE, "--tasks", "boolq", "--data", "boolq={place}/rows.jsonl", option, "4"
    yield "evaluate", "{place}/bert", "--device", "cpu", "--tasks", "{place}/text.txt"
    for option, values in {
        "--batch-size": ("0", "-1"),
        "--sequence-length": ("0", "-3", "4096"),
        "--rounds": ("0", "many"),
        "--threads": ("0", "-1"),
        "--device": ("gpu", "cuda:77", "meta", "hpu"),
        "--dtype": ("int8",),
    }.items():
        for value in values:
            yield *BENCH, option, value
    yield "inspect", "{place}/llama", "--sequence-length", "0"
    for extra in (("brt",), ("--only", "brt")):
        yield "architectures", *extra
    for text in (
        "training.report_to=tensorbord", "training.report_to=mlflow", "training.report_to=[wandb]",
        "training.optim=adamx",
        "training.learning_rate=.nan", "training.learning_rate=-1", "training.learning_rate=.inf", "training.seed=-1",
        "training.num_train_epochs=many", "training.per_device_train_batch_size=0",
        "training.per_device_eval_batch_size=0",
        "training.gradient_accumulation_steps=0", "training.lr_scheduler_type=zz", "training.save_strategy=best",
        "training.eval_strategy=sometimes", "training.bf16=maybe", "training.learning_rat=1",
        "training.push_to_hub=true",
        "training.load_best_model_at_end=true", "training.resume_from_checkpoint=true", "training.adam_beta1=7",
        "training.label_names=[zz]", "training.label_smoothing_factor=7", "training.output_dir=''",
        "training.output_dir={place}/loop", "export.output_dir={place}/loop", "pruning.protect_plan=''",
        "training.dataloader_num_workers=-1", "training.max_grad_norm=.nan", "training.use_liger_kernel=true",
        "model.dense_training={report_to: tensorbord}", "model.dense_training={nope: 1}", "model.dense_training=7",
        "model.prune_from=zz", "task.name=zz", "task.metrics=[zz]", "task.metrics=[]", "task.labels=[a]",
        "data.text_columns=[zz]", "data.text_columns=[]", "data.label_column=zz", "data.label_column=passage",
        "data.max_length=0", "data.max_length=4096", "data.max_train_samples=0", "data.truncation=zz",
        "data.train_file=null", "data.seed=-1", "pruning.density=0", "pruning.density=1",
        "pruning.density={heads: 1}",
        "pruning.density=.nan", "pruning.density={}", "pruning.scoring=zz", "pruning.min_keep=9999",
        "pruning.units=[zz]", "pruning.units=[experts]", "pruning.exclude=['*']", "pruning.include=[zz]",
        "pruning.score_learning_rate=.inf", "pruning.distil_temperature=.inf", "pruning.distil_alpha_hidden=1",
        "export.latency_batch_sizes=[0]", "export.latency_batch_sizes=[]", "export.latency_sequence_length=4096",
        "export.latency_rounds=0", "export.verify_samples=0", "export.export=zz", "export.verify=7", "export=7",
        "zz.a=1", "pruning", "=1", "model=null", "model.name_or_path=null", "model.fill=maybe",
    ):  # fmt: skip
        yield *FINE, text
    for text in (
        "prune.density=1", "prune.density=.nan", "prune.criterion=wnda", "prune.criterion=null", "prune.criterion={}",
        "prune.criterion={wanda: .nan}", "prune.units=[layers]", "prune.steps=0",
        "prune.damping=0.2", "calibration=null",
        "prune.reconstruct_bias=true", "calibration.samples=0", "calibration.length=4096", "calibration.batch_size=0",
        "calibration.file=/nowhere", "evaluation.tasks=[zz]", "evaluation.tasks=[]",
        "evaluation.files={zz: /nowhere}",
        "evaluation.stride=99", "evaluation.stride=0", "evaluation.length=4096",
        "evaluation.limit=3", "model.device=gpu",
        "evaluation.batch_size=0", "model.dtype=zz", "export.latency_sequence_length=4096", "export.latency_rounds=0",
    ):  # fmt: skip
        yield *ONCE, text
    for text in (
        "pruning.densty=0.25,0.5", "prning.density=0.25,0.5", "pruning.density=0.25,2", "pruning.density=0.25,x",
        "pruning.density=0.5", "pruning.density=0.25,", "pruning.density=0.25,0.250", "pruning.density=0.25,[0.5",
        "training.output_dir=a,b", "plugins=a,b", "pruning", "=1,2", "training.seed=0,-1", f"training.optim={LONG},b",
        "model.name_or_path={place}/bert,{place}/nowhere", "data.train_file={place}/rows.jsonl,{place}/nowhere.jsonl",
    ):  # fmt: skip
        yield *SWEEP, text
    yield *SWEEP, "training.seed=0,1", "training.seed=2"
    yield *SWEEP, "training.seed=0,1", "--jobs", "0"
    yield "sweep", "{place}/fine.yaml", "training.seed=0,1", "--out", "{place}/text.txt"
    yield "sweep", "{place}/once.yaml", "prune.density=0.5,1"
    yield "sweep", "{place}/nowhere.yaml", "training.seed=0,1"
    yield from (
        ("sweep", "{place}/fine.yaml"),
        ("prunee",),
        ("run",),
        ("recipes", "extra"),
        ("run", "quikstart"),
        ("optimize", "{place}/llama"),
    )


def called(monkeypatch: pytest.MonkeyPatch, place: Path, arguments: tuple[str, ...]) -> int:
    filled = [word.replace("{place}", str(place)).replace("{kind}", "") for word in arguments]
    monkeypatch.setattr(sys, "argv", ["sparse-trainer", *filled])
    with pytest.raises(SystemExit) as caught:
        main()
    return int(caught.value.code or 0)


def name_of(arguments: tuple[str, ...]) -> str:
    return "-".join(word[-40:].replace("{place}", "").replace("\0", "NUL") for word in arguments)


@pytest.mark.parametrize("arguments", list(mistakes()), ids=name_of)
def test_a_mistake_is_one_typed_error_before_any_work(
    arguments: tuple[str, ...],
    place: Path,
    work: list[str],
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    assert called(monkeypatch, place, (*arguments, "--json")) == 2
    output = capsys.readouterr()
    told = json.loads(output.out)["error"]
    assert set(told) == {"type", "where", "problem", "remedy"}
    assert all(told.values())
    assert told["type"] != "InternalError"
    errors = [line for line in output.err.splitlines() if line.startswith("error: ")]
    assert len(errors) == 1
    assert len(errors[0]) < 3000
    assert "Traceback" not in output.err
    assert not work
    assert not (place / "out").exists()
