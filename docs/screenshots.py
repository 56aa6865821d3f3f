"""Make docs/page-wide.png and docs/page-phone.png: the page in Chromium, with printed letters.

python docs/screenshots.py          # needs kshot[web], playwright and Debian's chromium
"""

from __future__ import annotations

import os
import shutil
import socket
import tempfile
import threading
import time
from pathlib import Path

import numpy as np
from PIL import Image
from playwright.sync_api import sync_playwright

from kshot.apps.classify.serve import create_app
from kshot.apps.classify.serve import server as server_of
from kshot.data import load

HERE = Path(__file__).resolve().parent


def main() -> None:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    bank, rng = load("glyphs", "test"), np.random.default_rng(5)
    classes = rng.choice([c for c in range(len(bank.classes)) if bank.counts[c] >= 4], 4, replace=False)
    folder = Path(tempfile.mkdtemp())
    files = []
    for k, c in enumerate(classes):
        rows = int(bank.starts[c]) + rng.permutation(int(bank.counts[c]))[:4]
        files.append([folder / f"{k}-{i}.png" for i in range(4)])
        for file, row in zip(files[-1], rows, strict=True):
            Image.fromarray(255 - bank.images[row, 0].numpy()).resize((280, 280), Image.Resampling.BICUBIC).save(file)
    server = server_of(create_app(), port=port)
    threading.Thread(target=server.run, daemon=True).start()
    while not server.started:
        time.sleep(0.1)
    chromium = os.environ.get("KSHOT_CHROMIUM") or shutil.which("chromium")
    with sync_playwright() as started:
        browser = started.chromium.launch(executable_path=chromium, args=["--no-sandbox"])
        for name, size in (("wide", (1160, 900)), ("phone", (390, 844))):
            page = browser.new_page(viewport={"width": size[0], "height": size[1]})
            page.goto(f"http://127.0.0.1:{port}/")
            page.wait_for_selector("#ask-pad canvas")
            page.wait_for_function("document.querySelector('#keep').innerText.includes('Teach something first')")
            for k, own in enumerate(files):
                page.locator("#teach-pad input[type=file]").set_input_files([str(file) for file in own[:2]])
                page.wait_for_function("document.querySelectorAll('#teach-pad .files img').length === 2")
                page.locator("#name textarea, #name input").first.fill(f"letter {k + 1}")
                page.click("#teach")
                page.wait_for_function(
                    "n => document.querySelector('#shelf').innerText.includes(n)", arg=f"letter {k + 1} (2)"
                )
            page.locator("#ask-pad input[type=file]").set_input_files(str(files[2][3]))
            page.wait_for_selector("#ask-pad .files img")
            page.click("#ask")
            page.wait_for_selector("#said h3")
            time.sleep(1)
            page.screenshot(path=HERE / f"page-{name}.png", full_page=True)
            page.close()
        browser.close()
    server.should_exit = True


if __name__ == "__main__":
    main()
