"""Old paths of modules keep working: a row of `kshot._moved.MOVED` each, with a warning that says the new one."""

from __future__ import annotations

import importlib
import re
import subprocess
import sys
import warnings
from pathlib import Path

import pytest

import kshot
from kshot._moved import FUNCTIONS, MOVED

PACKAGE = Path(kshot.__file__).parent


@pytest.fixture
def fresh(monkeypatch: pytest.MonkeyPatch):
    """Old paths are not imported yet, and are forgotten afterwards."""
    for name in MOVED:
        monkeypatch.delitem(sys.modules, name, raising=False)
    yield
    for name in MOVED:
        sys.modules.pop(name, None)


@pytest.mark.parametrize("old", MOVED)
def test_an_old_path_is_the_new_module(old: str, fresh: None):
    parent = old.rpartition(".")[0]
    if parent in MOVED:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", DeprecationWarning)
            importlib.import_module(parent)
    new = MOVED[old]
    with pytest.warns(DeprecationWarning, match=rf"{old.replace('.', '[.]')} has moved: import {new[0]}") as said:
        module = importlib.import_module(old)
    assert len([one for one in said if "has moved" in str(one.message)]) == 1
    parts = [importlib.import_module(name) for name in new]
    if len(parts) == 1 and old not in FUNCTIONS:
        assert module is parts[0]
    for part in parts:
        public = getattr(part, "__all__", ())
        assert all(hasattr(module, name) for name in public)
    assert all(getattr(module, name) is getattr(parts[0], name) for name in getattr(parts[0], "__all__", ()))
    with warnings.catch_warnings():
        warnings.simplefilter("error", DeprecationWarning)
        assert importlib.import_module(old) is module  # once


@pytest.mark.parametrize("old", FUNCTIONS)
def test_a_function_is_called_as_such_whatever_was_imported_before(old: str):
    code = f"""
import warnings, pytest
import kshot
name = "{old}".partition(".")[2]
before = getattr(kshot, name)
warnings.simplefilter("ignore", DeprecationWarning)
import {old}
for function in (before, getattr(kshot, name)):
    with pytest.raises(ValueError, match="pass .*tasks|pass kshot.train"):
        function(kshot.CNP())
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


def test_nothing_stands_where_it_stood():
    for old in MOVED:
        path = PACKAGE.parent.joinpath(*old.split("."))
        assert not path.with_suffix(".py").exists(), f"{old} is a module: it needs no row"
        assert not (path / "__init__.py").exists(), f"{old} is a package: it needs no row"


def test_the_forms_that_people_wrote():
    code = """
import warnings
with warnings.catch_warnings(record=True) as said:
    warnings.simplefilter("always")
    from kshot import seeding, tree
    from kshot.evaluate import calibration_error, evaluate, table
    from kshot.train import meta_train
    import kshot.rl.train
    from kshot.rl.control import Mujoco, Control, register
    from kshot.rl.sim import Physics, Points, Mujocos
import kshot.numerics.tree, kshot.tasks.control.mujoco, kshot.families.control.step
assert tree is kshot.numerics.tree
assert Mujoco is kshot.tasks.control.mujoco.Mujoco
assert kshot.rl.train is kshot.families.control.step
assert {one.filename for one in said} == {"<string>"}, said
from kshot.engine import meta_gradient
from kshot.nn import BatchNorm, Conv4, convert
from kshot.tasks.functions import Sawtooth, Sinusoid, Step
try:
    from kshot.rl.control import nothing
except ImportError as error:
    assert "nothing" in str(error)
else:
    raise AssertionError
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


def test_nothing_names_an_old_path():
    root = PACKAGE.parent
    files = [*PACKAGE.rglob("*.py"), *(root / "examples").iterdir(), *(root / "docs").rglob("*.md"), root / "README.md"]
    found = {
        f"{file.relative_to(root)}: {name}"
        for file in files
        if file.suffix in (".py", ".md", ".ipynb") and file.name != "_moved.py"
        for name in re.findall(r"(?<![\w./-])kshot(?:\.[A-Za-z_]\w*)+", file.read_text("utf-8"))
        if name not in FUNCTIONS  # that are the functions'
        and any(f"{name}.".startswith(f"{old}.") for old in MOVED)
    }
    assert not found


def test_kshot_itself_imports_no_old_path():
    rooms = [f"kshot.{path.stem}" for path in PACKAGE.iterdir() if path.is_dir() and (path / "__init__.py").exists()]
    code = f"import importlib\n[importlib.import_module(name) for name in {sorted(rooms)!r}]"
    command = [sys.executable, "-W", "error:kshot:DeprecationWarning", "-c", code]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


def test_old_names_of_functions_and_classes_still_work():
    from kshot import engine
    from kshot.tasks.control import observed
    from kshot.training import pretrain

    for module, old, new in (
        (engine, "calibrate", "set_population_statistics"),
        (pretrain, "calibrate", "set_population_statistics"),
        (observed, "Seen", "GoalObserved"),
        (observed, "Telling", "GoalObservedSimulator"),
    ):
        with pytest.warns(DeprecationWarning, match=rf"{module.__name__}.{old} is now called {new}"):
            assert getattr(module, old) is getattr(module, new)
        with pytest.raises(AttributeError, match="no attribute 'nothing'"):
            _ = module.nothing
