"""What the page shows, as HTML: of a session, of an answer, of what may be saved. All words are escaped, all images are
data URLs.
"""

from __future__ import annotations

import base64
import csv
import html
import io
import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from kshot.apps import Answer
from kshot.apps.classify.serve.session import Session, resized

__all__ = [
    "NOTHING",
    "Card",
    "answered",
    "cards",
    "file_link",
    "images",
    "learned",
    "message",
    "row",
    "shelf",
    "table_link",
]

NOTHING = "<p class='hint'>Nothing yet. Draw or drop an image, name its class, and press “Teach”. One is enough.</p>"
SHOWN = 5  # classes of an answer that are shown, and that one click corrects it to


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


def images(count: int) -> str:
    return "1 image" if count == 1 else f"{count} images"


def learned(session: Session, wrong: list[str]) -> tuple[str, bool]:
    bad = [text for text in wrong if text]
    text = f"Taught: {images(len(wrong) - len(bad))}."
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
        text += f" Skipped: {images(len(bad))} ({'; '.join(sorted(set(bad)))})."
    return text, not bad


def message(text: str, good: bool) -> str:
    return f"<p class='told {'good' if good else 'bad'}' role='status'>{html.escape(text)}</p>"


def _image(thumb: np.ndarray, text: str) -> str:
    from PIL import Image

    out = io.BytesIO()
    Image.fromarray(thumb).save(out, "PNG")
    data = base64.b64encode(out.getvalue()).decode()
    return f'<img src="data:image/png;base64,{data}" alt="{html.escape(text)}" title="{html.escape(text)}">'


def shelf(session: Session) -> str:
    if not session.thumbs:
        return NOTHING
    parts, labels = [], session.labels
    for label, count in session.classes.items():
        own = [_image(t, f"{i + 1}: {label}") for i, t in enumerate(session.thumbs) if labels[i] == label]
        parts.append(
            f"<div class='shelf'><h3>{html.escape(label)} ({count})</h3><div class='row'>{''.join(own)}</div></div>"
        )
    return "".join(parts)


def row(rows: list[dict[str, str]], answer: Answer) -> dict[str, str]:
    """A row of the table of answers."""
    number = str(int(rows[-1]["number"]) + 1 if rows else 1)
    if answer.error:
        return {"number": number, "label": "", "probability": "", "p_none": "", "error": answer.error}
    best = answer.p_none if answer.none else (1 - answer.p_none) * float(max(answer.probabilities))
    said = {"label": str(answer.label), "probability": f"{best:.4f}", "p_none": f"{answer.p_none:.4f}"}
    return {"number": number, **said, "error": ""}


def answered(session: Session, answer: Answer, image: np.ndarray) -> str:
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


def cards(session: Session, shown: Sequence[Card]) -> str:
    """The answers, each with what corrects it and it alone."""
    names = list(session.classes)
    labels = dict(zip(session.ids, session.labels, strict=True))
    parts = []
    for card in shown:
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
                f"<input list='classes' maxlength='{session.limits.name}' placeholder='another class' "
                f"aria-label='another class'><button type='button' {at}>Teach</button></span>"
            )
        parts.append(f"<div class='asked'>{card.answer}<div class='correct'>{what}</div></div></div>")
    known = "".join(f"<option value='{html.escape(name)}'></option>" for name in names) if parts else ""
    return "".join(parts) + (f"<datalist id='classes'>{known}</datalist>" if parts else "")


def file_link(session: Session, changes: int) -> str:
    """A link that holds the file; `changes`: after how many it was made."""
    if session.classifier is None:
        return "<p class='hint'>Teach something first, then save it here.</p>"
    blob = base64.b64encode(session.save()).decode()
    return (
        f"<p class='keep'><a download='classifier.kshot' data-changes='{changes}' "
        f"href='data:application/octet-stream;base64,{blob}'>Save the classifier</a></p>"
    )


def table_link(rows: list[dict[str, str]]) -> str:
    """A link that holds all answers, rows of `row`."""
    if not rows:
        return ""
    out = io.StringIO()
    writer = csv.DictWriter(out, list(rows[0]))
    writer.writeheader()
    writer.writerows({key: _plain(text) for key, text in row.items()} for row in rows)
    blob = base64.b64encode(out.getvalue().encode()).decode()
    return (
        f"<p class='keep'><a download='answers.csv' href='data:text/csv;base64,{blob}'>Save the answers (CSV)</a></p>"
    )


def _plain(text: str) -> str:
    """A cell that no spreadsheet takes for a formula."""
    return f"'{text}" if text[:1] in "=+-@\t\r" and text else text
