"""How fast 800 half-cheetahs are simulated, beside what else there is, in one run.

    python benchmarks/rl/simulation.py --json benchmarks/results/rl-simulation.json

One control step of HalfCheetah-v5 is five physics steps. Rows, in steps a second of wall time:

    mj_step, one core     a loop of `mujoco.mj_step(model, data, 5)` on one core with random actions: a core's limit
    mj_step, all cores    the same in a process for each core at once: the machine's limit, of which shares are told
    kshot                 `kshot.tasks.control`: actions in, observations and rewards out
    AsyncVectorEnv        gymnasium's, a process for each environment (as many as stated)
    SyncVectorEnv         gymnasium's, one after another
    EnvPool               where it is installed
    kshot, warp           the same as kshot's row by MuJoCo Warp on a GPU, with `--warp` (kshot[warp])
    warp alone            its physics: nothing comes to the host and no action goes there
    ..., one step         the same of MAML's half-cheetah ("cheetah-direction"), whose control step is one physics step

The last line compares kshot with the fastest of the other three. Rounds of all rows take turns, and a row's figure is
the median of its rounds, since machines are noisy.
"""

from __future__ import annotations

import multiprocessing
import os
import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
import tyro


@dataclass(frozen=True)
class Settings:
    """Steps a second of simulations of HalfCheetah-v5."""

    count: int = 800
    """Simulations at a time (kshot)."""
    seconds: float = 3.0
    """Of each row in each round."""
    rounds: int = 5
    """All rows take turns this often."""
    processes: int = 16
    """Environments of AsyncVectorEnv, a process each, and of SyncVectorEnv."""
    warp: tuple[int, ...] = ()
    """Simulations at a time by MuJoCo Warp: a row for each."""
    json: Path | None = None
    """Write the figures to this file."""


V5, PAPER = "v5-cheetah-direction", "cheetah-direction"


def _raw(seconds: float, name: str = V5, together: Any = None) -> float:
    """Control steps a second of one simulation in a loop, its state put back after each 200."""
    import mujoco

    from kshot.tasks.control.mujoco import Mujoco
    from kshot.tasks.control.registry import family

    tasks = family(name)
    assert isinstance(tasks, Mujoco)
    model, frame_skip = tasks.model, tasks.frame_skip
    data, rng = mujoco.MjData(model), np.random.default_rng(0)
    actions = rng.uniform(-1, 1, (200, model.nu))
    if together is not None:
        together.wait()
    began, done = time.perf_counter(), 0
    while time.perf_counter() - began < seconds:
        mujoco.mj_resetData(model, data)
        for action in actions:
            data.ctrl[:] = action
            mujoco.mj_step(model, data, frame_skip)
        done += len(actions)
    return done / (time.perf_counter() - began)


def _core(seconds: float, name: str, together: Any, found: Any) -> None:
    found.put(_raw(seconds, name, together))


def _all_cores(seconds: float, name: str = V5) -> float:
    context = multiprocessing.get_context("spawn")
    cores = os.cpu_count() or 1
    together, found = context.Barrier(cores), context.Queue()
    workers = [context.Process(target=_core, args=(seconds, name, together, found)) for _ in range(cores)]
    for worker in workers:
        worker.start()
    total = sum(found.get() for _ in workers)
    for worker in workers:
        worker.join()
    return total


def _ours(count: int, backend: Literal["mujoco", "warp"] = "mujoco", name: str = V5) -> Callable[[float], float]:
    from kshot.tasks.control.mujoco import Mujoco
    from kshot.tasks.control.registry import family

    tasks = family(name)
    assert isinstance(tasks, Mujoco)
    tasks.backend = backend
    sim = tasks.simulator(np.ones((count, 1)), 1)
    rng = np.random.default_rng(0)
    actions = rng.uniform(-1, 1, (200, count, 6))

    def run(seconds: float) -> float:
        began, done = time.perf_counter(), 0
        while time.perf_counter() - began < seconds:
            sim.reset(rng)
            for action in actions[:100]:
                sim.step(action)
            done += 100 * count
        return done / (time.perf_counter() - began)

    return run


def _warp_alone(count: int) -> Callable[[float], float]:
    import torch

    from kshot.tasks.control.mujoco import Mujoco
    from kshot.tasks.control.registry import family

    tasks = family("v5-cheetah-direction")
    assert isinstance(tasks, Mujoco)
    tasks.backend = "warp"
    sim = tasks.simulator(np.ones((count, 1)), 1)
    rng = np.random.default_rng(0)
    actions = rng.uniform(-1, 1, (count, 6))

    def run(seconds: float) -> float:
        sim.reset(rng)
        sim.step(actions)
        began, done = time.perf_counter(), 0
        while time.perf_counter() - began < seconds:
            for _ in range(20):
                sim.physics.advance(5)
            torch.cuda.synchronize()
            done += 20 * count
        return done / (time.perf_counter() - began)

    return run


def _vector(envs: Any, count: int) -> Callable[[float], float]:
    rng = np.random.default_rng(0)
    actions = rng.uniform(-1, 1, (100, count, 6)).astype(np.float32)
    envs.reset()

    def run(seconds: float) -> float:
        began, done = time.perf_counter(), 0
        while time.perf_counter() - began < seconds:
            for action in actions:
                envs.step(action)
            done += len(actions) * count
        return done / (time.perf_counter() - began)

    return run


def _envpool(count: int) -> Callable[[float], float] | None:
    try:
        import envpool
    except ImportError:
        return None
    envs = envpool.make_gymnasium("HalfCheetah-v5", num_envs=count, num_threads=os.cpu_count())
    return _vector(envs, count)


def _gpu() -> str:
    import torch

    return torch.cuda.get_device_name() if torch.cuda.is_available() else "no GPU"


def fastest_peer(rows: dict[str, Any]) -> tuple[str, float]:
    """The fastest of the other programs in a record's rows, and how many times as fast kshot is."""
    peers = {n: r for n, r in rows.items() if r and n.startswith(("AsyncVectorEnv", "SyncVectorEnv", "EnvPool"))}
    name = max(peers, key=lambda n: peers[n]["steps_per_second"])
    ours = next(n for n in rows if n.startswith("kshot, "))
    return name, rows[ours]["steps_per_second"] / peers[name]["steps_per_second"]


def main(settings: Settings) -> None:
    """Measure all rows and print the table."""
    import gymnasium

    one = gymnasium.make_vec("HalfCheetah-v5", num_envs=settings.processes, vectorization_mode="sync")
    many = gymnasium.make_vec("HalfCheetah-v5", num_envs=settings.processes, vectorization_mode="async")
    rows: dict[str, Callable[[float], float] | None] = {
        "mj_step, one core": _raw,
        "mj_step, all cores": _all_cores,
        f"kshot, {settings.count}": _ours(settings.count),
        f"AsyncVectorEnv, {settings.processes}": _vector(many, settings.processes),
        f"SyncVectorEnv, {settings.processes}": _vector(one, settings.processes),
        f"EnvPool, {settings.count}": _envpool(settings.count),
        "mj_step, one step": lambda seconds: _all_cores(seconds, PAPER),
        f"kshot, {settings.count}, one step": _ours(settings.count, name=PAPER),
        **{f"kshot, warp, {count}": _ours(count, "warp") for count in settings.warp},
        **{f"warp alone, {count}": _warp_alone(count) for count in settings.warp},
    }
    found: dict[str, list[float]] = {name: [] for name in rows}
    for _ in range(settings.rounds):
        for name, run in rows.items():
            if run is not None:
                found[name].append(run(settings.seconds))
    many.close()
    limits = {name: statistics.median(found[name]) for name in ("mj_step, all cores", "mj_step, one step")}
    print(f"{'':<24}{'steps/s':>10}  share of all cores' mj_step")
    table = {}
    for name, values in found.items():
        if not values:
            print(f"{name:<24}{'not measured (not installed)':>30}")
            table[name] = None
            continue
        middle = statistics.median(values)
        limit = limits["mj_step, one step" if name.endswith("one step") else "mj_step, all cores"]
        table[name] = {"steps_per_second": middle, "share": middle / limit, "rounds": values}
        print(f"{name:<24}{middle:>10,.0f}  {middle / limit:.2f}   ({min(values):,.0f} to {max(values):,.0f})")
    print("kshot is {1:.2f} times as fast as the fastest of the others, {0}".format(*fastest_peer(table)))
    from kshot.cli._shared import write_record

    on = _gpu() if settings.warp else ""
    packages = ["mujoco", "gymnasium", "numpy", "envpool"]
    write_record(settings.json, {"rows": table}, seeds={}, on=on, packages=packages)


if __name__ == "__main__":
    main(tyro.cli(Settings))
