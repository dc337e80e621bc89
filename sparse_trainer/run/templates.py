"""The pages that runs write: templates beside this file, which share styles and tables."""

import importlib.resources
from collections.abc import Mapping
from typing import Any

import jinja2
from markupsafe import Markup

from sparse_trainer.files.figures import svg_of


def filled(template: str, **values: object) -> str:
    """Return a page as HTML, all styles in it; texts stay texts."""
    environment = jinja2.Environment(
        loader=jinja2.FunctionLoader(_read),
        undefined=jinja2.StrictUndefined,
        autoescape=True,
        trim_blocks=True,
    )
    return environment.get_template(template).render(**values)


def svg_pictures(figures: Mapping[str, Any]) -> dict[str, Markup]:
    """Return pictures for a page: heading -> SVG."""
    # Text in it was escaped by matplotlib.
    return {heading: Markup(svg_of(figure)) for heading, figure in figures.items()}


def _read(name: str) -> str:
    return importlib.resources.files("sparse_trainer.run").joinpath(name).read_text(encoding="utf-8")
