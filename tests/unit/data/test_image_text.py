"""Images with text: calibration batches through a processor, and a tiny LLaVA that is pruned with them."""

import json
from pathlib import Path
from typing import Any

import numpy
import pytest
import torch
from PIL import Image
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import (
    AutoModelForImageTextToText,
    CLIPVisionConfig,
    LlamaConfig,
    LlavaConfig,
    LlavaForConditionalGeneration,
    LlavaProcessor,
    PreTrainedTokenizerFast,
    pipeline,
)
from transformers.models.clip.image_processing_pil_clip import CLIPImageProcessorPil
from typer.testing import CliRunner

from sparse_trainer import prune, save_pruned
from sparse_trainer.cli.app import make_app
from sparse_trainer.data.image_text.batches import image_text_batches
from sparse_trainer.errors import ArgumentError, CheckpointError, DataError
from sparse_trainer.one_shot.options import PruneOptions
from sparse_trainer.plan.document import Plan
from sparse_trainer.run.options import CalibrationOptions, SourceOptions
from sparse_trainer.run.pipeline import run
from sparse_trainer.run.prune_folder import prune_folder
from sparse_trainer.run.recipes.load import load_recipe

WORDS = ["<pad>", "<image>", "<s>", "</s>", "what", "is", "this", "a", "red", "blue", "square", ":"]
IMAGE = 1
TOWER = "model.vision_tower"


@pytest.fixture(scope="module")
def processor() -> LlavaProcessor:
    words = Tokenizer(models.WordLevel({word: i for i, word in enumerate(WORDS)}, unk_token="<pad>"))
    words.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=words, pad_token="<pad>", bos_token="<s>", additional_special_tokens=["<image>"]
    )
    size = {"height": 16, "width": 16}
    images = CLIPImageProcessorPil(size={"shortest_edge": 16}, crop_size=size)
    return LlavaProcessor(
        images,
        tokenizer,
        patch_size=8,
        vision_feature_select_strategy="default",
        num_additional_image_tokens=1,
    )


@pytest.fixture
def model() -> LlavaForConditionalGeneration:
    torch.manual_seed(0)
    sizes: dict[str, Any] = {"hidden_size": 32, "num_hidden_layers": 3, "num_attention_heads": 4}
    vision = CLIPVisionConfig(**sizes, intermediate_size=48, image_size=16, patch_size=8)
    text = LlamaConfig(**sizes, intermediate_size=64, num_key_value_heads=2, vocab_size=32, pad_token_id=0)
    config = LlavaConfig(vision_config=vision, text_config=text, image_token_index=IMAGE)
    return LlavaForConditionalGeneration(config).eval()


@pytest.fixture
def rows(tmp_path: Path) -> Path:
    noise = numpy.random.default_rng(0)
    texts = ["what is this", "a red square", "is this a blue square"]
    for i in range(3):
        Image.fromarray(noise.integers(0, 255, (20, 24, 3), dtype=numpy.uint8)).save(tmp_path / f"{i}.png")
    return _write(tmp_path, [{"image": f"{i}.png", "text": text} for i, text in enumerate(texts)])


def _write(folder: Path, rows: list[dict[str, Any]]) -> Path:
    file = folder / "rows.jsonl"
    file.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return file


def test_a_row_is_a_batch_with_labels_on_its_text(rows: Path, processor: LlavaProcessor) -> None:
    batches = image_text_batches(rows, processor, samples=3)
    lengths = sorted(int((batch["labels"] != -100).sum()) for batch in batches)
    assert lengths == [3, 3, 5]
    for batch in batches:
        is_image = batch["input_ids"] == IMAGE
        assert is_image.sum() == 4
        assert torch.equal(batch["labels"] == -100, is_image)
        assert batch["pixel_values"].shape == (1, 3, 16, 16)


def test_a_chat_template_is_filled(rows: Path, processor: LlavaProcessor) -> None:
    processor.chat_template = (
        "{% for m in messages %}{% for c in m['content'] %}"
        "{{ '<image> ' if c['type'] == 'image' else c['text'] + ' :' }}{% endfor %}{% endfor %}"
    )
    try:
        batches = image_text_batches(rows, processor, samples=3)
    finally:
        processor.chat_template = None
    assert all(batch["input_ids"][0, -1] == WORDS.index(":") for batch in batches)


def test_rows_are_drawn_by_seed(rows: Path, processor: LlavaProcessor) -> None:
    first, again = (image_text_batches(rows, processor, samples=2, seed=1) for _ in range(2))
    for one, other in zip(first, again, strict=True):
        assert torch.equal(one["pixel_values"], other["pixel_values"])


@pytest.mark.parametrize("criterion", ["afr", "wifv", "fisher"])
def test_the_language_model_shrinks_and_the_tower_does_not(
    criterion: str,
    model: LlavaForConditionalGeneration,
    rows: Path,
    processor: LlavaProcessor,
    tmp_path: Path,
) -> None:
    batches = image_text_batches(rows, processor, samples=3)
    pruned, plan = prune(model, batches, criterion=criterion, density={"channels": 0.5}, scope="uniform")
    text, tower = pruned.model.language_model, pruned.model.vision_tower
    assert {layer.mlp.down_proj.in_features for layer in text.layers} == {32}
    assert {module.in_features for name, module in tower.named_modules() if name.endswith("fc2")} == {48}
    assert plan.untouched_towers == (TOWER,)
    folder = tmp_path / "out"
    save_pruned(pruned, folder, processor=processor)
    again = AutoModelForImageTextToText.from_pretrained(folder).eval()
    inputs = {key: value for key, value in batches[0].items() if key != "labels"}
    with torch.no_grad():
        torch.testing.assert_close(again(**inputs).logits, pruned(**inputs).logits)
    ids = [each.generate(**inputs, max_new_tokens=4, do_sample=False) for each in (pruned, again)]
    assert torch.equal(*ids)
    loaded = LlavaProcessor.from_pretrained(folder)
    assert loaded.image_token == "<image>"
    assert Plan.load(folder) == plan
    assert f"Nothing was cut of `{TOWER}`" in (folder / "README.md").read_text()


@pytest.mark.parametrize(
    ("include", "widths"), [(["vision_tower"], (64, 24)), (["vision_tower", "language_model"], (32, 24))]
)
def test_the_tower_shrinks_where_it_is_asked_for(
    include: list[str], widths: tuple[int, int], model: LlavaForConditionalGeneration
) -> None:
    pruned, plan = prune(
        model, criterion="magnitude", density={"channels": 0.5}, scope="uniform", include=include
    )
    text, tower = pruned.model.language_model, pruned.model.vision_tower
    assert (text.layers[0].mlp.down_proj.in_features, tower.encoder.layers[0].mlp.fc2.in_features) == widths
    assert plan.untouched_towers == ()
    with pytest.raises(ArgumentError, match=r"include: 'visual' matches no group"):
        prune(model, criterion="magnitude", include=["visual"])


def test_single_weights_of_the_tower_stay_unless_asked_for(model: LlavaForConditionalGeneration) -> None:
    for include in ([], ["vision_tower"]):
        masked, plan = prune(model, criterion="magnitude", units=["weights"], density=0.5, include=include)
        linears = {name: p for name, p in masked.named_parameters() if "layers" in name and p.dim() == 2}
        zeros = {TOWER in name for name, weight in linears.items() if bool((weight == 0).any())}
        assert zeros == {bool(include)}
        assert plan.untouched_towers == (() if include else (TOWER,))


def test_layers_of_the_language_model_go(
    model: LlavaForConditionalGeneration, rows: Path, processor: LlavaProcessor
) -> None:
    batches = image_text_batches(rows, processor, samples=3)
    pruned, _ = prune(model, batches, criterion="block_influence", density={"layers": 0.67})
    assert pruned.config.text_config.num_hidden_layers == len(pruned.model.language_model.layers) == 2
    assert pruned.config.vision_config.num_hidden_layers == 3
    inputs = {key: value for key, value in batches[0].items() if key != "labels"}
    cached, plain = (
        pruned.generate(**inputs, max_new_tokens=4, do_sample=False, use_cache=use) for use in (True, False)
    )
    assert torch.equal(cached, plain)


@pytest.mark.parametrize(
    ("row", "said"),
    [
        ({"image": "none.png", "text": "a"}, r"row 0.*none\.png does not open"),
        ({"image": "rows.jsonl", "text": "a"}, r"row 0.*rows\.jsonl does not open"),
        ({"text": "a"}, "row 0.*has no image"),
        ({"image": "none.png", "text": " "}, "row 0.*has no text"),
        ({"image": "0.png", "text": "a <image>"}, "row 0.*has the token of an image"),
    ],
)
def test_bad_rows(row: dict[str, Any], said: str, rows: Path, processor: LlavaProcessor) -> None:
    with pytest.raises(DataError, match=said):
        image_text_batches(_write(rows.parent, [row]), processor, samples=1)


def test_too_few_rows_and_no_image_processor(rows: Path, processor: LlavaProcessor) -> None:
    with pytest.raises(DataError, match="3 rows, and 4 are needed"):
        image_text_batches(rows, processor, samples=4)
    with pytest.raises(ArgumentError, match="has no tokenizer"):
        image_text_batches(rows, processor.tokenizer, samples=1)


def _saved(model: LlavaForConditionalGeneration, processor: LlavaProcessor, folder: Path) -> Path:
    model.save_pretrained(folder)
    processor.save_pretrained(folder)
    return folder


def test_the_command_prunes_with_images_and_saves_the_processor(
    model: LlavaForConditionalGeneration, rows: Path, processor: LlavaProcessor, tmp_path: Path
) -> None:
    folder, out = _saved(model, processor, tmp_path / "dense"), tmp_path / "pruned"
    asked = ["--criterion", "afr", "--density", "channels=0.5", "--scope", "uniform"]
    asked += ["--calibration-file", str(rows), "--samples", "3", "--device", "cpu", "--no-pictures"]
    done = CliRunner().invoke(make_app({"prune"}), ["prune", str(folder), str(out), *asked])
    assert done.exit_code == 0, done.output
    pipe = pipeline("image-text-to-text", model=str(out), device="cpu")
    said = pipe(images=str(rows.parent / "0.png"), text="<image> what is", max_new_tokens=2)
    assert said[0]["generated_text"]
    assert pipe.model.config.text_config.intermediate_size == 32


def test_the_recipe_prunes_with_images_and_saves_the_processor(
    model: LlavaForConditionalGeneration, rows: Path, processor: LlavaProcessor, tmp_path: Path
) -> None:
    folder, out = _saved(model, processor, tmp_path / "dense"), tmp_path / "pruned"
    overrides = [
        f"model.name_or_path={folder}", "model.device=cpu", f"calibration.source={rows}", "calibration.samples=3",
        "prune.density.channels=0.5", "prune.reconstruct=bias", f"export.output_dir={out}",
        "export.latency_rounds=1",
    ]  # fmt: skip
    result = run(load_recipe("llava-afr", overrides), lambda line: None)
    assert result.plan is not None
    assert {group["layer"] for name, group in result.plan.groups.items() if "vision" not in name} == {0, 1, 2}
    pipe = pipeline("image-text-to-text", model=str(out), device="cpu")
    said = pipe(images=str(rows.parent / "0.png"), text="<image> what is", max_new_tokens=2)
    assert said[0]["generated_text"]
    assert pipe.model.config.text_config.intermediate_size == 32


def test_the_recipe_with_towers_prunes_both(
    model: LlavaForConditionalGeneration, rows: Path, processor: LlavaProcessor, tmp_path: Path
) -> None:
    folder, out = _saved(model, processor, tmp_path / "dense"), tmp_path / "pruned"
    overrides = [
        f"model.name_or_path={folder}", "model.device=cpu", f"calibration.source={rows}", "calibration.samples=3",
        "stages.0.reconstruct=bias", "stages.1.reconstruct=bias",
        f"export.output_dir={out}", "export.latency_rounds=1",
    ]  # fmt: skip
    result = run(load_recipe("llava-afr-towers", overrides), lambda line: None)
    assert result.plan is not None
    assert result.plan.untouched_towers == ()
    config = AutoModelForImageTextToText.from_pretrained(out).config
    assert (config.text_config.intermediate_size, config.vision_config.intermediate_size) == (51, 38)


def test_the_command_names_a_missing_image_processor(
    model: LlavaForConditionalGeneration, rows: Path, processor: LlavaProcessor, tmp_path: Path
) -> None:
    folder, out = tmp_path / "dense", tmp_path / "pruned"
    model.save_pretrained(folder)
    processor.tokenizer.save_pretrained(folder)
    source = SourceOptions(name_or_path=str(folder), device="cpu")
    calibration = CalibrationOptions(source=str(rows), samples=3)
    options = PruneOptions(criterion="wifv", density={"channels": 0.5})
    with pytest.raises(CheckpointError, match="no processor of images and text can be loaded"):
        prune_folder(source, out, options, calibration, draw=False, tell=lambda line: None)
    assert not out.exists()
