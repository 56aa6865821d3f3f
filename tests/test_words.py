"""What a user types: words become settings, a mistake is answered by a line that says what to type, help is whole."""

from __future__ import annotations

import contextlib
import io
import json
import os
import re
import shutil
import subprocess
import sys
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any, ClassVar, Literal

import numpy as np
import pytest
from PIL import Image

from kshot import cli, families
from kshot.cli import listing
from kshot.cli._options import FEW, HIDDEN, MISSING, POSITIONAL, InputError, explained, options, read
from kshot.cli.train import Train
from kshot.scoring import progress
from kshot.storage import checkpoint
from kshot.training.settings import Recipe

ROOT = str(Path(checkpoint.__file__).parents[1])


def kshot(*words: Any) -> tuple[int, str, str]:
    """`kshot WORDS` in this process: exit code, output, errors."""
    out, err = io.StringIO(), io.StringIO()
    with pytest.MonkeyPatch.context() as patch, contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
        patch.setattr(sys, "argv", ["kshot", *map(str, words)])
        with pytest.raises(SystemExit) as done:
            cli.main()
    assert isinstance(done.value.code, int)
    return done.value.code, out.getvalue(), err.getvalue()


# ---------------------------------------------------------------------------------------------------- words to settings


@dataclass(frozen=True)
class Inner:
    """Within.

    Attributes:
        rate: how fast; a text of
            two lines.
        extra: more.
    """

    heading: ClassVar[str] = "Rates"

    rate: float = 0.5
    extra: dict[str, int | bool] = field(default_factory=lambda: {"deep": 3, "fast": False})


@dataclass(frozen=True)
class Form:
    """A command. Its text."""

    folder: Annotated[Path, POSITIONAL]
    """Where."""
    others: Annotated[tuple[str, ...], POSITIONAL] = ()
    """What else."""
    out: Path | None = None
    """The file; None: none."""
    count: int = 4
    """How many."""
    kind: Literal["cat", "dog"] = "cat"
    """Which."""
    three: tuple[float, float, float] | None = None
    """Shares."""
    several: tuple[int, ...] = (1, 2)
    """Sizes."""
    loud: bool = False
    """Noise."""
    open_set: bool = True
    """None of these."""
    inner: Inner = field(default_factory=Inner)
    secret: Annotated[int, HIDDEN] = 7


def test_words_become_settings() -> None:
    words = "a --count=-3 b c --three .1 -2e-1 3 --loud --no-open-set --several 7 --rate 2 --deep 9 --out x"
    form, given = read(Form, "kshot form", words.split())
    assert form == Form(Path("a"), ("b", "c"), Path("x"), -3, "cat", (0.1, -0.2, 3.0), (7,), True, False,
                        Inner(2.0, {"deep": 9, "fast": False}))  # fmt: skip
    assert given == {"folder", "others", "count", "three", "loud", "open_set", "several", "rate", "deep", "out"}
    form, given = read(Form, "kshot form", ["a", "--open_set", "--fast", "--out", "none", "--", "--strange"])
    assert (form.open_set, form.out, form.others, form.inner.extra["fast"]) == (True, None, ("--strange",), True)
    assert read(Form, "kshot form", ["a"], default=Form(Path("z"), count=9))[0].count == 9


@pytest.mark.parametrize(
    ("words", "said"),
    [
        ("", "FOLDER is missing: type 'kshot form FOLDER [OTHERS ...] [settings]'"),
        ("a --count many", "--count many: give a whole number, for instance 4"),
        ("a --count 2.5", "--count 2.5: give a whole number, for instance 4"),
        ("a --count", "--count needs a value: give a whole number, for instance 4"),
        ("a --count --loud", "--count needs a value: give a whole number, for instance 4"),
        ("a --rate nan", "--rate nan: give a number, for instance 0.5"),
        ("a --rate inf", "--rate inf: give a number, for instance 0.5"),
        ("a --kind cta", "--kind cta: did you mean 'cat'? There are cat, dog"),
        ("a --kind fish", "--kind fish: there are cat, dog"),
        ("a --three 1 2", "--three 1 2: give 3 of them, each a number"),
        ("a --several x", "--several x: give a whole number, or several, for instance 1 2"),
        ("a --loud=yes", "--loud takes no value: type --loud or --no-loud"),
        ("a --no-count", "there is no --no-count: did you mean --count?"),
        ("a --cuont 3", "there is no --cuont: did you mean --count?"),
        ("a -count 3", "there is no -count: did you mean --count?"),
        ("a --zzz 3", "there is no --zzz here: type 'kshot form --help' for the settings"),
        ("a --secret 3", "there is no --secret"),
        ("a --out=", "--out needs a value: give a file or folder"),
    ],
)
def test_words_that_say_nothing(words: str, said: str) -> None:
    with pytest.raises(InputError) as error:
        read(Form, "kshot form", words.split())
    assert said in str(error.value)
    assert "\n" not in str(error.value)


def test_what_changes_nothing_is_told() -> None:
    with pytest.raises(InputError, match="--count changes nothing in this run: leave it out"):
        read(Form, "kshot form", ["a", "--count", "3"], unused={"count"})


# ----------------------------------------------------------------------------------------------------------------- help


@pytest.mark.parametrize("wide", [60, 80, 120])
def test_help_is_as_wide_as_the_terminal_and_cuts_nothing(wide: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", str(wide))
    text = explained(Form, "kshot form", about={"deep": "how deep"})
    assert max(map(len, text.splitlines())) <= wide
    whole = " ".join(text.split())
    for words in (
        "usage: kshot form FOLDER [OTHERS ...] [settings]", "A command. Its text.", "FOLDER Where.",
        "--out PATH The file; without it: none.", "--count N How many. (default: 4)",
        "Rates: --rate X how fast; a text of two lines. (default: 0.5)",
        "--kind cat|dog Which. (default: cat)", "--three X X X Shares.", "--several N ... Sizes. (default: 1 2)",
        "--loud Noise. (default: off)", "--open-set, --no-open-set None of these. (default: on)",
        "--deep N how deep (default: 3)",
    ):  # fmt: skip
        assert words in whole
    assert "secret" not in whole
    for name in ("glyphs-5way-1shot-maml", "point-rl2"):
        assert max(map(len, kshot("train", name, "--help-all")[1].splitlines())) <= wide
    assert max(map(len, kshot("--help")[1].splitlines())) <= wide


def flags(text: str) -> list[str]:
    return re.findall(r"^  (--[a-z][\w-]*)", text, re.M)


@pytest.mark.parametrize("name", ["omniglot-5way-1shot-maml", "gp-rbf-cnp", "point-maml"])
def test_help_shows_the_ten_settings_people_change_first_and_help_all_the_rest(name: str) -> None:
    some, every = kshot("train", name, "--help")[1], kshot("train", name, "--help-all")[1]
    assert len(flags(some)) == 10
    assert {"--out", "--budget", "--resume", "--steps", "--seed"} <= set(flags(some)) < set(flags(every))
    assert f"{len(flags(every)) - 10} more settings: kshot train {name} --help-all" in some
    assert "more settings" not in every
    assert not {"--source", "--differs"} & set(flags(every))
    titles = [line for line in every.splitlines() if line.endswith(":") and not line.startswith(" ")]
    assert titles[0] == "This run:"
    assert {"Learner:", "Outer loop:"} <= set(titles)
    assert len(titles) == len(set(titles)) >= 4


def test_settings_of_a_command_have_a_flag_each() -> None:
    for command in cli._COMMANDS:
        kind = cli._settings(command)
        default = Train(settings=Recipe()) if kind is Train else MISSING
        names = [option.path[-1] for option in options(kind, default)]
        assert len(names) == len(set(names)), command
        if len(names) > FEW:
            assert set(getattr(kind, "first", ())) & set(names), f"{command}: say which settings people change first"


def test_commands_are_listed_by_what_one_wants() -> None:
    _, out, _ = kshot("--help")
    heads = [line for line in out.splitlines() if line.endswith(":") and not line.startswith(" ")]
    assert heads == [f"{want}:" for want in dict.fromkeys(command.want for command in cli._COMMANDS.values())]


# ----------------------------------------------------------------------------------------------------------------- list


def test_list_alone_lists_the_lists() -> None:
    code, out, _ = kshot("list")
    assert code == 0
    assert re.findall(r"^kshot list (\w+)", out, re.M) == list(listing._LISTS)


def test_words_filter_a_list(tmp_path: Path) -> None:
    code, out, _ = kshot("list", "recipes", "Omniglot", "maml", "20way", "--json", tmp_path / "a.json")
    assert code == 0
    written = json.loads((tmp_path / "a.json").read_text())
    assert list(written) == ["omniglot-20way-1shot-maml", "omniglot-20way-5shot-maml",
                             "omniglot-lake-20way-1shot-maml", "omniglot-lake-20way-5shot-maml"]  # fmt: skip
    row = written["omniglot-20way-1shot-maml"]
    assert row["needs"] == "omniglot"
    assert re.fullmatch(r"[\d.]+ (min|h|days)", row["quick"])
    assert re.fullmatch(r"[\d.]+ (min|h|days)", row["paper"])
    assert f"of {len(families.recipe_names())} recipes" in out
    assert max(len(line) for line in out.splitlines()[:6]) <= 80
    _, out, _ = kshot("list", "recipes", "sinusoid-maml")
    assert f"source: {families.recipe('sinusoid-maml').source}" in out
    assert kshot("list", "learners", "Finn")[0] == 0  # of the description


def test_times_are_of_recipes_that_there_are() -> None:
    file = Path(families.__file__).parent / "recipes" / "seconds.json"
    kept = json.loads(file.read_text("utf-8"))
    assert {"machine", "threads", "load", "command"} <= set(kept)
    assert set(kept["recipes"]) <= set(families.recipe_names())
    assert all(value > 0 for own in kept["recipes"].values() for value in own.values())
    assert [listing._time(s) for s in (2, 100, 7000, 86400, 4e5)] == ["1 min", "2 min", "1.9 h", "24 h", "4.6 days"]


# ------------------------------------------------------------------------------------------------------------- mistakes


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a run, a folder of images, an empty one, a table."""
    folder = tmp_path_factory.mktemp("place")
    with contextlib.chdir(folder):
        code, _, err = kshot("train", "sinusoid-maml", "--steps", 1, "--batch", 2, "--val-every", 0, "--width", 4)
        assert code == 0, err
    (run,) = (folder / "runs").iterdir()
    run.rename(folder / "runs" / "one")
    (folder / "empty").mkdir()
    (folder / "t.csv").write_text("x,y\n1,2\n2,\n3,4\n")
    (folder / "mine.kshot").write_bytes(b"not read")
    noise = np.random.default_rng(0).integers(0, 255, (16, 16, 3)).astype(np.uint8)
    for name in ("a", "b"):
        (folder / "photos" / name).mkdir(parents=True)
        Image.fromarray(noise).save(folder / "photos" / name / "0.png")
    return folder


MISTAKES = {
    "fit": "SUPPORT is missing: type 'kshot fit SUPPORT",
    "fit photoss": "photoss is not there: give a folder",
    "fit t.csv": "t.csv is a file: give a folder that has a folder of images for each class",
    "fit empty": "empty: no image was found",
    "fit photos other.kshot": "'other.kshot' is one too many: did you mean --out other.kshot?",
    "fit mine.kshot --out photos": "the folder comes first: type 'kshot fit photos --out mine.kshot'",
    "predict": "CLASSIFIER is missing",
    "predict mine.kshot": "PATHS is missing: type 'kshot predict mine.kshot FILES OR FOLDERS'",
    "predict photos mine.kshot": "the classifier comes first: type 'kshot predict mine.kshot photos'",
    "predict photos empty": "photos is a folder: give a .kshot file, as 'kshot fit' makes it",
    "predict nosuch.kshot photos": "there is no nosuch.kshot",
    "predict runs/one photos": "runs/one is a folder of 'kshot train': 'kshot evaluate runs/one' tests it",
    "predict mine.kshot photos --resume": "--resume is for a table: add --csv FILE",
    "predict mine.kshot photos --dry-run": "--dry-run is for copies: add --sort-into FOLDER",
    "report photos": "photos is a folder: give a .kshot file",
    "report": "CLASSIFIER is missing",
    "serve nosuch.kshot": "nosuch.kshot: no such file or directory",
    "serve empty": "empty: is a directory",
    "curve": "FILE is missing",
    "curve empty": "empty: it is a folder",
    "curve nosuch.csv": "nosuch.csv: no such file",
    "curve t.csv --level 95": "--level 95: give a probability between 0 and 1",
    "evaluate": "FOLDER is missing: type 'kshot evaluate FOLDER [settings]'",
    "evaluate mine.kshot": "mine.kshot is a classifier of 'kshot fit': type 'kshot report mine.kshot'",
    "evaluate runs/onne": "no checkpoint at runs/onne: did you mean runs/one?",
    "evaluate runs": "no checkpoint at runs: it has the runs one; type one of them, runs/one",
    "evaluate runs/one/last.safetensors": "last.safetensors is a file: type its folder, runs/one",
    "evaluate photos": "no checkpoint at photos: give the folder that 'kshot train' wrote",
    "evaluate t.csv": "t.csv is a file, not the folder of a training",
    "evaluate runs/one --tasks 1": "--tasks 1: give at least 2",
    "evaluate runs/one --steps -1": "--steps -1: give at least 0",
    "evaluate runs/one --on glyphs": "runs/one holds a maml of functions, these tasks are of images",
    "evaluate runs/one --on photos": "there are no tasks 'photos': did you mean folder:photos?",
    "evaluate runs/one runs/one": "'runs/one' is one too many",
    "compare runs/one mine.kshot": "mine.kshot is a classifier of 'kshot fit'",
    "compare": "nothing to compare: type 'kshot compare FOLDER FOLDER'",
    "video runs/one": "only policies can be recorded",
    "video photos": "no checkpoint at photos",
    "list recipe": "'recipe': did you mean 'recipes'?",
    "list recipes omniglto": "none of the recipes has 'omniglto': did you mean omniglot?",
    "list recipes omniglot gp": "none of the recipes has all of omniglot, gp: leave a word out",
    "data omniglot check": "check comes first: type 'kshot data check omniglot'",
    "data check photos": "did you mean folder:photos?",
    "train --steps 3 sinusoid-maml": "the recipe comes first: type 'kshot train sinusoid-maml --steps 3'",
    "train sinusoid-maml other": "'other' is one too many: did you mean --out other?",
    "train sinusoid-maml --out t.csv": "--out t.csv is a file: give a folder",
    "train sinusoid-maml --ways 5": "there is no --ways here: type 'kshot train sinusoid-maml --help-all'",
    "train gp-rbf-cnp --shots 5": "--shots changes nothing in this run: leave it out",
    "train sinusoid-maml --data glyphs": "unknown functions 'glyphs': choose from sinusoid",
    "train sinusoid-maml --width 0": "width=0 is outside of what a run may ask for, 1 to 1,048,576: give another value",
    "train gp-rbf-np --resume": "--resume: runs/ has no run of gp-rbf-np to continue: give its folder, --out FOLDER",
    "demo --out t.csv": "--out t.csv is a file: give a folder",
    "demo --tasks 1": "--tasks 1: give at least 2",
    "help": "did you mean 'kshot --help'?",
    "--hlep": "did you mean 'kshot --help'?",
    "Train": "did you mean 'kshot train'?",
}


@pytest.mark.parametrize("words", MISTAKES)
def test_a_mistake_is_answered_by_a_line(words: str, place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(place)
    before = sorted(map(str, place.rglob("*")))
    code, out, err = kshot(*words.split())
    assert code == 2, out + err
    assert out == ""
    assert err.count("\n") == 1
    assert err.startswith("kshot: ")
    assert MISTAKES[words] in err
    assert sorted(map(str, place.rglob("*"))) == before


# ---------------------------------------------------------------------------------------- where things go, what is said


def test_a_run_without_a_folder_has_one_of_its_recipe_and_the_date(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    run = ("train", "sinusoid-maml", "--batch", 2, "--val-every", 0, "--width", 4, "--schedule", "constant", "--steps")
    day = f"sinusoid-maml-{time.strftime('%Y-%m-%d')}"
    assert kshot(*run, 1)[0] == 0
    code, out, _ = kshot(*run, 1)
    assert (code, sorted(os.listdir("runs"))) == (0, [day, f"{day}-2"])
    assert f"Next: kshot evaluate runs/{day}-2" in out
    code, out, err = kshot(*run, 2, "--resume")  # the newest
    assert (code, err) == (0, "")
    assert checkpoint.header(f"runs/{day}-2/last.safetensors")["step"] == 2
    assert checkpoint.header(f"runs/{day}/last.safetensors")["step"] == 1
    assert "nothing to do" in kshot(*run, 2, "--resume")[1]
    assert "holds no run yet, so a new one is started" in kshot(*run, 1, "--resume", "--out", "new")[1]
    monkeypatch.setenv("WORLD_SIZE", "2")
    assert "--out is missing: several processes" in kshot(*run, 1)[2]


def test_a_classifier_and_its_report_have_names_of_their_own(place: Path, tmp_path: Path) -> None:
    shutil.copytree(place / "photos", tmp_path / "photos")
    with contextlib.chdir(tmp_path):
        code, out, _ = kshot("fit", "photos")
        assert code == 0
        assert out.splitlines()[0].endswith(": photos.kshot")
        kept = Path("photos.kshot").read_bytes()
        code, _, err = kshot("fit", "photos/../photos")
        assert (code, Path("photos.kshot").read_bytes()) == (2, kept)
        assert "photos.kshot is there already: type '--out photos.kshot' to replace it" in err
        assert kshot("fit", "photos", "--out", "photos.kshot")[0] == 0
        assert kshot("report", "photos.kshot")[0] == 0
        assert Path("photos.html").is_file()
        Path("text.png").write_text("no image")
        code, _, err = kshot("predict", "photos.kshot", "text.png")
        assert (code, err) == (2, "kshot: text.png is not an image that can be read: give JPEG, PNG or other images\n")


def test_a_test_says_what_it_does_while_it_works(place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(place)
    code, out, err = kshot("evaluate", "runs/one", "--tasks", 2)
    assert code == 0
    assert err == "testing maml on sinusoid ...\n"
    assert "testing" not in out  # which may go into a file
    monkeypatch.setattr(progress, "QUIET", 0)
    said = io.StringIO()
    with contextlib.redirect_stderr(said), progress.counting("testing", lines=True) as told:
        for done in range(4):
            told(done, 3, doing="a long test")
    assert said.getvalue().splitlines() == ["a long test ...", "a long test: 1 of 3", "a long test: 2 of 3"]


def test_a_closed_pipe_is_quiet() -> None:
    path = os.pathsep.join(filter(None, (ROOT, os.environ.get("PYTHONPATH"))))
    done = subprocess.run(
        f"{sys.executable} -m kshot list | head -n 0",
        shell=True, capture_output=True, text=True, timeout=60, env={**os.environ, "PYTHONPATH": path},
    )  # fmt: skip
    assert (done.stdout, done.stderr) == ("", "")


def test_a_pipe_that_breaks_in_the_midst_ends_the_command(monkeypatch: pytest.MonkeyPatch) -> None:
    class Closed(io.StringIO):
        def write(self, text: str) -> int:
            raise BrokenPipeError

        def fileno(self) -> int:
            raise OSError

    said = io.StringIO()
    monkeypatch.setattr(sys, "argv", ["kshot", "list", "data"])
    with contextlib.redirect_stdout(Closed()), contextlib.redirect_stderr(said), pytest.raises(SystemExit) as done:
        cli.main()
    assert done.value.code == 141
    assert said.getvalue() == ""


def test_all_policies_are_validated_unless_told_otherwise() -> None:
    """40 tasks every 800 training tasks cost less than a fortieth of the run; the best checkpoint is what is tested."""
    for name in families.family("control").recipes():
        for budget in ("paper", "quick"):
            outer = families.recipe(name, budget).outer
            assert 0 < outer.val_every <= outer.steps, name
            assert outer.val_tasks <= outer.val_every * outer.batch / 5, name
