"""Training at full length on a GPU: 100,000 updates of every learner at once, each in a stream of its own.

    python benchmarks/processes/full.py --out runs/full
    python benchmarks/processes/compare.py --minutes 0 --out runs/full --json benchmarks/results/processes-gp-full.json
    python benchmarks/processes/full.py --jobs varied/convcnp     # the shipped model: see benchmarks/models.py

An update (the draw's rows, the loss of 16 tasks mapped over them, its gradient, clipping, Adam) is recorded once as a
CUDA graph and replayed: these networks are so small that a GPU waits for their launches otherwise. Tasks are drawn by
the thousand on the GPU, with padding rows to a common size, so that one recording serves all; sizes
differ among the tasks of a batch, where the published code has one size for a batch. Without a GPU the updates run one
by one (a test of this file, no more).

The rate falls along a cosine of the share done: of the updates, or of `--minutes` where these end first.
"""

from __future__ import annotations

import math
import os
import threading
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import tyro

from kshot import families
from kshot.apps.series.fitting import Trained, packed
from kshot.cli._shared import write_record
from kshot.core import Batch, Task
from kshot.learners import process
from kshot.numerics import seeding
from kshot.storage import checkpoint
from kshot.tasks import FunctionMixture, GaussianProcess, published
from kshot.tasks.functions import registry

GP = ("cnp", "np", "acnp", "anp", "bnp", "convcnp", "gnp", "convgnp", "tnpd")
PUBLISHED = ("cnp", "acnp", "convcnp")


@dataclass(frozen=True)
class Settings:
    """Train neural processes at full length."""

    jobs: tuple[str, ...] = (
        *(f"gp-rbf/{name}" for name in GP),
        *(f"{data}/{name}" for data in ("np-sawtooth", "np-mixture") for name in PUBLISHED),
    )
    """Functions and learner of each."""
    steps: int = 100_000
    """Updates."""
    minutes: float = 60.0
    """Of wall time, at most."""
    batch: int = 16
    """Tasks of an update."""
    lr: float = 5e-4
    """Adam's rate at the begin."""
    draw: int = 250
    """Updates whose tasks are drawn together."""
    seed: int = 0
    """Of weights and training tasks."""
    out: Path = Path("runs/full")
    """Folder for the weights."""
    json: Path | None = None
    """Write the times to this file."""


def ragged(data: str) -> Any:
    """The functions of that name, with sizes that differ among the tasks of a draw."""
    if data == "np-mixture":
        return FunctionMixture(*published("mixture", ragged=True).families, each=True)  # type: ignore[union-attr]
    if data == "varied":
        return registry.make(data)
    if data.startswith("np-"):
        return published(data.removeprefix("np-"), ragged=True)
    kernel: Any = data.removeprefix("gp-")
    return GaussianProcess(kernel, ragged=True)


class Job:
    """One learner in training."""

    def __init__(self, told: str, settings: Settings, device: torch.device):
        self.data, self.name = told.split("/")
        self.told, self.settings, self.device, self.tasks = told, settings, device, ragged(self.data)
        inputs, outputs = registry.sizes(self.data)
        own = families.recipe(told.replace("/", "-"), "paper").options
        self.own: dict[str, Any] = {"inputs": inputs, "outputs": outputs, **own}
        with seeding.seeded(settings.seed, "weights"):
            self.learner = process(self.name, **self.own)
        self.learner.to(device).train()
        self.params = list(self.learner.parameters())
        self.lr = torch.tensor(settings.lr, device=device)
        gpu = device.type == "cuda"
        self.optimizer = torch.optim.Adam(self.params, lr=self.lr, capturable=gpu, fused=gpu)
        self.stream = torch.cuda.Stream() if gpu else None
        self.row = torch.zeros(1, dtype=torch.long, device=device)
        self.total = torch.zeros((), device=device)
        self.store = self.draw(0)
        self.graph = self.record() if gpu else None
        self.updates, self.seconds, self.wrong = 0, 0.0, ""

    def draw(self, number: int) -> Task:
        """Tasks of the next `draw` updates: leaves `[draw, batch, ...]`."""
        settings = self.settings
        generator = seeding.generator(settings.seed, "draw", number, device=self.device)
        tasks = self.tasks.sample(generator, settings.draw * settings.batch)
        parts = [Batch(*(leaf.unflatten(0, (settings.draw, settings.batch)) for leaf in part)) for part in tasks]
        return Task(*parts)

    def update(self) -> None:
        """One, with the tasks of the next row."""
        task = Task(*(Batch(*(leaf.index_select(0, self.row)[0] for leaf in part)) for part in self.store))
        losses = torch.vmap(lambda one: self.learner.loss(one)[0], randomness="different")(task)
        loss = losses.mean()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(self.params, 1.0)
        self.optimizer.step()
        self.optimizer.zero_grad()
        self.total += loss.detach()
        self.row.add_(1).remainder_(self.settings.draw)

    def record(self) -> torch.cuda.CUDAGraph:
        """The update as a graph; weights, optimiser and counters are put back as if it had not run."""
        weights = [p.detach().clone() for p in self.params]
        assert self.stream is not None
        self.stream.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(self.stream):
            for _ in range(3):
                self.update()
        torch.cuda.synchronize()
        began = time.perf_counter()
        with torch.cuda.stream(self.stream):
            for _ in range(20):
                self.update()
        torch.cuda.synchronize()
        self.eager = 20 / (time.perf_counter() - began)
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph, stream=self.stream):
            self.update()
        began = time.perf_counter()
        with torch.cuda.stream(self.stream):
            for _ in range(100):
                graph.replay()
        torch.cuda.synchronize()
        self.replayed = 100 / (time.perf_counter() - began)
        with torch.no_grad():
            for p, w in zip(self.params, weights, strict=True):
                p.copy_(w)
            for state in self.optimizer.state.values():
                for value in state.values():
                    value.zero_()
            self.row.zero_()
            self.total.zero_()
        torch.cuda.synchronize()
        print(f"{self.told}: {self.eager:.0f} updates/s one by one, {self.replayed:.0f} replayed", flush=True)
        return graph

    def run(self, began: float) -> None:
        """All updates; `began` is when time began to count."""
        try:
            if self.stream is not None:
                with torch.cuda.stream(self.stream):
                    self._run(began)
            else:
                self._run(began)
        except Exception as error:
            self.wrong = f"{type(error).__name__}: {error}"
            print(f"{self.told}: {self.wrong}", flush=True)

    def _run(self, began: float) -> None:
        settings, number = self.settings, 0
        while self.updates < settings.steps:
            share = max(self.updates / settings.steps, (time.perf_counter() - began) / (60 * settings.minutes))
            if share >= 1:
                break
            self.lr.fill_(settings.lr * 0.5 * (1 + math.cos(math.pi * share)))
            if number:
                for old, new in zip(self.store, self.draw(number), strict=True):
                    for a, b in zip(old, new, strict=True):
                        a.copy_(b)
            for _ in range(settings.draw):
                if self.graph is not None:
                    self.graph.replay()
                else:
                    self.update()
            self.updates, number = self.updates + settings.draw, number + 1
            if number % 40 == 0:
                mean = float(self.total) / (40 * settings.draw)
                self.total.zero_()
                print(f"{self.told}: {self.updates:,} updates, loss {mean:.3f}, {time.perf_counter() - began:.0f} s",
                      flush=True)  # fmt: skip
        if self.stream is not None:
            self.stream.synchronize()
        self.seconds = time.perf_counter() - began
        path = settings.out / f"{self.data}-{self.name}-full-seed{settings.seed}.safetensors"
        tensors, info = packed(Trained(self.learner.cpu(), self.name, self.own))
        checkpoint.save(path, tensors, {**info, "updates": self.updates, "seconds": self.seconds})


def main(settings: Settings) -> int:
    os.environ.setdefault("CUDA_DEVICE_MAX_CONNECTIONS", "32")
    torch.set_num_threads(1)
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    settings.out.mkdir(parents=True, exist_ok=True)
    jobs: list[Job] = []
    for told in settings.jobs:
        try:
            jobs.append(Job(told, settings, device))
        except RuntimeError as error:
            print(f"{told}: {error}", flush=True)
    began = time.perf_counter()
    threads = [threading.Thread(target=job.run, args=(began,)) for job in jobs]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    rows = {
        job.told: {
            "updates": job.updates,
            "seconds": round(job.seconds, 1),
            "updates_per_second_one_by_one": getattr(job, "eager", None),
            "updates_per_second_replayed_alone": getattr(job, "replayed", None),
        }
        for job in jobs
    }
    print(rows)
    on = torch.cuda.get_device_name() if device.type == "cuda" else ""
    write_record(settings.json, {"jobs": rows}, seeds={"all": settings.seed}, on=on)
    return int(any(job.wrong for job in jobs) or len(jobs) < len(settings.jobs))


if __name__ == "__main__":
    raise SystemExit(main(tyro.cli(Settings)))
