"""What happens on the page: a visit, and what each event does with it. Nothing here knows gradio.

    visits = Visits(limits, first)
    visits.begin(held)                              # a tab has opened the page
    visits.act(on_teach, held, value, "robin")      # {"shelf": "<div...", "undo": {"visible": True}, ...}

An event gives what the parts of the page, by name, show from now on: a value, or a dict of their properties.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any

import numpy as np

from kshot.apps.classify.serve import markup, pad
from kshot.apps.classify.serve.markup import Card
from kshot.apps.classify.serve.session import Limits, Refused, Session, Store

__all__ = [
    "KINDS",
    "Parts",
    "Visit",
    "Visits",
    "on_ask",
    "on_away",
    "on_card",
    "on_file",
    "on_kind",
    "on_teach",
    "on_undo",
]

KINDS = {"drawings and characters": "omniglot", "photos": "photos-small"}
ROWS = 10_000  # answers that the table keeps

Parts = dict[str, Any]
"""Part of the page -> what it shows from now on."""


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


class Visits:
    """The visits of all tabs.

    Args:
        limits: how many there may be, and for how long.
        first: what every visit begins with.
    """

    def __init__(self, limits: Limits, first: Session):
        self.limits, self.first, self._kept = limits, first, Store[Visit](limits)

    def begin(self, held: str) -> Parts:
        """A tab has opened the page; `held` is what it remembers."""
        key, has = _memory(held)
        if has and self._kept.get(key) is None:
            return self._forgotten(key)
        own = (self._kept.get(key) if key else None) or self._new()
        return {**_all(own), "keep": _keep(own), "memory": _memory_of(key or self._kept.name(), own)}

    def act(self, event: Callable[..., Parts], held: str, *given: Any) -> Parts:
        """What an event does with the visit of that tab."""
        key, has = _memory(held)
        if not key:
            return {"notice": markup.message("the page was still loading: try again", False)}
        if has and self._kept.get(key) is None:
            return self._forgotten(key)
        own = self._kept.get(key, self._new)
        assert own is not None
        with own.session.lock:  # two events of a visit may come at once
            before, saved = own.session.classifier, own.saved
            own.saved = False
            found = event(own, *given)
            if own.session.classifier is before:
                own.saved = saved
            else:
                own.changes += 1
                found |= {"keep": _keep(own)}
            return {**found, "memory": _memory_of(key, own)}

    def _new(self) -> Visit:
        return Visit(self.first.twin())

    def _forgotten(self, key: str) -> Parts:
        own, minutes = self._new(), round(self.limits.seconds / 60)
        text = f"This visit was forgotten: it was unused for {minutes} minutes, or the server was restarted, or "
        text += "there was no more room. What you taught is gone: load your saved file, or begin again."
        return {**_all(own, text, False, asked=text), "keep": _keep(own), "memory": _memory_of(key, own)}


# --------------------------------------------------------------------------------------------------------------- events


def on_teach(own: Visit, value: Any, words: str) -> Parts:
    """Images of a class are taught."""
    try:
        wrong = own.session.add(words or "", _given(value, own.session.limits))
    except ValueError as error:
        return _all(own, str(error), False)
    return {**_all(own, *markup.learned(own.session, wrong)), "teach_pad": ""}


def on_ask(own: Visit, value: Any) -> Parts:
    """Images are asked about."""
    try:
        answers, images, classifier = own.session.judge(_given(value, own.session.limits))
    except ValueError as error:
        return {"said": markup.message(str(error), False) + _said(own)}
    names = [str(label) for label in classifier.classes_]
    own.asked += 1
    own.cards, own.wrong = [], ""
    for k, (answer, image) in enumerate(zip(answers, images, strict=True)):
        if image is None:
            own.wrong += markup.message(answer.error, False)
        else:
            ranked = [names[c] for c in np.argsort(-answer.probabilities, kind="stable")]
            own.cards.append(Card(f"{own.asked}-{k}", image, markup.answered(own.session, answer, image), ranked))
        own.rows.append(markup.row(own.rows, answer))
    del own.rows[:-ROWS]
    return {"said": _said(own), "table": markup.table_link(own.rows), "ask_pad": ""}


def on_card(own: Visit, sent: Any) -> Parts:
    """One answer is corrected, or its correction undone; anything may be sent."""
    sent = sent if isinstance(sent, dict) else {}
    card = next((card for card in own.cards if card.key == sent.get("card")), None)
    if card is None:
        return _all(own, asked="that answer is not shown any more: ask again")
    try:
        there = card.taught in own.session.ids
        if sent.get("undo"):
            own.session.remove([card.taught] if card.taught is not None and there else [])
            return _all(own, "Undone: the image is removed again.")
        if there:
            return _all(own)  # a second click on one that was taught
        (card.taught,) = own.session.learn(str(sent.get("label", "")), [card.image])
    except ValueError as error:
        return _all(own, asked=str(error))
    return _all(own, *markup.learned(own.session, [""]))


def on_undo(own: Visit) -> Parts:
    """The last change is undone."""
    try:
        own.session.undo()
    except ValueError as error:
        return _all(own, str(error), False)
    return _all(own, "The last change is undone.")


def on_away(own: Visit, chosen: Any) -> Parts:
    """The chosen images are removed."""
    numbers = [int(n) for n in chosen if str(n).isdecimal()] if isinstance(chosen, list) else []
    if not numbers:
        return _all(own, "choose images first", False)
    try:
        own.session.remove(numbers)
    except ValueError as error:
        return _all(own, str(error), False)
    return _all(own, f"Removed: {markup.images(len(numbers))}.")


def on_kind(own: Visit, words: str) -> Parts:
    """Another backbone."""
    if words in KINDS:
        own.session.use(KINDS[words])
    return _all(own)


def on_file(own: Visit, value: Any) -> Parts:
    """A file is loaded."""
    try:
        blobs = pad.pictures(value, 2 * own.session.limits.request)
        if blobs:
            own.session.load(blobs[0])
    except ValueError as error:
        return _all(own, str(error), False)
    own.saved = True
    return _all(own, f"Loaded: {markup.images(len(own.session.thumbs))}." if blobs else "")


# ---------------------------------------------------------------------------------------------------------------- parts


def _all(own: Visit, message: str = "", good: bool = True, asked: str = "") -> Parts:
    """The whole page but its file; `asked` is a message beside the answers."""
    session = own.session
    pairs = zip(session.ids, session.labels, strict=True)
    rows = [(f"{i + 1}: {label}", str(number)) for i, (number, label) in enumerate(pairs)]
    model = session.classifier.model_.name if session.classifier else session.model
    return {
        "notice": markup.message(message, good) if message else "",
        "undo": {"visible": session.can_undo},
        "shelf": markup.shelf(session),
        "which": {"choices": rows, "value": []},
        "said": (markup.message(asked, False) if asked else "") + _said(own),
        "table": markup.table_link(own.rows),
        "kind": {"value": next((words for words, body in KINDS.items() if body == model), None)},
    }


def _said(own: Visit) -> str:
    return own.wrong + markup.cards(own.session, own.cards)


def _keep(own: Visit) -> str:
    return markup.file_link(own.session, own.changes)


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
