"""Every test starts from the same random numbers, on one thread: results do not depend on order or machine load."""

from __future__ import annotations

import contextlib
import gc
import io
import subprocess
import sys
import warnings
from collections.abc import Callable
from subprocess import CompletedProcess
from typing import Any

import pytest
import torch

from kshot import cli


@pytest.fixture(autouse=True)
def same_start():
    torch.manual_seed(0)
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.fixture(scope="session")
def kshot() -> Callable[..., CompletedProcess[str]]:
    """`kshot ARGUMENTS`, whatever its exit code. In this process, which has torch already; with `apart` in one of its
    own, as a user's is, which takes seconds to begin.
    """

    def run(*arguments: Any, apart: bool = False) -> CompletedProcess[str]:
        words = [str(word) for word in arguments]
        if apart:
            command = [sys.executable, "-m", "kshot", *words]
            return subprocess.run(command, capture_output=True, text=True, timeout=240, check=False)
        out, err, threads = io.StringIO(), io.StringIO(), torch.get_num_threads()
        with pytest.MonkeyPatch.context() as patch, contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
            patch.setattr(sys, "argv", ["kshot", *words])
            patch.setattr(warnings, "showwarning", warnings.showwarning)  # `main` sets its own
            with pytest.raises(SystemExit) as done:
                cli.main()
        gc.unfreeze()  # `main` froze what earlier tests have left too
        torch.set_num_threads(threads)
        assert isinstance(done.value.code, int)
        return CompletedProcess(words, done.value.code, out.getvalue(), err.getvalue())

    return run
