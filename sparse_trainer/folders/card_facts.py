"""What a model card says beside what the model and its plan say, and what is carried over from the card before."""

import math
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml
from huggingface_hub import EvalResult, ModelCard, ModelCardData, try_to_load_from_cache

EXAMPLES: Mapping[str, object] = {
    "text-generation": "The capital of France is",
    "text-classification": "A fine day.",
    "token-classification": "Ada lives in London.",
    "question-answering": {"question": "Where does Ada live?", "context": "Ada lives in London."},
}
"""An input for pipelines that take text, where nobody gave one: it shows how they are called."""
TAGS = ("pruning", "structured-sparsity", "sparse-trainer")
_CARD = "README.md"


@dataclass(frozen=True, kw_only=True)
class CardScore:
    """One number that the finished model was measured by."""

    metric: str
    value: float
    data: str
    """The data set: a name on the hub, or what local files are called."""
    part: str = ""
    """Which part of it, in words."""
    split: str | None = None


@dataclass(frozen=True, kw_only=True)
class CardFacts:
    """What only who made the model knows. What is left empty is left out of the card."""

    scored: tuple[CardScore, ...] = ()
    """Results for the card's `model-index`."""
    conditions: str | None = None
    """What latencies were measured on."""
    settings: Mapping[str, Any] = field(default_factory=dict)
    """How it was trained or calibrated: name -> value."""
    example: object = None
    """An input as the task's pipeline takes it."""
    call: tuple[str, ...] = ()
    """Where no pipeline takes one: Python that asks `model`, as it is loaded, about an example."""


def front_matter(name: str, task: str | None, origin: str, facts: CardFacts) -> str:
    """Return the metadata of a card as YAML, with licence, language and base model of the model it was made from.

    Args:
        name: Title of the model.
        task: Its pipeline on the hub.
        origin: What it was loaded from: a name on the hub, or a folder.
    """
    before = _card_of(origin)
    finite = [scored for scored in facts.scored if math.isfinite(scored.value)]  # JSON knows no others
    data = ModelCardData(
        language=before.language,
        license=before.license,
        license_name=before.get("license_name"),
        license_link=before.get("license_link"),
        library_name="transformers",
        pipeline_tag=task,
        base_model=hub_name(origin) or before.base_model,
        datasets=[s.data for s in facts.scored if "/" in s.data and hub_name(s.data)] or None,
        tags=list(TAGS),
        model_name=name if finite else None,
        eval_results=[_result(scored, task or "other") for scored in finite] or None,
    )
    return data.to_yaml()


def hub_name(name: str) -> str | None:
    """Return a model's name on the hub, None for a path on this machine.

    >>> hub_name("google-bert/bert-base-uncased"), hub_name("/home/me/out"), hub_name("")
    ('google-bert/bert-base-uncased', None, None)
    """
    is_name = re.fullmatch(r"[A-Za-z0-9][\w.-]*(/[A-Za-z0-9][\w.-]*)?", name) is not None
    return name if is_name and not Path(name).exists() else None


def _result(scored: CardScore, task: str) -> EvalResult:
    return EvalResult(
        task_type=task,
        dataset_type=scored.data,
        dataset_name=f"{scored.part} of {scored.data}" if scored.part else scored.data,
        dataset_split=scored.split,
        metric_type=scored.metric,
        metric_value=scored.value,
    )


def _card_of(origin: str) -> ModelCardData:
    """Return the metadata of the card beside a model, or in the hub's cache; empty where there is none to be read."""
    found = Path(origin) / _CARD if Path(origin).is_dir() else None
    if found is None and hub_name(origin):
        cached = try_to_load_from_cache(origin, _CARD)
        found = Path(cached) if isinstance(cached, str) else None
    if found is None or not found.is_file():
        return ModelCardData()
    try:
        data: ModelCardData = ModelCard.load(found, ignore_metadata_errors=True).data
    except (OSError, ValueError, yaml.YAMLError):  # somebody else's file
        return ModelCardData()
    return data
