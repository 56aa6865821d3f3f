"""Counts of a source tree's kshot/: python count.py TREE [TREE ...] [--names]

Each column is a tree. --names also lists what was counted. Definitions:

lines            of all .py files; code: without blank lines, comments and docstrings
long functions   over 60 lines from `def` to the end, their docstrings and blank lines after it not counted
names            places outside of recipes that branch on a learner's or a data set's name: a comparison (==, !=, in, not
                 in, a case) with string constants that are such names or their prefixes, startswith / endswith of one; and,
                 apart, membership of such a name in a registry (in REGISTRY, PROCESSES, _MADE, ...)
probes           calls of hasattr; of getattr with a default, or of a name that is a constant; uses of inspect; and how many
                 of them ask for what learners and task distributions may have (CONTRACT below)
len              len(....support.x), len(....query.x) and of .y: batches of tasks counted by their payload
ignores          `type: ignore` and `pyright: ignore`, by folder
modules          modules of kshot in which a function runs between `kshot evaluate RUN --tasks 2 --no-floors` and its end,
                 by sys.setprofile (imports, and bodies of classes, are no functions); of a tiny run of each family; apart
                 those that are neither learner, data, tasks nor network: the machinery
"""
# ruff: noqa: E501

from __future__ import annotations

import ast
import io
import json
import os
import re
import shutil
import subprocess
import sys
import tempfile
import tokenize
from collections import Counter
from pathlib import Path

PYTHON = sys.executable
LONG = 60

LEARNERS = [
    "maml",
    "fomaml",
    "anil",
    "boil",
    "metasgd",
    "mamlpp",
    "reptile",
    "imaml",
    "protonet",
    "matching",
    "r2d2",
    "metaoptnet",
    "simpleshot",
    "plda",
    "pixels",
    "finetune",
    "cnp",
    "np",
    "acnp",
    "anp",
    "bnp",
    "convcnp",
    "convcnp2d",
    "gnp",
    "convgnp",
    "tnpd",
    "gp",
    "neighbours",
    "e-maml",
    "promp",
    "pretrained",
    "oracle",
    "rl2",
    "pearl",
    "maml-vpg",
]
DATA = [
    "sinusoid",
    "omniglot",
    "glyphs",
    "grocery",
    "mnist",
    "fashion-mnist",
    "folder",
    "folder:",
    "folder:PATH",
    "gp-",
    "np-",
    "pixels",
    "pixels:",
    "varied",
    "predator-prey",
    "gp-rbf",
    "gp-matern12",
    "gp-matern32",
    "gp-matern52",
    "gp-periodic",
    "point",
    "cheetah-direction",
    "cheetah-velocity",
    "ant-direction",
    "ant-velocity",
    "ant-body",
    "cheetah-body",
    "walker-body",
    "v5-",
    "curves",
]
NAMES = {*LEARNERS, *DATA}
REGISTRIES = {"REGISTRY", "PROCESSES", "FUNCTION_FLOORS", "POLICIES", "LEARNERS", "_MADE", "_PIXELS", "NAMES", "FAMILIES",
              "METRIC", "SIZES", "_REGISTRY"}  # fmt: skip


def files(tree: Path) -> list[Path]:
    return sorted((tree / "kshot").rglob("*.py"))


def docstring_lines(node: ast.AST) -> set[int]:
    """Lines of all docstrings below, attributes' ones (a string after an assignment) among them."""
    found: set[int] = set()
    for part in ast.walk(node):
        for body in (getattr(part, "body", None), getattr(part, "orelse", None)):
            for child in body if isinstance(body, list) else ():
                if (
                    isinstance(child, ast.Expr)
                    and isinstance(child.value, ast.Constant)
                    and isinstance(child.value.value, str)
                ):
                    found |= set(range(child.lineno, (child.end_lineno or child.lineno) + 1))
    return found


def code_lines(text: str, tree: ast.AST) -> int:
    kept: set[int] = set()
    skip = (
        tokenize.COMMENT,
        tokenize.NL,
        tokenize.NEWLINE,
        tokenize.INDENT,
        tokenize.DEDENT,
        tokenize.ENCODING,
        tokenize.ENDMARKER,
    )
    for token in tokenize.generate_tokens(io.StringIO(text).readline):
        if token.type not in skip:
            kept |= set(range(token.start[0], token.end[0] + 1))
    return len(kept - docstring_lines(tree))


def long_functions(path: str, tree: ast.AST) -> list[str]:
    found = []
    for node in ast.walk(tree):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            own = 0
            if isinstance(node.body[0], ast.Expr) and isinstance(node.body[0].value, ast.Constant):
                own = node.body[0].end_lineno - node.body[0].lineno + 1
            length = node.end_lineno - node.lineno + 1 - own
            if length > LONG:
                found.append(f"{path}:{node.lineno} {node.name} ({length})")
    return found


def constants(node: ast.AST) -> list[str]:
    if isinstance(node, ast.Constant):
        return [node.value] if isinstance(node.value, str) else []
    if isinstance(node, ast.Tuple | ast.List | ast.Set):
        return [text for part in node.elts for text in constants(part)]
    return []


def branches(path: str, tree: ast.AST) -> tuple[list[str], list[str]]:
    """Places that branch on a name: by constants, and by membership in a registry."""
    named, members = [], []
    for node in ast.walk(tree):
        if isinstance(node, ast.Compare):
            within = isinstance(node.ops[0], ast.In | ast.NotIn)  # a constant left of `in` is a key, and no name
            texts = [
                text for side in (*(() if within else (node.left,)), *node.comparators) for text in constants(side)
            ]
            if hit := [text for text in texts if text in NAMES]:
                named.append(f"{path}:{node.lineno} {ast.unparse(node)[:90]} ({', '.join(hit)})")
            elif any(isinstance(op, ast.In | ast.NotIn) for op in node.ops):
                right = node.comparators[-1]
                name = (
                    right.attr if isinstance(right, ast.Attribute) else right.id if isinstance(right, ast.Name) else ""
                )
                if name in REGISTRIES:
                    members.append(f"{path}:{node.lineno} {ast.unparse(node)[:90]}")
        elif isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute):
            if node.func.attr in ("startswith", "endswith", "removeprefix", "removesuffix") and node.args:
                texts = constants(node.args[0])
                if any(text in NAMES for text in texts) and node.func.attr.endswith("with"):
                    named.append(f"{path}:{node.lineno} {ast.unparse(node)[:90]}")
        elif isinstance(node, ast.MatchValue) and constants(node.value) and constants(node.value)[0] in NAMES:
            named.append(f"{path}:{node.value.lineno} case {constants(node.value)[0]!r}")
    return named, members


# What a learner or a distribution of tasks may have, which the contract declares or should.
CONTRACT = {"set_progress", "ways", "inner_steps", "steps", "adapt_path", "surrogate", "reach", "classification", "outputs", "bank", "augment", "by", "sample_with", "oracle", "transductive", "independent", "input_shape", "population", "regression", "uses_unlabelled", "inner_lr", "pools", "rounds", "strategy", "features", "num_classes", "called", "sample", "folds", "anneals", "running", "geometry", "stepwise", "steps_of_adapt", "learns_functions", "batch_statistics", "frozen"}  # fmt: skip


def probes(path: str, tree: ast.AST) -> dict[str, list[str]]:
    found: dict[str, list[str]] = {"hasattr": [], "getattr": [], "inspect": [], "of these of the contract": []}
    for node in ast.walk(tree):
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id in ("hasattr", "getattr"):
            constant = len(node.args) > 1 and isinstance(node.args[1], ast.Constant)
            if node.func.id == "hasattr" or len(node.args) == 3 or constant:
                found[node.func.id].append(f"{path}:{node.lineno} {ast.unparse(node)[:90]}")
                if constant and node.args[1].value in CONTRACT:
                    found["of these of the contract"].append(found[node.func.id][-1])
        elif isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name) and node.value.id == "inspect":
            found["inspect"].append(f"{path}:{node.lineno} inspect.{node.attr}")
    return found


def counted(tree: Path) -> dict[str, list[str] | int]:
    out: dict[str, list[str] | int] = {"files": 0, "lines": 0, "code lines": 0}
    lists: dict[str, list[str]] = {name: [] for name in ("functions over 60 lines", "branches on a name",
        "membership in a registry", "hasattr", "getattr", "inspect", "of these of the contract", "len(...x)")}  # fmt: skip
    ignores: Counter[str] = Counter()
    for file in files(tree):
        text = file.read_text("utf-8")
        path = str(file.relative_to(tree / "kshot"))
        parsed = ast.parse(text)
        out["files"] += 1
        out["lines"] += len(text.splitlines())
        out["code lines"] += code_lines(text, parsed)
        lists["functions over 60 lines"] += long_functions(path, parsed)
        if "recipes" not in path:
            named, members = branches(path, parsed)
            lists["branches on a name"] += named
            lists["membership in a registry"] += members
        for kind, where in probes(path, parsed).items():
            lists[kind] += where
        for match in re.finditer(r"len\((?:[\w\[\]]+\.)*(?:support|query)\.[xy]\)", text):
            lists["len(...x)"].append(f"{path}:{text[: match.start()].count(chr(10)) + 1} {match[0]}")
        ignores[path.split("/")[0] if "/" in path else "."] += len(re.findall(r"#\s*(?:type|pyright):\s*ignore", text))
    out |= lists
    out["type ignores"] = [f"{folder}/ {n}" for folder, n in sorted(ignores.items()) for _ in range(n)]
    return out


TRACER = """
import importlib, json, pkgutil, sys
import kshot
from kshot import cli
for module in pkgutil.walk_packages(kshot.__path__, "kshot."):
    try:
        module.name.endswith("__main__") or importlib.import_module(module.name)
    except (ImportError, SystemExit):
        pass
root, entered, on = sys.argv[1] + "/kshot/", {}, False
def profile(frame, event, argument):
    code = frame.f_code
    if event == "call" and code.co_filename.startswith(root) and not code.co_name.startswith("<module") and "__qualname__" not in code.co_names:
        entered.setdefault(code.co_filename[len(root):], set()).add(code.co_qualname)
out, sys.argv = sys.argv[2], ["kshot", *sys.argv[3:]]
sys.setprofile(profile)
try:
    cli.main()
except SystemExit as done:
    code = done.code
sys.setprofile(None)
json.dump({"code": code, "modules": {k: sorted(v) for k, v in entered.items()}}, open(out, "w"))
"""
TRACED = {
    "images": f"glyphs-5way-1shot-protonet --data folder:{Path(tempfile.gettempdir()) / 'kshot-again-glyphs'} --width 8 --steps 1 --train-ways 5 --train-queries 3 --queries 3 --val-every 0",
    "functions": "gp-rbf-cnp --layers 1 --batch 4 --steps 1 --val-every 0",
    "control": "point-maml --hidden 8 8 --batch 2 --rollouts 2 --steps 1",
}
WORK = ("learners/", "data/", "tasks/", "nn.py", "kernels.py", "tree.py", "core.py", "losses.py", "seeding.py", "places.py",
        "distributions.py", "checks.py", "rl/paper.py", "rl/maml.py", "rl/policy.py", "rl/control.py", "rl/returns.py", "rl/sim.py",
        "nn/", "numerics/", "rl/rollouts.py", "rl/learner.py", "storage/places.py", "engine/rematerialise.py")  # fmt: skip


def traced(tree: Path) -> dict[str, list[str]]:
    out: dict[str, list[str]] = {}
    folder = Path(tempfile.mkdtemp(prefix="count-"))
    env = {**os.environ, "PYTHONPATH": str(tree), "OMP_NUM_THREADS": "1", "KSHOT_CACHE": str(folder / "cache")}
    try:
        for family, train in TRACED.items():
            told = ["train", *train.split(), "--out", family]
            done = subprocess.run([PYTHON, "-m", "kshot", *told], cwd=folder, env=env, capture_output=True, text=True)
            if done.returncode:
                out[f"modules, {family}"] = [f"train: {done.stderr.strip()[-200:]}"]
                continue
            for flags in (["--no-floors"], ["--floors", "0"]):
                told = ["evaluate", family, "--tasks", "2", *flags]
                subprocess.run(
                    [PYTHON, "-c", TRACER, str(tree), "out.json", *told], cwd=folder, env=env, capture_output=True
                )
                found = json.loads((folder / "out.json").read_text())
                if found["code"] == 0:
                    break
            modules = [f"{name} ({len(inside)} functions)" for name, inside in sorted(found["modules"].items())]
            out[f"modules, {family}"] = modules if found["code"] == 0 else [f"exit code {found['code']}"]
            out[f"  machinery, {family}"] = [m for m in modules if not m.startswith(WORK)] if found["code"] == 0 else []
    finally:
        shutil.rmtree(folder)
    return out


def main() -> None:
    names = "--names" in sys.argv
    trees = [Path(word).resolve() for word in sys.argv[1:] if not word.startswith("--")]
    tables = [{**counted(tree), **traced(tree)} for tree in trees]
    print(f"{'':28}" + "".join(f"{tree.name:>10}" for tree in trees))
    for row in tables[0]:
        cells = [table.get(row, []) for table in tables]
        print(f"{row:28}" + "".join(f"{c if isinstance(c, int) else len(c):>10,}" for c in cells))
    folders = sorted({text.split("/")[0] for table in tables for text in table["type ignores"]})
    for folder in folders:
        print(
            f"{'  in ' + folder:28}"
            + "".join(f"{sum(t.split('/')[0] == folder for t in table['type ignores']):>10}" for table in tables)
        )
    if names:
        for tree, table in zip(trees, tables, strict=True):
            print(f"\n===== {tree}")
            for row, found in table.items():
                if isinstance(found, list) and row != "type ignores":
                    print(f"-- {row}: {len(found)}")
                    print("\n".join(f"   {text}" for text in found))


if __name__ == "__main__":
    main()
