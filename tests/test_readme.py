"""Every command of README.md is run, or the README says why not.

The lines of ```bash blocks that begin with `kshot `, `torchrun ` or `python examples/` (or the same under `.venv/bin/`)
are run in order, in one temporary folder for the whole page: `kshot evaluate DIR` finds what `kshot train` left.
`make TARGET` is not run inside the tests (it would run them), but its target has to exist. A block under the comment
`<!-- not run: REASON -->` is left alone. Any other command is an error, so that nothing is passed over in silence.
"""

from __future__ import annotations

import os
import re
import shlex
import shutil
import subprocess
import sys
from pathlib import Path
from typing import NamedTuple

import pytest

ROOT = Path(__file__).resolve().parent.parent
SECONDS = 600  # of one command
MARKER = re.compile(r"<!--\s*not run\b:?((?:(?!-->).)*)-->\s*\Z", re.DOTALL)
FENCE = re.compile(r"^```bash[^\n]*\n(.*?)^```\s*$", re.DOTALL | re.MULTILINE)
NOT_HERE = ("git clone ", "cd ", "source ", "pip install ", "export ")  # how one gets here; make does the install


class Block(NamedTuple):
    line: int
    commands: list[str]
    reason: str | None  # why it is not run; None: it is


def blocks(text: str) -> list[Block]:
    """The bash blocks of a page, with line continuations joined and comments dropped."""
    found = []
    for match in FENCE.finditer(text):
        marker = MARKER.search(text[: match.start()])
        joined = re.sub(r"\s*\\\n\s*", " ", match[1])
        lines = (line.strip().removeprefix(".venv/bin/") for line in joined.splitlines())
        commands = [line for line in lines if line and not line.startswith("#")]
        found.append(Block(text.count("\n", 0, match.start()) + 1, commands, marker[1].strip() if marker else None))
    return found


def readme() -> list[Block]:
    return blocks((ROOT / "README.md").read_text(encoding="utf-8"))


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
text
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


def test_no_other_shell_blocks() -> None:
    page = (ROOT / "README.md").read_text(encoding="utf-8")
    assert not re.findall(r"^```(?:sh|shell|console|zsh)\b", page, re.MULTILINE), "write ```bash, so that it is run"


def test_what_is_not_run_says_why() -> None:
    silent = [f"line {block.line}" for block in readme() if block.reason == ""]
    assert not silent, f"README.md, {', '.join(silent)}: '<!-- not run: REASON -->' gives no reason"


def test_every_command_is_known() -> None:
    known = ("kshot ", "torchrun ", "python examples/", "make ", ".ci/run", *NOT_HERE)
    strange = [
        f"line {b.line}: {c}" for b in readme() if b.reason is None for c in b.commands if not c.startswith(known)
    ]
    assert not strange, f"README.md has commands that these tests do not run: {strange}"


def test_the_readme_has_commands() -> None:
    assert any(c.startswith("kshot ") for b in readme() if b.reason is None for c in b.commands)


def test_make_targets_exist() -> None:
    if shutil.which("make") is None:
        pytest.skip("make is not installed")
    words = [shlex.split(c, comments=True) for b in readme() for c in b.commands if c.startswith("make ")]
    targets = {word for command in words for word in command[1:] if "=" not in word} | {"demo", "test", "check"}
    for target in sorted(targets):
        run = subprocess.run(["make", "-n", target], cwd=ROOT, capture_output=True, text=True, env=_plain_environment())
        assert run.returncode == 0, f"make {target}: {run.stderr}"


def test_commands_run(tmp_path: Path) -> None:
    """In one test, because a command may need what an earlier one wrote."""
    for name in ("examples", "recipes", "benchmarks", "docs"):
        if (ROOT / name).exists():
            (tmp_path / name).symlink_to(ROOT / name)
    for block in readme():
        for command in block.commands if block.reason is None else []:
            if not command.startswith(("kshot ", "torchrun ", "python examples/")):
                continue
            program, *arguments = shlex.split(command, comments=True)
            module = {"kshot": ["-m", "kshot"], "torchrun": ["-m", "torch.distributed.run"]}.get(program, [])
            prefix = [sys.executable, *module]
            run = subprocess.run(
                [*prefix, *arguments],
                cwd=tmp_path,
                env={**_plain_environment(), "PYTHONPATH": str(ROOT)},
                capture_output=True,
                text=True,
                timeout=SECONDS,
            )
            assert run.returncode == 0, f"README.md, line {block.line}: {command}\n{run.stdout}\n{run.stderr}"


def _plain_environment() -> dict[str, str]:
    """Without what a `make test` around this process would tell another make."""
    return {name: value for name, value in os.environ.items() if not name.startswith(("MAKE", "MFLAGS"))}
