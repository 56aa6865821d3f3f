"""A classifier on one page of HTML that needs nothing else: its images, a confusion matrix, its worst mistakes, its
calibration, a map of its features. All from its own support set, by leave-one-out: each image classified by the others.
"""

from __future__ import annotations

import base64
import html
import io
import itertools
import math
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import torch

from kshot import __version__
from kshot.apps import FewShotClassifier
from kshot.scoring.classes import calibration_error
from kshot.scoring.intervals import proportion95

__all__ = ["page"]

MAX_CLASSES = 40  # in the table of confusions
MAX_SHOWN = 24  # images of a class
MAX_MISTAKES = 24
MAX_ON_MAP = 400

_STYLE = Path(__file__).with_name("report.css").read_text("utf-8")


def page(classifier: FewShotClassifier, title: str = "A classifier") -> str:
    """The page.

    Args:
        classifier: fitted, on images.
        title: shown at the top, as text.

    Raises:
        ValueError: a classifier of tables of numbers.
    """
    if classifier.images_ is None:
        raise ValueError("the classifier is of numbers, not of images: there is nothing to show")
    names = [str(c) for c in classifier.classes_]
    labels = [str(c) for c in classifier.labels_]
    shown = [_picture(classifier.model_.shown(image)) for image in classifier.images_.numpy()]
    seen = [i for i, guess in enumerate(classifier.left_out_) if guess is not None]
    said = {i: str(classifier.left_out_[i]) for i in seen}
    known = [i for i in seen if labels[i] in names]
    right = [float(said[i] == labels[i]) for i in known]
    none = str(classifier.none_label_)
    p_none = classifier.left_out_p_none_
    chances = (1 - p_none[:, None]) * classifier.left_out_probabilities_  # these and p_none sum to 1
    refused = sum(said[i] == none for i in known) if math.isfinite(classifier.threshold_) else None
    # Calibration is of the classes' probabilities, given that it is one of them.
    sure = classifier.left_out_probabilities_[known]
    best = np.array([names[k] for k in sure.argmax(1)] if known else []) == np.array([labels[i] for i in known])
    parts = [
        f"<h1>{_text(title)}</h1>",
        _summary(classifier, names, labels, right, refused, sure.max(1), best),
        _support(names, labels, shown),
    ]
    if known:
        parts += [
            _confusion(names, [*names, none] if refused else names, labels, said, known),
            _mistakes(names, labels, shown, said, chances, p_none, none, known),
            _calibration(sure.max(1), best),
        ]
    else:
        parts.append("<h2>Accuracy</h2><p>One image of each class: it cannot be estimated without a second one.</p>")
    parts.append(_map(classifier, labels, shown))
    head = (
        '<meta charset="utf-8"><meta name="viewport" content="width=device-width, initial-scale=1">'
        '<meta http-equiv="Content-Security-Policy" '
        "content=\"default-src 'none'; img-src data:; style-src 'unsafe-inline'\">"
    )
    return (
        f'<!doctype html><html lang="en"><head>{head}<title>{_text(title)}</title><style>{_STYLE}</style></head>'
        f"<body><main>{''.join(parts)}</main></body></html>\n"
    )


def _summary(
    classifier: FewShotClassifier,
    names: list[str],
    labels: list[str],
    right: list[float],
    refused: int | None,
    sure: np.ndarray,
    best: np.ndarray,
) -> str:
    counts = [labels.count(name) for name in names]
    each = f"{min(counts)}" if min(counts) == max(counts) else f"{min(counts)} to {max(counts)}"
    never = f"is never answered{': ' if classifier.why_no_threshold_ else ''}{classifier.why_no_threshold_}"
    rows = {
        "images": f"{sum(counts)} of {len(names)} class{'es' if len(names) > 1 else ''}, {each} per class",
        "model": f"{classifier.model_.name}, learner {classifier.learner or classifier.model_.kind}",
        "“none of these”": "may be answered" if math.isfinite(classifier.threshold_) else never,
        "made with": f"kshot {__version__}",
    }
    if right:
        low, high = proportion95(int(sum(right)), len(right))
        error = calibration_error(torch.from_numpy(sure), torch.from_numpy(best))
        rows |= {
            "leave-one-out accuracy": (
                f"{int(sum(right))}/{len(right)} = {100 * float(np.mean(right)):.1f} % (95 % CI {100 * low:.0f} to "
                f"{100 * high:.0f} %){'' if refused is None else f', {refused} refused as “none of these”'}"
            ),
            "expected calibration error": f"{float(error):.3f}",
        }
    body = "".join(f"<tr><th style='text-align:left'>{k}</th><td style='text-align:left'>{_text(v)}</td></tr>"
                   for k, v in rows.items())  # fmt: skip
    hint = "<p class='hint'>Near-duplicate images inflate these figures; test on images of another day.</p>"
    return f"<table>{body}</table>{hint if right else ''}"


def _support(names: list[str], labels: list[str], shown: list[str]) -> str:
    parts = ["<h2>What it was taught</h2>"]
    for name in names:
        own = [i for i, label in enumerate(labels) if label == name]
        more = f" <span class='hint'>and {len(own) - MAX_SHOWN} more</span>" if len(own) > MAX_SHOWN else ""
        pictures = "".join(_figure(shown[i], f"{name}, image {i + 1}", "") for i in own[:MAX_SHOWN])
        parts.append(f"<h3>{_text(name)} ({len(own)})</h3><div>{pictures}{more}</div>")
    if free := [i for i, label in enumerate(labels) if label not in names]:
        pictures = "".join(_figure(shown[i], f"unlabelled, image {i + 1}", "") for i in free[:MAX_SHOWN])
        parts.append(f"<h3>Unlabelled ({len(free)})</h3><div>{pictures}</div>")
    return "".join(parts)


def _confusion(names: list[str], answers: list[str], labels: list[str], said: dict[int, str], known: list[int]) -> str:
    pairs = Counter((labels[i], said[i]) for i in known)
    parts = ["<h2>Confusion matrix</h2>"]
    if len(names) <= MAX_CLASSES:
        across = "".join(f"<th class='across' scope='col'>{_text(name)}</th>" for name in answers)
        body = []
        for true in names:
            total = sum(pairs[true, name] for name in answers) or 1
            cells = []
            for name in answers:
                n, hue = pairs[true, name], 140 if name == true else 0
                colour = f" style='background:hsla({hue},70%,45%,{0.75 * n / total:.2f})'" if n else ""
                cells.append(f"<td{colour}>{n or ''}</td>")
            body.append(f"<tr><th scope='row'>{_text(true)}</th>{''.join(cells)}</tr>")
        parts.append(
            "<p class='hint'>Rows are the true classes, columns what the other images say.</p>"
            f"<div class='scroll'><table><tr><th></th>{across}</tr>{''.join(body)}</table></div>"
        )
    wrong = [(n, true, guess) for (true, guess), n in pairs.items() if true != guess]
    most = sorted(wrong, key=lambda row: (-row[0], row[1:]))[:10]
    lines = "".join(f"<li>{_text(true)} taken for {_text(guess)}: {n}</li>" for n, true, guess in most)
    parts.append(f"<ul>{lines}</ul>" if lines else "<p>No confusions.</p>")
    return "".join(parts)


def _mistakes(
    names: list[str],
    labels: list[str],
    shown: list[str],
    said: dict[int, str],
    chances: np.ndarray,
    p_none: np.ndarray,
    none: str,
    known: list[int],
) -> str:
    wrong = [i for i in known if said[i] != labels[i]]
    wrong.sort(key=lambda i: (chances[i, names.index(labels[i])], i))
    if not wrong:
        return "<h2>Worst mistakes</h2><p>No mistakes.</p>"

    def sure(i: int) -> float:
        return 100 * (p_none[i] if said[i] == none else chances[i].max())

    figures = "".join(
        _figure(
            shown[i],
            f"{labels[i]}, image {i + 1}",
            f"is {_text(labels[i])}<br>taken for {_text(said[i])} ({sure(i):.0f} %)",
        )
        for i in wrong[:MAX_MISTAKES]
    )
    return (
        f"<h2>Worst mistakes</h2><p class='hint'>{len(wrong)} of {len(known)}; a wrong label shows up here too.</p>"
        f"<div class='mistake'>{figures}</div>"
    )


def _calibration(sure: np.ndarray, right: np.ndarray) -> str:
    edges = np.linspace(0, 1, 11)
    bars, size = [], 260
    for low, high in itertools.pairwise(edges):
        inside = (sure > low) & (sure <= high)
        if inside.any():
            x, y, n = sure[inside].mean(), right[inside].mean(), int(inside.sum())
            radius = 3 + 9 * math.sqrt(n / len(sure))
            bars.append(
                f"<circle cx='{40 + size * x:.1f}' cy='{10 + size * (1 - y):.1f}' r='{radius:.1f}' fill='#2563eb' "
                f"fill-opacity='.7'><title>{n} images: confidence {100 * x:.0f} %, accuracy "
                f"{100 * y:.0f} %</title></circle>"
            )
    frame = (
        f"<rect x='40' y='10' width='{size}' height='{size}' fill='none' stroke='#9ca3af'/>"
        f"<line x1='40' y1='{10 + size}' x2='{40 + size}' y2='10' stroke='#9ca3af' stroke-dasharray='4'/>"
        f"<text x='{40 + size / 2}' y='{size + 40}' text-anchor='middle' fill='currentColor'>confidence</text>"
        f"<text x='16' y='{10 + size / 2}' text-anchor='middle' fill='currentColor' "
        f"transform='rotate(-90 16 {10 + size / 2})'>accuracy</text>"
    )
    return (
        "<h2>Calibration (reliability diagram)</h2><p class='hint'>On the dashed line it is right as often as it says; "
        "below, it is overconfident. Large circles are many images.</p>"
        f"<svg viewBox='0 0 {size + 60} {size + 50}' width='{size + 60}' role='img' "
        f"aria-label='reliability diagram: accuracy against confidence'>{frame}{''.join(bars)}</svg>"
    )


def _map(classifier: FewShotClassifier, labels: list[str], shown: list[str]) -> str:
    x = classifier.support_.flatten(1).double().numpy()
    rows = np.arange(len(x))
    if len(x) > MAX_ON_MAP:
        rows = np.sort(np.random.default_rng(0).choice(len(x), MAX_ON_MAP, replace=False))
    if len(rows) < 3:
        return ""
    from sklearn.decomposition import PCA

    found = PCA(2, random_state=0)
    at = found.fit_transform(x[rows])
    share = 100 * float(np.nan_to_num(found.explained_variance_ratio_).sum())
    low, span = at.min(0), np.maximum(at.max(0) - at.min(0), 1e-12)
    at = (at - low) / span
    names = sorted(set(labels))
    width, height, side = 900, 600, 28
    marks = []
    for row, (a, b) in zip(rows, at, strict=True):
        hue = 360 * names.index(labels[row]) / len(names)
        left, top = 10 + a * (width - side - 20), 10 + (1 - b) * (height - side - 20)
        marks.append(
            f"<g><title>{_text(labels[row])}, image {row + 1}</title><rect x='{left - 2:.1f}' y='{top - 2:.1f}' "
            f"width='{side + 4}' height='{side + 4}' rx='4' fill='hsl({hue:.0f},70%,45%)'/><image x='{left:.1f}' "
            f"y='{top:.1f}' width='{side}' height='{side}' href='{shown[row]}'/></g>"
        )
    return (
        "<h2>Map of the features</h2><p class='hint'>Images that the backbone finds alike lie near each other; a "
        f"colour is a class. Two principal components, {share:.0f} % of the variance.</p>"
        f"<svg viewBox='0 0 {width} {height}' width='{width}' role='img' aria-label='map of the features'>"
        f"{''.join(marks)}</svg>"
    )


def _text(words: Any) -> str:
    """Escaped; a name that is not UTF-8 (of an old archive) with a replacement character for what cannot be written."""
    return html.escape(str(words).encode("utf-8", "surrogateescape").decode("utf-8", "replace"))


def _figure(source: str, words: str, below: str) -> str:
    caption = f"<figcaption>{below}</figcaption>" if below else ""
    return f"<figure><img class='picture' src='{source}' alt='{_text(words)}' title='{_text(words)}'>{caption}</figure>"


def _picture(rgb: np.ndarray) -> str:
    from PIL import Image

    out = io.BytesIO()
    Image.fromarray(rgb).save(out, "PNG")
    return f"data:image/png;base64,{base64.b64encode(out.getvalue()).decode()}"
