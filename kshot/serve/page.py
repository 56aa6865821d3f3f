"""The page: make classes, draw or drop pictures, ask, correct with one click, keep the file.

Every visit has a `Session` of its own in gradio's state on the server. Pictures come as data URLs of a pad
(`kshot.serve.pad`) and go to the page as data URLs, so gradio stores no file.
"""

from __future__ import annotations

import base64
import csv
import html
import io
import os
import secrets
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
from fastapi import FastAPI

from kshot.serve import pad
from kshot.serve.session import Limits, Refused, Session

__all__ = ["mounted"]

KINDS = {"drawings and characters": "omniglot", "photos": "photos-small"}
NOTHING = "<p class='hint'>Nothing yet. Draw or drop a picture, name its class, and press “Teach”. One is enough.</p>"

CSS = Path(__file__).with_name("page.css").read_text("utf-8")


class Visit:
    """What one visitor has: the session, the picture that was asked about last, and all answers."""

    def __init__(self, limits: Limits, begin: bytes | None):
        self.session = Session("omniglot", limits)
        if begin is not None:
            self.session.load(begin)
        self.asked: list[bytes] = []
        self.rows: list[dict[str, str]] = []


def mounted(app: FastAPI, limits: Limits, token: str | None, begin: bytes | None) -> FastAPI:
    """The application with the page at `/`."""
    os.environ.setdefault("GRADIO_ANALYTICS_ENABLED", "False")  # nothing is sent anywhere
    folder = tempfile.TemporaryDirectory(prefix="kshot-page-")  # gradio wants one; goes when the process ends
    os.environ["GRADIO_TEMP_DIR"] = folder.name
    import gradio as gr

    _safe_formats_alone()
    Visit(limits, begin)  # a damaged file is told now, not at the first visit
    blocks = _blocks(gr, limits, begin)
    blocks.kshot_folder = folder  # lives as long as the page
    password = None if token is None else lambda _user, given: _same(given, token)
    return gr.mount_gradio_app(
        app, blocks, path="/", auth=password, css=CSS, show_error=True,
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


def _blocks(gr: Any, limits: Limits, begin: bytes | None) -> Any:
    def a_pad(what: str, name: str) -> Any:
        return gr.HTML(
            value="",
            html_template=pad.TEMPLATE,
            css_template=pad.CSS,
            js_on_load=pad.JAVASCRIPT,
            what=what,
            elem_id=name,
        )

    with gr.Blocks(title="kshot: a classifier from a few pictures", analytics_enabled=False) as blocks:
        visit = gr.State(None, time_to_live=int(limits.seconds))  # begun by its first event
        gr.Markdown(
            "# A classifier from a few pictures\n"
            "Teach it one picture of each thing, or a few; then ask. Nothing leaves this machine, and nothing is kept "
            "unless you save it."
        )
        with gr.Row():
            with gr.Column(min_width=300):
                gr.Markdown("## 1. Teach")
                kind = gr.Radio(list(KINDS), value=next(iter(KINDS)), label="The pictures are", elem_id="kind")
                teach_pad = a_pad("Teach", "teach-pad")
                name = gr.Textbox(
                    label="Class", placeholder="for instance: robin", max_length=limits.name, elem_id="name"
                )
                teach = gr.Button("Teach", variant="primary", elem_id="teach")
                told = gr.HTML(elem_id="told")
                shelf = gr.HTML(NOTHING, elem_id="shelf")
                with gr.Accordion("Take pictures away", open=False):
                    which = gr.Dropdown([], label="Picture", elem_id="which", interactive=True)
                    away = gr.Button("Take away", elem_id="away")
            with gr.Column(min_width=300):
                gr.Markdown("## 2. Ask")
                ask_pad = a_pad("Ask", "ask-pad")
                ask = gr.Button("What is it?", variant="primary", elem_id="ask")
                said = gr.HTML(elem_id="said")
                right = gr.Radio([], label="If that is wrong, it is …", visible=False, elem_id="right")
                gr.Markdown("## 3. Keep")
                keep = gr.HTML("", elem_id="keep")
                file = gr.HTML("", html_template=pad.FILE, js_on_load=pad.FILE_JAVASCRIPT, elem_id="file")

        shown = [visit, told, shelf, which, right, keep, kind]

        def all_of(own: Visit, message: str = "", good: bool = True) -> list[Any]:
            session = own.session
            rows = [f"{i + 1}: {label}" for i, label in enumerate(session.labels)]
            model = session.classifier.model_.name if session.classifier else session.model
            now = next((words for words, body in KINDS.items() if body == model), None)
            return [
                own,
                _message(message, good) if message else "",
                _shelf(session),
                gr.Dropdown(rows, value=None),
                gr.Radio(list(session.classes), value=None, visible=bool(own.asked and session.classes)),
                _keep(own),
                gr.Radio(value=now),
            ]

        def on_teach(own: Visit, value: Any, words: str) -> list[Any]:
            try:
                given = pad.pictures(value, limits.request)
                if not given:
                    raise Refused("draw or drop a picture first")
                wrong = own.session.add(words or "", given)
            except ValueError as error:
                return [*all_of(own, str(error), False), value]
            return [*all_of(own, *_learned(own.session, wrong)), ""]

        def on_ask(own: Visit, value: Any) -> list[Any]:
            try:
                given = pad.pictures(value, limits.request)
                if not given:
                    raise Refused("draw or drop a picture first")
                answers, thumbs, _ = own.session.judge(given)
            except ValueError as error:
                return [own, _message(str(error), False), gr.Radio(visible=False), _keep(own), value]
            own.asked = [blob for blob, thumb in zip(given, thumbs, strict=True) if thumb is not None]
            names = list(own.session.classes)
            for answer in answers:
                best = "" if answer.error else f"{max(answer.probabilities):.4f}"
                said = "" if answer.error else str(answer.label)
                number = str(len(own.rows) + 1)
                own.rows.append({"number": number, "label": said, "probability": best, "error": answer.error})
            del own.rows[:-10_000]
            text = "".join(_answer(own.session, a, t) for a, t in zip(answers, thumbs, strict=True))
            return [own, text, gr.Radio(names, value=None, visible=bool(own.asked)), _keep(own), ""]

        def on_right(own: Visit, words: str) -> list[Any]:
            if not own.asked or not words:
                return all_of(own)
            try:
                wrong = own.session.add(words, own.asked)
            except ValueError as error:
                return all_of(own, str(error), False)
            own.asked = []
            return all_of(own, *_learned(own.session, wrong))

        def on_away(own: Visit, row: str | None) -> list[Any]:
            try:
                own.session.remove([int(str(row).partition(":")[0]) - 1] if row else [])
            except ValueError as error:
                return all_of(own, str(error), False)
            return all_of(own, "taken away" if row else "choose a picture first", bool(row))

        def on_kind(own: Visit, words: str) -> list[Any]:
            if words in KINDS:
                own.session.use(KINDS[words])
            return all_of(own)

        def on_file(own: Visit, value: Any) -> list[Any]:
            try:
                blobs = pad.pictures(value, 2 * limits.request)
                if blobs:
                    own.session.load(blobs[0])
            except ValueError as error:
                return all_of(own, str(error), False)
            return all_of(own, f"loaded: {len(own.session.thumbs)} pictures" if blobs else "")

        def begun(act: Any) -> Any:
            def alone(own: Visit | None, *given: Any) -> Any:
                own = Visit(limits, begin) if own is None else own
                with own.session.lock:  # two events of a visit may come at once
                    return act(own, *given)

            return alone

        hidden: Any = {"api_visibility": "private", "concurrency_limit": 2}
        for event in (teach.click, name.submit):
            event(begun(on_teach), [visit, teach_pad, name], [*shown, teach_pad], **hidden)
        ask.click(begun(on_ask), [visit, ask_pad], [visit, said, right, keep, ask_pad], **hidden)
        right.input(begun(on_right), [visit, right], shown, **hidden)
        away.click(begun(on_away), [visit, which], shown, **hidden)
        kind.input(begun(on_kind), [visit, kind], shown, **hidden)
        file.change(begun(on_file), [visit, file], shown, **hidden)
        blocks.load(begun(all_of), [visit], shown, **hidden)
    return blocks


def _learned(session: Session, wrong: list[str]) -> tuple[str, bool]:
    bad = [text for text in wrong if text]
    text = f"{len(wrong) - len(bad)} learned."
    found = session.left_out()
    if found is not None:
        mean, (low, high), of = found
        text += f" Each classified by the others: {100 * mean:.0f} % right of {of} (95 % interval {100 * low:.0f} to "
        text += f"{100 * high:.0f})."
    if bad:
        text += f" Left out: {'; '.join(sorted(set(bad)))}."
    return text, not bad


def _message(text: str, good: bool) -> str:
    return f"<p class='told {'good' if good else 'bad'}' role='status'>{html.escape(text)}</p>"


def _image(thumb: np.ndarray, text: str) -> str:
    from PIL import Image

    out = io.BytesIO()
    Image.fromarray(thumb).save(out, "PNG")
    data = base64.b64encode(out.getvalue()).decode()
    return f'<img src="data:image/png;base64,{data}" alt="{html.escape(text)}" title="{html.escape(text)}">'


def _shelf(session: Session) -> str:
    if not session.thumbs:
        return NOTHING
    parts, labels = [], session.labels
    for label, count in session.classes.items():
        own = [_image(t, f"{i + 1}: {label}") for i, t in enumerate(session.thumbs) if labels[i] == label]
        parts.append(
            f"<div class='shelf'><h3>{html.escape(label)} ({count})</h3><div class='row'>{''.join(own)}</div></div>"
        )
    return "".join(parts)


def _answer(session: Session, answer: Any, thumb: np.ndarray | None) -> str:
    if thumb is None:
        return _message(answer.error, False)
    names = [str(c) for c in session.classifier.classes_]  # pyright: ignore[reportOptionalMemberAccess]
    order = np.argsort(-answer.probabilities)[:5]
    bars = "".join(
        f"<div class='bar'><span title='{html.escape(names[k])}'>{html.escape(names[k])}</span>"
        f"<meter min='0' max='1' value='{answer.probabilities[k]:.4f}' aria-label='{html.escape(names[k])}'></meter>"
        f"<span>{100 * answer.probabilities[k]:.0f} %</span></div>"
        for k in order
    )
    labels = session.labels
    near = "".join(_image(session.thumbs[i], f"{i + 1}: {labels[i]}") for i in answer.nearest)
    return (
        f"<div class='asked'>{_image(thumb, 'what was asked')}<div class='answer'>"
        f"<h3>{html.escape(str(answer.label))}</h3>{bars}<p class='hint'>It leaned on: {near}</p></div></div>"
    )


def _keep(own: Visit) -> str:
    """Links that hold their files."""
    if own.session.classifier is None:
        return "<p class='hint'>Here the classifier can be saved, once there is one.</p>"
    blob = base64.b64encode(own.session.save()).decode()
    links = [
        f'<a download="classifier.kshot" href="data:application/octet-stream;base64,{blob}">Save the classifier</a>'
    ]
    if own.rows:
        out = io.StringIO()
        table = csv.DictWriter(out, list(own.rows[0]))
        table.writeheader()
        table.writerows({key: _plain(text) for key, text in row.items()} for row in own.rows)
        blob = base64.b64encode(out.getvalue().encode()).decode()
        links.append(f'<a download="answers.csv" href="data:text/csv;base64,{blob}">Save the answers (CSV)</a>')
    return f"<p class='keep'>{''.join(links)}</p>"


def _plain(text: str) -> str:
    """A cell that no spreadsheet takes for a formula."""
    return f"'{text}" if text[:1] in "=+-@\t\r" and text else text
