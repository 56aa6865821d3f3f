"""`import kshot` is light, and imports inside the package point one way (ARCHITECTURE.md, "Modules and dependencies").

Between rooms every import counts, those in functions and for type checkers too. Inside a room, and for circles, those
under `if TYPE_CHECKING` do not: they never run.
"""

from __future__ import annotations

import ast
import json
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import pytest

import kshot

PACKAGE = Path(kshot.__file__).parent
FILES = sorted(PACKAGE.rglob("*.py"))

HEAVY = {
    *("PIL", "gradio", "gymnasium", "jaxtyping", "kornia", "matplotlib", "mujoco", "pandas", "rich", "safetensors"),
    *("scipy", "sklearn", "tensorboard", "torchvision", "tyro"),
}

# Rooms import what stands in rows below theirs, and in their row what stands to the right. Above all: `kshot` itself
# and `python -m kshot`.
ROWS = [
    ["cli"],
    ["apps"],
    ["families"],
    ["training", "plots"],
    ["scoring"],
    ["learners", "testing"],
    ["tasks", "engine"],
    ["data", "nn"],
    ["storage"],
    ["core", "numerics"],
]
ENTRANCES = {
    "__init__": {*(room for row in ROWS[1:] for room in row), "_moved", "api"},
    "__main__": {"cli"},
    "_moved": set(),
    "api": {room for row in ROWS[2:] for room in row},
}
ORDER = [room for row in ROWS for room in row]
MAY_IMPORT: dict[str, set[str]] = {**{room: {*ORDER[k + 1 :], "_moved"} for k, room in enumerate(ORDER)}, **ENTRANCES}

# Package -> its file or folder ("." is the package's own __init__.py) -> those beside it that it may import. What is
# not named imports nothing beside it.
INSIDE: dict[str, dict[str, str]] = {
    "kshot.apps": {
        "classify": ".",
    },
    "kshot.apps.classify": {
        "choice": "given models",
        "classifier": "choice files fitted given heads labels models saved",
        "fitted": "confidence heads models",
        "given": "vectors",
        "heads": "confidence models vectors",
        "labels": "given",
        "saved": "files given models",
        "serve": "models",
    },
    "kshot.apps.classify.models": {
        ".": "hub text tuning",
        "lite": "hub",
        "text": "hub",
    },
    "kshot.apps.classify.serve": {
        ".": "app http session",
        "app": "guard page session",
        "guard": "session",
        "http": "guard session",
        "markup": "session",
        "page": "markup pad session visit",
        "visit": "markup pad session",
    },
    "kshot.apps.series": {
        "familiar": "fitting",
        "regressor": "familiar fitting",
    },
    "kshot.cli": {
        ".": "_options _shared scores train",
        "_shared": "_options",
        "classify": "_options _shared",
        "curve": "_options _shared",
        "demo": "_shared scores train",
        "listing": "_options _shared",
        "scores": "_options _shared",
        "serve": "_options _shared",
        "train": "_options _shared",
        "video": "_options _shared scores",
    },
    "kshot.data": {
        ".": "arrays bank corpora sets text",
        "arrays": "bank images",
        "corpora": "bank text",
        "folder": "bank images sources",
        "glyphs": "bank",
        "idx": "bank images",
        "omniglot": "bank images sources",
        "sets": "bank folder glyphs idx omniglot",
        "sources": "bank images",
        "text": "bank csv images sources",
    },
    "kshot.engine": {
        ".": "gradients",
        "gradients": "rematerialise",
        "planning": "gradients rematerialise",
    },
    "kshot.families": {
        "control": ".",
        "functions": ". meta",
        "images": ". meta",
        "meta": ".",
    },
    "kshot.families.control": {
        "recipes": "settings step",
        "row": "recipes settings step video",
        "settings": "step",
    },
    "kshot.families.functions": {
        "recipes": "settings",
        "row": "recipes settings",
    },
    "kshot.families.images": {
        "recipes": "settings",
        "row": "recipes settings",
    },
    "kshot.families.images.recipes": {
        "glyphs": "omniglot",
        "grocery": "omniglot",
    },
    "kshot.learners": {
        "gradient": "_body metric",
        "metric": "_body",
        "policy": "gradient",
        "semi": "metric",
    },
    "kshot.learners.gradient": {
        "anil": "_inner",
        "boil": "_inner",
        "finetune": "_inner",
        "imaml": "_inner",
        "maml": "_inner",
        "mamlpp": "_inner",
        "metasgd": "_inner",
        "reptile": "_inner",
    },
    "kshot.learners.metric": {
        "matching": "_embed",
        "metaoptnet": "_embed _linear",
        "pixels": "_embed",
        "plda": "_embed _linear",
        "protonet": "_embed",
        "r2d2": "_embed _linear",
        "simpleshot": "_embed protonet",
    },
    "kshot.learners.policy": {
        "learner": "actor rollouts",
        "maml": "learner returns",
        "pearl": "learner policy rollouts",
        "recurrent": "learner policy returns rollouts",
        "replay": "pearl",
        "returns": "policy rollouts",
    },
    "kshot.learners.processes": {
        "acnp": "_process",
        "anp": "_process acnp np",
        "bnp": "_process",
        "cnp": "_process",
        "convcnp": "_process",
        "convcnp2d": "_process",
        "gp": "_process",
        "neighbours": "_process",
        "np": "_process",
        "tnpd": "_process acnp",
    },
    "kshot.nn": {
        ".": "backbones conversion efficientnet functional normalisation",
        "backbones": "kernels normalisation",
        "conversion": "functional normalisation",
        "efficientnet": "normalisation",
        "functional": "normalisation",
        "normalisation": "kernels",
    },
    "kshot.numerics": {
        "keys": "seeding",
        "losses": "checks",
    },
    "kshot.plots": {
        ".": "functions scores",
        "functions": "_base",
        "scores": "_base",
    },
    "kshot.scoring": {
        "classes": "scores",
        "density": "autoregressive scores",
        "evaluate": "classes density intervals returns scores",
        "returns": "scores",
        "scores": "intervals",
    },
    "kshot.storage": {
        "download": "checkpoint",
    },
    "kshot.tasks": {
        ".": "base functions images",
        "functions": "base",
        "images": "base",
    },
    "kshot.tasks.control": {
        "bodies": "control mujoco sim",
        "camera": "bodies control mujoco observed sim",
        "gym": "bodies camera control mujoco registry sim",
        "mujoco": "control sim",
        "observed": "control sim",
        "paper": "control mujoco sim",
        "registry": "bodies control observed paper v5",
        "sim": "control warp",
        "v5": "control mujoco",
    },
    "kshot.tasks.functions": {
        ".": "sinusoid",
        "curves": "sinusoid",
        "pixels": "sinusoid",
        "predprey": "curves sinusoid",
        "processes": "sinusoid",
        "published": "processes sinusoid",
        "registry": "pixels predprey processes published sinusoid standardised varied",
        "varied": "processes sinusoid",
    },
    "kshot.tasks.images": {
        "episodes": "augment",
    },
    "kshot.testing": {
        ".": "_control _learner _report _tasks clusters",
        "_control": "_report",
        "_learner": "_report",
        "_tasks": "_report",
    },
    "kshot.training": {
        "folding": "loop",
        "loop": "settings",
        "meta": "loop",
        "pretrain": "loop",
    },
}

# Packages that are not Python's own and that a room may import when it is itself imported (not inside functions).
AT_THE_TOP: dict[str, set[str]] = {
    "data": {"numpy"},
    "tasks/control": {"numpy"},  # simulators speak numpy
    "learners/policy": {"numpy"},
    "families/control": {"numpy"},
    "testing": {"numpy"},
    "apps": {"numpy", "sklearn"},
    "apps/classify/models": {"numpy"},
    "apps/classify/serve": {"numpy", "fastapi", "pydantic", "starlette", "uvicorn", "h11"},
}
# The one file whose classes are another package's: nothing of kshot imports it, users do.
ADAPTERS = {"tasks/control/gym.py": {"gymnasium", "numpy"}}
BY_DEFAULT = {"torch"}


class Found(NamedTuple):
    """An import: where, of what (dotted), and whether it is for type checkers alone."""

    line: int
    name: str
    checked: bool


def module_of(path: Path) -> str:
    parts = path.relative_to(PACKAGE.parent).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


def is_module(name: str) -> bool:
    path = PACKAGE.parent.joinpath(*name.split("."))
    return path.with_suffix(".py").is_file() or (path / "__init__.py").is_file()


def imported(path: Path, top_level: bool) -> Iterator[Found]:
    """Every import; `top_level`: of those that run when the file is imported."""

    def walk(node: ast.AST, checked: bool) -> Iterator[tuple[ast.AST, bool]]:
        for child in ast.iter_child_nodes(node):
            if top_level and isinstance(child, ast.FunctionDef | ast.AsyncFunctionDef | ast.Lambda):
                continue
            under = checked or (isinstance(child, ast.If) and "TYPE_CHECKING" in ast.unparse(child.test))
            if top_level and under:
                continue
            yield child, under
            yield from walk(child, under)

    for node, checked in walk(ast.parse(path.read_text(encoding="utf-8")), False):
        if isinstance(node, ast.Import):
            yield from (Found(node.lineno, alias.name, checked) for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            base = node.module or ""
            if node.level:  # relative
                parts = path.relative_to(PACKAGE.parent).parts[: -node.level]
                base = ".".join([*parts, node.module] if node.module else parts)
            for alias in node.names:
                full = f"{base}.{alias.name}"
                inside = base.split(".")[0] == "kshot" and is_module(full)
                yield Found(node.lineno, full if inside else base, checked)


def room(module: str) -> str:
    """The room of a module of kshot."""
    _, _, rest = module.partition(".")
    return rest.split(".")[0] or "__init__"


def split(one: str, other: str) -> tuple[str, str, str]:
    """The package that two modules share, and their parts of it."""
    a, b = one.split("."), other.split(".")
    k = next((k for k, (x, y) in enumerate(zip(a, b, strict=False)) if x != y), min(len(a), len(b)))
    return ".".join(a[:k]), a[k] if k < len(a) else ".", b[k] if k < len(b) else "."


def wrong_imports(path: Path) -> list[str]:
    """A line for each import that the tables do not allow."""
    here, wrong = module_of(path), []
    for line, name, checked in imported(path, top_level=False):
        if name.split(".")[0] != "kshot" or name == here:
            continue
        at = f"{path.relative_to(PACKAGE.parent)}:{line} imports {name}"
        own, other = room(here), room(name)
        if own != other:
            if name != "kshot" and other not in MAY_IMPORT[own]:
                wrong.append(
                    f"{at}; '{own}' may import "
                    f"{', '.join(sorted(MAY_IMPORT[own] - {'_moved'})) or 'nothing of kshot'}: move the shared code "
                    "down, or pass it in as an argument"
                )
        elif not checked:
            package, one, beside = split(here, name)
            allowed = INSIDE.get(package, {}).get(one, "").split()
            if beside not in allowed:
                wrong.append(
                    f"{at}; in {package} '{one}' may import {', '.join(allowed) or 'nothing beside it'}: move the "
                    "shared code, or add it to INSIDE"
                )
    return wrong


def test_every_room_has_a_place():
    rooms = {room(module_of(file)) for file in FILES}
    assert rooms == MAY_IMPORT.keys(), (
        f"ROWS, and ARCHITECTURE.md, name other packages than there are: {rooms ^ MAY_IMPORT.keys()}"
    )


def test_the_table_of_insides_names_what_there_is():
    for package, rows in INSIDE.items():
        folder = PACKAGE.parent.joinpath(*package.split("."))
        named = {part for one, beside in rows.items() for part in (one, *beside.split())} - {"."}
        gone = {part for part in named if not is_module(f"{package}.{part}")}
        assert folder.is_dir(), f"there is no package {package}"
        assert not gone, f"{package} has no {sorted(gone)}"


@pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(PACKAGE)))
def test_imports_point_one_way(path: Path):
    wrong = wrong_imports(path)
    assert not wrong, "\n".join(wrong)


def test_no_name_of_a_package_hides_a_module():
    for path in FILES:
        if path.name != "__init__.py":
            continue
        nodes = ast.parse(path.read_text(encoding="utf-8")).body
        bound = {node.name for node in nodes if isinstance(node, ast.FunctionDef | ast.ClassDef)}
        for node in nodes:
            if isinstance(node, ast.ImportFrom) and node.module != module_of(path):
                bound |= {alias.asname or alias.name for alias in node.names}
        hidden = {name for name in bound if is_module(f"{module_of(path)}.{name}")}
        assert not hidden, (
            f"{module_of(path)}: {sorted(hidden)} are names of modules too, and the last one imported wins"
        )


def test_the_architecture_names_every_module():
    text = (PACKAGE.parent / "ARCHITECTURE.md").read_text("utf-8")
    block = text[text.index("Every module, as its docstring begins:") :].split("```")[1]
    named, folders = set(), []
    for line in block.splitlines()[1:]:
        depth = (len(line) - len(line.lstrip())) // 2
        name, folders = line.split()[0], folders[:depth]
        if name.endswith("/"):
            folders.append(name.removesuffix("/"))
            name = "__init__.py"
        named.add("/".join([*folders, name]))
    entrances = {"__init__.py", "__main__.py"}
    assert named | entrances == {path.relative_to(PACKAGE).as_posix() for path in FILES}


def circles(edges: dict[str, set[str]]) -> list[list[str]]:
    """What imports itself by way of others: the strongly connected parts of more than one (Tarjan 1972)."""
    number: dict[str, int] = {}
    lowest: dict[str, int] = {}
    stack: list[str] = []
    found: list[list[str]] = []

    def visit(one: str) -> None:
        number[one] = lowest[one] = len(number)
        stack.append(one)
        for other in sorted(edges.get(one, ())):
            if other not in number:
                visit(other)
                lowest[one] = min(lowest[one], lowest[other])
            elif other in stack:
                lowest[one] = min(lowest[one], number[other])
        if lowest[one] == number[one]:
            part = stack[stack.index(one) :]
            del stack[stack.index(one) :]
            if len(part) > 1:
                found.append(sorted(part))

    for one in sorted(edges):
        if one not in number:
            visit(one)
    return found


def edges_of(files: list[Path]) -> dict[str, set[str]]:
    """Module -> modules that it imports, in functions too, but not for type checkers alone."""
    found: dict[str, set[str]] = {}
    for file in files:
        own = found.setdefault(module_of(file), set())
        own |= {
            name for _, name, checked in imported(file, top_level=False) if name.startswith("kshot") and not checked
        }
        own -= {module_of(file), "kshot"}  # the version, and whether it is there
    return found


def test_no_module_imports_itself_by_way_of_others():
    assert not circles(edges_of(FILES))


def test_no_part_of_a_package_imports_itself_by_way_of_others():
    for package, rows in INSIDE.items():
        found = circles({one: set(beside.split()) for one, beside in rows.items()})
        assert not found, f"{package}: {found}"


@pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(PACKAGE)))
def test_heavy_packages_are_imported_inside_functions(path: Path):
    relative = path.relative_to(PACKAGE).as_posix()
    own = ADAPTERS.get(relative, set())
    place = max((place for place in AT_THE_TOP if relative.startswith(f"{place}/")), key=len, default="")
    allowed = AT_THE_TOP.get(place, set()) | own | BY_DEFAULT | {"kshot"} | sys.stdlib_module_names
    wrong = [
        f"{path.relative_to(PACKAGE.parent)}:{line} imports {name} at its top; import it in the function that needs it"
        for line, name, _ in imported(path, top_level=True)
        if name.split(".")[0] not in allowed
    ]
    assert not wrong, "\n".join(wrong)


def test_the_rules_can_fail(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    package = tmp_path / "kshot"
    for folder in ("learners/metric", "learners/gradient", "tasks", "engine"):
        (package / folder).mkdir(parents=True, exist_ok=True)
        (package / folder / "__init__.py").touch()
    (package / "learners" / "gradient" / "near.py").touch()
    bad = package / "learners" / "metric" / "bad.py"
    bad.write_text(
        "import rich.table\nfrom ...training import loop\nfrom typing import TYPE_CHECKING\n"
        "if TYPE_CHECKING:\n    from kshot.scoring import scores\n    from kshot.learners.gradient import near\n"
        "def f():\n    import PIL\n    from kshot import tasks, __version__\n    from ..gradient import near\n"
    )
    monkeypatch.setattr(sys.modules[__name__], "PACKAGE", package)
    assert [name for _, name, _ in imported(bad, top_level=True)] == ["rich.table", "kshot.training", "typing"]
    assert [(line, name) for line, name, _ in imported(bad, top_level=False) if name.startswith("kshot")] == [
        (2, "kshot.training"), (5, "kshot.scoring"), (6, "kshot.learners.gradient.near"), (9, "kshot.tasks"),
        (9, "kshot"), (10, "kshot.learners.gradient.near"),
    ]  # fmt: skip
    wrong = wrong_imports(bad)
    assert [line.partition(" imports ")[0].rpartition(":")[2] for line in wrong] == ["2", "5", "10"]
    assert "'learners' may import core, data" in wrong[0]
    assert "in kshot.learners 'metric' may import" in wrong[2]
    with pytest.raises(AssertionError, match=r"bad\.py:2 imports kshot\.training; 'learners' may import core"):
        test_imports_point_one_way(bad)
    with pytest.raises(AssertionError, match=r"bad\.py:1 imports rich\.table at its top"):
        test_heavy_packages_are_imported_inside_functions(bad)
    near = package / "learners" / "gradient" / "near.py"
    near.write_text("def f():\n    from kshot.learners.metric import bad\n")
    assert circles(edges_of([bad, near])) == [["kshot.learners.gradient.near", "kshot.learners.metric.bad"]]
    near.write_text("from typing import TYPE_CHECKING\nif TYPE_CHECKING:\n    from kshot.learners.metric import bad\n")
    assert not circles(edges_of([bad, near]))


def test_nothing_imports_an_adapter():
    names = {f"kshot.{name.removesuffix('.py').replace('/', '.')}" for name in ADAPTERS}
    assert all(is_module(name) for name in names)
    found = {name for file in FILES for _, name, _ in imported(file, top_level=False)} & names
    assert not found


def modules_after(statement: str) -> set[str]:
    code = f"{statement}\nimport json, sys\nprint(json.dumps(sorted(sys.modules)))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    return set(json.loads(done.stdout))


@pytest.mark.parametrize(
    "statement",
    [
        "import kshot; kshot.Batch",
        "import kshot.engine, kshot.tasks, kshot.testing, kshot.learners, kshot.scoring.evaluate, kshot.data, "
        "kshot.training.meta",
        "import kshot.families.control.step, kshot.tasks.control.registry, kshot.tasks.control.sim",
    ],
)
def test_import_is_light(statement: str):
    """A fresh interpreter that imports kshot, or all of its library, has torch and nothing heavier."""
    loaded = {name.split(".")[0] for name in modules_after(statement)}
    brought = {name.split(".")[0] for name in modules_after("import torch")}
    assert "torch" in loaded
    heavy = (loaded & HEAVY) - brought
    assert not heavy, f"`{statement}` loads {sorted(heavy)}: import them in the functions that need them"


def test_import_of_kshot_loads_the_contract_alone():
    for statement, rooms in (("import kshot", set()), ("import kshot; kshot.Batch", {"core", "numerics"})):
        own = {name for name in modules_after(statement) if name.split(".")[0] == "kshot"}
        assert {room(name) for name in own} == {"__init__", "_moved", *rooms}


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
