"""The command line: every command on small inputs, and one clear line with exit code 2 for every kind of bad input."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from collections.abc import Callable
from dataclasses import fields, is_dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from kshot import cli, data, families, learners
from kshot.cli.scores import Figures
from kshot.data import Bank
from kshot.families import Test
from kshot.families.control.row import ControlTest
from kshot.families.control.settings import ControlRecipe
from kshot.families.control.step import Acting
from kshot.families.functions.row import FunctionTest
from kshot.families.functions.settings import FunctionRecipe
from kshot.families.images.row import ImageTest
from kshot.families.images.settings import ImageRecipe
from kshot.families.meta import GradientMachine
from kshot.scoring.scores import Scores
from kshot.storage import checkpoint
from kshot.training.loop import Outer
from kshot.training.settings import NetworkRecipe, Recipe

ROOT = str(Path(checkpoint.__file__).parents[1])
TINY = ["--val-every", "0", "--width", "4", "--train-queries", "3"]


@pytest.fixture(autouse=True, scope="module")
def cache(tmp_path_factory: pytest.TempPathFactory):
    """Decoded images go to a folder of this test, and no data set of this machine is found."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("KSHOT_CACHE", str(tmp_path_factory.mktemp("cache")))
        patch.setenv("KSHOT_DATA", str(tmp_path_factory.mktemp("data")))
        yield


def call(*arguments: Any) -> int:
    """`kshot ARGUMENTS` in this process; its exit code."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sys, "argv", ["kshot", *map(str, arguments)])
        with pytest.raises(SystemExit) as done:
            cli.main()
    assert isinstance(done.value.code, int)
    return done.value.code


Fails = Callable[..., str]


@pytest.fixture
def fails(capsys: pytest.CaptureFixture[str]) -> Fails:
    def run(*arguments: Any) -> str:
        """The one line that a command with bad input ends with."""
        capsys.readouterr()
        assert call(*arguments) == 2
        out, err = capsys.readouterr()
        assert "Traceback" not in out + err
        lines = [line for line in err.splitlines() if not line.startswith("kshot: warning: ")]
        assert len(lines) == 1, err
        assert lines[0].startswith("kshot: ")
        return lines[0]

    return run


def picture(path: Path, level: int, size: tuple[int, int] = (20, 24)) -> None:
    noise = np.random.default_rng(level).integers(0, 40, (*size, 3))
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray((noise + 40 * level % 200).astype(np.uint8)).save(path)


@pytest.fixture(scope="module")
def photos(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Photos of 4 classes to train on, 3 to validate with and 5 to test on; 6 of each."""
    folder = tmp_path_factory.mktemp("photos")
    level = 0
    for split, count in (("train", 4), ("val", 3), ("test", 5)):
        for c in range(count):
            for i in range(6):
                level += 1
                picture(folder / split / f"{split}-{c}" / f"{i}.png", level)
    return folder


@pytest.fixture(scope="module")
def proto(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run of two steps on glyphs."""
    out = tmp_path_factory.mktemp("runs") / "proto"
    assert call("train", "glyphs-5way-1shot-protonet", "--budget", "quick", "--steps", 2, *TINY, "--train-ways", 5,
                "--out", out) == 0  # fmt: skip
    return out


@pytest.fixture(scope="module")
def sinusoid(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("runs") / "sinusoid"
    assert call("train", "sinusoid-maml", "--steps", 2, "--batch", 2, "--val-every", 0, "--out", out) == 0
    return out


@pytest.fixture(scope="module")
def maml(tmp_path_factory: pytest.TempPathFactory, photos: Path) -> Path:
    """MAML on the photos, 3-way, validated."""
    out = tmp_path_factory.mktemp("runs") / "maml"
    assert call("train", "glyphs-5way-1shot-maml", "--data", f"folder:{photos}", "--ways", 3, "--queries", 2,
                "--steps", 2, "--batch", 2, "--width", 4, "--val-every", 1, "--val-tasks", 2, "--out", out,
                "--json", out / "train.json") == 0  # fmt: skip
    return out


# --------------------------------------------------------------------------------------------------------------- help


def test_the_module_runs() -> None:
    path = os.pathsep.join(filter(None, (ROOT, os.environ.get("PYTHONPATH"))))
    done = subprocess.run(
        [sys.executable, "-m", "kshot", "--help"], capture_output=True, text=True, timeout=120,
        env={**os.environ, "PYTHONPATH": path},
    )  # fmt: skip
    assert done.returncode == 0
    assert done.stderr == ""
    assert all(f"\n  {command} " in done.stdout for command in cli._COMMANDS)


def test_help_lists_the_commands(capsys: pytest.CaptureFixture[str]) -> None:
    assert call("--help") == call("-h") == 0
    assert call() == 2
    out = capsys.readouterr().out
    assert out.count("Meta-train a recipe") == 3
    for command in cli._COMMANDS:
        assert cli._settings(command).__name__ == command.capitalize()
    assert call("--version") == 0
    assert re.fullmatch(r"kshot \d+\.\d+.*\n", capsys.readouterr().out)


def explained(kind: type) -> dict[str, str]:
    """Setting -> the first line of its explanation, of a dataclass with an "Attributes:" section."""
    section = (kind.__doc__ or "").partition("Attributes:\n")[2]
    return dict(re.findall(r"^        (\w+): (.+)$", section, re.M))


TRAINED = {  # a recipe of each family, and what its help explains
    "glyphs-5way-1shot-maml": [Recipe, NetworkRecipe, ImageRecipe, GradientMachine],
    "sinusoid-maml": [Recipe, NetworkRecipe, FunctionRecipe, GradientMachine],
    "gp-rbf-cnp": [Recipe, NetworkRecipe, FunctionRecipe, GradientMachine],
    "point-maml": [Recipe, ControlRecipe, Acting],
}
TESTED = {"glyphs": ImageTest, "gp-rbf": FunctionTest, "point": ControlTest}
HELPS: list[tuple[list[str], list[type]]] = [
    *(([command], [cli._settings(command)]) for command in cli._COMMANDS if command != "compare"),
    (["compare"], [cli._settings("compare"), Test, Figures]),
    *((["train", name], [cli._settings("train"), Outer, *kinds]) for name, kinds in TRAINED.items()),
    *((["evaluate", "--on", name], [Test, kind, Figures]) for name, kind in TESTED.items()),
]


@pytest.mark.parametrize(
    ("command", "kinds"), HELPS, ids=lambda value: " ".join(value) if value and isinstance(value[0], str) else ""
)
def test_the_help_of_a_command_explains_every_setting(
    command: list[str], kinds: list[type], capsys: pytest.CaptureFixture[str]
) -> None:
    assert call(*command, "--help-all") == 0
    out = capsys.readouterr().out
    text = " ".join(re.sub(r"[│╭╮╰╯─]", " ", out).split())
    skipped = {
        "settings",
        "where",
        "outer",
        "acting",
        "test",
        "figures",
        "options",
        *("asked", "before", "name", "source", "differs"),
    }  # nested, hidden
    if command[0] == "train" and len(command) > 1:
        recipe = families.recipe(command[1])
        unused = families.family(recipe.family).unused(recipe)
        assert not [
            name
            for name in unused
            if f"--{name.replace('_', '-')} " in text and name not in learners.options(recipe.learner)
        ]
        skipped |= unused
    elif command[0] != "train":
        skipped |= {"folder", "folders", "what", "name", "words", "support", "file", "classifier", "paths"}
    checked = 0
    for kind in kinds:
        assert is_dataclass(kind)
        known = explained(kind)
        for field in fields(kind):
            if field.name in skipped:
                continue
            checked += 1
            flag = "--" + field.name.replace("_", "-")
            assert re.search(rf"{flag}\b", text), flag
            if field.name in known:
                assert " ".join(known[field.name].split("None")[0].split()[:4]) in text, field.name
    assert checked >= {
        "train": 33 if len(command) > 1 else 5,
        "evaluate": 9 if len(command) > 1 else 1,
        "compare": 8,
    }.get(command[0], 1)


def test_help_offers_what_applies(capsys: pytest.CaptureFixture[str]) -> None:
    offered = {}
    for name in TRAINED:
        assert call("train", name, "--help-all") == 0
        offered[name] = set(re.findall(r"--[a-z][\w-]*", capsys.readouterr().out))
    assert "--augment-classes" in offered["glyphs-5way-1shot-maml"]
    assert not {"--augment-classes", "--ways", "--data-root-x", "--size"} & offered["sinusoid-maml"]
    assert not {"--shots", "--inner-lr"} & offered["gp-rbf-cnp"]
    assert not {"--device", "--memory-limit", "--data"} & offered["point-maml"]


def test_the_help_of_a_recipe_shows_its_own_defaults(capsys: pytest.CaptureFixture[str]) -> None:
    assert call("train", "omniglot-20way-1shot-maml", "--help-all") == 0
    text = " ".join(re.sub(r"[│]", " ", capsys.readouterr().out).split())
    assert "(default: 20)" in text
    assert "(default: 60000)" in text


# --------------------------------------------------------------------------------------------------------------- list


def test_the_learners_own_settings_are_options(tmp_path: Path) -> None:
    run = ["--out", tmp_path / "run", "--budget", "quick", "--steps", 1, "--batch", 1, "--val-every", 0]
    assert call("train", "sinusoid-maml", *run, "--first-order") == 0
    settings = checkpoint.load(tmp_path / "run" / "last.safetensors")[1]["settings"]
    assert settings["options"] == {"first_order": True}  # and not what is the default
    assert families.load_run(tmp_path / "run").learner.first_order
    other = cli._parse(["train", "sinusoid-maml", "--out", "x", "--learner", "imaml", "--cg-steps", "2"])
    assert other.settings.options == {"cg_steps": 2}  # those of the learner that was asked for


@pytest.mark.parametrize(
    ("what", "expected"),
    [
        ("learners", list(learners.REGISTRY)),
        ("recipes", families.recipe_names()),
        ("data", ["omniglot", "glyphs", "grocery"]),
        ("learners", ["promp", "rl2", "pearl"]),
        ("tasks", ["point", "cheetah-direction", "walker-body-far"]),
    ],
)
def test_list(what: str, expected: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert call("list", what, "--json", tmp_path / "list.json") == 0
    shown = [line.split()[0] for line in capsys.readouterr().out.splitlines() if line]
    shown = shown[1:-1] if what == "recipes" else shown  # between a head and a line of explanation
    assert set(expected) <= set(shown)
    written = json.loads((tmp_path / "list.json").read_text())
    assert list(written) == shown
    assert all(written.values())


# -------------------------------------------------------------------------------------------------- train and evaluate


def test_training_leaves_a_run(proto: Path) -> None:
    assert sorted(p.name for p in proto.iterdir()) == ["last.safetensors", "records.jsonl"]
    info = checkpoint.load(proto / "last.safetensors")[1]
    assert info["settings"]["learner"] == "protonet"
    assert info["settings"]["data"] == "glyphs"
    assert info["settings"]["width"] == 4
    assert info["settings"]["outer"]["steps"] == info["step"] == 2
    assert len((proto / "records.jsonl").read_text().splitlines()) == 2


def test_training_with_validation_tells_it_and_keeps_the_best(maml: Path) -> None:
    assert {"best.safetensors", "last.safetensors"} <= {p.name for p in maml.iterdir()}
    written = json.loads((maml / "train.json").read_text())
    assert written["record"]["step"] == 2
    assert "val_accuracy" in written["record"]["metrics"]
    assert written["command"].startswith("kshot train glyphs-5way-1shot-maml --data folder:")


def test_a_run_is_not_overwritten_but_resumed(proto: Path, tmp_path: Path, fails: Fails) -> None:
    arguments = ["train", "glyphs-5way-1shot-protonet", "--budget", "quick", *TINY, "--train-ways", 5, "--out"]
    before = (proto / "last.safetensors").read_bytes()
    line = fails(*arguments, proto, "--steps", 2)
    assert "--resume" in line
    assert (proto / "last.safetensors").read_bytes() == before
    assert call(*arguments, proto, "--steps", 2, "--resume") == 0  # nothing is left to do
    assert (proto / "last.safetensors").read_bytes() == before
    line = fails(*arguments, proto, "--steps", 3, "--meta-lr", 0.5, "--resume")
    assert "meta_lr" in line
    assert "0.5" in line
    line = fails(*arguments, proto, "--steps", 3, "--width", 8, "--resume")
    assert "width=4 and not 8" in line


def evaluated(capsys: pytest.CaptureFixture[str], *arguments: Any) -> str:
    capsys.readouterr()
    assert call(*arguments) == 0
    return capsys.readouterr().out


def test_evaluate_prints_a_table_and_writes_json(
    proto: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file = tmp_path / "deep" / "result.json"
    out = evaluated(capsys, "evaluate", proto, "--tasks", 4, "--queries", 3, "--no-floors", "--json", file)
    assert "protonet" in out
    assert "inductive" in out
    assert "4 tasks" in out
    written = json.loads(file.read_text())
    assert written["command"].startswith(f"kshot evaluate {proto}")
    result = Scores.from_dict(written["results"][0])
    assert result.num_tasks == len(result.per_task) == 4
    assert result.interval95 > 0
    assert result.settings["ways"] == 5
    assert result.settings["queries"] == 3
    again = tmp_path / "again.json"
    evaluated(capsys, "evaluate", proto, "--tasks", 4, "--queries", 3, "--no-floors", "--json", again)
    assert Scores.from_dict(json.loads(again.read_text())["results"][0]).per_task == result.per_task


def test_evaluate_with_other_ways_and_shots(proto: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = evaluated(
        capsys, "evaluate", proto, "--tasks", 2, "--ways", 3, "--shots", 2, "--queries", 2, "--no-floors", "--seed", 4
    )
    assert "3-way 2-shot, 2 queries" in out
    assert "seed 4" in out


def test_evaluate_draws(proto: Path, tmp_path: Path) -> None:
    assert call("evaluate", proto, "--tasks", 2, "--queries", 2, "--no-floors", "--picture", tmp_path / "episode.png",
                "--plot", tmp_path / "steps.png") == 0  # fmt: skip
    for name in ("episode.png", "steps.png"):
        with Image.open(tmp_path / name) as image:
            assert min(image.size) > 50


def test_the_baselines_stand_beside_the_learner(maml: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = evaluated(capsys, "evaluate", maml, "--tasks", 2, "--pretrain", 3, "--json", tmp_path / "x.json")
    names = [r["name"] for r in json.loads((tmp_path / "x.json").read_text())["results"]]
    assert {"maml", "baseline: pixels", "baseline: from scratch"} <= set(names)
    assert "baseline" in out


def test_cross_domain(proto: Path, photos: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """A network trained on grey glyphs of 28 pixels is tested on colour photos of another size."""
    out = evaluated(
        capsys, "evaluate", proto, "--data", f"folder:{photos}", "--tasks", 3, "--ways", 4, "--queries", 2,
        "--no-floors", "--json", tmp_path / "x.json",
    )  # fmt: skip
    assert "folder:" in out
    assert json.loads((tmp_path / "x.json").read_text())["results"][0]["settings"]["data"] == f"folder:{photos}"
    assert "4-way 1-shot, 2 queries" in out


@pytest.mark.parametrize("known", [0, 3])
def test_scripts_that_training_held_are_counted_and_left_out(
    proto: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, known: int
) -> None:
    """Trained on glyphs, among them Latin and Arabic in print; tested on alphabets by hand."""
    names = [f"{a}/character{c:02d}" for a in ("Latin", "Malay_(Jawi_-_Arabic)", "Bengali")[:known]
             for c in (1, 2)] + [f"Tibetan/character{c:02d}" for c in range(1, 6)]  # fmt: skip
    images = torch.arange(len(names) * 4, dtype=torch.uint8).view(-1, 1, 1, 1).expand(-1, 1, 28, 28).contiguous()
    bank = Bank(images, torch.arange(len(names)).repeat_interleave(4), tuple(names), "omniglot", "test", ink=True)
    monkeypatch.setattr(data, "load", lambda *_, **__: bank)
    test = ("evaluate", proto, "--data", "omniglot", "--tasks", 2, "--queries", 2, "--no-floors")
    out = " ".join(evaluated(capsys, *test).split())
    assert ("2 of Arabic, 2 of Latin, Greek and Cyrillic. --unseen-scripts leaves them out" in out) == bool(known)
    file = tmp_path / "x.json"
    out = evaluated(capsys, *test, "--unseen-scripts", "--json", file)
    assert "scripts not trained on" in out
    assert "leaves them out" not in out
    own = json.loads(file.read_text())["results"][0]["settings"]["unseen_scripts"]
    assert own == {"Tibetan": 5, **({"Bengali": 2} if known else {})}


def test_unseen_scripts_need_scripts(proto: Path, photos: Path, sinusoid: Path, fails: Any) -> None:
    few = ("evaluate", proto, "--tasks", 2, "--unseen-scripts")
    assert "not of" in fails(*few, "--data", f"folder:{photos}", "--ways", 4, "--queries", 2)
    assert "there is no --unseen-scripts here: type 'kshot evaluate" in fails(
        "evaluate", sinusoid, "--tasks", 2, "--unseen-scripts"
    )
    assert "0 of the" in fails(*few, "--split", "train", "--seen")


def test_sinusoid(sinusoid: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = evaluated(
        capsys, "evaluate", sinusoid, "--tasks", 3, "--steps", 4, "--json", tmp_path / "x.json",
        "--picture", tmp_path / "x.png",
    )  # fmt: skip
    assert "sinusoid, 5 points, 3 tasks" in out
    result = Scores.from_dict(json.loads((tmp_path / "x.json").read_text())["results"][0])
    assert result.metric == "mse"
    assert [step for step, *_ in result.per_step] == [0, 1, 2, 3, 4]
    assert (tmp_path / "x.png").stat().st_size > 1000


def test_compare(proto: Path, maml: Path, photos: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = evaluated(
        capsys, "compare", proto, maml, "--data", f"folder:{photos}", "--ways", 3, "--queries", 2, "--tasks", 3,
        "--no-floors", "--json", tmp_path / "x.json", "--plot", tmp_path / "x.png",
    )  # fmt: skip
    assert "proto" in out
    assert "maml" in out
    results = json.loads((tmp_path / "x.json").read_text())["results"]
    assert {r["name"] for r in results} == {"proto", "maml"}
    assert len({r["questions"] for r in results}) == 1  # all were asked the same
    assert (tmp_path / "x.png").exists()


def test_float64_deterministic_and_the_engine_explained(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    was = torch.are_deterministic_algorithms_enabled()
    out = evaluated(
        capsys, "train", "sinusoid-maml", "--steps", 2, "--batch", 4, "--val-every", 0, "--out", tmp_path / "run",
        "--precision", "float64", "--deterministic", "--explain-engine", "--memory-limit", 1,
    )  # fmt: skip
    assert re.search(r"engine: (vmap|loop) \(measured( before, see .*)?", out), out
    assert re.search(r"vmap +│ +[\d.]+ │ +[\d.]+ [KM]iB", out), out
    tensors, info = checkpoint.load(tmp_path / "run" / "last.safetensors")
    assert {t.dtype for name, t in tensors.items() if name.startswith("learner.")} == {torch.float64}
    assert info["settings"]["precision"] == "float64"
    assert info["engine"]["tried"]
    assert torch.are_deterministic_algorithms_enabled() == was
    assert call("evaluate", tmp_path / "run", "--tasks", 2, "--no-floors") == 0


# ---------------------------------------------------------------------------------------------------------- bad inputs


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["trian"], ["'trian'", "train"]),
        (["frobnicate"], ["frobnicate", "evaluate", "compare"]),
        (["train"], ["RECIPE is missing", "kshot list recipes"]),
        (["train", "--out", "x"], ["RECIPE is missing"]),
        (["train", "omniglot-5way-1shot-mamll", "--out", "x"], ["unknown recipe", "omniglot-5way-1shot-maml"]),
        (["train", "zzzzzzzz", "--out", "x"], ["unknown recipe", "kshot list recipes"]),
        (["train", "sinusoid-maml", "--out", "x", "--budget", "huge"], ["--budget", "paper", "quick"]),
        (["train", "sinusoid-maml", "--out", "x", "--budget"], ["--budget", "paper", "quick"]),
        (["train", "sinusoid-maml", "--out", "x", "--budget=huge"], ["--budget"]),
        (["train", "sinusoid-maml", "--out", "x", "--steps", "many"], ["--steps", "many"]),
        (["train", "sinusoid-maml", "--out", "x", "--stepz", "3"], ["--stepz"]),
        (["train", "sinusoid-maml", "--out", "x", "--optimizer", "lion"], ["optimizer", "lion"]),
        (["train", "sinusoid-maml", "--out", "x", "--batch", "0"], ["batch", "0"]),
        (["train", "sinusoid-maml", "--out", "x", "--meta-lr", "-1"], ["meta_lr", "-1"]),
        (["train", "sinusoid-maml", "--out", "x", "--learner", "mamml"], ["unknown learner", "maml"]),
        (["train", "sinusoid-maml", "--out", "x", "--depth", "3"], ["--depth"]),
        (["train", "sinusoid-maml", "--out", "x", "--device", "abacus"], ["abacus"]),
        (["train", "sinusoid-maml", "--out", "x", "--precision", "float16"], ["precision", "float16", "bfloat16"]),
        (["train", "sinusoid-maml", "--out", "x", "--memory-limit", "-1"], ["--memory-limit", "-1", "GiB"]),
        (
            ["train", "sinusoid-maml", "--out", "x", "--memory-limit", "1e-6"],
            ["one task takes", "1.05 KiB", "Try fewer"],
        ),
        (["train", "glyphs-5way-1shot-maml", "--out", "x", "--data", "glyhps"], ["glyhps", "glyphs"]),
        (["train", "glyphs-5way-1shot-maml", "--out", "x", "--train-split", "trian"], ["trian", "train"]),
        (["train", "omniglot-5way-1shot-maml", "--out", "x"], ["omniglot", "kshot data fetch"]),
        (["evaluate"], ["FOLDER is missing", "kshot evaluate FOLDER"]),
        (["evaluate", "missing"], ["no checkpoint at", "missing"]),
        (["evaluate", "missing", "--on", "point"], ["no checkpoint at", "missing"]),
        (["train", "cheetah-direction", "--out", "x"], ["by which learner", "cheetah-direction-maml"]),
        (["train", "ant-body-lost-rl2", "--out", "x"], ["kshot train ant-body-rl2 --tasks ant-body-lost"]),
        (["train", "point-maml", "--out", "x", "--std", "0"], ["std=0.0", "above 0"]),
        (["train", "point-maml", "--out", "x", "--hidden", "0"], ["hidden=(0,)", "at least 1"]),
        (["train", "point-maml", "--out", "x", "--later", "-3"], ["later_lr_factor=-3.0 must be positive"]),
        (["train", "point-maml", "--out", "x", "--steps", "-1"], ["steps=-1 must be at least 0"]),
        (["train", "point-maml", "--out", "x", "--minutes", "-1"], ["--minutes -1"]),
        (["compare"], ["nothing to compare"]),
        (["compare", "missing"], ["no checkpoint at"]),
        (["list", "learnres"], ["learnres", "learners"]),
        (["data", "check"], ["name"]),
        (["data", "check", "omnigolt"], ["omnigolt", "omniglot"]),
        (["data", "fetch", "grocery"], ["grocery"]),
        (["data", "fetch", "folder:x"], ["folder:x"]),
    ],
    ids=lambda value: " ".join(value) if value and value[0] in (*cli._COMMANDS, "trian", "frobnicate") else "",
)
def test_bad_input(
    arguments: list[str], words: list[str], fails: Fails, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    line = fails(*arguments)
    for word in words:
        assert word.lower() in line.lower(), line
    assert not (tmp_path / "x" / "last.safetensors").exists()


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--data", "folder:{photos}", "--ways", "9"], ["9", "5"]),
        (["--data", "folder:{photos}", "--shots", "5", "--queries", "3"], ["shots", "queries", "8", "6"]),
        (["--data", "folder:{photos}", "--split", "tset"], ["tset", "test"]),
        (["--data", "folder:{photos}/nowhere"], ["nowhere", "not found"]),
        (["--data", "folder:{photos}/test/test-0"], ["one folder"]),
        (["--data", "omniglot"], ["omniglot", "kshot data fetch"]),
        (["--data", "omnigolt"], ["omnigolt", "omniglot"]),
        (["--tasks", "1"], ["tasks", "2", "1"]),
        (["--ways", "0"], ["ways", "0"]),
        (["--shots", "-1"], ["shots", "-1"]),
        (["--rotations", "3"], ["rotations", "3"]),
        (["--json", "{photos}/train/train-0/0.png/x.json", "--tasks", "2"], ["x.json", "cannot be written"]),
    ],
    ids=lambda value: " ".join(value) if value[0].startswith("--") else "",
)
def test_a_test_that_cannot_be_made(
    arguments: list[str], words: list[str], proto: Path, photos: Path, fails: Fails
) -> None:
    given = [a.format(photos=photos) for a in arguments]
    line = fails("evaluate", proto, "--no-floors", *([] if "--queries" in given else ["--queries", "2"]), *given)
    for word in words:
        assert word in line, line


def test_a_network_with_a_head_keeps_its_ways(maml: Path, fails: Fails) -> None:
    line = fails("evaluate", maml, "--ways", 2, "--tasks", 2)
    assert "trained for 3 ways" in line
    assert "protonet" in line


def test_a_damaged_or_foreign_run_is_told(proto: Path, tmp_path: Path, fails: Fails) -> None:
    (tmp_path / "last.safetensors").write_bytes((proto / "last.safetensors").read_bytes()[:-7])
    assert "damaged" in fails("evaluate", tmp_path)
    checkpoint.save(tmp_path / "last.safetensors", {"a": torch.ones(1)}, {"step": 1})
    assert "has no settings" in fails("evaluate", tmp_path)
    _, info = checkpoint.load(proto / "last.safetensors")
    settings = {**info["settings"], "wyas": 5}
    checkpoint.save(tmp_path / "last.safetensors", {"a": torch.ones(1)}, {"settings": settings, "step": 1})
    assert "wyas" in fails("evaluate", tmp_path)
    checkpoint.save(
        tmp_path / "last.safetensors", {"learner.a": torch.ones(1)}, {"settings": info["settings"], "step": 1}
    )
    assert "another learner or network" in fails("evaluate", tmp_path)


def test_a_loss_that_is_no_number_is_told(tmp_path: Path, fails: Fails) -> None:
    line = fails("train", "sinusoid-maml", "--steps", 5, "--batch", 2, "--val-every", 0, "--inner-lr", "1e30",
                 "--out", tmp_path / "run")  # fmt: skip
    assert "meta-update 0" in line
    assert "smaller inner or meta learning rate" in line


def spoiled(folder: Path) -> Path:
    """Five classes of 4 photos with a broken JPEG, a text file named .png and a class without photos."""
    for c in range(5):
        for i in range(4):
            picture(folder / f"class-{c}" / f"{i}.jpg", 10 * c + i)
    whole = (folder / "class-0" / "0.jpg").read_bytes()
    (folder / "class-0" / "broken.jpg").write_bytes(whole[: len(whole) // 3])
    (folder / "class-1" / "text.png").write_text("I am a text file")
    (folder / "class-without").mkdir()
    return folder


def test_bad_files_are_named_and_left_out(proto: Path, tmp_path: Path) -> None:
    folder = spoiled(tmp_path / "photos")
    path = os.pathsep.join(filter(None, (ROOT, os.environ.get("PYTHONPATH"))))
    done = subprocess.run(
        [sys.executable, "-m", "kshot", "evaluate", str(proto), "--data", f"folder:{folder}", "--split", "all",
         "--ways", "5", "--queries", "3", "--tasks", "2", "--no-floors"],
        capture_output=True, text=True, timeout=120, env={**os.environ, "PYTHONPATH": path},
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert "2 tasks" in done.stdout
    assert "Traceback" not in done.stderr
    for name in ("broken.jpg", "text.png", "class-without"):
        assert name in done.stderr
    assert done.stderr.count("\n") <= 2


def test_too_few_photos_once_the_bad_ones_are_left_out(proto: Path, tmp_path: Path, fails: Fails) -> None:
    folder = spoiled(tmp_path / "photos")
    arguments = ["--data", f"folder:{folder}", "--split", "all", "--no-floors", "--tasks", 2]
    line = fails("evaluate", proto, *arguments, "--ways", 5, "--shots", 1, "--queries", 4)
    assert "4" in line
    assert "5" in line


def test_data_check(photos: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = evaluated(capsys, "data", "check", f"folder:{photos}")
    assert "complete" in out
    assert "5 classes" in out
    evaluated(capsys, "data", "check", "glyphs")


@pytest.mark.parametrize("name", ["omniglot", "mnist", "grocery", "folder:{tmp}/nowhere"])
def test_data_that_is_missing_is_told(name: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert call("data", "check", name.format(tmp=tmp_path), "--data-root", tmp_path) == 2
    out, err = capsys.readouterr()
    assert "Traceback" not in out + err
    assert "not found" in out + err
    assert str(tmp_path) in out + err


def test_data_check_names_bad_files(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    call("data", "check", f"folder:{spoiled(tmp_path / 'photos')}", "--json", tmp_path / "report.json")
    out, err = capsys.readouterr()
    report = json.loads((tmp_path / "report.json").read_text())
    for name in ("broken.jpg", "text.png", "class-without"):
        assert name in out + err
        assert any(name in line for line in report["lines"])


def test_a_warning_is_one_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    photos = spoiled(tmp_path / "photos")
    run = ["train", "glyphs-5way-1shot-protonet", "--data", f"folder:{photos}", "--out", tmp_path / "run", "--size", 16]
    call(*run, "--steps", 1, "--train-ways", 2, "--train-queries", 1, *TINY[:4], "--fractions", 1, 0, 0)
    warned = [line for line in capsys.readouterr().err.splitlines() if "broken.jpg" in line]
    assert len(warned) == 1
    assert warned[0].startswith("kshot: warning: ")
