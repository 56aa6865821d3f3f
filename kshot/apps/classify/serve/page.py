"""The page: make classes, draw or drop images, ask, correct each answer with one click, save the file.

Every tab has a `Visit` of its own in this process (`kshot.apps.classify.serve.visit`), under a name that the tab alone
knows. Images come as data URLs of a pad (`kshot.apps.classify.serve.pad`) and go to the page as data URLs, so gradio
stores no file.
"""

from __future__ import annotations

import os
import secrets
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

from fastapi import FastAPI

from kshot.apps.classify.serve import pad, visit
from kshot.apps.classify.serve.markup import NOTHING
from kshot.apps.classify.serve.session import Limits, Session

__all__ = ["mounted"]

WAITING = 16  # events that wait for their turn, in the whole process; each may be as large as a request

_HERE = Path(__file__).parent
CSS, MEMORY, CARDS = ((_HERE / name).read_text("utf-8") for name in ("page.css", "memory.js", "cards.js"))
SHOWN = ("memory", "notice", "undo", "shelf", "which", "said", "keep", "table", "kind")  # what an event may change


def mounted(app: FastAPI, limits: Limits, token: str | None, begin: bytes | None) -> FastAPI:
    """The application with the page at `/`."""
    os.environ.setdefault("GRADIO_ANALYTICS_ENABLED", "False")  # nothing is sent anywhere
    os.environ["GRADIO_RUN_HISTORY"] = "False"  # nothing is kept in the browser
    folder = tempfile.TemporaryDirectory(prefix="kshot-page-")  # gradio wants one; goes when the process ends
    os.environ["GRADIO_TEMP_DIR"] = folder.name
    import gradio as gr
    from gradio.themes import Default

    _safe_formats_alone()
    first = Session("omniglot", limits)
    if begin is not None:
        first.load(begin)  # a damaged file is reported now, not at the first visit
    blocks = _blocks(gr, limits, first)
    blocks.kshot_folder = folder  # lives as long as the page
    blocks.state_session_capacity = limits.sessions  # gradio keeps a copy of the page's parts for each visit
    blocks.queue(max_size=WAITING)
    password = None if token is None else lambda _user, given: _same(given, token)
    theme = Default(font=["system-ui", "sans-serif"], font_mono=["ui-monospace", "monospace"])  # none fetched
    return gr.mount_gradio_app(
        app, blocks, path="/", auth=password, css=CSS, show_error=True, theme=theme,
        footer_links=[], ssr_mode=False,
    )  # fmt: skip


def _same(given: str, token: str) -> bool:
    return secrets.compare_digest(given.encode(), token.encode())


def _safe_formats_alone() -> None:
    """In this process Pillow knows no other formats than ours, whoever calls it."""
    from PIL import Image

    from kshot.data.images import FORMATS

    Image.init()
    for name in [name for name in Image.OPEN if name not in FORMATS]:
        del Image.OPEN[name]
    Image.ID[:] = [name for name in Image.ID if name in FORMATS]


def _blocks(gr: Any, limits: Limits, first: Session) -> Any:
    """The page: its parts by name, and for each event what it looks at, what it does and what else it changes."""
    visits = visit.Visits(limits, first)
    with gr.Blocks(title="kshot: a classifier from a few images", analytics_enabled=False) as blocks:
        parts = _parts(gr, limits)

        def on(
            triggers: list[Any], does: Any, reads: tuple[str, ...] = (), more: tuple[str, ...] = (), **how: Any
        ) -> None:
            how = {"api_visibility": "private", "concurrency_limit": 2} | how
            given, shown = [parts[name] for name in ("memory", *reads)], [parts[name] for name in (*SHOWN, *more)]
            gr.on(triggers, does, given, shown, **how)

        def acts(event: Callable[..., visit.Parts]) -> Any:
            return lambda held, *given: _shown(gr, parts, visits.act(event, held, *given))

        def corrects(held: str, event: Any) -> dict[Any, Any]:
            return _shown(gr, parts, visits.act(visit.on_card, held, event._data))

        corrects.__annotations__["event"] = gr.EventData  # gradio gives what was clicked where it reads this
        p, waits = parts, {"show_progress_on": [parts["notice"], parts["shelf"]]}
        on([p["teach"].click, p["name"].submit], acts(visit.on_teach), ("teach_pad", "name"), ("teach_pad",), **waits)
        on([p["ask"].click], acts(visit.on_ask), ("ask_pad",), ("ask_pad",), show_progress_on=[p["said"]])
        # Each click counts, also where the one before is not answered yet: it says itself which image it means.
        on([p["said"].click], corrects, trigger_mode="multiple", show_progress="hidden")
        on([p["undo"].click], acts(visit.on_undo))
        on([p["away"].click], acts(visit.on_away), ("which",))
        on([p["kind"].input], acts(visit.on_kind), ("kind",))
        on([p["file"].change], acts(visit.on_file), ("file",))
        on([blocks.load], lambda held: _shown(gr, parts, visits.begin(held)))
    return blocks


def _shown(gr: Any, parts: dict[str, Any], found: visit.Parts) -> dict[Any, Any]:
    """What an event says, as gradio has it."""
    return {parts[name]: gr.update(**new) if isinstance(new, dict) else new for name, new in found.items()}


def _parts(gr: Any, limits: Limits) -> dict[str, Any]:
    """The parts of the page by name, laid out."""
    parts: dict[str, Any] = {"memory": gr.HTML("", html_template="<span></span>", js_on_load=MEMORY, elem_id="memory")}
    gr.Markdown(
        "# A classifier from a few images\n"
        "Teach it one image of each class, or a few. Then ask about others. Nothing leaves this machine, and "
        "nothing is kept unless you save it."
    )
    with gr.Row():
        with gr.Column(min_width=300):
            parts |= _teaching(gr, limits)
        with gr.Column(min_width=300):
            parts |= _asking(gr)
    return parts


def _teaching(gr: Any, limits: Limits) -> dict[str, Any]:
    gr.Markdown("## 1. Teach")
    kinds = list(visit.KINDS)
    parts = {
        "kind": gr.Radio(kinds, value=kinds[0], label="The images are", elem_id="kind"),
        "teach_pad": _pad(gr, "Teach", "teach-pad"),
        "name": gr.Textbox(label="Class", placeholder="for instance: robin", max_length=limits.name, elem_id="name"),
        "teach": gr.Button("Teach", variant="primary", elem_id="teach"),
        "notice": gr.HTML(elem_id="told"),
        "undo": gr.Button("Undo the last change", visible=False, size="sm", elem_id="undo"),
        "shelf": gr.HTML(NOTHING, elem_id="shelf"),
    }
    with gr.Accordion("Remove images", open=False):
        any_value = True  # the session looks at them itself
        parts["which"] = gr.Dropdown(
            [], label="Images", elem_id="which", interactive=True, multiselect=True, allow_custom_value=any_value
        )
        parts["away"] = gr.Button("Remove", elem_id="away")
    return parts


def _asking(gr: Any) -> dict[str, Any]:
    gr.Markdown("## 2. Ask")
    parts = {
        "ask_pad": _pad(gr, "Ask", "ask-pad"),
        "ask": gr.Button("What is it?", variant="primary", elem_id="ask"),
        "said": gr.HTML("", js_on_load=CARDS, elem_id="said"),
    }
    gr.Markdown("## 3. Save")
    return {
        **parts,
        "keep": gr.HTML("", elem_id="keep"),
        "table": gr.HTML("", elem_id="table"),
        "file": gr.HTML("", html_template=pad.FILE, js_on_load=pad.FILE_JAVASCRIPT, elem_id="file"),
    }


def _pad(gr: Any, what: str, name: str) -> Any:
    template = {"html_template": pad.TEMPLATE, "css_template": pad.CSS, "js_on_load": pad.JAVASCRIPT}
    return gr.HTML(value="", **template, what=what, elem_id=name)
