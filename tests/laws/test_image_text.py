"""What is collected on images with text: as formulas say, however rows lie in batches, whichever side is padded."""

from pathlib import Path
from typing import Any

import PIL.Image
import pytest
import torch
from torch import Tensor

from patchers.discovery.discover import discover
from patchers.layers import linear_at
from patchers.units import Structure
from sparse_trainer.criteria.calibration.base import Evidence
from sparse_trainer.criteria.calibration.refer_svd import ReferSvd
from sparse_trainer.criteria.calibration.snip import Snip
from sparse_trainer.data.image_text.batches import image_text_batches
from sparse_trainer.errors import DataError
from sparse_trainer.inputs.labels import IGNORED
from sparse_trainer.one_shot.prune import prune
from sparse_trainer.statistics.collect import collect
from sparse_trainer.statistics.elements import Elements
from sparse_trainer.statistics.mask_gradients import MaskGradients
from sparse_trainer.statistics.moments import Moments
from tests.fixtures.image_text_models import tiny_image_text, write_images, write_rows

TEXTS = ("what is this a red square", "is no")
TRIM = 0.05


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    write_images(tmp_path)
    return tmp_path


def language(model: Any, *kinds: str) -> Structure:
    part = "text_model" if model.config.model_type == "idefics3" else "language_model"
    return discover(model, kinds, include=[part])


def double(batch: dict[str, Tensor]) -> dict[str, Tensor]:
    return {name: value.double() if value.is_floating_point() else value for name, value in batch.items()}


def labelled(made: Any, processor: Any) -> dict[str, Tensor]:
    """A batch of the processor, labelled by hand: text, but no image and no padding."""
    ids_BT = made["input_ids"]
    image = processor.tokenizer.convert_tokens_to_ids(processor.image_token)
    counts_BT = (made["attention_mask"] != 0) & (ids_BT != image)
    return double(dict(made)) | {"labels": ids_BT.masked_fill(~counts_BT, IGNORED)}


def numbers(found: Any, structure: Structure) -> list[Tensor]:
    moments = found.by_group(Moments(), structure.groups).values()
    gradients = found.by_group(MaskGradients(), structure.groups).values()
    sums = found.by_group(Elements(), structure.groups).values()
    return [
        *(each.mean_I for each in moments), *(each.variance_I for each in moments),
        *(each.absolute_U for each in gradients), *(each.square_U for each in gradients),
        *(sum_U for each in sums for sum_U in each),
    ]  # fmt: skip


@pytest.mark.parametrize("model_type", ["llava", "llava_next", "qwen2_vl", "idefics3"])
def test_two_padded_rows_are_two_of_their_own(model_type: str, folder: Path) -> None:
    model, processor = tiny_image_text(model_type)
    model.double()
    structure = language(model, "channels", "heads")
    images = [PIL.Image.open(folder / f"{number}.png").convert("RGB") for number in (0, 1)]
    texts = [f"{processor.image_token} {text}" for text in TEXTS]
    needs = [Moments(), MaskGradients(), Elements()]
    alone = [
        labelled(processor(images=[image], text=[text], return_tensors="pt"), processor)
        for image, text in zip(images, texts, strict=True)
    ]
    expected = numbers(collect(model, structure, alone, needs), structure)
    assert all(bool(each.abs().sum() > 0) for each in expected)
    for side in ("left", "right"):
        options: dict[str, Any] = {"padding": True, "padding_side": side, "return_tensors": "pt"}
        both = labelled(processor(images=[[image] for image in images], text=texts, **options), processor)
        assert not bool(both["attention_mask"].all())
        for one, two in zip(
            numbers(collect(model, structure, [both], needs), structure), expected, strict=True
        ):
            torch.testing.assert_close(one, two, rtol=1e-9, atol=1e-13)


def products_of(
    model: Any, paths: tuple[str, ...], batch: dict[str, Tensor]
) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    """w dL/dw and w dF/dw by automatic differentiation: L over shifted labels, F of the sizes of all outputs."""
    sizes: list[Tensor] = []
    linears = [linear_at(model, path) for path in paths]
    hooks = [each.register_forward_hook(lambda _, args, y: sizes.append(y.norm())) for each in linears]
    logits_TV = model(**{name: value for name, value in batch.items() if name != "labels"}).logits[0]
    for hook in hooks:
        hook.remove()
    labels_T = batch["labels"][0]
    loss = torch.nn.functional.cross_entropy(logits_TV[:-1], labels_T[1:], reduction="sum")
    weights = [each.weight for each in linears]
    found = []
    for value in (loss, torch.stack(sizes).sum()):
        slopes = torch.autograd.grad(value, weights, retain_graph=True)
        found.append({path: w.detach() * g for path, w, g in zip(paths, weights, slopes, strict=True)})
    return found[0], found[1]


def trimmed(product: dict[str, Tensor], mlp: str) -> Tensor:
    """AFR-St of one sequence: products of down, up and gate meet at the hidden features, the outer ones go."""
    p_HI = (
        product[f"{mlp}.down_proj"]
        + product[f"{mlp}.up_proj"].T
        + product[f"{mlp}.gate_proj"].T
    ).sort(dim=0).values  # fmt: skip
    cut = int(TRIM * len(p_HI))
    assert cut > 0
    return p_HI[cut:-cut].mean(0).abs()


@pytest.mark.parametrize("model_type", ["llava", "idefics3"])
def test_both_parts_of_afr_are_what_its_formula_says(model_type: str, folder: Path) -> None:
    model, processor = tiny_image_text(model_type)
    model.double()
    asked = {"question": "what is this", "answer": "a red square"}
    rows = write_rows(folder, [{"image": "0.png", **asked}, {"image": "1.png", "text": "is this no"}])
    batches = [double(batch) for batch in image_text_batches(rows, processor, samples=2)]
    structure = language(model, "channels")
    mlps = {group.name: group.consumer.removesuffix(".down_proj") for group in structure.groups}
    paths = tuple(f"{mlp}.{part}" for mlp in mlps.values() for part in ("gate_proj", "up_proj", "down_proj"))
    by_loss, by_size = zip(*(products_of(model, paths, batch) for batch in batches), strict=True)
    for criterion, products in ((Snip(trim=TRIM), by_loss), (ReferSvd(trim=TRIM), by_size)):
        found = collect(model, structure, batches, list(criterion.requests()))
        scores = criterion.scores(Evidence(model=model, structure=structure, statistics=found))
        for name, mlp in mlps.items():
            expected = sum(trimmed(product, mlp) for product in products)
            # Losses of transformers are computed in float32.
            torch.testing.assert_close(scores[name], expected, rtol=1e-5, atol=1e-9)


def test_tower_layers_that_the_loss_does_not_reach_are_told(folder: Path) -> None:
    """LLaVA reads the last layer but one of its tower."""
    model, processor = tiny_image_text("llava")
    batches = image_text_batches(
        write_rows(folder, [{"image": "0.png", "text": TEXTS[0]}]), processor, samples=1
    )
    asked: dict[str, Any] = {"criterion": "afr", "include": ["vision_tower"], "density": {"channels": 0.5}}
    with pytest.raises(DataError, match=r"vision_tower\.encoder\.layers\.1\..*protect it"):
        prune(model, batches, **asked)
    pruned, _ = prune(model, batches, protect=["*vision_tower*.layers.1.*"], **asked)
    tower = pruned.model.vision_tower.encoder
    assert [layer.mlp.fc2.in_features for layer in tower.layers] == [24, 48]


def test_half_precision_is_calibrated_and_stays_half(folder: Path) -> None:
    model, processor = tiny_image_text("llava")
    rows = write_rows(folder, [{"image": f"{number}.png", "text": TEXTS[0]} for number in range(2)])
    batches = image_text_batches(rows, processor, samples=2)
    for criterion, include in (("afr", []), ("wanda", ["*"])):
        pruned, _ = prune(
            model.to(torch.bfloat16), batches, criterion=criterion, density=0.6, include=include
        )
        assert {p.dtype for p in pruned.parameters()} == {torch.bfloat16}
        inputs = {name: value for name, value in batches[0].items() if name != "labels"}
        assert bool(pruned(**inputs).logits.isfinite().all())
