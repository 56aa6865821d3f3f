"""The documentation site builds, strictly: every link leads somewhere, every module of the reference is there. It needs
no network, and is searched where it is opened from disk.
"""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

import kshot
from kshot import learners

ROOT = Path(__file__).resolve().parent.parent
pytest.importorskip("material")


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("docs") / "site"
    done = subprocess.run(
        [sys.executable, "-m", "mkdocs", "build", "--strict", "--quiet", "--site-dir", str(folder)],
        cwd=ROOT, env={**os.environ, "NO_MKDOCS_2_WARNING": "1"}, capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout + done.stderr
    return folder


def read(site: Path, page: str) -> str:
    return (site / f"{page}.html").read_text("utf-8")


def test_pages_are_made(site: Path) -> None:
    results = read(site, "results")
    assert "Omniglot" in results
    assert "Limitations" in results
    assert 'href="contributing.html"' in read(site, "design")  # links between files have become links between pages
    assert "cheetah-direction-maml" in read(site, "how-long")
    assert "tour-1.png" in read(site, "tour")
    assert f"kshot {kshot.__version__}" in read(site, "index")


def test_the_learners_page_opens_with_a_table(site: Path) -> None:
    page = read(site, "reference/learners")
    table = page[page.index("<table>") : page.index("</table>")]
    assert all(f">{name}<" in table for name in learners.REGISTRY)
    assert page.index("<table>") < page.index('class="doc ')
    assert "Entry(" not in page  # the source of the registry


def test_nothing_is_fetched_from_elsewhere(site: Path) -> None:
    for page in site.rglob("*.html"):
        text = page.read_text("utf-8")
        fetched = re.findall(r'<(?:script|link|img|iframe)\b[^>]*(?:src|href)="(?:https?:)?//[^"]*"', text)
        assert not fetched, f"{page.relative_to(site)}: {fetched}"


def test_the_search_answers_from_disk(site: Path) -> None:
    playwright = pytest.importorskip("playwright.sync_api")
    chromium = os.environ.get("KSHOT_CHROMIUM") or shutil.which("chromium")
    if chromium is None:
        pytest.skip("needs chromium, or KSHOT_CHROMIUM with its path")
    with playwright.sync_playwright() as started:
        browser = started.chromium.launch(executable_path=chromium, args=["--no-sandbox"])
        page = browser.new_page()
        page.goto((site / "index.html").as_uri())
        page.keyboard.press("f")
        page.keyboard.type("convcnp")
        page.wait_for_function("document.querySelector('.md-search-result__meta').innerText.includes('matching doc')")
        assert page.locator(".md-search-result__link").count() > 0
        browser.close()


def test_the_citation_is_of_this_version() -> None:
    assert f"\nversion: {kshot.__version__}\n" in (ROOT / "CITATION.cff").read_text("utf-8")
