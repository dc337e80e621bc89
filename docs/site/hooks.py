"""What the site shows beside the pages of docs/: recipes, notebooks, and where links out of docs/ lead."""

import json
import posixpath
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import yaml
from mkdocs.config.defaults import MkDocsConfig
from mkdocs.structure.files import File, Files, InclusionLevel
from mkdocs.structure.pages import Page

ROOT = Path(__file__).parents[2]
CATALOGUE = "recipes/index.md"
MEASURED = "recipes/measured.md"
README = "recipes/README.md"
WIDE = "architectures.md"
"""A page of tables with many columns, which take the place of its table of contents."""
LINK = re.compile(r"\]\(([^)\s#]+)(#[^)\s]*)?\)")
ARXIV = re.compile(r"arXiv (\d{4}\.\d{4,5})")


@dataclass(frozen=True, kw_only=True)
class Recipe:
    """What the head of a recipe file says."""

    name: str
    command: str
    comment: Sequence[str]
    """The lines under the command: references and variants."""
    description: str
    task: str
    """What it trains; "" where it trains nothing."""
    text: str


def read_recipe(path: Path) -> Recipe:
    """Return a recipe: its first comment is the command, the lines after it say where the method is from."""
    text = path.read_text(encoding="utf-8")
    head = text.split("\ndescription:")[0].splitlines()
    sections = yaml.safe_load(text)
    command, *comment = [line.removeprefix("#").strip() for line in head]
    return Recipe(
        name=path.stem,
        command=command,
        comment=comment,
        description=sections["description"],
        task=sections["task"]["name"] if "task" in sections else "",
        text=text,
    )


def catalogue(recipes: Sequence[Recipe]) -> str:
    """Return the page that lists all recipes by what they train."""
    lines = [
        "# Recipes",
        "",
        "A recipe is one YAML file that a command runs, with any value changed on the command line. "
        "[How recipes are written, and what was measured](measured.md).",
        "",
    ]
    parts = {
        "Recipes that train": [recipe for recipe in recipes if recipe.task],
        "One shot": [recipe for recipe in recipes if not recipe.task],
    }
    for title, found in parts.items():
        lines += [f"## {title}", "", "| recipe | task | what it does | papers (arXiv) |", "|---|---|---|---|"]
        for recipe in sorted(found, key=lambda recipe: (recipe.task, recipe.name)):
            papers = ", ".join(dict.fromkeys(ARXIV.findall(" ".join(recipe.comment))))
            task = f"[{recipe.task}](../tasks/{recipe.task}.md)" if recipe.task else "none"
            lines.append(f"| [{recipe.name}]({recipe.name}.md) | {task} | {recipe.description} | {papers} |")
        lines.append("")
    return "\n".join(lines)


def recipe_page(recipe: Recipe) -> str:
    """Return the page of one recipe: description, command, sources, file."""
    lines = [f"# {recipe.name}", "", recipe.description, "", "```bash", recipe.command, "```", ""]
    if recipe.comment:
        lines += [" ".join(recipe.comment), ""]
    return "\n".join([*lines, "```yaml", recipe.text.rstrip(), "```", ""])


def notebook_page(path: Path) -> str:
    """Return a notebook as Markdown: its text and code, and where the file is."""
    cells = json.loads(path.read_text(encoding="utf-8"))["cells"]
    sources = [(cell["cell_type"], "".join(cell["source"])) for cell in cells]
    texts = [text if kind == "markdown" else f"```python\n{text}\n```" for kind, text in sources]
    return "\n\n".join([texts[0], f"[The notebook as a file]({path.name})", *texts[1:]]) + "\n"


def on_files(files: Files, config: MkDocsConfig) -> Files:
    """Add the catalogue, the pages of recipes and notebooks, and the assets, which lie beside this file."""
    recipes = [read_recipe(path) for path in sorted((ROOT / "recipes").glob("*.yaml"))]
    files.append(File.generated(config, CATALOGUE, content=catalogue(recipes)))
    files.append(File.generated(config, MEASURED, content=(ROOT / README).read_text(encoding="utf-8")))
    for recipe in recipes:
        name = f"recipes/{recipe.name}.md"
        text = recipe_page(recipe)
        files.append(File.generated(config, name, content=text, inclusion=InclusionLevel.NOT_IN_NAV))
    for path in sorted((ROOT / "docs/notebooks").glob("*.ipynb")):
        files.append(File.generated(config, f"notebooks/{path.stem}.md", content=notebook_page(path)))
    for asset in sorted((Path(__file__).parent / "assets").iterdir()):
        files.append(File.generated(config, f"assets/{asset.name}", abs_src_path=str(asset)))
    return files


def on_page_markdown(markdown: str, page: Page, config: MkDocsConfig, files: Files) -> str:
    """Lead links that leave docs/ to the page that stands for their target; a file without a page is only named."""
    if page.file.src_uri == WIDE:
        page.meta["hide"] = ["toc"]
    folder = posixpath.dirname(page.file.src_uri)
    if folder == "notebooks":
        return markdown
    is_readme = page.file.src_uri == MEASURED
    # Where the text lies in the checkout, seen from its root.
    home = "recipes" if is_readme else posixpath.join("docs", folder)

    def lead(match: re.Match[str]) -> str:
        link, anchor = match[1], match[2] or ""
        if "://" in link:
            return match[0]
        target = site_page(posixpath.normpath(posixpath.join(home, link)))
        return f"]({posixpath.relpath(target, folder or '.')}{anchor})"

    return LINK.sub(lead, markdown)


def on_page_content(html: str, page: Page, config: MkDocsConfig, files: Files) -> str:
    """Mark the tables whose columns the style sheet shares out."""
    return html.replace("<table>", "<table data-wide>") if page.file.src_uri == WIDE else html


def site_page(path: str) -> str:
    """Return the page of the site that shows a file of the checkout, both with slashes.

    >>> site_page("docs/lora.md"), site_page("recipes/llama-wanda.yaml"), site_page("README.md")
    ('lora.md', 'recipes/llama-wanda.md', 'index.md')
    """
    named = {"README.md": "index.md", README: MEASURED}
    if path in named:
        return named[path]
    if path.startswith("recipes/"):
        return str(Path(path).with_suffix(".md"))
    page = posixpath.relpath(path, "docs")
    return page.replace(".ipynb", ".md")
