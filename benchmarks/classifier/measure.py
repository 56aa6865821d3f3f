"""What FewShotClassifier gives on classes that its backbone never saw: accuracy, calibration, "none of these",
unlabelled images, how many images are enough, fine-tuning, seconds.

    python benchmarks/classifier/measure.py --data grocery --json benchmarks/results/classifier-grocery.json

and the same with omniglot and glyphs. Every episode draws classes of the test split; images are given as a user has
them (characters black on white). Omniglot's classes are those of Lake's evaluation alphabets (for "val": validation),
as far as the backbone was trained on no character of them, glyphs' those of scripts that it was not trained on in any
form. The baselines are the strongest classifier of the same pictures' raw pixels (`pixel_baseline`), and a small
network (Conv4) trained on the support set alone.
"""

from __future__ import annotations

import itertools
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, NamedTuple

import numpy as np
import torch
import tyro
from sklearn.metrics import roc_auc_score

from kshot import learners
from kshot.apps import FewShotClassifier
from kshot.apps.classify import models
from kshot.cli._shared import write_record
from kshot.core import Batch
from kshot.data import load, scripts
from kshot.data.bank import Bank
from kshot.families.images.row import pixel_baseline
from kshot.nn import Conv4
from kshot.scoring.classes import calibration_error
from kshot.scoring.intervals import interval95

Pictures = list[np.ndarray]


@dataclass(frozen=True)
class Settings:
    """Measure FewShotClassifier."""

    data: Literal["omniglot", "grocery", "glyphs"] = "omniglot"
    """Characters or photos."""
    split: Literal["val", "test"] = "test"
    """Of the classes; what is chosen is chosen on "val"."""
    episodes: int = 200
    """Of each row; a tenth of them where a network is trained in each."""
    only: tuple[str, ...] = ()
    """Rows whose names begin so; none: all."""
    seed: int = 0
    """Of the episodes."""
    json: Path | None = None
    """Write the figures to this file."""


class Data(NamedTuple):
    """A set of images, the backbone for it, and what is asked of it."""

    bank: Bank
    model: str
    queries: int  # of each class
    ways: tuple[tuple[int, int], ...]  # (ways, shots) of the rows of accuracy
    curve: tuple[int, ...]  # shots, 5 ways


def data(settings: Settings) -> Data:
    if settings.data == "grocery":
        bank = load("grocery", settings.split, size=96, channels=3)
        return Data(bank, "photos-small", 40, ((5, 1), (5, 5)), (1, 2, 5, 10, 20))
    trained = models.get("omniglot").about["train_classes"]
    if settings.data == "glyphs":
        bank = load("glyphs", settings.split)
        names = scripts.unseen([f"glyphs/{name}" for name in bank.classes], trained)
        bank = bank.subset([name.removeprefix("glyphs/") for name in names])
        return Data(bank, "omniglot", 10, ((5, 1), (20, 1)), (1, 2, 5, 10))
    bank, alphabets = load("omniglot", settings.split, splits="lake"), {name.split("/")[1] for name in trained}
    bank = bank.subset([name for name in bank.classes if name.split("/")[0] not in alphabets])
    ways = ((20, 1), (5, 1), (5, 5), (20, 5))
    return Data(bank, "omniglot", 10, ways, (1, 2, 5, 10))


def draw(of: Data, rng: np.random.Generator, ways: int, least: int, most: int) -> list[tuple[str, Pictures]]:
    """At least `least` images of each of `ways` classes, at most `most`."""
    bank = of.bank
    enough = [c for c in range(len(bank.classes)) if bank.counts[c] >= least]
    found = []
    for c in rng.choice(enough, ways, replace=False):
        rows = int(bank.starts[c]) + rng.permutation(int(bank.counts[c]))[:most]
        images = bank.images[torch.from_numpy(rows)].numpy()
        found.append((bank.classes[c], list(255 - images[:, 0] if images.shape[1] == 1 else images)))
    return found


def split(classes: list[tuple[str, Pictures]], first: int, last: int) -> tuple[Pictures, list[str]]:
    """Images first..last of each class, and their labels."""
    return [x for _, xs in classes for x in xs[first:last]], [c for c, xs in classes for _ in xs[first:last]]


def told(values: list[float]) -> dict[str, float]:
    return {"mean": float(np.mean(values)), "interval95": interval95(values)}


def accuracy(of: Data, settings: Settings, ways: int, shots: int, **more: Any) -> dict[str, Any]:
    rng = np.random.default_rng(settings.seed)
    ours, floor, sure, right, fits, answers = [], [], [], [], [], []
    for _ in range(settings.episodes // 10 if more else settings.episodes):
        classes = draw(of, rng, ways, shots + min(of.queries, 10), shots + of.queries)
        (X, y), (Q, truth) = split(classes, 0, shots), split(classes, shots, shots + of.queries)
        began = time.perf_counter()
        classifier = FewShotClassifier(of.model, **more).fit(X, y)
        fits.append(time.perf_counter() - began)
        began = time.perf_counter()
        chance = classifier.predict_proba(Q)
        answers.append((time.perf_counter() - began) * 1000 / len(Q))
        hit = classifier.classes_[chance.argmax(1)] == np.array(truth)
        ours.append(float(hit.mean()))
        sure.append(chance.max(1))
        right.append(hit)
        if not more:
            floor.append(pixels(of.bank.ink, X, y, Q, truth))
    ece = calibration_error(torch.from_numpy(np.concatenate(sure)), torch.from_numpy(np.concatenate(right)))
    found = {"ways": ways, "shots": shots, "episodes": len(ours), "accuracy": told(ours), "ece": ece,
             "fit_seconds": float(np.median(fits)), "seconds_per_1000": float(np.median(answers))}  # fmt: skip
    return found | ({"settings": more} if more else {"pixels": told(floor)})


def network(of: Data, settings: Settings, ways: int, shots: int) -> dict[str, Any]:
    """A Conv4 from random weights, trained on the support set of each episode."""
    rng, found, fits = np.random.default_rng(settings.seed), [], []
    model = models.get(of.model)
    for k in range(settings.episodes // 10):
        classes = draw(of, rng, ways, shots + min(of.queries, 10), shots + of.queries)
        (X, y), (Q, truth) = split(classes, 0, shots), split(classes, shots, shots + of.queries)
        names = sorted(set(y))
        x, q = (torch.from_numpy(np.stack([model.picture(p) for p in some])).float() / 255 for some in (X, Q))
        body = Conv4(model.channels, size=model.size, out=ways)
        learner = learners.build("finetune", body, ways, seed=k)
        began = time.perf_counter()
        state = learner.adapt(learner.init(), Batch(x, torch.tensor([names.index(label) for label in y])))
        fits.append(time.perf_counter() - began)
        with torch.no_grad():
            guess = learner.predict(state, q).argmax(1).tolist()
        found.append(float(np.mean([names[g] == label for g, label in zip(guess, truth, strict=True)])))
    seconds = float(np.median(fits))
    return {"ways": ways, "shots": shots, "episodes": len(found), "accuracy": told(found), "fit_seconds": seconds}


def curve(of: Data, settings: Settings) -> list[dict[str, Any]]:
    """Accuracy against shots, on the same classes and queries."""
    rng, found = np.random.default_rng(settings.seed), {shots: [] for shots in of.curve}
    queries = min(of.queries, 20)
    for _ in range(settings.episodes):
        classes = draw(of, rng, 5, max(of.curve) + min(queries, 10), 1000)
        classes = [(c, xs[-max(of.curve) :], xs[: -max(of.curve)][:queries]) for c, xs in classes]
        Q, truth = split([(c, asked) for c, _, asked in classes], 0, queries)
        for shots in of.curve:
            X, y = split([(c, taught) for c, taught, _ in classes], 0, shots)
            found[shots].append(FewShotClassifier(of.model).fit(X, y).score(Q, truth))
    return [{"ways": 5, "shots": shots, "accuracy": told(values)} for shots, values in found.items()]


def pixels(ink: bool, X: Pictures, y: list[str], Q: Pictures, truth: list[str]) -> float:
    """Of the strongest classifier of raw pixels; drawings are 1 for ink and 0 for paper, as a backbone has them."""
    names = sorted(set(y))
    x, q = (torch.from_numpy(np.stack(some)).float().flatten(1) / 255 for some in (X, Q))
    x, q = (1 - x, 1 - q) if ink else (x, q)
    learner = pixel_baseline(len(names), x.shape[1], ink)
    state = learner.adapt(learner.init(), Batch(x, torch.tensor([names.index(label) for label in y])))
    guess = learner.predict(state, q).argmax(1).tolist()
    return float(np.mean([names[g] == label for g, label in zip(guess, truth, strict=True)]))


def open_set(of: Data, settings: Settings, ways: int, shots: int) -> dict[str, Any]:
    rng = np.random.default_rng(settings.seed)
    areas, refused, kept, right, without = [], [], [], [], []
    for _ in range(settings.episodes):
        classes = draw(of, rng, 2 * ways, shots + min(of.queries, 10), shots + 10)
        X, y = split(classes[:ways], 0, shots)
        known, truth = split(classes[:ways], shots, shots + 10)
        strange, _ = split(classes[ways:], shots, shots + 10)
        classifier = FewShotClassifier(of.model, open_set=True).fit(X, y)
        far = classifier.novelty(known + strange)
        areas.append(float(roc_auc_score([0] * len(known) + [1] * len(strange), far)))
        said = far > classifier.threshold_
        best = classifier.classes_[classifier.predict_proba(known).argmax(1)] == np.array(truth)
        without.append(float(best.mean()))
        right.append(float((best & ~said[: len(known)]).mean()))
        kept.append(float(1 - said[: len(known)].mean()))
        refused.append(float(said[len(known) :].mean()))
    return {
        "ways": ways,
        "shots": shots,
        "auroc": told(areas),
        "known_kept": told(kept),
        "known_right": told(right),
        "known_right_if_none_were_refused": told(without),
        "strange_refused": told(refused),
    }


def vectors(of: Data, settings: Settings, shots: int, learner: str) -> dict[str, Any]:
    """The backbone's features given as plain vectors, as those of any encoder."""
    rng, hits, sure, means = np.random.default_rng(settings.seed), [], [], []
    model, known = models.get(of.model), {}

    def encoded(images: Pictures) -> np.ndarray:
        new = [image for image in images if image.tobytes() not in known]
        if new:
            features = model.encode(torch.from_numpy(np.stack([model.picture(image) for image in new])))
            known.update(zip([image.tobytes() for image in new], features.numpy(), strict=True))
        return np.stack([known[image.tobytes()] for image in images])

    for _ in range(settings.episodes):
        classes = draw(of, rng, 5, shots + min(of.queries, 10), shots + of.queries)
        (X, y), (Q, truth) = split(classes, 0, shots), split(classes, shots, shots + of.queries)
        classifier = FewShotClassifier("features", learner).fit(encoded(X), y)
        chance = classifier.predict_proba(encoded(Q))
        hits.append(classifier.classes_[chance.argmax(1)] == np.array(truth))
        sure.append(chance.max(1))
        means.append(float(hits[-1].mean()))
    ece = calibration_error(torch.from_numpy(np.concatenate(sure)), torch.from_numpy(np.concatenate(hits)))
    confidence = float(np.mean(np.concatenate(sure)))
    return {
        "ways": 5,
        "shots": shots,
        "learner": learner,
        "accuracy": told(means),
        "confidence": confidence,
        "ece": ece,
    }


def unlabelled(of: Data, settings: Settings, ways: int) -> dict[str, Any]:
    rng = np.random.default_rng(settings.seed)
    plain, helped = [], []
    for _ in range(settings.episodes):
        classes = draw(of, rng, ways, 6 + min(of.queries, 10), 16)
        (X, y), (U, _), (Q, truth) = (split(classes, *part) for part in ((0, 1), (1, 6), (6, 16)))
        plain.append(FewShotClassifier(of.model, "protonet").fit(X, y).score(Q, truth))
        both = FewShotClassifier(of.model, "protonet", unlabelled=True).fit(X + U, y + [""] * len(U))
        helped.append(both.score(Q, truth))
    gain = [b - a for a, b in zip(plain, helped, strict=True)]
    return {"ways": ways, "shots": 1, "unlabelled_per_class": 5, "without": told(plain), "with": told(helped),
            "gain": told(gain)}  # fmt: skip


def main(settings: Settings) -> int:
    of = data(settings)
    todo: dict[str, Any] = {}
    for ways, shots in of.ways:
        todo[f"accuracy {ways} ways {shots} shots"] = lambda w=ways, s=shots: accuracy(of, settings, w, s)
    for ways, shots in sorted(
        {(5, 1), (5, 2), (5, 5), (20, 1)} if of.model == "omniglot" else {(5, 1), (5, 2), (5, 5)}
    ):
        todo[f"open set, {ways} ways {shots} shots"] = lambda w=ways, s=shots: open_set(of, settings, w, s)
    for shots, learner in itertools.product((1, 5), ("protonet", "r2d2", "metaoptnet")):
        todo[f"vectors, 5 ways {shots} shots, {learner}"] = lambda s=shots, n=learner: vectors(of, settings, s, n)
    for ways in sorted({ways for ways, _ in of.ways}):
        todo[f"unlabelled, {ways} ways"] = lambda w=ways: unlabelled(of, settings, w)
    todo["curve, 5 ways"] = lambda: curve(of, settings)
    for shots in (1, 5):
        todo[f"network from scratch, 5 ways {shots} shots"] = lambda s=shots: network(of, settings, 5, s)
        for steps, lr in ((20, 1e-3), (50, 1e-3), (50, 1e-4)) if settings.split == "val" else ((50, 1e-4),):
            own: dict[str, Any] = {"finetune": steps, "finetune_lr": lr}
            todo[f"fine-tuned {steps} steps of {lr}, 5 ways {shots} shots"] = (
                lambda s=shots, o=own: accuracy(of, settings, 5, s, **o)
            )  # fmt: skip
    rows: dict[str, Any] = {}
    for name, row in todo.items():
        if not settings.only or name.startswith(settings.only):
            rows[name] = row()
            print(name, rows[name], flush=True)
    write_record(settings.json, {"episodes": settings.episodes, **rows}, seeds={"all": settings.seed})
    return 0


if __name__ == "__main__":
    raise SystemExit(main(tyro.cli(Settings)))
