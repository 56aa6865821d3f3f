"""What mkdocs builds besides `docs/`: pages of the repository's own files, so that nothing is written twice.

Links between the files are turned into links between the pages; one to a file that is no page (code, results) becomes
its path.
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

from mkdocs.structure.files import File, Files

ROOT = Path(__file__).resolve().parent.parent
PAGES = {"ARCHITECTURE.md": "design.md", "CONTRIBUTING.md": "contributing.md", "CHANGELOG.md": "changelog.md"}
LINK = re.compile(r"(!?)\[([^\]]*)\]\(((?!https?:|#|mailto:)[^)\s]+)\)")


def on_files(files: Files, config: Any) -> Files:
    for source, page in PAGES.items():
        files.append(File.generated(config, page, content=_turned((ROOT / source).read_text("utf-8"), ROOT)))
    readme = (ROOT / "README.md").read_text("utf-8")
    measured = readme[readme.index("## Measured results") : readme.index("## The files")]
    limits = readme[readme.index("## Honest limits") :]
    text = f"# Results\n\n{measured.split(chr(10), 1)[1]}\nMore: [the engine](engine.md), [robots](control.md), "
    text += f"[the classifier](classifier.md).\n\n{limits}"
    files.append(File.generated(config, "results.md", content=_turned(text, ROOT)))
    return files


def on_page_markdown(markdown: str, page: Any, **_: Any) -> str:
    source = page.file.abs_src_path
    return _turned(markdown, Path(source).parent) if source and (ROOT / "docs") in Path(source).parents else markdown


def _turned(markdown: str, folder: Path) -> str:
    """Links of a file that lies in `folder`, as links between pages."""

    def one(match: re.Match[str]) -> str:
        picture, words, target = match.groups()
        path, _, anchor = target.partition("#")
        there = (folder / path).resolve()
        if not there.is_relative_to(ROOT):
            return match[0]
        inside = there.relative_to(ROOT).as_posix()
        if inside in PAGES:
            return f"{picture}[{words}]({PAGES[inside]}{'#' + anchor if anchor else ''})"
        if inside == "README.md":
            return f"[{words}](index.md)"
        if inside.startswith("docs/"):
            return match[0] if folder != ROOT else f"{picture}[{words}]({target.removeprefix('docs/')})"
        if (there.exists() and folder == ROOT) or inside.split("/")[0] in ("kshot", "benchmarks", "examples", "tests"):
            return f"{words} (`{inside}`)" if words.strip("`") != inside else f"`{inside}`"
        return match[0]

    return LINK.sub(one, markdown)
