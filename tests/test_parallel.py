"""Two processes against one: the same meta-gradient, the same tasks; one that is killed, and resumed."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from kshot.core import Batch, Task
from kshot.engine.processes import ALONE, World, join

pytestmark = pytest.mark.skipif(not torch.distributed.is_gloo_available(), reason="torch has no gloo here")
SINUSOID = ("sinusoid-maml", "--budget", "quick", "--strategy", "vmap", "--val-tasks", "4", "--batch", "5")


def kshot(*arguments: str, processes: int = 1, restarts: int = 0, **more: str) -> subprocess.Popen[str]:
    start = [sys.executable, "-m"]
    if processes > 1:
        start += ["torch.distributed.run", "--standalone", f"--nproc-per-node={processes}"]
        start += [f"--max-restarts={restarts}", "--monitor-interval=0.2", "-m"]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", **more}
    return subprocess.Popen(
        [*start, "kshot", *arguments], stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, env=environment
    )


def done(process: subprocess.Popen[str], code: int | None = 0) -> str:
    output = process.communicate(timeout=240)[0]
    assert code is None or process.returncode == code, output
    return output


def records(folder: Path) -> list[dict]:
    return [json.loads(line) for line in (folder / "records.jsonl").read_text().splitlines()]


def largest_difference(a: Path, b: Path) -> float:
    one, other = load_file(a / "last.safetensors"), load_file(b / "last.safetensors")
    assert one.keys() == other.keys()
    return max(
        float((one[n].double() - other[n].double()).norm() / one[n].double().norm().clamp_min(1e-12)) for n in one
    )


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The same run by one process and by two, which have two and three of its five tasks."""
    folder = tmp_path_factory.mktemp("parallel")
    common = ("train", *SINUSOID, "--steps", "12", "--save-every", "4", "--val-every", "6")
    done(kshot(*common, "--out", str(folder / "one")))
    (folder / "two.txt").write_text(done(kshot(*common, "--out", str(folder / "two"), processes=2)))
    return folder


def test_two_processes_do_what_one_does(trained: Path) -> None:
    assert largest_difference(trained / "one", trained / "two") < 1e-6
    for one, two in zip(records(trained / "one"), records(trained / "two"), strict=True):
        assert one["gradient_norm"] == pytest.approx(two["gradient_norm"], rel=1e-5)
        assert one["loss"] == pytest.approx(two["loss"], rel=1e-5)
        assert one["metrics"].keys() == two["metrics"].keys()
    said = (trained / "two.txt").read_text()
    assert said.count("done: 12 meta-updates") == 1, said  # rank 0 alone speaks


def process_ids(parent: int) -> list[int]:
    """The workers that torchrun started, by rank."""
    found = {}
    for status in Path("/proc").glob("[0-9]*/stat"):
        try:
            if int(status.read_text().rsplit(")", 1)[1].split()[1]) == parent:
                environment = (status.parent / "environ").read_bytes().split(b"\0")
                rank = next((int(e[5:]) for e in environment if e.startswith(b"RANK=")), None)
                if rank is not None:
                    found[rank] = int(status.parent.name)
        except (OSError, IndexError, ValueError):
            continue
    return [found[rank] for rank in sorted(found)]


def killed_after(process: subprocess.Popen[str], folder: Path, count: int, rank: int) -> None:
    """SIGKILL a rank when so many records are written."""
    until = time.monotonic() + 120
    while time.monotonic() < until:
        assert process.poll() is None, process.communicate()[0]
        if (folder / "records.jsonl").exists() and (folder / "records.jsonl").read_text().count("\n") >= count:
            os.kill(process_ids(process.pid)[rank], signal.SIGKILL)
            return
        time.sleep(0.02)
    raise AssertionError(f"no {count} records in two minutes")


@pytest.mark.skipif(not Path("/proc/self/environ").exists(), reason="finds the ranks by /proc")
def test_a_lost_rank_ends_the_run_clearly_and_one_process_goes_on_with_it(tmp_path: Path) -> None:
    long = ("train", *SINUSOID, "--steps", "1500", "--save-every", "1000", "--val-every", "0", "--schedule", "constant")
    run = kshot(*long, "--out", str(tmp_path), processes=2)
    killed_after(run, tmp_path, 20, rank=1)
    said = done(run, code=None)
    assert run.returncode != 0
    assert "another process of this run is gone (seen by rank 0 of 2" in said, said
    assert "--resume" in said
    reached = json.loads(header(tmp_path))["step"]  # rank 0 saved what was done
    assert reached >= 20
    for processes, steps in ((1, reached + 3), (2, reached + 6)):  # the rate is constant, so more steps may follow
        more = [str(steps) if word == "1500" else word for word in long]
        done(kshot(*more, "--out", str(tmp_path), "--resume", processes=processes))
    assert [r["step"] for r in records(tmp_path)] == list(range(1, reached + 7))
    done(kshot(*more, "--out", str(tmp_path / "unbroken")))
    assert largest_difference(tmp_path, tmp_path / "unbroken") < 1e-5


def header(folder: Path) -> str:
    content = (folder / "last.safetensors").read_bytes()
    size = int.from_bytes(content[:8], "little")
    return json.loads(content[8 : 8 + size])["__metadata__"]["kshot"]


@pytest.mark.skipif(not Path("/proc/self/environ").exists(), reason="finds the ranks by /proc")
def test_torchrun_starts_a_lost_rank_again(tmp_path: Path) -> None:
    steps = ("--steps", "400", "--save-every", "10", "--val-every", "0")
    run = kshot("train", *SINUSOID, *steps, "--out", str(tmp_path), processes=2, restarts=1)
    killed_after(run, tmp_path, 15, rank=1)
    assert re.search("done: 400 meta-updates", done(run))
    assert [r["step"] for r in records(tmp_path)] == list(range(1, 401))


def test_a_restart_does_not_go_on_with_another_jobs_run(trained: Path) -> None:
    """What was refused at first is refused again, however often torchrun starts it."""
    before = (trained / "one" / "records.jsonl").read_text()
    again = kshot(
        "train", *SINUSOID, "--steps", "20", "--val-every", "0", "--out", str(trained / "one"), processes=2, restarts=1
    )
    said = done(again, code=None)
    assert again.returncode != 0
    assert said.count("holds a run already: add --resume") == 2, said
    assert (trained / "one" / "records.jsonl").read_text() == before


def test_all_processes_stop_where_one_wants_to(monkeypatch: pytest.MonkeyPatch) -> None:
    theirs = 0.0
    monkeypatch.setattr(torch.distributed, "get_backend", lambda: "gloo")
    monkeypatch.setattr(torch.distributed, "all_reduce", lambda tensor: tensor.add_(theirs))
    assert [World(1, 2).any(wish) for wish in (False, True)] == [False, True]
    theirs = 1.0
    assert [World(1, 2).any(wish) for wish in (False, True)] == [True, True]
    assert not ALONE.any(False)


def test_fewer_tasks_than_processes_are_refused() -> None:
    task = Task(Batch(torch.zeros(3, 1, 2), torch.zeros(3, 1)), Batch(torch.zeros(3, 1, 2), torch.zeros(3, 1)))
    assert [len(World(rank, 2).share(task).query.x) for rank in (0, 1)] == [1, 2]
    assert len(ALONE.share(task).query.x) == 3
    with pytest.raises(ValueError, match="4 processes cannot share a meta-update of 3 tasks: start at most 3"):
        World(0, 4).share(task)


def test_without_torchrun_one_is_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("WORLD_SIZE", raising=False)
    monkeypatch.delenv("TORCHELASTIC_RESTART_COUNT", raising=False)
    assert join("cpu") == (ALONE, "cpu")
    monkeypatch.setenv("TORCHELASTIC_RESTART_COUNT", "2")
    assert join("cpu") == (World(restarts=2), "cpu")
    gradient = {"w": torch.ones(2)}
    assert ALONE.total(gradient, {}) == (gradient, {})
    assert ALONE.broadcast("this") == "this"
