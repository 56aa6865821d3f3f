"""`import kshot` is instant, the library is light, and imports inside the package point one way (ARCHITECTURE.md)."""

from __future__ import annotations

import ast
import json
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

import kshot

PACKAGE = Path(kshot.__file__).parent
FILES = sorted(PACKAGE.rglob("*.py"))

HEAVY = {
    *("PIL", "gradio", "gymnasium", "jaxtyping", "kornia", "matplotlib", "mujoco", "pandas", "rich", "safetensors"),
    *("scipy", "sklearn", "tensorboard", "torchvision", "tyro"),
}

EVERYTHING = (
    "checks core distributions linear tree losses places kernels nn memory seeding keys data tasks learners engine "
    "checkpoint planning parallel intervals scores evaluate functions joint likelihood plots loop fold folding train "
    "pretrain families rl models estimators report serve settings testing"
)
# Room (a file or folder of the package) -> the rooms that it may import, in functions too. Itself is always allowed.
MAY_IMPORT: dict[str, set[str]] = {
    room: set(allowed.split())
    for room, allowed in {
        "checks": "",
        "tree": "",
        "linear": "",
        "losses": "checks",
        "seeding": "",
        "keys": "seeding",
        "core": "losses checks tree",
        "distributions": "",
        "places": "",
        "kernels": "places",
        "nn": "kernels checks",
        "memory": "nn",
        "data": "checkpoint places seeding",
        "tasks": "core data losses seeding tree checks",
        "learners": "core distributions linear losses memory nn seeding tree checks",
        "engine": "core memory nn tree checks",
        "checkpoint": "",
        "settings": "core nn",
        "planning": "checkpoint core engine kernels memory nn places tree",
        "parallel": "core tree",
        "functions": "data tasks",
        "joint": "core learners",
        "intervals": "",
        "scores": "checkpoint intervals",
        "likelihood": "core distributions engine joint learners nn scores seeding tasks tree",
        "evaluate": "checkpoint core engine intervals likelihood nn scores seeding tasks tree checks",
        "plots": "checkpoint core distributions evaluate intervals nn scores",
        "loop": "checkpoint parallel scores seeding settings",
        "fold": "core keys nn tree",
        "folding": "core fold loop tree",
        "train": "checkpoint core engine evaluate loop nn parallel planning scores seeding tasks tree checks",
        "pretrain": "checkpoint data loop nn seeding",
        "families": "checkpoint core data engine evaluate functions learners likelihood loop memory nn parallel "
        "plots pretrain rl scores seeding settings tasks train tree",
        "rl": "checkpoint core engine learners linear loop nn scores seeding settings train tree",
        "models": "checkpoint core data engine families learners seeding settings tasks",
        "estimators": "checkpoint core data distributions families joint learners models nn seeding settings tasks "
        "train tree",
        "report": "estimators evaluate intervals",
        "serve": "checkpoint data estimators intervals models",
        "testing": EVERYTHING.replace("testing", ""),
        "cli": EVERYTHING,
        "__init__": "core",
        "__main__": "cli",
    }.items()
}
# Packages that are not Python's own and that a room may import when it is itself imported (not inside functions).
AT_THE_TOP: dict[str, set[str]] = {"data": {"torch", "numpy"}, "rl": {"torch", "numpy"}}
AT_THE_TOP |= {"report": {"torch", "numpy"}, "serve": {"numpy", "fastapi", "pydantic", "starlette", "uvicorn", "h11"}}
AT_THE_TOP |= {"testing": {"torch", "numpy"}}  # simulators speak numpy
AT_THE_TOP |= {"models": {"torch", "numpy"}, "estimators": {"torch", "numpy", "sklearn"}}
# The one file whose classes are another package's: nothing of kshot imports it, users do.
ADAPTERS = {"rl/gym.py": {"gymnasium", "numpy"}}
BY_DEFAULT = {"torch"}


def room(path: Path) -> str:
    first = path.relative_to(PACKAGE).parts[0]
    return first.removesuffix(".py")


def imported(path: Path, top_level: bool) -> Iterator[tuple[int, str]]:
    """(line, dotted name) of every import; `top_level`: of those that run when the file is imported."""

    def walk(node: ast.AST) -> Iterator[ast.AST]:
        for child in ast.iter_child_nodes(node):
            if top_level and isinstance(child, ast.FunctionDef | ast.AsyncFunctionDef | ast.Lambda):
                continue
            if top_level and isinstance(child, ast.If) and "TYPE_CHECKING" in ast.unparse(child.test):
                continue
            yield child
            yield from walk(child)

    for node in walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            yield from ((node.lineno, alias.name) for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            if node.level:  # relative
                parts = list(path.relative_to(PACKAGE.parent).parts[: -node.level])
                base = ".".join([*parts, node.module] if node.module else parts)
            else:
                base = node.module or ""
            if base == "kshot":
                yield from ((node.lineno, f"kshot.{alias.name}") for alias in node.names)
            else:
                yield node.lineno, base


def rooms_imported(path: Path) -> Iterator[tuple[int, str]]:
    names = MAY_IMPORT.keys() - {"__init__", "__main__"}
    for line, name in imported(path, top_level=False):
        package, _, rest = name.partition(".")
        if package == "kshot":
            first = rest.split(".")[0]
            if first in names:  # not `from kshot import __version__`, nor `import kshot` itself
                yield line, first


def test_every_room_has_a_row():
    rooms = {room(file) for file in FILES}
    assert rooms <= MAY_IMPORT.keys(), (
        f"add a row to MAY_IMPORT, and to ARCHITECTURE.md, for {rooms - MAY_IMPORT.keys()}"
    )
    assert set().union(*MAY_IMPORT.values()) <= MAY_IMPORT.keys()


def test_the_table_has_no_circle():
    left = {name: set(allowed) for name, allowed in MAY_IMPORT.items()}
    while left:
        free = [name for name, allowed in left.items() if not allowed & left.keys()]
        assert free, f"these rooms may import each other in a circle: {sorted(left)}"
        for name in free:
            del left[name]


@pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(PACKAGE)))
def test_imports_point_one_way(path: Path):
    here = room(path)
    allowed = MAY_IMPORT[here] | {here}
    wrong = [
        f"{path.relative_to(PACKAGE.parent)}:{line} imports kshot.{other}; '{here}' may import "
        f"{', '.join(sorted(MAY_IMPORT[here])) or 'nothing of kshot'}: move the shared code down, pass it in as an "
        "argument, or change the table here and in ARCHITECTURE.md"
        for line, other in rooms_imported(path)
        if other not in allowed
    ]
    assert not wrong, "\n".join(wrong)


@pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(PACKAGE)))
def test_heavy_packages_are_imported_inside_functions(path: Path):
    own = ADAPTERS.get(path.relative_to(PACKAGE).as_posix(), set())
    allowed = AT_THE_TOP.get(room(path), BY_DEFAULT) | own | BY_DEFAULT | {"kshot"} | sys.stdlib_module_names
    wrong = [
        f"{path.relative_to(PACKAGE.parent)}:{line} imports {name} at its top; import it in the function that needs it"
        for line, name in imported(path, top_level=True)
        if name.split(".")[0] not in allowed
    ]
    assert not wrong, "\n".join(wrong)


def test_the_rules_can_fail(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    package = tmp_path / "kshot"
    (package / "learners").mkdir(parents=True)
    bad = package / "learners" / "bad.py"
    bad.write_text(
        "import rich.table\nfrom ..engine import choose\n"
        "def f():\n    import PIL\n    from kshot import tasks, __version__\n"
    )
    monkeypatch.setattr(sys.modules[__name__], "PACKAGE", package)
    assert [name for _, name in imported(bad, top_level=True)] == ["rich.table", "kshot.engine"]
    assert list(rooms_imported(bad)) == [(2, "engine"), (5, "tasks")]
    with pytest.raises(AssertionError, match=r"bad\.py:2 imports kshot\.engine; 'learners' may import checks, core"):
        test_imports_point_one_way(bad)
    with pytest.raises(AssertionError, match=r"bad\.py:1 imports rich\.table at its top"):
        test_heavy_packages_are_imported_inside_functions(bad)


def test_nothing_imports_an_adapter():
    names = {f"kshot.{name.removesuffix('.py').replace('/', '.')}" for name in ADAPTERS}
    found = {name for file in FILES for _, name in imported(file, top_level=False)} & names
    assert not found


def modules_after(statement: str) -> set[str]:
    code = f"{statement}\nimport json, sys\nprint(json.dumps(sorted(sys.modules)))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    return {name.split(".")[0] for name in json.loads(done.stdout)}


@pytest.mark.parametrize(
    "statement",
    [
        "import kshot; kshot.Batch",
        "import kshot.engine, kshot.tasks, kshot.testing, kshot.learners, kshot.evaluate, kshot.train, kshot.data",
        "import kshot.rl.train, kshot.rl.control, kshot.rl.sim",
    ],
)
def test_import_is_light(statement: str):
    """A fresh interpreter that imports kshot, or all of its library, has torch and nothing heavier."""
    loaded = modules_after(statement)
    brought = modules_after("import torch")
    assert "torch" in loaded
    heavy = (loaded & HEAVY) - brought
    assert not heavy, f"`{statement}` loads {sorted(heavy)}: import them in the functions that need them"


@pytest.mark.parametrize(
    "words",
    ["--help", "--version", "list", "fit --help", "trian", "list recipe", "fit", "fit nowhere", "predict nowhere x"],
)
def test_what_needs_no_torch_loads_none(words: str):
    """Help, the version and mistakes are there at once."""
    loaded = modules_after(
        f"import contextlib, io, sys\nsys.argv = ['kshot', *{words.split()}]\nfrom kshot.cli import main\n"
        "with contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(io.StringIO()):\n"
        "    with contextlib.suppress(SystemExit):\n        main()"
    )
    assert "kshot" in loaded
    assert not loaded & {*HEAVY, "torch", "numpy"}
