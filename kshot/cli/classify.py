"""`kshot fit`, `kshot predict`, `kshot report`: a classifier from folders of images, and its predictions."""

from __future__ import annotations

import contextlib
import csv
import hashlib
import itertools
import json
import math
import os
import shlex
import shutil
import time
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

from kshot.cli._options import POSITIONAL
from kshot.cli._shared import InputError, a_file, command, console, load_torch, machine, writable, write_json

if TYPE_CHECKING:
    from kshot.apps import FewShotClassifier

__all__ = ["Fit", "Predict", "Report"]

CHUNK = 256
COLUMNS: tuple[str, ...] = ("file", "label", "probability", "runner_up", "runner_up_probability", "p_none", "error")


@dataclass(frozen=True)
class Fit:
    """Make a classifier from a folder with one folder of images per class, 1 to 50 each."""

    support: Annotated[Path, POSITIONAL]
    """The folder: support/<class>/*.jpg, .png, .heic (needs kshot[heic]) and whatever else Pillow reads."""
    out: Path | None = None
    """The classifier, a .kshot file; None: SUPPORT.kshot here, which must not be there yet."""
    model: str = "auto"
    """A backbone of 'kshot list models', or the folder of a 'kshot train'; "auto": the one for photos or for drawings.
    """
    learner: str | None = None
    """"protonet", "plda", "r2d2", "simpleshot", "matching" or "metaoptnet"; None: the one that the model was
    trained with, "plda" where it was not meta-trained."""
    open_set: bool = True
    """Let 'kshot predict' answer "none of these", where each class has at least two images."""
    finetune: int = 0
    """Steps of fine-tuning the backbone on the images (needs kshot[augment]); small backbones get worse.
    """
    on_bad: Literal["skip", "refuse"] = "skip"
    """Skip what cannot be read (it is named), or stop."""
    json: Path | None = None
    """Write what was found to this file."""

    def run(self) -> int:
        out = self._place()
        load_torch()
        X, y, bad = self._images()
        classifier = _estimator()(self.model, self.learner, open_set=self.open_set, finetune=self.finetune).fit(X, y)
        classifier.save(out)
        say, counts = console(), {label: y.count(label) for label in classifier.classes_.tolist()}
        fewest, most = min(counts.values()), max(counts.values())
        say.print(
            f"{len(X)} image{'s' if len(X) > 1 else ''}, {len(counts)} class{'es' if len(counts) > 1 else ''} "
            f"({fewest}{f' to {most}' if most > fewest else ''} per class), model {classifier.model_.name}, "
            f"learner {self.learner or classifier.model_.kind}: {out}"
        )
        if classifier.why_no_threshold_:
            say.print(f"'none of these' is never answered: {classifier.why_no_threshold_}")
        values: dict[str, Any] = {"command": command(), "machine": machine(), "classes": counts, "bad": bad}
        values |= {"why_no_threshold": classifier.why_no_threshold_, **_left_out(classifier, y)}
        same, odd = _duplicates(classifier, X), _odd(classifier, X)
        for a, b in same:
            say.print(f"the same image twice: {a} and {b}")
        for file in odd:
            say.print(f"looks unlike its class: {file}")
        values |= {"duplicates": same, "odd": odd}
        if self.json is not None:
            write_json(self.json, values)
        return 0

    def _place(self) -> Path:
        """Where the classifier goes; what cannot be is refused before torch is loaded."""
        out = self.out or Path(f"{self.support.resolve().name or 'classifier'}.kshot")
        if self.support.suffix == ".kshot" and self.out is not None and self.out.is_dir():
            raise InputError(f"the folder comes first: type 'kshot fit {self.out} --out {self.support}'")
        writable(self.out, self.json)
        if not self.support.is_dir():
            what = "is a file" if self.support.exists() else "is not there"
            raise InputError(f"{self.support} {what}: give a folder that has a folder of images for each class")
        if self.out is None and out.exists():
            raise InputError(f"{out} is there already: type '--out {out}' to replace it, or another name")
        return out

    def _images(self) -> tuple[list[str], list[str], list[str]]:
        """The images that can be read, their labels, and what is wrong with the others."""
        from kshot.data import folder
        from kshot.data.images import frames, open_image, square

        found, say = folder.survey(self.support), console()
        X, y, bad, several = [], [], [], []
        for label, files in found.tree.items():
            for file in files:
                try:
                    image = open_image(self.support / file)
                    several += [file] if frames(image) > 1 else []
                    square(image, 1)
                except (ValueError, OSError) as error:
                    bad.append((file, " ".join(str(error).split())))
                else:
                    X.append(str(self.support / file))
                    y.append(label)
        problems = found.problems(bad, most=max(20, len(bad)))
        if problems and self.on_bad == "refuse":
            raise InputError(f"{self.support}: {'; '.join(problems)}. Fix or remove them, or --on-bad skip")
        for text in problems:
            say.print(f"skipped: {text}")
        for text in found.doubts():
            say.print(f"warning: {text}")
        if several:
            say.print(f"warning: only the first page or frame is used of {', '.join(several)}")
        if not X:
            raise InputError(f"{self.support}: no image can be read")
        if len(set(y)) == 1:
            say.print(
                f"warning: {y[0]!r} is the only class, and the answer to every image: add a folder for each other class"
            )
        return X, y, problems


@dataclass(frozen=True)
class Predict:
    """Classify images: file, label, probability, runner-up; "none of these" where the classifier may say so."""

    classifier: Annotated[Path, POSITIONAL]
    """A .kshot file of 'kshot fit'."""
    paths: Annotated[tuple[str, ...], POSITIONAL]
    """Files, folders (with all below them) and patterns such as 'photos/*.jpg'."""
    csv: Path | None = None
    """Write a table to this file: probabilities of all classes and of "none of these" sum to 1, up to rounding."""
    all_classes: bool = False
    """With --csv: a column of probabilities for each class, "p: CLASS"."""
    resume: bool = False
    """With --csv: continue the table that was interrupted."""
    sort_into: Path | None = None
    """Copy each file into the folder of its label below this one; nothing is overwritten."""
    dry_run: bool = False
    """With --sort-into: say what would be copied."""
    on_bad: Literal["skip", "refuse"] = "skip"
    """Skip what cannot be read (it is named), or stop."""

    def run(self) -> int:
        self._check()
        load_torch()
        from rich.progress import Progress

        from kshot.storage.checkpoint import locked

        classifier = _estimator().load(self.classifier)
        if not classifier.model_.takes_images:
            raise InputError("this classifier takes tables of numbers, not images: use it in Python")
        files, say = self._files(), console()
        count, bad, none, began = 0, 0, 0, time.monotonic()
        head: dict[str, Any] = {"classifier": hashlib.sha256(self.classifier.read_bytes()).hexdigest()}
        columns = [f"p: {name}" for name in classifier.classes_] if self.all_classes else []
        head |= {"columns": columns} if columns else {}
        with contextlib.ExitStack() as alone:
            if self.csv is not None:
                alone.enter_context(locked(self.csv.parent, self.csv.name))
            if self.sort_into is not None and not self.dry_run:
                alone.enter_context(locked(self.sort_into))
            table = _Table(self.csv, head, self.resume, [*COLUMNS, *columns])
            bar = alone.enter_context(Progress(console=say, disable=not say.is_terminal))
            task = bar.add_task("classifying", total=len(files), completed=len(table.done))
            left = (file for file in files if file not in table.done)
            while chunk := list(itertools.islice(left, CHUNK)):
                rows, refused = _rows(classifier, chunk, self.all_classes)
                none += refused
                bad += self._handed_out(rows, say)
                table.add(rows)  # after the copies: what is interrupted in between is copied again, and found there
                count += len(chunk)
                bar.advance(task, len(chunk))
            if bad < len(files):
                table.finish(set(files))
        if bad == len(files):
            which = f"none of the {bad} files is" if bad > 1 else f"{files[0]} is not"
            raise InputError(f"{which} an image that can be read: give JPEG, PNG or other images")
        speed = count / max(time.monotonic() - began, 1e-9)
        before = f", {len(files) - count} before" if count < len(files) else ""
        never = " (never: it has too few images per class for that)" if classifier.why_no_threshold_ else ""
        place = f": {self.csv}" if self.csv is not None else ""
        say.print(
            f"{count - bad} files classified{before}, {none} of them as {classifier.none_label_!r}{never}, {bad} "
            f"skipped ({speed:.0f} files/s){place}"
        )
        return 0

    def _check(self) -> None:
        """Refuse what cannot be, before torch is loaded."""
        writable(self.csv)
        _a_classifier(self.classifier, "predict", self.paths)
        if not self.paths:
            raise InputError(f"PATHS is missing: type 'kshot predict {self.classifier} FILES OR FOLDERS'")
        for flag, off in (("--all-classes", self.all_classes), ("--resume", self.resume)):
            if off and self.csv is None:
                raise InputError(f"{flag} is for a table: add --csv FILE")
        if self.dry_run and self.sort_into is None:
            raise InputError("--dry-run is for copies: add --sort-into FOLDER")
        if self.sort_into is not None:
            writable(self.sort_into / "CLASS")

    def _files(self) -> list[str]:
        """The images of the paths; what is passed over is named."""
        from kshot.data.sources import gather

        files, problems = gather(self.paths)
        if problems and self.on_bad == "refuse":
            raise InputError(f"{'; '.join(problems)}. Fix or remove them, or --on-bad skip")
        if not files:
            raise InputError("; ".join([f"no image in {', '.join(self.paths)}", *problems]))
        for text in problems:
            console().print(f"skipped: {text}")
        return files

    def _handed_out(self, rows: list[dict[str, str]], say: Any) -> int:
        """Answers are printed where there is no other place for them, and files copied; how many cannot be read."""
        bad = 0
        for row in rows:
            if row["error"] and self.on_bad == "refuse":
                raise InputError(f"{row['file']}: {row['error']}. Fix or remove it, or --on-bad skip")
            if row["error"]:
                bad += 1
                say.print(f"{row['file']}: skipped, {row['error']}")
            elif self.sort_into is not None:
                self._copy(Path(row["file"]), row["label"])
            elif self.csv is None:
                after = f", then {row['runner_up']} ({row['runner_up_probability']})" if row["runner_up"] else ""
                say.print(f"{row['file']}: {row['label']} ({row['probability']}){after}")
        return bad

    def _copy(self, file: Path, label: str) -> None:
        assert self.sort_into is not None
        safe = "".join("_" if c in '/\\:*?"<>|\0' else c for c in label).strip(". ") or "_"
        target = self.sort_into / safe / file.name
        for k in range(1, 1_000_000):
            if not target.exists() or target.read_bytes() == file.read_bytes():
                break
            target = target.with_name(f"{file.stem}-{k}{file.suffix}")
        if self.dry_run:
            console().print(f"{file} -> {target}")
        elif not target.exists():
            from kshot.storage.checkpoint import write_beside

            write_beside(target, lambda part: shutil.copy2(file, part), flush=False)


@dataclass(frozen=True)
class Report:
    """Show a classifier on one page of HTML: its images, confusions, worst mistakes, calibration, a map."""

    classifier: Annotated[Path, POSITIONAL]
    """A .kshot file of 'kshot fit'."""
    html: Path | None = None
    """The page; it needs nothing else, and can be sent. None: CLASSIFIER.html, beside the classifier."""

    def run(self) -> int:
        writable(self.html)
        _a_classifier(self.classifier, "report")
        load_torch()
        from kshot.storage.checkpoint import write_beside

        html = self.html or self.classifier.with_suffix(".html")
        writable(html)
        classifier = _estimator().load(self.classifier)
        if not classifier.model_.takes_images:
            raise InputError("this classifier takes tables of numbers, not images: there is nothing to show")
        from kshot.apps.classify.report import page

        text = page(classifier, self.classifier.stem)
        write_beside(html, lambda path: path.write_text(text, "utf-8") and None)
        console().print(f"{html} ({len(text) / 1e6:.1f} MB)")
        return 0


def _a_classifier(path: Path, name: str, others: Sequence[str] = ()) -> None:
    """Refuse what is not a file of 'kshot fit', with the command that is meant.

    Raises:
        InputError: nothing, a folder, or what stands in another one's place.
    """
    swapped = next((word for word in others if word.endswith(".kshot") and Path(word).is_file()), None)
    if swapped is not None and path.suffix != ".kshot":
        rest = [str(path), *(word for word in others if word != swapped)]
        raise InputError(f"the classifier comes first: type 'kshot {name} {shlex.join([swapped, *rest])}'")
    if (path / "last.safetensors").is_file():
        raise InputError(f"{path} is a folder of 'kshot train': 'kshot evaluate {path}' tests it")
    a_file(path, "a .kshot file", "'kshot fit'")


def _estimator() -> type[FewShotClassifier]:
    load_torch()
    try:
        from kshot.apps import FewShotClassifier
    except ImportError as error:
        raise InputError("this command needs scikit-learn: pip install 'kshot[sklearn]'") from error
    return FewShotClassifier


class _Table:
    """Rows that are written beside the CSV's place as they come, and become the CSV at the end; a table that was
    interrupted is continued.

    Attributes:
        done: the files whose rows are there.
    """

    def __init__(self, path: Path | None, head: dict[str, Any], resume: bool, columns: list[str]):
        self.path, self.done, self.columns = path, set[str](), columns
        from kshot.storage.checkpoint import write_beside

        self.part = path.with_name(f".{path.name}.part") if path is not None else None
        if self.part is None:
            return
        if resume and self.part.exists():
            self._go_on(self.part, head)
        if not self.done:
            write_beside(self.part, lambda path: path.write_text(json.dumps(head) + "\n", "utf-8"))

    def _go_on(self, part: Path, head: dict[str, Any]) -> None:
        whole = 0
        with open(part, "rb") as lines:
            for number, line in enumerate(lines):
                if not line.endswith(b"\n"):  # it was not finished
                    break
                try:
                    row = json.loads(line)
                    if number:
                        known = isinstance(row, dict) and set(COLUMNS) <= set(row) <= set(self.columns)
                        if not known or not all(isinstance(cell, str) for cell in row.values()):
                            raise TypeError
                        self.done.add(row["file"])
                except (ValueError, TypeError, RecursionError) as error:
                    raise InputError(
                        f"{part}: line {number + 1} is damaged, so the table cannot be continued: leave --resume out "
                        "to start again"
                    ) from error
                if not number and row != head:
                    raise InputError(f"{part} was begun with another classifier: leave --resume out to start again")
                whole += len(line)
        os.truncate(part, whole)

    def add(self, rows: list[dict[str, str]]) -> None:
        from kshot.storage.checkpoint import append, writing

        if self.part is None or self.path is None:
            return
        with writing(self.path, lambda: f"the rows so far are kept in {self.part}, and --resume continues it"):
            append(self.part, "".join(json.dumps(row) + "\n" for row in rows))

    def finish(self, files: set[str]) -> None:
        """The CSV, of the rows of these files."""
        from kshot.storage.checkpoint import write_beside

        if self.path is None or self.part is None:
            return
        part = self.part

        def write(path: Path) -> None:
            with (
                open(part, encoding="utf-8") as lines,
                open(path, "w", encoding="utf-8", errors="surrogateescape", newline="") as out,
            ):
                table = csv.DictWriter(out, self.columns)
                table.writeheader()
                table.writerows(
                    _plain(row) for row in map(json.loads, itertools.islice(lines, 1, None)) if row["file"] in files
                )

        write_beside(self.path, write)
        part.unlink()


def _plain(row: dict[str, str]) -> dict[str, str]:
    """A row that no spreadsheet takes for a formula."""
    row = dict(row)
    for key in ("label", "runner_up"):
        if row[key][:1] in tuple("=+-@\t\r"):
            row[key] = f"'{row[key]}"
    if row["file"][:1] in tuple("=+-@"):
        row["file"] = f"./{row['file']}"
    return row


def _rows(classifier: FewShotClassifier, files: list[str], all_classes: bool) -> tuple[list[dict[str, str]], int]:
    """A row of the table for each file, and how many of them are of no class."""
    names = [str(name) for name in classifier.classes_]
    none = str(classifier.none_label_)
    rows, refused = [], 0
    for file, answer in zip(files, classifier.judge(files, nearest=1), strict=True):
        row = {"file": file, "error": answer.error}
        if not answer.error:
            refused += answer.none
            chances = dict(zip(names, (1 - answer.p_none) * answer.probabilities, strict=True))
            row |= {f"p: {name}": f"{chance:.4f}" for name, chance in chances.items()} if all_classes else {}
            row["p_none"] = f"{answer.p_none:.4f}"
            if math.isfinite(classifier.threshold_):
                chances[none] = answer.p_none
            label = str(answer.label)
            row |= {"label": label, "probability": f"{chances.pop(label):.4f}"}
            if chances:
                second = max(chances, key=lambda name: chances[name])
                row |= {"runner_up": second, "runner_up_probability": f"{chances[second]:.4f}"}
        rows.append({**dict.fromkeys(COLUMNS, ""), **row})
    return rows, refused


def _left_out(classifier: FewShotClassifier, y: list[str]) -> dict[str, Any]:
    """What leave-one-out says, printed and as values for the JSON file."""
    from kshot.scoring.intervals import proportion95

    say, none = console(), classifier.none_label_
    seen = [(true, guess) for true, guess in zip(y, classifier.left_out_, strict=True) if guess is not None]
    if len(seen) < 2:
        say.print("one image per class: its accuracy cannot be estimated without a second one")
        return {}
    right = sum(true == guess for true, guess in seen)
    mean, (low, high) = right / len(seen), proportion95(right, len(seen))
    refused = sum(guess == none for _, guess in seen)
    say.print(
        f"leave-one-out accuracy: {right}/{len(seen)} = {100 * mean:.1f} % (95 % CI {100 * low:.0f} to "
        f"{100 * high:.0f} %), {refused} refused as {none!r}; near-duplicate images inflate it"
    )
    confused = Counter(f"{true} taken for {guess}" for true, guess in seen if true != guess).most_common(5)
    if confused:
        say.print(f"most confused: {', '.join(f'{what} ({n})' for what, n in confused)}")
    return {
        "left_out_accuracy": mean,
        "interval95": [low, high],
        "left_out": len(seen),
        "refused": refused,
        "confused": dict(confused),
    }


def _duplicates(classifier: FewShotClassifier, files: list[str]) -> list[list[str]]:
    """Pairs of files that are one image after resizing."""
    seen: dict[bytes, str] = {}
    found = []
    for file, image in zip(files, classifier.images_ if classifier.images_ is not None else [], strict=False):
        key = image.numpy().tobytes()
        if key in seen:
            found.append([seen[key], file])
        seen.setdefault(key, file)
    return found


def _odd(classifier: FewShotClassifier, files: list[str]) -> list[str]:
    """Files taken for another class when left out, and half as far again from the mean of their own as is usual."""
    import torch

    x = classifier.support_.flatten(1)
    found, far = [], []
    for i, label in enumerate(classifier.labels_):
        same = [j for j, other in enumerate(classifier.labels_) if other == label and j != i]
        far.append(float((x[i] - x[same].mean(0)).norm()) if same else 0.0)
    usual = float(torch.tensor([f for f in far if f] or [0.0]).median())
    for file, distance, label, guess in zip(files, far, classifier.labels_, classifier.left_out_, strict=True):
        if guess is not None and guess != label and distance > 1.5 * usual:
            found.append(file)
    return found
