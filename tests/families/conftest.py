"""The command line in this process."""

from __future__ import annotations

import contextlib
import io
import sys
from collections.abc import Callable
from typing import Any

import pytest

from kshot import cli


@pytest.fixture(scope="session")
def kshot() -> Callable[..., str]:
    """`kshot ARGUMENTS`, which has to end with `code`; what it printed."""

    def run(*arguments: Any, code: int = 0) -> str:
        said = io.StringIO()
        with pytest.MonkeyPatch.context() as patch, contextlib.redirect_stdout(said), contextlib.redirect_stderr(said):
            patch.setattr(sys, "argv", ["kshot", *map(str, arguments)])
            with pytest.raises(SystemExit) as done:
                cli.main()
        assert done.value.code == code, said.getvalue()
        assert "Traceback" not in said.getvalue()
        return said.getvalue()

    return run
