"""The page in a real Chromium: draw, teach, ask, correct, save, load; photos; bad files; two visitors; a phone; keys.

Needs playwright and a Chromium: Debian's package `chromium`, or KSHOT_CHROMIUM=its path.
"""

from __future__ import annotations

import csv
import os
import re
import shutil
import socket
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

playwright = pytest.importorskip("playwright.sync_api")
pytest.importorskip("gradio")

CHROMIUM = os.environ.get("KSHOT_CHROMIUM") or shutil.which("chromium") or shutil.which("google-chrome")
pytestmark = pytest.mark.skipif(CHROMIUM is None, reason="no Chromium: apt-get install chromium")

CROSS = [[(0.2, 0.2), (0.8, 0.8)], [(0.8, 0.2), (0.2, 0.8)]]
CORNER = [[(0.25, 0.15), (0.25, 0.85), (0.8, 0.85)]]
OTHER_CROSS = [[(0.25, 0.2), (0.75, 0.85)], [(0.8, 0.25), (0.25, 0.75)]]


@pytest.fixture(scope="module")
def address() -> Iterator[str]:
    from kshot.apps.classify.serve import create_app, server

    formats = _pillow()
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    app = create_app(hosts=("127.0.0.1",))
    running = server(app, port=port)
    thread = threading.Thread(target=running.run, daemon=True)
    thread.start()
    for _ in range(600):
        if running.started:
            break
        time.sleep(0.1)
    yield f"http://127.0.0.1:{port}/"
    running.should_exit = True
    thread.join(20)
    formats()


def _pillow() -> Any:
    """What the page takes from Pillow in its process, to be put back."""
    Image.init()
    known, order = dict(Image.OPEN), list(Image.ID)

    def back() -> None:
        Image.OPEN.update(known)
        Image.ID[:] = order

    return back


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    with playwright.sync_playwright() as started:
        chromium = started.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox", "--disable-dev-shm-usage"])
        yield chromium
        chromium.close()


class Page:
    """What a visitor does."""

    def __init__(self, browser: Any, address: str, **more: Any):
        self.context = browser.new_context(accept_downloads=True, **more)
        self.page = self.context.new_page()
        self.page.set_default_timeout(60_000)
        self.errors: list[str] = []
        self.page.on("pageerror", lambda error: self.errors.append(str(error)))
        self.page.goto(address)
        self.page.wait_for_selector("#ask-pad canvas")
        self.page.wait_for_function("document.querySelector('#keep').innerText.includes('Teach something first')")

    def draw(self, pad: str, lines: list[list[tuple[float, float]]]) -> None:
        canvas, mouse = self.page.locator(f"#{pad} canvas"), self.page.mouse
        canvas.scroll_into_view_if_needed()
        box = canvas.bounding_box()
        for line in lines:
            for k, (x, y) in enumerate(line):
                mouse.move(box["x"] + x * box["width"], box["y"] + y * box["height"], steps=6)
                if k == 0:
                    mouse.down()
            mouse.up()

    def choose(self, pad: str, files: list[Path]) -> None:
        self.page.locator(f"#{pad} input[type=file]").set_input_files([str(file) for file in files])
        self.page.wait_for_function(
            "pad => document.querySelector(`#${pad} .files img`) || document.querySelector(`#${pad} .told`).innerText",
            arg=pad,
        )

    def teach(self, name: str) -> None:
        self.page.locator("#name textarea, #name input").first.fill(name)
        self.page.click("#teach")

    def ask(self) -> None:
        self.page.click("#ask")

    def sees(self, where: str, text: str) -> str:
        self.page.wait_for_function(
            "([where, text]) => document.querySelector(where).innerText.includes(text)", arg=[where, text]
        )
        return self.page.inner_text(where)


@pytest.fixture
def visitor(browser: Any, address: str) -> Iterator[Page]:
    page = Page(browser, address, viewport={"width": 1200, "height": 1000})
    yield page
    assert not page.errors
    page.context.close()


def test_draw_teach_ask_correct_save_and_load(visitor: Page, browser: Any, address: str, tmp_path: Path) -> None:
    for name, lines in (("cross", CROSS), ("corner", CORNER)):
        visitor.draw("teach-pad", lines)
        visitor.teach(name)
        visitor.sees("#shelf", f"{name} (1)")
    visitor.draw("ask-pad", OTHER_CROSS)
    visitor.ask()
    visitor.page.wait_for_selector("#said h3")
    assert visitor.page.inner_text("#said h3") == "cross"
    assert visitor.page.locator("#said img").count() == 3  # the one asked about, and the most similar ones
    # The bars are P(class) and P(none of them), and sum to 1.
    bars = visitor.page.eval_on_selector_all("#said meter", "all => all.map(meter => meter.value)")
    assert sum(bars) == pytest.approx(1, abs=2e-4)
    # One click puts it right, and the image is learned.
    visitor.page.locator("#said button", has_text="cross").click()
    visitor.sees("#shelf", "cross (2)")
    # Save, and go on in another visit.
    with visitor.page.expect_download() as given:
        visitor.page.click("text=Save the classifier")
    file = tmp_path / "a.kshot"
    given.value.save_as(file)
    with visitor.page.expect_download() as given:
        visitor.page.click("text=Save the answers (CSV)")
    table = tmp_path / "answers.csv"
    given.value.save_as(table)
    rows = list(csv.DictReader(table.open(encoding="utf-8")))
    assert [row["label"] for row in rows] == ["cross"]
    assert rows[0]["probability"] == f"{max(bars):.4f}"
    other = Page(browser, address)
    assert other.page.inner_text("#shelf").startswith("Nothing yet")  # a visit does not see another's classes
    other.page.locator("#file input[type=file]").set_input_files(str(file))
    other.sees("#shelf", "cross (2)")
    other.draw("ask-pad", CORNER)
    other.ask()
    other.sees("#said", "corner")
    assert not other.errors
    other.context.close()
    # The command line reads it too.
    from kshot.apps import FewShotClassifier

    assert FewShotClassifier.load(file).classes_.tolist() == ["corner", "cross"]


def test_photos_bad_files_and_taking_away(visitor: Page, tmp_path: Path) -> None:
    rng, files = np.random.default_rng(0), []
    for k, colour in enumerate(((200, 60, 40), (40, 160, 60))):
        noise = rng.normal(0, 20, (300, 400, 3))
        files.append(tmp_path / f"{k}.jpg")
        Image.fromarray((np.array(colour) + noise).clip(0, 255).astype(np.uint8)).save(files[-1])
    bad = tmp_path / "bad.png"
    bad.write_text("no picture")
    visitor.page.locator("#kind label", has_text="photos").click()
    visitor.choose("teach-pad", [bad])
    assert "bad.png can't be read as an image" in visitor.page.inner_text("#teach-pad .told")
    visitor.teach("red")
    visitor.sees("#told", "draw or drop an image first")
    for name, file in zip(("red", "green"), files, strict=True):
        visitor.choose("teach-pad", [file])
        visitor.teach(name)
        visitor.sees("#shelf", f"{name} (1)")
    visitor.choose("ask-pad", files)
    visitor.ask()
    visitor.page.wait_for_function("document.querySelectorAll('#said h3').length === 2")
    assert visitor.page.locator("#said h3").all_inner_texts() == ["red", "green"]
    # A hostile name is text; a file that is none is told, and what is there stays.
    visitor.choose("teach-pad", [files[0]])
    visitor.teach("<img src=x onerror=document.title='bad'>")
    visitor.sees("#shelf", "<img src=x")
    assert visitor.page.title() != "bad"
    foreign = tmp_path / "foreign.kshot"
    foreign.write_bytes(b"PK no zip")
    visitor.page.locator("#file input[type=file]").set_input_files(str(foreign))
    visitor.sees("#told", "not a .kshot file")
    visitor.sees("#shelf", "green (1)")
    visitor.page.click("text=Remove images")
    visitor.page.click("#which input")
    visitor.page.locator("#which [role=option]", has_text="red").first.click()
    visitor.page.click("#away")
    visitor.page.wait_for_function("!/^red/m.test(document.querySelector('#shelf').innerText)")


def test_a_phone_and_a_keyboard(browser: Any, address: str) -> None:
    page = Page(browser, address, viewport={"width": 360, "height": 740})
    assert page.page.evaluate("document.documentElement.scrollWidth <= window.innerWidth")
    keys = page.page.keyboard
    page.page.focus("#teach-pad canvas")
    keys.press("Space")  # the pen goes down
    for _ in range(8):
        keys.press("ArrowRight")
    for _ in range(8):
        keys.press("ArrowDown")
    keys.press("Space")
    for stop in ("Clear", "Choose images"):
        keys.press("Tab")
        focused = "document.activeElement.innerText || document.activeElement.getAttribute('aria-label')"
        assert re.search(stop, page.page.evaluate(focused), re.IGNORECASE)
    for _ in range(3):  # the hidden file field may take one more stop
        keys.press("Tab")
        if page.page.evaluate("document.activeElement.closest('#name') !== null"):
            break
    keys.type("corner")
    keys.press("Enter")
    page.sees("#shelf", "corner (1)")
    assert page.page.evaluate("document.documentElement.scrollWidth <= window.innerWidth")
    assert not page.errors
    page.context.close()


def noise(colours: list[tuple[int, int, int]], folder: Path) -> list[Path]:
    rng, files = np.random.default_rng(0), []
    for k, colour in enumerate(colours):
        image = (np.array(colour) + rng.normal(0, 20, (60, 80, 3))).clip(0, 255).astype(np.uint8)
        files.append(folder / f"noise-{k}.jpg")
        Image.fromarray(image).save(files[-1])
    return files


def test_a_correction_teaches_its_own_image_alone(browser: Any, address: str, tmp_path: Path) -> None:
    page = Page(browser, address, viewport={"width": 390, "height": 844})
    page.page.locator("#kind label", has_text="photos").click()
    files = noise([(200, 60, 40), (40, 160, 60)] + [(200, 60, 40)] * 7, tmp_path)
    for name, file in zip(("red", "green"), files[:2], strict=True):
        page.choose("teach-pad", [file])
        page.teach(name)
        page.sees("#shelf", f"{name} (1)")
    page.choose("ask-pad", files[2:])
    page.page.wait_for_function("document.querySelectorAll('#ask-pad .files img').length === 7")
    page.ask()
    page.page.wait_for_function("document.querySelectorAll('#said h3').length === 7")
    cards = page.page.locator("#said .asked")
    cards.nth(3).locator("button[data-label=green]").click()
    page.sees("#shelf", "green (2)")
    page.sees("#shelf", "red (1)")
    # Two clicks at once, on two images and one of them twice: one image each.
    page.page.evaluate(
        """() => { const cards = document.querySelectorAll('#said .asked');
        const click = (card, label) => cards[card].querySelector(`button[data-label=${label}]`).click();
        click(0, 'red'); click(1, 'green'); click(0, 'green'); }"""
    )
    page.page.wait_for_function("document.querySelectorAll('#said [data-undo]').length === 3")
    page.sees("#shelf", "red (2)")
    page.sees("#shelf", "green (3)")
    # What is undone is that image; the others stay corrected.
    cards.nth(3).locator("[data-undo]").click()
    page.sees("#shelf", "green (2)")
    assert page.page.locator("#said [data-undo]").count() == 2
    # A class that is new; removing it elsewhere makes the answer correctable again.
    cards.nth(6).locator("input").fill("blue")
    cards.nth(6).locator("input").press("Enter")
    page.sees("#shelf", "blue (1)")
    page.page.click("#undo")
    page.page.wait_for_function("!document.querySelector('#shelf').innerText.includes('blue')")
    assert cards.nth(6).locator("button[data-label=red]").count() == 1
    assert page.page.evaluate("document.documentElement.scrollWidth <= window.innerWidth")
    assert not page.errors
    page.context.close()


def test_what_was_taught_is_not_lost_by_an_accident(visitor: Page) -> None:
    page, questions = visitor.page, []
    page.on("dialog", lambda dialog: (questions.append(dialog.type), dialog.dismiss()))
    visitor.draw("teach-pad", CORNER)
    visitor.teach("corner")
    visitor.sees("#shelf", "corner (1)")
    prevented = """where => {
        const data = new DataTransfer(), at = document.querySelector(where);
        data.items.add(new File(['x'], 'a.png'));
        return ['dragover', 'drop'].every(name => !at.dispatchEvent(
            new DragEvent(name, {bubbles: true, cancelable: true, dataTransfer: data})));
    }"""
    for where in ("body", "#shelf", "#said", "#name textarea, #name input", "#ask-pad canvas"):
        assert page.evaluate(prevented, where), where
    page.close(run_before_unload=True)
    page.wait_for_timeout(300)
    assert questions == ["beforeunload"]
    with page.expect_download():
        page.click("text=Save the classifier")
    page.evaluate("window.still = true")
    page.reload()
    page.wait_for_function("!window.still && document.querySelector('#keep')?.innerText.includes('Teach something')")
    assert questions == ["beforeunload"]  # saved: nothing is asked


def test_a_visit_that_was_forgotten_says_so(visitor: Page, monkeypatch: pytest.MonkeyPatch) -> None:
    from kshot.apps.classify.serve import session

    visitor.draw("teach-pad", CORNER)
    visitor.teach("corner")
    visitor.sees("#shelf", "corner (1)")
    now = time.monotonic
    monkeypatch.setattr(session, "monotonic", lambda: now() + 4000)
    visitor.draw("teach-pad", CROSS)
    visitor.teach("cross")
    visitor.sees("#told", "This visit was forgotten")
    assert visitor.page.inner_text("#shelf").startswith("Nothing yet")  # not a classifier of the last image alone


def test_gradio_takes_no_files_and_no_other_site_shows_the_page(address: str) -> None:
    httpx = pytest.importorskip("httpx")
    for path in ("upload", "process_recording", "vibe-edit", "run/on_teach", "queue/../upload"):
        sent = httpx.post(f"{address}gradio_api/{path}", files={"files": ("a.txt", b"x")}, timeout=60)
        assert sent.status_code == 404, path
        assert "no files are taken here" in sent.text
    for path in ("", "config", "theme.css", "nowhere"):
        headers = httpx.get(f"{address}{path}", timeout=60).headers
        assert headers["content-security-policy"] == "frame-ancestors 'none'", path
        assert headers["x-content-type-options"] == "nosniff"
        assert headers["referrer-policy"] == "same-origin"
    assert httpx.get(f"{address}config", timeout=60).status_code == 200  # the page itself is there


def test_the_page_asks_for_the_token() -> None:
    from fastapi.testclient import TestClient

    from kshot.apps.classify.serve import create_app

    back = _pillow()
    client = TestClient(create_app(token="secret"))
    assert client.get("/config").status_code == 401
    assert client.post("/login", data={"username": "a", "password": "wrong"}).status_code == 400
    assert client.post("/login", data={"username": "a", "password": "secret"}).status_code == 200
    back()
