"""The page: make classes, draw or drop images, ask, correct each answer with one click, save the file.

Every tab has a `Visit` of its own in this process, under a name that the tab alone knows. Images come as data URLs of a
pad (`kshot.apps.classify.serve.pad`) and go to the page as data URLs, so gradio stores no file.
"""

from __future__ import annotations

import base64
import csv
import html
import io
import json
import math
import os
import secrets
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from fastapi import FastAPI

from kshot.apps import Answer
from kshot.apps.classify.serve import pad
from kshot.apps.classify.serve.session import Limits, Refused, Session, Store, resized

__all__ = ["mounted"]

KINDS = {"drawings and characters": "omniglot", "photos": "photos-small"}
NOTHING = "<p class='hint'>Nothing yet. Draw or drop an image, name its class, and press “Teach”. One is enough.</p>"
SHOWN = 5  # classes of an answer that are shown, and that one click corrects it to
ROWS = 10_000  # answers that the table keeps
WAITING = 16  # events that wait for their turn, in the whole process; each may be as large as a request

_HERE = Path(__file__).parent
CSS, MEMORY, CARDS = ((_HERE / name).read_text("utf-8") for name in ("page.css", "memory.js", "cards.js"))


@dataclass
class Card:
    """One answer on the page, which may be corrected.

    Attributes:
        key: its name; no other card of the visit ever has it.
        image: what was asked about, as `Session.decoded` gives it.
        answer: the answer as HTML.
        ranked: classes, the most probable first.
        taught: the number in `Session.ids` that the image got when it was corrected.
    """

    key: str
    image: np.ndarray
    answer: str
    ranked: list[str]
    taught: int | None = None


class Visit:
    """What one visitor has: the session, the answers that are shown, and all answers as rows of a table.

    Attributes:
        changes: how often what was learned has changed.
        saved: whether nothing was learned that is not in the file that was loaded last.
    """

    def __init__(self, session: Session):
        self.session = session
        self.cards: list[Card] = []
        self.wrong = ""  # images of the last question that cannot be read, as HTML
        self.asked = 0
        self.rows: list[dict[str, str]] = []
        self.changes, self.saved = 0, True

    @property
    def pictures(self) -> int:
        """How many images it holds."""
        return self.session.pictures + len(self.cards)


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
    visits = Store[Visit](limits)

    def a_pad(what: str, name: str) -> Any:
        return gr.HTML(
            value="",
            html_template=pad.TEMPLATE,
            css_template=pad.CSS,
            js_on_load=pad.JAVASCRIPT,
            what=what,
            elem_id=name,
        )

    with gr.Blocks(title="kshot: a classifier from a few images", analytics_enabled=False) as blocks:
        memory = gr.HTML("", html_template="<span></span>", js_on_load=MEMORY, elem_id="memory")
        gr.Markdown(
            "# A classifier from a few images\n"
            "Teach it one image of each class, or a few. Then ask about others. Nothing leaves this machine, and "
            "nothing is kept unless you save it."
        )
        with gr.Row():
            with gr.Column(min_width=300):
                gr.Markdown("## 1. Teach")
                kind = gr.Radio(list(KINDS), value=next(iter(KINDS)), label="The images are", elem_id="kind")
                teach_pad = a_pad("Teach", "teach-pad")
                name = gr.Textbox(
                    label="Class", placeholder="for instance: robin", max_length=limits.name, elem_id="name"
                )
                teach = gr.Button("Teach", variant="primary", elem_id="teach")
                notice = gr.HTML(elem_id="told")
                undo = gr.Button("Undo the last change", visible=False, size="sm", elem_id="undo")
                shelf = gr.HTML(NOTHING, elem_id="shelf")
                with gr.Accordion("Remove images", open=False):
                    which = gr.Dropdown(
                        [], label="Images", elem_id="which", interactive=True, multiselect=True,
                        allow_custom_value=True,  # the session looks at them itself
                    )  # fmt: skip
                    away = gr.Button("Remove", elem_id="away")
            with gr.Column(min_width=300):
                gr.Markdown("## 2. Ask")
                ask_pad = a_pad("Ask", "ask-pad")
                ask = gr.Button("What is it?", variant="primary", elem_id="ask")
                said = gr.HTML("", js_on_load=CARDS, elem_id="said")
                gr.Markdown("## 3. Save")
                keep = gr.HTML("", elem_id="keep")
                table = gr.HTML("", elem_id="table")
                file = gr.HTML("", html_template=pad.FILE, js_on_load=pad.FILE_JAVASCRIPT, elem_id="file")

        shown = [memory, notice, undo, shelf, which, said, keep, table, kind]

        def all_of(own: Visit, message: str = "", good: bool = True, asked: str = "") -> dict[Any, Any]:
            """The whole page but its file; `asked` is a message beside the answers."""
            session = own.session
            pairs = zip(session.ids, session.labels, strict=True)
            rows = [(f"{i + 1}: {label}", str(number)) for i, (number, label) in enumerate(pairs)]
            model = session.classifier.model_.name if session.classifier else session.model
            return {
                notice: _message(message, good) if message else "",
                undo: gr.Button(visible=session.can_undo),
                shelf: _shelf(session),
                which: gr.Dropdown(rows, value=[]),
                said: (_message(asked, False) if asked else "") + _cards(own, limits),
                table: _table(own),
                kind: gr.Radio(value=next((words for words, body in KINDS.items() if body == model), None)),
            }

        def on_teach(own: Visit, value: Any, words: str) -> dict[Any, Any]:
            try:
                wrong = own.session.add(words or "", _given(value, limits))
            except ValueError as error:
                return all_of(own, str(error), False)
            return {**all_of(own, *_learned(own.session, wrong)), teach_pad: ""}

        def on_ask(own: Visit, value: Any) -> dict[Any, Any]:
            try:
                answers, images, classifier = own.session.judge(_given(value, limits))
            except ValueError as error:
                return {said: _message(str(error), False) + _cards(own, limits)}
            names = [str(label) for label in classifier.classes_]
            own.asked += 1
            own.cards, own.wrong = [], ""
            for k, (answer, image) in enumerate(zip(answers, images, strict=True)):
                if image is None:
                    own.wrong += _message(answer.error, False)
                else:
                    ranked = [names[c] for c in np.argsort(-answer.probabilities, kind="stable")]
                    own.cards.append(Card(f"{own.asked}-{k}", image, _answer(own.session, answer, image), ranked))
                own.rows.append(_row(own.rows, answer))
            del own.rows[:-ROWS]
            return {said: _cards(own, limits), table: _table(own), ask_pad: ""}

        def on_card(own: Visit, event: Any) -> dict[Any, Any]:
            """One answer is corrected, or its correction undone."""
            sent = event._data if isinstance(event._data, dict) else {}
            card = next((card for card in own.cards if card.key == sent.get("card")), None)
            if card is None:
                return all_of(own, asked="that answer is not shown any more: ask again")
            try:
                there = card.taught in own.session.ids
                if sent.get("undo"):
                    own.session.remove([card.taught] if card.taught is not None and there else [])
                    return all_of(own, "Undone: the image is removed again.")
                if there:
                    return all_of(own)  # a second click on one that was taught
                (card.taught,) = own.session.learn(str(sent.get("label", "")), [card.image])
            except ValueError as error:
                return all_of(own, asked=str(error))
            return all_of(own, *_learned(own.session, [""]))

        def on_undo(own: Visit) -> dict[Any, Any]:
            try:
                own.session.undo()
            except ValueError as error:
                return all_of(own, str(error), False)
            return all_of(own, "The last change is undone.")

        def on_away(own: Visit, chosen: Any) -> dict[Any, Any]:
            numbers = [int(n) for n in chosen if str(n).isdecimal()] if isinstance(chosen, list) else []
            if not numbers:
                return all_of(own, "choose images first", False)
            try:
                own.session.remove(numbers)
            except ValueError as error:
                return all_of(own, str(error), False)
            return all_of(own, f"Removed: {_images(len(numbers))}.")

        def on_kind(own: Visit, words: str) -> dict[Any, Any]:
            if words in KINDS:
                own.session.use(KINDS[words])
            return all_of(own)

        def on_file(own: Visit, value: Any) -> dict[Any, Any]:
            try:
                blobs = pad.pictures(value, 2 * limits.request)
                if blobs:
                    own.session.load(blobs[0])
            except ValueError as error:
                return all_of(own, str(error), False)
            own.saved = True
            return all_of(own, f"Loaded: {_images(len(own.session.thumbs))}." if blobs else "")

        def begin(held: str) -> dict[Any, Any]:
            """A tab has opened the page."""
            key, has = _memory(held)
            if has and visits.get(key) is None:
                return forgotten(key)
            own = (visits.get(key) if key else None) or Visit(first.twin())
            return {**all_of(own), keep: _keep(own), memory: _memory_of(key or visits.name(), own)}

        def forgotten(key: str) -> dict[Any, Any]:
            own, minutes = Visit(first.twin()), round(limits.seconds / 60)
            text = f"This visit was forgotten: it was unused for {minutes} minutes, or the server was restarted, or "
            text += "there was no more room. What you taught is gone: load your saved file, or begin again."
            return {**all_of(own, text, False, asked=text), keep: _keep(own), memory: _memory_of(key, own)}

        def begun(act: Any) -> Any:
            def alone(held: str, *given: Any) -> dict[Any, Any]:
                key, has = _memory(held)
                if not key:
                    return {notice: _message("the page was still loading: try again", False)}
                if has and visits.get(key) is None:
                    return forgotten(key)
                own = visits.get(key, lambda: Visit(first.twin()))
                assert own is not None
                with own.session.lock:  # two events of a visit may come at once
                    before, own_saved = own.session.classifier, own.saved
                    own.saved = False
                    found = act(own, *given)
                    if own.session.classifier is before:
                        own.saved = own_saved
                    else:
                        own.changes += 1
                        found |= {keep: _keep(own)}
                    return {**found, memory: _memory_of(key, own)}

            return alone

        def corrected(held: str, event: Any) -> dict[Any, Any]:
            return begun(on_card)(held, event)

        corrected.__annotations__["event"] = gr.EventData  # gradio gives what was clicked where it reads this
        hidden: Any = {"api_visibility": "private", "concurrency_limit": 2}
        gr.on([teach.click, name.submit], begun(on_teach), [memory, teach_pad, name], [*shown, teach_pad],
              show_progress_on=[notice, shelf], **hidden)  # fmt: skip
        ask.click(begun(on_ask), [memory, ask_pad], [*shown, ask_pad], show_progress_on=[said], **hidden)
        # Each click counts, also where the one before is not answered yet: it says itself which image it means.
        said.click(corrected, [memory], shown, trigger_mode="multiple", show_progress="hidden", **hidden)
        undo.click(begun(on_undo), [memory], shown, **hidden)
        away.click(begun(on_away), [memory, which], shown, **hidden)
        kind.input(begun(on_kind), [memory, kind], shown, **hidden)
        file.change(begun(on_file), [memory, file], shown, **hidden)
        blocks.load(begin, [memory], shown, **hidden)
    return blocks


def _given(value: Any, limits: Limits) -> list[bytes]:
    """The files' bytes of a pad, one at least."""
    given = pad.pictures(value, limits.request)
    if not given:
        raise Refused("draw or drop an image first")
    return given


def _memory(held: Any) -> tuple[str, bool]:
    """The visit's name, and whether it has something, as the tab remembers it; anything may be sent in its place."""
    try:
        stored = json.loads(held) if isinstance(held, str) and len(held) < 500 else {}
    except (ValueError, RecursionError):
        stored = {}
    key = stored.get("visit") if isinstance(stored, dict) else None
    return (key, bool(stored.get("has"))) if isinstance(key, str) and 16 <= len(key) <= 64 else ("", False)


def _memory_of(key: str, own: Visit) -> str:
    unsaved = own.session.classifier is not None and not own.saved
    return json.dumps({
        "visit": key, "has": own.changes > 0 or bool(own.cards), "unsaved": own.changes if unsaved else 0
    })  # fmt: skip


def _images(count: int) -> str:
    return "1 image" if count == 1 else f"{count} images"


def _learned(session: Session, wrong: list[str]) -> tuple[str, bool]:
    bad = [text for text in wrong if text]
    text = f"Taught: {_images(len(wrong) - len(bad))}."
    classifier, found = session.classifier, session.left_out()
    if classifier is not None and found is not None:
        mean, (low, high), of = found
        text += f" Leave-one-out accuracy: {round(mean * of)}/{of} = {100 * mean:.0f} % (95 % CI {100 * low:.0f} to "
        text += f"{100 * high:.0f} %)"
        refused = sum(guess == classifier.none_label_ for guess in classifier.left_out_)
        text += f", {refused} of them refused as “{classifier.none_label_}”." if refused else "."
    if classifier is not None and classifier.why_no_threshold_:
        text += f" “{classifier.none_label_}” is not answered yet: {classifier.why_no_threshold_}."
    if bad:
        text += f" Skipped: {_images(len(bad))} ({'; '.join(sorted(set(bad)))})."
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


def _row(rows: list[dict[str, str]], answer: Answer) -> dict[str, str]:
    """A row of the table of answers."""
    number = str(int(rows[-1]["number"]) + 1 if rows else 1)
    if answer.error:
        return {"number": number, "label": "", "probability": "", "p_none": "", "error": answer.error}
    best = answer.p_none if answer.none else (1 - answer.p_none) * float(max(answer.probabilities))
    said = {"label": str(answer.label), "probability": f"{best:.4f}", "p_none": f"{answer.p_none:.4f}"}
    return {"number": number, **said, "error": ""}


def _answer(session: Session, answer: Answer, image: np.ndarray) -> str:
    """What is said of an image: P(none of the classes) and P(class) of the best classes, which sum to 1 over all."""
    classifier = session.classifier
    assert classifier is not None
    none = answer.p_none
    chances = [(str(c), (1 - none) * float(p)) for c, p in zip(classifier.classes_, answer.probabilities, strict=True)]
    chances.sort(key=lambda pair: -pair[1])
    best, rest = chances[:SHOWN], chances[SHOWN:]
    if none > 0:
        best = sorted([*best, (str(classifier.none_label_), none)], key=lambda pair: -pair[1])
    if rest:
        best.append((f"{len(rest)} other {'class' if len(rest) == 1 else 'classes'}", sum(p for _, p in rest)))
    bars = "".join(
        f"<div class='bar'><span title='{html.escape(name)}'>{html.escape(name)}</span>"
        f"<meter min='0' max='1' value='{p:.4f}' aria-label='{html.escape(name)}'></meter>"
        f"<span>{percent} %</span></div>"
        for (name, p), percent in zip(best, _percents([p for _, p in best]), strict=True)
    )
    labels = session.labels
    near = "".join(_image(session.thumbs[i], f"{i + 1}: {labels[i]}") for i in answer.nearest)
    return (
        f"{_image(resized(image), 'the image asked about')}<div class='answer'>"
        f"<h3>{html.escape(str(answer.label))}</h3>"
        f"{bars}<div class='near'><span class='hint'>Most similar examples:</span><span class='row'>{near}</span></div>"
    )


def _percents(parts: list[float]) -> list[int]:
    """Whole percents of numbers that sum to 1, which sum to 100: the largest remainders are rounded up."""
    exact = [100 * part for part in parts]
    whole = [math.floor(number) for number in exact]
    by_rest = sorted(range(len(exact)), key=lambda k: whole[k] - exact[k])
    for k in by_rest[: 100 - sum(whole)]:
        whole[k] += 1
    return whole


def _cards(own: Visit, limits: Limits) -> str:
    """The answers, each with what corrects it and it alone."""
    names = list(own.session.classes)
    labels = dict(zip(own.session.ids, own.session.labels, strict=True))
    parts = []
    for card in own.cards:
        at = f"data-card='{card.key}'"
        if card.taught in labels:
            what = f"<span>Taught as <b>{html.escape(labels[card.taught])}</b>.</span>"
            what += f"<button type='button' {at} data-undo='1'>Undo</button>"
        else:
            ranked = [name for name in card.ranked if name in names]
            ranked += [name for name in names if name not in card.ranked]
            buttons = "".join(
                f"<button type='button' {at} data-label='{html.escape(name)}'>{html.escape(name)}</button>"
                for name in ranked[:SHOWN]
            )
            what = (
                f"<span class='hint'>If that is wrong, it is …</span>{buttons}<span class='other'>"
                f"<input list='classes' maxlength='{limits.name}' placeholder='another class' "
                f"aria-label='another class'><button type='button' {at}>Teach</button></span>"
            )
        parts.append(f"<div class='asked'>{card.answer}<div class='correct'>{what}</div></div></div>")
    known = "".join(f"<option value='{html.escape(name)}'></option>" for name in names) if parts else ""
    return f"{own.wrong}{''.join(parts)}" + (f"<datalist id='classes'>{known}</datalist>" if parts else "")


def _keep(own: Visit) -> str:
    """A link that holds the file."""
    if own.session.classifier is None:
        return "<p class='hint'>Teach something first, then save it here.</p>"
    blob = base64.b64encode(own.session.save()).decode()
    return (
        f"<p class='keep'><a download='classifier.kshot' data-changes='{own.changes}' "
        f"href='data:application/octet-stream;base64,{blob}'>Save the classifier</a></p>"
    )


def _table(own: Visit) -> str:
    """A link that holds all answers."""
    if not own.rows:
        return ""
    out = io.StringIO()
    writer = csv.DictWriter(out, list(own.rows[0]))
    writer.writeheader()
    writer.writerows({key: _plain(text) for key, text in row.items()} for row in own.rows)
    blob = base64.b64encode(out.getvalue().encode()).decode()
    return (
        f"<p class='keep'><a download='answers.csv' href='data:text/csv;base64,{blob}'>Save the answers (CSV)</a></p>"
    )


def _plain(text: str) -> str:
    """A cell that no spreadsheet takes for a formula."""
    return f"'{text}" if text[:1] in "=+-@\t\r" and text else text
