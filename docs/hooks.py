"""What mkdocs builds besides `docs/`: pages of the repository's own files, tables of the package's lists, the notebook.

Nothing is written twice: a page says `<!-- made when the site is built: NAME -->` where a table of `TABLES` stands.
Links between files are turned into links between pages; one to a file that is no page (code, results) becomes its path.

The site needs no network. The repository's address is not known here: KSHOT_REPOSITORY gives it (mkdocs.yml), and
without it the site has no link to a repository.
"""

from __future__ import annotations

import contextlib
import functools
import io
import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

from mkdocs.structure.files import File, Files

import kshot

ROOT = Path(__file__).resolve().parent.parent
PAGES = {"ARCHITECTURE.md": "design.md", "CONTRIBUTING.md": "contributing.md", "CHANGELOG.md": "changelog.md"}
NOTEBOOKS = {"examples/04_tour.ipynb": "tour.md"}
LINK = re.compile(r"(!?)\[([^\]]*)\]\(((?!https?:|#|mailto:)[^)\s]+)\)")
MADE = re.compile(r"<!-- made when the site is built: ([\w-]+) -->")


def on_config(config: Any) -> Any:
    config.site_name = f"kshot {kshot.__version__}"
    config.copyright = f"kshot {kshot.__version__}, MIT licence"
    return config


def on_files(files: Files, config: Any) -> Files:
    for source, page in PAGES.items():
        files.append(File.generated(config, page, content=_turned((ROOT / source).read_text("utf-8"), ROOT)))
    for source, page in NOTEBOOKS.items():
        text, pictures = notebook((ROOT / source).read_text("utf-8"), Path(page).stem)
        files.append(File.generated(config, page, content=text))
        for name, content in pictures.items():
            files.append(File.generated(config, name, content=content))
    return files


def on_page_markdown(markdown: str, page: Any, **_: Any) -> str:
    markdown = MADE.sub(lambda match: TABLES[match[1]](), markdown)
    source = page.file.abs_src_path
    return _turned(markdown, Path(source).parent) if source and (ROOT / "docs") in Path(source).parents else markdown


@functools.cache
def notebook(text: str, stem: str) -> tuple[str, dict[str, bytes]]:
    """A notebook, which is run, as Markdown with what its cells print and draw; and its pictures by name."""
    import matplotlib

    matplotlib.use("agg")
    import matplotlib.pyplot as plt

    parts, pictures, names = [], dict[str, bytes](), dict[str, Any]()
    for cell in json.loads(text)["cells"]:
        source = "".join(cell["source"]).rstrip()
        if cell["cell_type"] == "markdown":
            parts.append(source)
            continue
        parts.append(f"```python\n{source}\n```")
        said = io.StringIO()
        with contextlib.redirect_stdout(said):
            exec(compile(source, stem, "exec"), names)
        if said.getvalue():
            parts.append(f"```text\n{said.getvalue().rstrip()}\n```")
        for figure in map(plt.figure, plt.get_fignums()):
            drawn = io.BytesIO()
            figure.savefig(drawn, format="png", dpi=100, bbox_inches="tight")
            name = f"{stem}-{len(pictures) + 1}.png"
            pictures[name] = drawn.getvalue()
            parts.append(f"![What the cell above draws]({name})")
        plt.close("all")
    return "\n\n".join(parts) + "\n", pictures


def learners() -> str:
    """Every learner of the registry, by what its tasks are."""
    from kshot.learners import REGISTRY

    kinds = {"classes": "classes", "values": "functions", "rollouts": "robots"}
    rows = ["| name | what it is | tasks | paper |", "|---|---|---|---|"]
    for name, entry in REGISTRY.items():
        own = next(iter(entry.takes.values())).path.partition(":")
        link = f"[`{name}`][{own[0]}]" if own[0] in REFERENCE else f"`{name}`"
        tasks = ", ".join(kinds[kind] for kind in entry.takes)
        purpose = f"baseline: {entry.purpose}" if entry.baseline else entry.purpose
        rows.append(f"| {link} | {purpose} | {tasks} | {entry.paper} |")
    return "\n".join(rows)


def times() -> str:
    """About how long some recipes train, from the record that `kshot list recipes` reads."""
    from kshot import families
    from kshot.cli.listing import _recipes

    rows = ["| recipe | needs | `--budget quick` | `--budget paper` |", "|---|---|---|---|"]
    known = _recipes()
    for name in SHOWN:
        assert name in families.recipe_names()
        rows.append(f"| `{name}` | {known[name].needs} | {known[name].quick} | {known[name].paper} |")
    return "\n".join(rows)


SHOWN = (
    "glyphs-5way-1shot-protonet", "glyphs-5way-1shot-maml", "omniglot-5way-1shot-protonet", "omniglot-5way-1shot-maml",
    "omniglot-20way-1shot-maml", "grocery-5way-1shot-protonet", "grocery-5way-1shot-r2d2", "sinusoid-maml",
    "gp-rbf-cnp", "gp-rbf-convcnp", "gp-rbf-tnpd", "point-maml", "cheetah-direction-maml", "cheetah-direction-promp",
    "ant-velocity-maml",
)  # fmt: skip
TABLES: dict[str, Callable[[], str]] = {"learners": learners, "times": times}
REFERENCE = set(
    re.findall(r"^::: (\S+)", "".join(p.read_text("utf-8") for p in (ROOT / "docs" / "reference").glob("*.md")), re.M)
)
"""Modules that the reference has."""


def _turned(markdown: str, folder: Path) -> str:
    """Links of a file that lies in `folder`, as links between pages."""
    made = {**PAGES, **NOTEBOOKS}

    def one(match: re.Match[str]) -> str:
        picture, words, target = match.groups()
        path, _, anchor = target.partition("#")
        there = (folder / path).resolve()
        if not there.is_relative_to(ROOT):
            return match[0]
        inside = there.relative_to(ROOT).as_posix()
        if inside in made:
            return f"{picture}[{words}]({made[inside]}{'#' + anchor if anchor else ''})"
        if inside == "README.md":
            return f"[{words}](index.md)"
        if inside.startswith("docs/"):
            return match[0] if folder != ROOT else f"{picture}[{words}]({target.removeprefix('docs/')})"
        if (there.exists() and folder == ROOT) or inside.split("/")[0] in ("kshot", "benchmarks", "examples", "tests"):
            return f"{words} (`{inside}`)" if words.strip("`") != inside else f"`{inside}`"
        return match[0]

    return LINK.sub(one, markdown)
