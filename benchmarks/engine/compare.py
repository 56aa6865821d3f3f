"""The engine against its peers: the same model, tasks and meta-gradient, side by side in one run.

    python -m venv .venv-peers
    .venv-peers/bin/pip install -c constraints.txt -e . -r benchmarks/engine/requirements.txt
    .venv-peers/bin/python benchmarks/engine/compare.py --json benchmarks/results/engine-cpu.json

The contenders take turns; a figure is the median of their steps. The norms of their meta-gradients are printed and must
agree to `DIGITS` relative in float64, else the run ends (in float32 rounding moves those of five steps by 1e-4). "Of
the peak" is the row's arithmetic, counted by torch.utils.flop_counter on the plain loop, over kshot's time, as a share
of the speed of a matrix product on this machine in this run. What is not installed, or cannot do a row, is "not
measured".
"""

from __future__ import annotations

import contextlib
import copy
import itertools
import statistics
import subprocess
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
import tyro
from rich.console import Console
from rich.table import Table
from torch import Tensor, nn
from torch.func import functional_call
from torch.nn import functional as F
from torch.utils.flop_counter import FlopCounterMode

from kshot import engine
from kshot import nn as knn
from kshot.cli._shared import write_record
from kshot.core import Batch, Learner, Task, to
from kshot.learners import build

DIGITS = 1e-8
Step = Callable[[], "list[Tensor]"]  # one meta-gradient in the order of the model's parameters; or scores of tasks


@dataclass(frozen=True)
class Row:
    """A model, tasks of one size, and what is differentiated."""

    name: str
    network: str = "conv4"
    ways: int = 5
    shots: int = 1
    queries: int = 15
    tasks: int = 16
    steps: int = 1
    lr: float = 0.1
    learner: str = "maml"
    size: int = 28


ROWS = [
    Row("Conv4 5w1s 15q, 1 step"),
    Row("Conv4 5w1s 1q, 5 steps", queries=1, steps=5, lr=0.02),
    Row("Conv4 20w1s 1q, 5 steps", ways=20, queries=1, steps=5, tasks=4, lr=0.02),
    Row("Conv4 5w5s 15q, 1 step", shots=5, tasks=8),
    Row("ResNet-12 84px 5w1s 1q, 1 step", "resnet12", queries=1, tasks=2, size=84, lr=0.01),
    Row("MLP sinusoid 10 points, 1 step", "mlp", ways=1, shots=10, queries=10, tasks=25, lr=0.01),
    Row("Conv4 ANIL 5w1s 15q, 5 steps", learner="anil", steps=5),
    Row("Conv4 protonet 60w1s 5q", ways=60, queries=5, tasks=1, learner="protonet"),
    Row("Conv4 first order 5w1s 15q, 1 step", learner="fomaml"),
    Row("Conv4 evaluation 5w1s 15q, 5 steps", learner="evaluation", steps=5),
]


# ----------------------------------------------------------------------------------------- the model, as peers have it


class Residual(nn.Module):
    """A block of ResNet-12 from torch's own layers."""

    def __init__(self, inputs: int, outputs: int):
        super().__init__()
        self.convs = nn.ModuleList(nn.Conv2d(i, outputs, 3, padding=1, bias=False) for i in (inputs, outputs, outputs))
        self.norms = nn.ModuleList(nn.BatchNorm2d(outputs, track_running_stats=False) for _ in range(3))
        self.shortcut = nn.Conv2d(inputs, outputs, 1, bias=False)
        self.shortcut_norm = nn.BatchNorm2d(outputs, track_running_stats=False)

    def forward(self, x: Tensor) -> Tensor:
        kept = self.shortcut_norm(self.shortcut(x))
        for i, (conv, norm) in enumerate(zip(self.convs, self.norms, strict=True)):
            x = norm(conv(x))
            x = F.leaky_relu(x + kept if i == 2 else x, 0.1)
        return F.max_pool2d(x, 2)


def of_torch(row: Row) -> nn.Module:
    """The row's network from torch's layers, in the order of parameters that kshot's has."""
    if row.network == "mlp":
        return nn.Sequential(nn.Linear(1, 40), nn.ReLU(), nn.Linear(40, 40), nn.ReLU(), nn.Linear(40, 1))
    if row.network == "resnet12":
        widths = (3, 64, 160, 320, 640)
        blocks = [Residual(i, o) for i, o in itertools.pairwise(widths)]
        return nn.Sequential(*blocks, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(640, row.ways))
    layers: list[nn.Module] = []
    for i in range(4):
        conv = nn.Conv2d(64 if i else 1, 64, 3, padding=1, bias=False)
        layers += [conv, nn.BatchNorm2d(64, track_running_stats=False), nn.ReLU(), nn.MaxPool2d(2)]
    head = [] if row.learner == "protonet" else [nn.Linear(64, row.ways)]
    return nn.Sequential(*layers, nn.Flatten(), *head)


def of_kshot(row: Row) -> nn.Module:
    """The same network from `kshot.nn`."""
    out = None if row.learner == "protonet" else row.ways
    if row.network == "mlp":
        return knn.MLP(1, 40, 40, 1)
    if row.network == "resnet12":
        return knn.ResNet12(3, out=out)
    return knn.Conv4(out=out, population=row.learner == "protonet")


def same_weights(ours: nn.Module, theirs: nn.Module) -> list[int]:
    """Copy ours into theirs; the order in which theirs' parameters are ours' (equal shapes come in equal order)."""
    left = list(enumerate(theirs.parameters()))
    order = []
    with torch.no_grad():
        for parameter in ours.parameters():
            at = next(i for i, (_, p) in enumerate(left) if p.shape == parameter.shape)
            index, target = left.pop(at)
            target.copy_(parameter)
            order.append(index)
    assert not left
    return order


def drawn(row: Row) -> Task:
    """Tasks of random numbers: their arithmetic is that of real ones."""
    generator = torch.Generator().manual_seed(1)
    t, n, m = row.tasks, row.ways * row.shots, row.ways * row.queries
    if row.network == "mlp":
        x, y = (torch.rand(t, n + m, 1, generator=generator) for _ in range(2))
        return Task(Batch(x[:, :n], y[:, :n]), Batch(x[:, n:], y[:, n:]))
    channels = 3 if row.network == "resnet12" else 1
    x = torch.rand(t, n + m, channels, row.size, row.size, generator=generator)
    classes = torch.arange(row.ways)
    support, query = classes.repeat_interleave(row.shots), classes.repeat_interleave(row.queries)
    return Task(Batch(x[:, :n], support.expand(t, n)), Batch(x[:, n:], query.expand(t, m)))


def criterion(row: Row) -> Callable[[Tensor, Tensor], Tensor]:
    return F.mse_loss if row.network == "mlp" else F.cross_entropy


def each(tasks: Task) -> list[tuple[Tensor, Tensor, Tensor, Tensor]]:
    (sx, sy), (qx, qy) = tasks
    return list(zip(sx, sy, qx, qy, strict=True))


# -------------------------------------------------------------------------------------------------------- contenders


def answers(learner: Learner, task: Task) -> Tensor:
    """The scores of the queries."""
    return learner.predict(learner.adapt(learner.init(), task.support), task.query.x)


def kshot(row: Row, ours: nn.Module, tasks: Task) -> Step:
    if row.learner == "evaluation":
        tested = build("maml", ours, row.ways, inner_lr=row.lr, inner_steps=row.steps).eval()
        tested.to(memory_format=torch.channels_last)  # pyright: ignore[reportCallIssue]
        return lambda: engine.spread(tested, tasks, answers)
    settings = {} if row.learner == "protonet" else {"inner_lr": row.lr, "inner_steps": row.steps}
    learner = build(row.learner, ours, row.ways, **settings)
    if row.network != "mlp":
        learner.to(memory_format=torch.channels_last)  # pyright: ignore[reportCallIssue]
    learner.train()
    return lambda: list(engine.meta_gradient(learner, tasks)[0].values())


def adapted(row: Row, model: nn.Module) -> list[str]:
    """The names that the inner steps move."""
    names = [name for name, _ in model.named_parameters()]
    return names[-2:] if row.learner == "anil" else names


def loop(row: Row, model: nn.Module, tasks: Task) -> Step:
    """One task after another by torch.autograd and functional_call."""
    loss, params, moving = criterion(row), dict(model.named_parameters()), adapted(row, model)

    def tested(sx: Tensor, sy: Tensor, qx: Tensor) -> Tensor:
        fast = dict(params)
        for _ in range(row.steps):
            value = loss(functional_call(model, fast, sx), sy)
            slopes = torch.autograd.grad(value, list(fast.values()))
            fast = {
                n: (p - row.lr * g).detach().requires_grad_() for (n, p), g in zip(fast.items(), slopes, strict=True)
            }
        with torch.no_grad():
            return functional_call(model, fast, qx)

    if row.learner == "evaluation":
        return lambda: [tested(*task[:3]) for task in each(tasks)]

    def one(sx: Tensor, sy: Tensor, qx: Tensor, qy: Tensor) -> Tensor:
        if row.learner == "protonet":
            both = model(torch.cat([sx, qx]))
            centres = torch.stack([both[: len(sx)][sy == c].mean(0) for c in range(row.ways)])
            return loss(-torch.cdist(both[len(sx) :], centres).square(), qy)
        fast = dict(params)
        for _ in range(row.steps):
            value = loss(functional_call(model, fast, sx), sy)
            second = row.learner != "fomaml"
            slopes = torch.autograd.grad(value, [fast[n] for n in moving], create_graph=second)
            fast |= {n: fast[n] - row.lr * g for n, g in zip(moving, slopes, strict=True)}
        return loss(functional_call(model, fast, qx), qy)

    def step() -> list[Tensor]:
        total = [torch.zeros_like(p) for p in params.values()]
        for task in each(tasks):
            gradients = torch.autograd.grad(one(*task) / row.tasks, list(params.values()))
            total = [t + g for t, g in zip(total, gradients, strict=True)]
        return total

    return step


def higher(row: Row, model: nn.Module, tasks: Task) -> Step | None:
    if row.learner not in ("maml", "fomaml"):
        return None
    import higher as package

    loss = criterion(row)

    def step() -> list[Tensor]:
        model.zero_grad()
        for sx, sy, qx, qy in each(tasks):
            optimizer = torch.optim.SGD(model.parameters(), row.lr)
            with package.innerloop_ctx(
                model, optimizer, copy_initial_weights=False, track_higher_grads=row.learner == "maml"
            ) as (net, inner):
                for _ in range(row.steps):
                    inner.step(loss(net(sx), sy))
                value = loss(net(qx), qy) / row.tasks
                if row.learner == "maml":
                    value.backward()
                else:  # without the graph of the steps the gradients are those at the adapted weights
                    for p, g in zip(
                        model.parameters(), torch.autograd.grad(value, list(net.parameters())), strict=True
                    ):
                        p.grad = g if p.grad is None else p.grad + g
        return [p.grad.clone() for p in model.parameters() if p.grad is not None]

    return step


def torchopt(row: Row, model: nn.Module, tasks: Task) -> Step | None:
    if row.learner != "maml":
        return None
    import torchopt as package

    loss = criterion(row)
    inner = package.MetaSGD(model, lr=row.lr)
    weights = package.extract_state_dict(model, by="reference")
    state = package.extract_state_dict(inner)
    leaves = list(model.parameters())

    def step() -> list[Tensor]:
        for p in leaves:
            p.grad = None
        for sx, sy, qx, qy in each(tasks):
            for _ in range(row.steps):
                inner.step(loss(model(sx), sy))
            (loss(model(qx), qy) / row.tasks).backward()
            package.recover_state_dict(model, weights)
            package.recover_state_dict(inner, state)
        return [p.grad.clone() for p in leaves if p.grad is not None]

    return step


CONTENDERS: dict[str, Callable[[Row, nn.Module, Task], Step | None]] = {
    "kshot": kshot, "plain loop": loop, "higher": higher, "torchopt": torchopt
}  # fmt: skip


# ---------------------------------------------------------------------------------------------------------- measuring


def clock(device: str) -> float:
    """Seconds, when all that was asked for is done."""
    if device.startswith("cuda"):
        torch.cuda.synchronize(device)
    return time.perf_counter()


def peak(device: str) -> float:
    """GFLOP/s of a large float32 matrix product, the best of several."""
    size = 8192 if device.startswith("cuda") else 2048
    a = torch.rand(size, size, device=device)
    best = float("inf")
    for _ in range(5):
        began = clock(device)
        a @ a
        best = min(best, clock(device) - began)
    return 2 * size**3 / best / 1e9


def contenders(row: Row, names: list[str], dtype: torch.dtype, device: str) -> dict[str, Step]:
    """Those that can do the row, from equal weights and on equal tasks."""
    torch.manual_seed(0)
    ours, tasks = of_kshot(row).to(device, dtype), to(drawn(row), device, dtype)
    steps: dict[str, Step] = {}
    for name in names:
        model: nn.Module = copy.deepcopy(ours)
        if name != "kshot":
            model = of_torch(row).to(device, dtype)
            same_weights(ours, model)
        with contextlib.suppress(ImportError):  # not installed
            made = CONTENDERS[name](row, model, tasks)
            if made is not None:
                steps[name] = made
    return steps


def norms(steps: dict[str, Step]) -> dict[str, float]:
    """Of their meta-gradients."""
    return {name: float(torch.stack([g.square().sum() for g in step()]).sum().sqrt()) for name, step in steps.items()}


def measure(row: Row, repeats: int, names: list[str], device: str) -> dict[str, Any]:
    """Seconds of each contender, taking turns, and the norms of their meta-gradients."""
    exact = norms(contenders(replace(row, tasks=min(row.tasks, 2)), names, torch.float64, device))
    for name, norm in exact.items():
        if abs(norm / exact["plain loop"] - 1) > DIGITS:
            raise SystemExit(f"{row.name}: the meta-gradient of {name} differs from the plain loop's: {exact}")
    steps = contenders(row, names, torch.float32, device)
    single = norms(steps)
    with FlopCounterMode(display=False) as counter:
        steps["plain loop"]()
    seconds: dict[str, list[float]] = {name: [] for name in steps}
    for _ in range(repeats):
        for name, step in steps.items():
            began = clock(device)
            step()
            seconds[name].append(clock(device) - began)
    return {
        "row": row.__dict__,
        "gflop": counter.get_total_flops() / 1e9,
        "norms": {"float64, two tasks": exact, "float32": single},
        "seconds": {name: {"median": statistics.median(s), "all": s} for name, s in seconds.items()},
    }


@dataclass(frozen=True)
class Settings:
    """Compare the engine with its peers."""

    rows: tyro.conf.Positional[tuple[int, ...]] = ()
    """Numbers of the rows, from 0; none means all."""
    repeats: int = 7
    """Steps of each contender."""
    tasks: int | None = None
    """Tasks of a step, instead of the row's own."""
    peers: tuple[str, ...] = ("kshot", "plain loop", "higher", "torchopt")
    """Contenders."""
    device: str = "cpu"
    """"cpu" or "cuda"."""
    json: Path | None = None
    """Write the figures to this file."""


def main(settings: Settings) -> None:
    """Measure the rows and print a table."""
    console, limit = Console(width=150), peak(settings.device)
    found = []
    table = Table(*("row", *(f"{name}, s" for name in settings.peers), "fastest peer / kshot", "of the peak"))
    for i in settings.rows or range(len(ROWS)):
        row = replace(ROWS[i], tasks=settings.tasks or ROWS[i].tasks)
        result = measure(row, settings.repeats, list(settings.peers), settings.device)
        medians = {name: values["median"] for name, values in result["seconds"].items()}
        fastest = min(value for name, value in medians.items() if name != "kshot")
        result |= {"ratio": fastest / medians["kshot"], "share_of_peak": result["gflop"] / medians["kshot"] / limit}
        found.append(result)
        cells = [f"{medians[name]:.3f}" if name in medians else "not measured" for name in settings.peers]
        table.add_row(row.name, *cells, f"{result['ratio']:.2f}", f"{100 * result['share_of_peak']:.0f} %")
        console.print(f"{row.name}: {medians}, {result['norms']}")
    console.print(table)
    commit = subprocess.run(["git", "rev-parse", "HEAD"], capture_output=True, text=True, check=False).stdout.strip()
    on = torch.cuda.get_device_name() if settings.device.startswith("cuda") else ""
    about = {"threads": torch.get_num_threads(), "peak_gflops": limit, "commit": commit, "rows": found}
    seeds = {"weights": 0, "tasks": 1}
    write_record(settings.json, about, seeds=seeds, on=on, packages=["higher", "torchopt"])


if __name__ == "__main__":
    main(tyro.cli(Settings))
