"""The model card: what was kept, what it measures, how to load it."""

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import jinja2
from transformers import PreTrainedModel
from transformers.pipelines import SUPPORTED_TASKS

from sparse_trainer.cut.auto_classes import auto_classes_of
from sparse_trainer.cut.layout import earlier_layout
from sparse_trainer.errors import ExportError, shown
from sparse_trainer.folders.card_facts import EXAMPLES, CardFacts, front_matter, hub_name
from sparse_trainer.folders.exports import Export, fills_up
from sparse_trainer.folders.pipeline_files import pipeline_for
from sparse_trainer.plan.document import Plan
from sparse_trainer.plan.parts import Speed

_TRUST = ", trust_remote_code=True"
_TEMPLATE = """\
---
{{ front }}
---

# {{ title }}

{% if plan.params.compact != plan.params.dense -%}
{{ plan.architecture }} cut down to {{ percent(plan.params.compact, plan.params.dense) }} of its parameters and \
{{ percent(plan.macs.compact, plan.macs.dense) }} of its multiply-accumulates per token.
{%- if filled %} Here zeros fill it up again to sizes that the stock class can build.
{%- else %} What was removed is gone, not masked: the model is dense and needs no special kernel.
{%- endif %}
{%- elif not plan.zeros -%}
{{ plan.architecture }} with all units that it had: nothing was cut.
{%- endif %}
{%- if plan.zeros %}
{{ "What is left has" if plan.params.compact != plan.params.dense else plan.architecture ~ " with" }} \
{{ "{:,}".format(zeros[0]) }} zeros among the {{ "{:,}".format(zeros[1]) }} weights of \
{{ plan.zeros | length }} linears ({{ percent(*zeros) }}). Zeros alone make it neither smaller nor faster: that takes \
kernels for sparse matrices{% if plan.scope == "2:4" %}, as `torch.sparse.to_sparse_semi_structured` has them for 2 of \
4 on CUDA{% endif %}.
{%- endif %}
{%- if norms %} Its blocks scale and shift where its class in transformers normalizes (NoNorm).{% endif %}

{{ loading }}
{% if facts.example is not none and task and not travelling %}
It answers like this:

```python
from transformers import pipeline

answer = pipeline("{{ task }}", model="this-folder"{{ trust }})
print(answer({{ example }}))
```
{% endif %}{% if facts.call %}
It answers like this:

```python
from transformers import {{ loader }}

model = {{ loader }}.from_pretrained("this-folder"{{ trust }})
{% for line in facts.call -%}
{{ line }}
{% endfor -%}
```
{% endif %}{% if travelling %}
transformers 5 has no such pipeline of its own, so one comes with the model, in a file that imports torch, numpy and \
transformers only:

```python
from transformers import pipeline

answer = pipeline("{{ task }}", model="this-folder", trust_remote_code=True)
{% if facts.example is not none -%}
print(answer({{ example }}))
{% endif -%}
```
{% endif %}
## Measured

| | dense | pruned |
|---|---|---|
{% for name, row in rows -%}
| {{ name }} | {{ row.dense }} | {{ row.pruned }} |
{% endfor %}
{% if facts.conditions -%}
Conditions: {{ facts.conditions }}.

{% endif -%}
## What was kept

Chosen by `{{ plan.method }}`{% if asked %}, asked to keep {{ asked }}{% endif %}\
{% if plan.density_reached is not none %}; {{ "%.1f%%" | format(100 * plan.density_reached) }} of the prunable \
{{ plan.target }} stayed{% endif %}. `pruning_plan.json` lists every \
{{ "linear with its zeros" if plan.zeros else "unit" }}.

| units | kept | of |
|---|---|---|
{% for kind, kept, size in kinds -%}
| {{ kind }} | {{ kept }} | {{ size }} |
{% endfor %}
{% if plan.untouched_towers -%}
Nothing was cut of {{ towers }}, beside the language model.

{% endif -%}
{% if plan.vocabulary -%}
## Vocabulary

{{ "{:,}".format(plan.vocabulary.keep | length) }} of {{ "{:,}".format(plan.vocabulary.size) }} tokens stayed: those \
that a corpus uses{% if plan.vocabulary.minimum_count > 1 %} {{ plan.vocabulary.minimum_count }} times or more\
{% endif %}, what they are made of, and special ones. The tokenizer knows no others: text unlike the corpus is \
spelled in shorter pieces or bytes, and is unknown where there are none.
{% for name, digest in plan.vocabulary.corpora.items() %}
- {{ value(name) }}, SHA-256 `{{ digest }}`
{%- endfor %}

{% endif -%}
{% if speed -%}
## Speed

{{ speed }}

{% endif -%}
{% if facts.settings -%}
## Made by

| setting | value |
|---|---|
{% for name, setting in facts.settings.items() -%}
| {{ value(name) }} | {{ value(setting) }} |
{% endfor %}
{% endif -%}
{% if plan.recoveries -%}
## Recovered

| trained after the cut | data | teacher | steps | tokens, at most | perplexity before | after |
|---|---|---|---|---|---|---|
{% for each in plan.recoveries -%}
| {{ each.train }} | {{ value(each.data) }} | {{ value(each.teacher) }} | {{ value(each.steps) }} | \
{{ value(each.tokens) }} | {{ value(each.perplexity_before) }} | {{ value(each.perplexity_after) }} |
{% endfor %}
Perplexity is that of data which was held out, in the dtype of the weights.

{% endif -%}
Made with {{ made_with }}.
"""


def model_card(
    model: PreTrainedModel,
    plan: Plan,
    metrics: Mapping[str, Mapping[str, Any]],
    export: Export,
    facts: CardFacts | None = None,
    *,
    reads_text: bool = False,
) -> str:
    """Return the card as Markdown.

    Args:
        metrics: Rows of the table: {"accuracy": {"dense": 0.71, "pruned": 0.70}}.
        export: The form in which the model is saved: it says how it is loaded.
        facts: What model and plan do not say.
        reads_text: A tokenizer is saved with it.

    Raises:
        ExportError: what it says is no text.
    """
    autos = auto_classes_of(plan.architecture) or ("AutoModel",)
    facts, origin = facts or CardFacts(), model.config.name_or_path or ""
    title = f"{hub_name(origin) or plan.model_type}, pruned"
    task = pipeline_for(plan.architecture) or _task(autos)
    if reads_text and facts.example is None and not facts.call and task is not None:
        facts = replace(facts, example=EXAMPLES.get(task))
    loading = _loading(export, model, autos[0])
    environment = jinja2.Environment(
        undefined=jinja2.StrictUndefined, autoescape=False, keep_trailing_newline=True
    )
    return environment.from_string(_TEMPLATE).render(
        plan=plan,
        zeros=plan.zeros_in_all,
        filled=fills_up(export, model),
        norms=bool(earlier_layout(model.config)["norms"]),
        title=title,
        front=front_matter(title, task, origin, facts),
        facts=facts,
        example=repr(facts.example),
        trust=_TRUST if _TRUST in loading else "",
        task=task,
        travelling=pipeline_for(plan.architecture) is not None,
        loading=loading,
        loader=autos[0],
        rows=_rows(plan, metrics),
        asked=_asked(plan),
        speed=plan.speed and speed_text(plan.speed),
        kinds=_kept(plan),
        towers=" and ".join(f"`{tower}`" for tower in plan.untouched_towers),
        value=shown_value,
        made_with=", ".join(f"{name} {version}" for name, version in plan.versions.items()),
        percent=lambda part, whole: f"{100 * part / whole:.1f}%",
    )


def _loading(export: Export, model: PreTrainedModel, loader: str) -> str:
    text = export.card(model, loader)
    if not isinstance(text, str):
        raise ExportError(
            f"{type(export).__name__}.card", f"gave {shown(text)}, no text.", "Return Markdown."
        )
    return text


def _rows(plan: Plan, metrics: Mapping[str, Mapping[str, Any]]) -> list[tuple[str, dict[str, str]]]:
    rows = {
        "parameters": {"dense": plan.params["dense"], "pruned": plan.params["compact"]},
        "multiply-accumulates per token": {"dense": plan.macs["dense"], "pruned": plan.macs["compact"]},
    }
    shown = {**rows, **metrics}
    return [
        (name, {side: shown_value(row.get(side)) for side in ("dense", "pruned")})
        for name, row in shown.items()
    ]


def shown_value(value: Any) -> str:
    """Return a value as a table shows it.

    >>> shown_value(109482240), shown_value(0.70581), shown_value("12 MB"), shown_value(None)
    ('109,482,240', '0.7058', '12 MB', '–')
    """
    if value is None:
        return "–"
    if isinstance(value, int) and not isinstance(value, bool):
        return f"{value:,}"
    return f"{value:.4g}" if isinstance(value, float) else str(value).replace("|", "\\|").replace("\n", " ")


def _asked(plan: Plan) -> str:
    if plan.density_asked is None:
        return ""
    if isinstance(plan.density_asked, dict):
        return ", ".join(f"{100 * density:g}% of the {kind}" for kind, density in plan.density_asked.items())
    return f"{100 * plan.density_asked:g}% of the prunable {plan.target}"


def speed_text(speed: Speed) -> str:
    """Return what was asked of the time, and measured, in one line."""
    faster, times = speed["speedup_measured"], speed["milliseconds"]
    if speed["speedup_asked"] is not None:
        asked = f"{speed['speedup_asked']:g} times faster"
    else:
        asked = f"{speed['milliseconds_asked']:g} ms"
    found = "measured" if faster is not None else "by a table of times, not measured"
    many = faster if faster is not None else speed["speedup_expected"]
    return (
        f"Asked for {asked}: {found} {many:.2f} times, {times['dense']:.4g} ms before and {times['compact']:.4g} ms "
        f"after the cut ({speed['conditions']})."
    )


def _kept(plan: Plan) -> list[tuple[str, int, int]]:
    return [
        (kind, sum(len(group["keep"]) for group in groups), sum(group["size"] for group in groups))
        for kind, groups in plan.by_name().items()
    ]


def _task(autos: tuple[str, ...]) -> str | None:
    """Return the pipeline that runs a model of these auto classes, if there is one."""
    tasks: dict[str, Any] = SUPPORTED_TASKS
    for task, entry in tasks.items():
        if any(auto.__name__ in autos and auto.__name__ != "AutoModel" for auto in entry["pt"]):
            return task
    return None
