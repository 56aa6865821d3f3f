"""Every command of README.md and docs/*.md is run, or the page says why not; what they name exists.

Blocks are fenced. The commands of a ```bash block are run in order, in one temporary folder for each page (`kshot
evaluate DIR` finds what `kshot train` left), beside the small files of `given`. ```python blocks are run in order, in
one namespace for each page that has the names of `given`. A block under the comment `<!-- not run: REASON -->` is not
run, but its commands are read as the command line reads them, and its imports are looked up. So are commands in the
text, in `backticks`: words in capitals stand for names (RUN), `...` for what is left out. `make TARGET` is not run
inside the tests (it would run them), but its target has to exist. Any other command is an error, so that nothing is
passed over in silence.
"""

from __future__ import annotations

import ast
import contextlib
import csv
import functools
import importlib
import importlib.util
import io
import os
import re
import shlex
import shutil
import subprocess
import sys
import tomllib
import warnings
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pytest
import torch
import tyro
from PIL import Image, ImageDraw

from kshot import cli, data, families, learners
from kshot.cli._options import MISSING, explained
from kshot.cli._options import read as read_words
from kshot.cli.scores import Evaluate
from kshot.tasks.functions import registry

ROOT = Path(__file__).resolve().parent.parent
PAGES = ["README.md", *sorted(f"docs/{path.name}" for path in (ROOT / "docs").glob("*.md"))]
SECONDS = 600  # of one command
MARKER = re.compile(r"<!--\s*not run\b:?((?:(?!-->).)*)-->\s*\Z", re.DOTALL)
FENCE = re.compile(r"^```([^\n]*)\n(.*?)^```\s*$", re.DOTALL | re.MULTILINE)
COMMENT = re.compile(r"<!--.*?-->", re.DOTALL)
INLINE = re.compile(r"(?<!`)`([^`]+)`(?!`)")
PROGRAMS = ("kshot ", "torchrun ", "python examples/", "python benchmarks/", "make ")
ELSEWHERE = (
    "git clone ",
    "cd ",
    "source ",
    "pip install ",
    "python3 -m venv ",
    "export ",
    "curl ",
    "at=",
    "id=",
)  # not run here
LANGUAGES = ("bash", "python", "text", "json")
FOREIGN = {"--nproc-per-node"}  # options of other programs


class Block(NamedTuple):
    line: int
    language: str
    text: str
    reason: str | None  # why it is not run; None: it is

    @property
    def commands(self) -> list[str]:
        """Of a bash block: with line continuations joined and comments dropped."""
        joined = re.sub(r"\s*\\\n\s*", " ", self.text)
        lines = (line.strip().removeprefix(".venv/bin/") for line in joined.splitlines())
        return [line for line in lines if line and not line.startswith("#")]


def blocks(text: str) -> list[Block]:
    """The fenced blocks of a page."""
    found = []
    for match in FENCE.finditer(text):
        marker = MARKER.search(text[: match.start()])
        line = text.count("\n", 0, match.start()) + 1
        found.append(Block(line, match[1].strip(), match[2], marker[1].strip() if marker else None))
    return found


@functools.cache
def page_text(page: str) -> str:
    return (ROOT / page).read_text(encoding="utf-8")


def of(page: str, language: str) -> list[Block]:
    return [block for block in blocks(page_text(page)) if block.language == language]


def prose(text: str) -> str:
    """A page without its blocks and comments; lines keep their numbers."""

    def blank(match: re.Match[str]) -> str:
        return "\n" * match[0].count("\n")

    return COMMENT.sub(blank, FENCE.sub(blank, text))


def inline(text: str) -> list[str]:
    """What stands in `backticks` in a page's text, on one line each."""
    return [" ".join(match.split()) for match in INLINE.findall(prose(text))]


PAGE = """
```bash
kshot list \\
  data  # why

# only this
make test
```
<!-- not run: slow -->
```bash
.venv/bin/x
```
<!-- not run -->
```bash
y
```
<!-- not run: no -->
text `a
b` <!-- `c` -->
```bash
z
```
"""


def test_blocks_are_read() -> None:
    assert [(b.commands, b.reason) for b in blocks(PAGE)] == [
        (["kshot list data  # why", "make test"], None),
        (["x"], "slow"),
        (["y"], ""),
        (["z"], None),
    ]
    assert inline(PAGE) == ["a b"]


@pytest.mark.parametrize("page", PAGES)
class TestForm:
    def test_blocks_are_fenced_and_say_what_they_are(self, page: str) -> None:
        """Where nothing else can be a command, none is passed over."""
        strange = [f"line {b.line}: {b.language!r}" for b in blocks(page_text(page)) if b.language not in LANGUAGES]
        assert not strange, f"{page}: blocks are one of {LANGUAGES}, so that commands are run: {strange}"
        programs = tuple(word for word in (*PROGRAMS, *ELSEWHERE) if word.endswith(" "))
        hidden = [
            line for b in blocks(page_text(page)) if b.language == "text" for line in b.text.splitlines()
            if line.startswith(programs)
        ]  # fmt: skip
        assert not hidden, f"{page}: commands in a block of text are not run: {hidden}"
        indented = re.findall(r"(?:^|\n)[ \t]*\n((?: {4}|\t)[^\n]*)", prose(page_text(page)))
        assert not indented, f"{page}: write ``` fences in place of indented blocks: {indented}"

    def test_what_is_not_run_says_why(self, page: str) -> None:
        silent = [f"line {block.line}" for block in blocks(page_text(page)) if block.reason == ""]
        assert not silent, f"{page}, {', '.join(silent)}: '<!-- not run: REASON -->' gives no reason"

    def test_every_command_is_known(self, page: str) -> None:
        strange = [f"line {b.line}: {c}" for b in of(page, "bash") for c in b.commands
                   if not c.startswith((*PROGRAMS, *ELSEWHERE))]  # fmt: skip
        assert not strange, f"{page} has commands that these tests do not know: {strange}"


# What is read and not run


def subcommands(command: str) -> list[str]:
    """The words of a command, without comments, pipes and what follows them."""
    words = shlex.split(command, comments=True)
    cut = next((i for i, word in enumerate(words) if word in ("|", "&&", ";", ">")), len(words))
    return words[:cut]


def silently(call: Any, *arguments: Any, **more: Any) -> Any:
    """The result; help that is printed is a result too."""
    said = io.StringIO()
    try:
        with contextlib.redirect_stdout(said):
            return call(*arguments, **more)
    except SystemExit as done:
        if done.code:
            raise
        return None


def kinds_of_test(run: str, page: str) -> list[Any]:
    """The settings of a test that `kshot evaluate RUN` may have; which ones depends on what was trained into RUN."""
    trained = re.search(rf"kshot train (\S+)[^\n`]*--out {re.escape(run)}(?![\w/-])", page_text(page))
    name = trained[1] if trained else Path(run).name
    if name not in set(families.recipe_names()):
        return [families.family(own).test for own in families.FAMILIES]
    return [families.of_recipe(name).test]


def read_kshot(words: list[str], page: str) -> None:
    """Read `kshot WORDS` as the command line does, without running it.

    Raises:
        ValueError: the command line would refuse it.
    """
    name, *rest = words
    if words == ["--version"] or words[0] in cli._HELP:
        return
    assert name in cli._COMMANDS, f"there is no command {name!r}"
    if not rest:
        return  # the command is named, not called
    partial = name in ("evaluate", "fit", "predict", "curve", "video") and rest[0].startswith("--")
    if partial or "..." in rest:
        unknown = {word.split("=")[0] for word in rest if word.startswith("--")} - options()
        assert not unknown, f"unknown options {unknown}"
        return
    if name in ("evaluate", "compare"):
        errors = []
        for kind in kinds_of_test(rest[0], page):
            try:
                command = cli._settings(name)
                own = [cli._FORMER.get(word, word) for word in rest]
                default = command(MISSING, test=kind())
                own = [word for word in own if word != "--help"]
                check_values(read_words(command, f"kshot {name}", own, default)[0], own)
                return
            except ValueError as error:
                errors.append(str(error))
        raise ValueError("; ".join(errors))
    if name == "train" and rest[0] == "RECIPE":
        rest = ["sinusoid-maml", *rest[1:]]
    if name == "train" and len(rest) == 1:
        families.recipe(rest[0])  # named, not called
        return
    check_values(silently(cli._parse, [name, *rest]), rest)


def check_values(settings: Any, words: list[str]) -> None:
    """Names that are looked up when the command is run.

    Raises:
        ValueError: there is no such data set, function or control task.
    """
    chosen = getattr(getattr(settings, "settings", None), "data", None) or getattr(settings, "data", None)
    if isinstance(chosen, str) and not registry.is_function(chosen):
        data.options(chosen)
    for flag in ("--on", "--tasks"):
        for word in after(flag, words) if flag in words else ():
            if not word.isdigit():
                families.of_tasks(word)


def after(flag: str, words: list[str]) -> list[str]:
    rest = words[words.index(flag) + 1 :]
    return rest[: next((i for i, word in enumerate(rest) if word.startswith("-")), len(rest))]


@functools.cache
def options() -> set[str]:
    """Every option of every command and of the benchmarks."""
    some = ("omniglot-5way-1shot-maml", "gp-rbf-convcnp", "cheetah-direction-maml")
    helps = [functools.partial(cli._parse, ["train", name, "--help-all"]) for name in some]
    helps += [functools.partial(cli._parse, [name, "--help-all"]) for name in cli._COMMANDS if name != "train"]
    tests = [Evaluate(MISSING, test=kind()) for kind in kinds_of_test("RUN", PAGES[0])]
    helps += [functools.partial(print, explained(Evaluate, "kshot", own, every=True)) for own in tests]
    helps += [functools.partial(tyro.cli, kind, args=["--help"]) for kind in map(benchmark, benchmarks())]
    found = {"--help", "--help-all", "--version", "--budget", *cli._FORMER}
    for name, entry in learners.REGISTRY.items():
        for payload in entry.takes:
            found |= {"--" + option.replace("_", "-") for option in learners.options(name, payload)}
    for show in helps:
        said = io.StringIO()
        with contextlib.redirect_stdout(said), contextlib.suppress(SystemExit):
            show()
        found |= set(re.findall(r"(?<![\w-])--[a-z][\w-]*", said.getvalue()))
    return found


def benchmarks() -> list[str]:
    paths = sorted((ROOT / "benchmarks").rglob("*.py"))
    return [path.relative_to(ROOT).as_posix() for path in paths if "tyro.cli(" in path.read_text("utf-8")]


@functools.cache
def benchmark(path: str) -> Any:
    """The settings of a benchmark's command."""
    words = re.search(r"tyro\.cli\((\w+)", (ROOT / path).read_text("utf-8"))
    assert words is not None, f"{path} takes no settings"
    return getattr(loaded(path), words[1])


@functools.cache
def loaded(path: str) -> Any:
    name = f"of_{path.removesuffix('.py').replace('/', '_')}"
    spec = importlib.util.spec_from_file_location(name, ROOT / path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(str((ROOT / path).parent))
        spec.loader.exec_module(module)
    return module


def read(command: str, page: str) -> None:
    """Read a command without running it.

    Raises:
        AssertionError, ValueError, SystemExit: it could not be run.
    """
    program, *words = subcommands(command)
    if program == "kshot":
        read_kshot(words, page)
    elif program == "torchrun":
        read_kshot(words[words.index("kshot") + 1 :], page)
    elif program == "python" and words[0].startswith(("benchmarks/", "examples/")):
        path, *rest = words
        assert (ROOT / path).is_file(), f"there is no {path}"
        if path == "benchmarks/reproduce.py":
            names = {*loaded(path).JOBS, "NAME"}
            assert not (unknown := {word for word in rest if not word.startswith("--")} - names), f"no jobs {unknown}"
        if path in benchmarks():
            silently(tyro.cli, benchmark(path), args=rest)
    elif program == "pip":
        assert not [word for word in words if re.match(r"kshot\b", word)], "kshot is not on PyPI: pip install -e ."
        assert "-c" not in words or (ROOT / words[words.index("-c") + 1]).is_file()


@pytest.mark.parametrize("page", PAGES)
class TestReading:
    def test_commands_are_read(self, page: str) -> None:
        """Those of blocks that are not run, and those of the text."""
        blocked = [c for b in of(page, "bash") if b.reason is not None for c in b.commands]
        written = [c for c in inline(page_text(page)) if c.startswith((*PROGRAMS, "pip "))]
        wrong = []
        for command in dict.fromkeys([*blocked, *written]):
            if re.match(r"kshot [A-Z]", command):
                continue  # a form, such as `kshot COMMAND --help`
            try:
                read(command, page)
            except (AssertionError, ValueError, SystemExit) as error:
                wrong.append(f"{command}\n    {error}")
        assert not wrong, f"{page} has commands that cannot be run:\n" + "\n".join(wrong)

    def test_options_exist(self, page: str) -> None:
        for span in inline(page_text(page)):
            if span.startswith("--"):
                words = span.split()
                assert words[0].split("=")[0] in options() | FOREIGN, f"{page}: there is no option {words[0]}"
                if words[0] == "--data" and words[1:]:
                    data.options(words[1])

    def test_files_exist(self, page: str) -> None:
        """What is written as a path of the repository, or linked."""
        text = prose(page_text(page))
        paths = [word for span in inline(page_text(page)) for word in span.split()
                 if re.fullmatch(r"(kshot|docs|tests|examples|benchmarks)/[\w./*-]+", word)]  # fmt: skip
        missing = [path for path in paths if not list(ROOT.glob(path.rstrip("/")))]
        links = re.findall(r"\]\(([^)#\s]+)[^)]*\)", text)
        missing += [link for link in links if "://" not in link and link != "results.md"
                    and not ((ROOT / page).parent / link).exists()]  # fmt: skip
        written = set(re.findall(r"(?:--json|--out|--plot|--learning-curve)\s+(\S+?)[`\s]", page_text(page)))
        missing = [path for path in missing if path not in written]
        assert not missing, f"{page} names files that are not there: {missing}"

    def test_python_names_exist(self, page: str) -> None:
        for span in inline(page_text(page)):
            for name in re.findall(r"(?<![\w./-])kshot(?:\.\w+)+(?![\w/-])", span):
                assert exists(name), f"{page}: there is no {name}"
        for block in of(page, "python"):
            for node in ast.walk(ast.parse(block.text)):
                if isinstance(node, ast.ImportFrom) and (node.module or "").startswith("kshot"):
                    for alias in node.names:
                        assert exists(f"{node.module}.{alias.name}"), f"{page}: there is no {node.module}.{alias.name}"


def exists(name: str) -> bool:
    """Whether a module, or what is in one, can be had by that dotted name."""
    module, rest = name, []
    while True:
        with contextlib.suppress(ModuleNotFoundError):
            if importlib.util.find_spec(module) is not None:
                break
        module, _, last = module.rpartition(".")
        rest.insert(0, last)
    found: Any = importlib.import_module(module) if rest else True
    for part in rest:
        if not hasattr(found, part):
            return False
        found = getattr(found, part)
    return True


def test_names_are_looked_up() -> None:
    assert exists("kshot.learners.gradient.maml")
    assert exists("kshot.apps.series.familiar")
    assert not exists("kshot.learners.nothing")
    assert not exists("kshot.nothing.more")


@pytest.mark.parametrize("wrong", [
    "kshot fit photos --aout mine.kshot", "kshot fly", "kshot train nothing-maml --out x", "kshot list bodies",
    "kshot train omniglot-5way-1shot-maml --data folder --out x", "kshot evaluate x --on nowhere",
    "kshot evaluate --nothing", "pip install 'kshot[web]'", "python benchmarks/nothing.py",
    "python benchmarks/reproduce.py nothing", "python benchmarks/classifier/many.py --nothing",
    "torchrun --nproc-per-node=2 -m kshot train omniglot-5way-1shot-maml --budget quik",
])  # fmt: skip
def test_wrong_commands_are_refused(wrong: str) -> None:
    with pytest.raises((AssertionError, ValueError, SystemExit)), contextlib.redirect_stderr(io.StringIO()):
        read(wrong, "README.md")


def test_extras_exist() -> None:
    """In the pages, and in the messages and docstrings of the package."""
    known = set(tomllib.loads((ROOT / "pyproject.toml").read_text("utf-8"))["project"]["optional-dependencies"])
    files = [*map(ROOT.joinpath, PAGES), ROOT / "pyproject.toml", *(ROOT / "kshot").rglob("*.py")]
    for path in files:
        for extras in re.findall(r"kshot\[([\w, -]+)\]|-e '?\.\[([\w, -]+)\]", path.read_text("utf-8")):
            for extra in "".join(extras).split(","):
                assert extra.strip() in known, f"{path.relative_to(ROOT)}: there is no extra {extra!r}"


def test_make_targets_exist() -> None:
    if shutil.which("make") is None:
        pytest.skip("make is not installed")
    written = [c for page in PAGES for c in inline(page_text(page)) if c.startswith("make ")]
    words = [shlex.split(c, comments=True) for page in PAGES for b in of(page, "bash") for c in b.commands]
    words = [w for w in [*words, *map(str.split, written)] if w[0] == "make"]
    targets = {word for command in words for word in command[1:] if "=" not in word} | {"demo", "test", "check"}
    run = subprocess.run(
        ["make", "-n", *sorted(targets)], cwd=ROOT, capture_output=True, text=True, env=_plain_environment()
    )
    assert run.returncode == 0, f"make {sorted(targets)}: {run.stderr}"


# What is run


@pytest.fixture
def given(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> dict[str, Any]:
    """Small files that the pages' commands work on, and the names that their Python works on."""
    for name in ("examples", "benchmarks", "docs"):
        (tmp_path / name).symlink_to(ROOT / name)
    monkeypatch.chdir(tmp_path)
    random = np.random.default_rng(0)
    pictures, names = [], []
    for kind in ("circle", "cross", "square"):
        for number in range(3):
            path = Path("photos", kind, f"{number}.jpg")
            path.parent.mkdir(parents=True, exist_ok=True)
            _drawn(kind, random).save(path)
            pictures.append(str(path))
            names.append(kind)
    Path("new").mkdir()
    for kind in ("circle", "cross"):
        _drawn(kind, random).save(f"new/{kind}.png")
    days = np.arange(20.0)
    values = np.sin(days / 3)
    _table(
        "readings.csv",
        ["day", "temperature"],
        [[d, "" if i % 5 == 2 else v] for i, (d, v) in enumerate(zip(days, values, strict=True))],
    )
    _table("days.csv", ["day"], [[2.5], [7.5]])
    _table("heights.csv", ["child", "age", "height"], [["a", 1, 75], ["a", 2, 86], ["a", 3, ""], ["a", 4, 103]])
    return {
        "pictures": pictures, "names": names, "others": ["new/circle.png", "new/cross.png"], "more": pictures,
        "days": days, "values": values,
    }  # fmt: skip


def _drawn(kind: str, random: np.random.Generator) -> Image.Image:
    picture = Image.new("L", (40, 40), 255)
    pen = ImageDraw.Draw(picture)
    a, b = random.integers(4, 10, 2)
    low, high = (int(a), int(b)), (int(39 - b), int(39 - a))
    if kind == "circle":
        pen.ellipse([low, high], outline=0, width=3)
    elif kind == "square":
        pen.rectangle([low, high], outline=0, width=3)
    else:
        pen.line([low, high], fill=0, width=3)
        pen.line([(low[0], high[1]), (high[0], low[1])], fill=0, width=3)
    return picture


def _table(path: str, header: list[str], rows: list[list[Any]]) -> None:
    with open(path, "w", newline="", encoding="utf-8") as file:
        csv.writer(file).writerows([header, *rows])


def run_kshot(words: list[str]) -> tuple[int | str | None, str]:
    """`kshot WORDS` in this process: the exit code, and what was printed."""
    said = io.StringIO()
    with pytest.MonkeyPatch.context() as patch, contextlib.redirect_stdout(said), contextlib.redirect_stderr(said):
        patch.setattr(sys, "argv", ["kshot", *words])
        patch.setattr(warnings, "showwarning", warnings.showwarning)
        with pytest.raises(SystemExit) as done:
            cli.main()
    return done.value.code, said.getvalue()


def test_the_pages_have_commands() -> None:
    assert (
        sum(b.reason is None and c.startswith("kshot ") for p in PAGES for b in of(p, "bash") for c in b.commands) > 20
    )


@pytest.mark.parametrize("page", [page for page in PAGES if any(b.reason is None for b in of(page, "bash"))])
def test_commands_run(page: str, given: dict[str, Any], tmp_path: Path) -> None:
    """In one test for each page, because a command may need what an earlier one wrote."""
    threads = torch.get_num_threads()
    for block in of(page, "bash"):
        for command in block.commands if block.reason is None else []:
            program, *words = shlex.split(command, comments=True)
            if program == "kshot":
                code, said = run_kshot(words)
                torch.set_num_threads(threads)
            elif program == "torchrun" or command.startswith("python examples/"):
                module = ["-m", "torch.distributed.run"] if program == "torchrun" else []
                run = subprocess.run(
                    [sys.executable, *module, *words], cwd=tmp_path, capture_output=True, text=True, timeout=SECONDS,
                    env={**_plain_environment(), "PYTHONPATH": str(ROOT)},
                )  # fmt: skip
                code, said = run.returncode, run.stdout + run.stderr
            else:
                read(command, page)
                continue
            assert code == 0, f"{page}, line {block.line}: {command}\n{said}"


@pytest.mark.parametrize("page", [page for page in PAGES if any(b.reason is None for b in of(page, "python"))])
def test_python_runs(page: str, given: dict[str, Any]) -> None:
    if page == "docs/series.md":
        given["others"] = given["days"] + 0.5
    if page == "docs/index.md":
        given |= _episode()
    for block in of(page, "python"):
        if block.reason is None:
            exec(compile(block.text, f"{page}, line {block.line}", "exec"), given)


def test_the_library_in_a_few_lines_runs(capsys: pytest.CaptureFixture[str]) -> None:
    """README's block, shortened; `benchmarks/quickstart.py` runs all of it and its record is what the page prints."""
    text = loaded("benchmarks/quickstart.py").block()
    for whole, short in (("steps=100", "steps=2"), ("num_tasks=600", "num_tasks=2")):
        assert whole in text
        text = text.replace(whole, short)
    exec(compile(text, "README.md", "exec"), {})
    assert re.fullmatch(r"ProtoNet \(inductive\): accuracy \S+ ± \S+ %, 2 tasks\n", capsys.readouterr().out)


def _episode() -> dict[str, Any]:
    from kshot.learners import build
    from kshot.testing import Clusters

    task = Clusters(ways=3, shots=1, queries=2).sample(torch.Generator().manual_seed(0), 1)
    support, query = (type(part)(*(leaf[0] for leaf in part)) for part in (task.support, task.query))
    return {
        "learner": build("protonet", torch.nn.Flatten(), ways=3, features=query.x[0].numel()),
        "support": support,
        "x": query.x,
    }


def _plain_environment() -> dict[str, str]:
    """Without what a `make test` around this process would tell another make."""
    return {name: value for name, value in os.environ.items() if not name.startswith(("MAKE", "MFLAGS"))}
