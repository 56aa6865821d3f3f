"""Many processes, one run: each works on its share of a batch of tasks, and their meta-gradients are added up.

    torchrun --nproc-per-node=2 -m kshot train RECIPE --out DIR

Every process draws the whole batch from the step's seed and takes its share by rank, so the sequence of tasks depends
on the number of processes in nothing. What is to be summed (gradients, loss, metrics) goes in one message per step, the
wish to stop in a second one. Rank 0 alone validates, writes and prints.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import dataclass, replace
from datetime import timedelta
from typing import Any, TypeVar

import torch
from torch import Tensor
from torch import distributed as dist
from torch.distributed.rendezvous import rendezvous

from kshot.core import Task, num_tasks
from kshot.numerics import tree

__all__ = ["ALONE", "RankLost", "World", "join", "leave"]

Params = dict[str, Tensor]
Found = TypeVar("Found")


class RankLost(RuntimeError):
    """Another process of the run is gone; the message says how to resume."""


@dataclass(frozen=True)
class World:
    """The processes of a run.

    Attributes:
        rank: this one's number, from 0.
        size: how many there are.
        restarts: how often torchrun has started them again.
    """

    rank: int = 0
    size: int = 1
    restarts: int = 0

    @property
    def largest(self) -> World:
        """The process with the largest share of any batch."""
        return replace(self, rank=self.size - 1)

    @property
    def leads(self) -> bool:
        """Whether this is the process that validates, writes and prints."""
        return self.rank == 0

    def share(self, tasks: Task) -> Task:
        """This process's part of a batch of tasks.

        Raises:
            ValueError: fewer tasks than processes.
        """
        count = num_tasks(tasks)
        if count < self.size:
            raise ValueError(
                f"{self.size} processes cannot share a meta-update of {count} task{'s' if count > 1 else ''}: start at "
                f"most {count}, or raise the number of tasks (batch={self.size})"
            )
        first, last = count * self.rank // self.size, count * (self.rank + 1) // self.size
        return tree.map_(lambda leaf: leaf[first:last], tasks) if self.size > 1 else tasks

    def total(self, gradients: Params, numbers: dict[str, Tensor]) -> tuple[Params, dict[str, Tensor]]:
        """The sums over all processes, of gradients and of 0-d numbers, in one message.

        Raises:
            RankLost: another process is gone.
        """
        if self.size == 1:
            return gradients, numbers
        tensors = [*gradients.values(), *numbers.values()]
        kind = tensors[0].dtype  # of the weights; a count or a mean is exact enough in it
        flat = torch.cat([tensor.detach().to(kind).reshape(-1) for tensor in tensors])
        self._together(lambda: dist.all_reduce(flat))
        parts = [
            p.view(t.shape).to(t.dtype) for p, t in zip(flat.split([t.numel() for t in tensors]), tensors, strict=True)
        ]
        summed = dict(zip([*gradients, *numbers], parts, strict=True))
        return {name: summed[name] for name in gradients}, {name: summed[name] for name in numbers}

    def broadcast(self, value: Found) -> Found:
        """Rank 0's value, in every process.

        Raises:
            RankLost: another process is gone.
        """
        if self.size == 1:
            return value
        box: list[Any] = [value]
        self._together(lambda: dist.broadcast_object_list(box, 0))
        return box[0]

    def any(self, wish: bool) -> bool:
        """Whether any process says so.

        Raises:
            RankLost: another process is gone.
        """
        if self.size == 1:
            return wish
        said = torch.tensor(float(wish), device="cuda" if dist.get_backend() == "nccl" else "cpu")
        self._together(lambda: dist.all_reduce(said))
        return bool(said > 0)

    def _together(self, call: Callable[[], Any]) -> None:
        try:
            call()
        except (RuntimeError, ValueError) as error:  # gloo's and nccl's are RuntimeErrors
            raise RankLost(
                f"another process of this run is gone (seen by rank {self.rank} of {self.size}: "
                f"{' '.join(str(error).split())[:200]}). Where it reported an error, fix that. The last checkpoint is "
                "intact: start the command again with --resume, or let torchrun do it with --max-restarts"
            ) from error


ALONE = World()


def join(device: str = "cpu", minutes: float = 30.0) -> tuple[World, str]:
    """Meet the other processes that torchrun started; alone without it.

    Args:
        device: "cuda" becomes the GPU of this process's local rank, with nccl; "cpu" uses gloo.
        minutes: how long a process waits for the others before it calls them lost (rank 0 validates meanwhile).

    Returns:
        The world, and this process's device.
    """
    size = int(os.environ.get("WORLD_SIZE", "1"))
    restarts = int(os.environ.get("TORCHELASTIC_RESTART_COUNT", "0"))
    if size == 1 or "RANK" not in os.environ:
        return World(restarts=restarts), device
    if device == "cuda":
        device = f"cuda:{os.environ.get('LOCAL_RANK', '0')}"
        torch.cuda.set_device(device)
    wait = timedelta(minutes=minutes)
    backend = "nccl" if device.startswith("cuda") else "gloo"
    try:
        store, rank, size = next(rendezvous("env://", timeout=wait))
        # torchrun starts again with the old store, where the addresses of the lost processes still are.
        own = dist.PrefixStore(f"kshot-{restarts}", store)  # pyright: ignore[reportPrivateImportUsage]
        dist.init_process_group(backend, store=own, rank=rank, world_size=size, timeout=wait)
    except RuntimeError as error:  # torch's DistError is one
        raise RankLost(
            f"rank {os.environ['RANK']} did not meet the other {size - 1} within {minutes:g} minutes: "
            f"{' '.join(str(error).split())[:200]}. Start all of them with one torchrun"
        ) from error
    return World(rank, size, restarts), device


def leave(world: World) -> None:
    """The end of the common work."""
    if world.size > 1 and dist.is_initialized():
        dist.destroy_process_group()
