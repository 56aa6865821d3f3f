"""What is tried, what fits, what is remembered."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

from kshot import engine, memory, planning
from kshot import nn as knn
from kshot.core import Learner, Task
from kshot.engine import OutOfMemory, Plan, Trial
from kshot.learners import build
from kshot.testing import Clusters
from kshot.train import meta_train


@pytest.fixture(autouse=True)
def own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("KSHOT_CACHE", str(tmp_path / "cache"))
    torch.set_num_threads(2)  # conftest puts it back
    return tmp_path / "cache" / "engine"


def tasks(count: int = 4) -> Task:
    return Clusters(ways=3, shots=1, queries=2, shape=(8,)).sample(torch.Generator().manual_seed(0), count)


def images(count: int = 4) -> Task:
    return Clusters(ways=3, shots=1, queries=2, shape=(1, 16, 16)).sample(torch.Generator().manual_seed(0), count)


def convolving() -> Learner:
    torch.manual_seed(0)
    return build("maml", knn.Conv4(width=8, size=16, pool="avg", out=3), 3, inner_steps=5).train()


def learner(steps: int = 1) -> Learner:
    torch.manual_seed(0)
    return build("maml", knn.MLP(8, 32, 3), 3, inner_steps=steps).train()


def clock_says(monkeypatch: pytest.MonkeyPatch, seconds: dict[str, float]) -> list[str]:
    """Meta-gradients that take as long as they are told; returns the names of those that were taken in full batches."""
    now, taken = [0.0], []
    original = engine.meta_gradient

    def meta_gradient(learner, tasks, strategy="auto", chunk_size=None):
        assert isinstance(strategy, Plan)
        if len(tasks.query.x) > 1:
            taken.append(strategy.name)
        now[0] += seconds[strategy.name]
        return original(learner, tasks, strategy, chunk_size)

    monkeypatch.setattr(engine, "meta_gradient", meta_gradient)
    monkeypatch.setattr(planning, "_clock", lambda device: now[0])
    return taken


@pytest.mark.parametrize("fastest", ["loop", "threads", "vmap"])
def test_the_fastest_is_chosen_written_and_read(fastest: str, own_cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    times = {"loop": 0.3, "threads": 0.25, "vmap": 0.2}
    taken = clock_says(monkeypatch, {**times, fastest: 0.1})
    found = planning.plan(learner(), tasks())
    assert found.name == fastest
    assert {t.name: round(t.seconds or 0, 6) for t in found.tried} == {**times, fastest: 0.1}
    assert found.why == "measured now"
    (file,) = own_cache.iterdir()
    assert json.loads(file.read_text())["for"]["learner"] == "MAML"

    before = len(taken)
    again = planning.plan(learner(), tasks())
    assert len(taken) == before  # nothing was tried
    assert (again.name, again.tried, again.key) == (found.name, found.tried, found.key)
    assert str(file) in again.why
    file.write_text("{ broken")
    assert planning.plan(learner(), tasks()).why == "measured now"


def test_what_is_much_slower_is_given_up(monkeypatch: pytest.MonkeyPatch) -> None:
    taken = clock_says(monkeypatch, {"loop": 1.0, "threads": 0.15, "vmap": 0.1})
    found = planning.plan(learner(), tasks())
    assert taken.count("loop") == 2
    assert taken.count("vmap") == taken.count("threads") == 4
    assert next(t.note for t in found.tried if t.name == "loop")


def test_other_sizes_learners_and_wishes_have_other_keys() -> None:
    keys = [
        planning.plan(one, batch, measure=False, **asked).key
        for one, batch, asked in (
            (learner(), tasks(), {}),
            (learner(), tasks(5), {}),
            (learner(2), tasks(), {}),
            (learner(), tasks(), {"memory_limit": 2**30}),
            (learner(), tasks(), {"strategy": "loop"}),
            (build("anil", knn.MLP(8, 32, 3), 3), tasks(), {}),
        )
    ]
    assert len(set(keys)) == len(keys)
    assert planning.plan(learner(), tasks(), measure=False).key == keys[0]


def bytes_of(strategy: str, frugal: bool = False) -> int:
    one, how = convolving(), Plan("vmap" if strategy == "vmap" else "loop", frugal=frugal)
    return memory.peak_bytes(lambda: engine.meta_gradient(one, images(1), how), one.parameters())


def test_a_limit_makes_chunks_and_fewer_threads() -> None:
    each = bytes_of("vmap")
    found = planning.plan(convolving(), images(), "vmap", memory_limit=3 * each + each // 2)
    assert (found.strategy, found.chunk_size, found.frugal) == ("vmap", 3, False)
    one = convolving()
    assert memory.peak_bytes(lambda: engine.meta_gradient(one, images(), found), one.parameters()) <= 3.5 * each
    single = bytes_of("loop")
    found = planning.plan(convolving(), images(), "threads", memory_limit=int(1.5 * single))
    assert (found.strategy, found.threads, found.frugal) == ("threads", 1, False)
    free = planning.plan(convolving(), images(), "threads", memory_limit=10**10)
    assert (free.threads, free.frugal) == (None, False)


def test_a_limit_below_one_task_keeps_no_graphs_and_the_gradient_stays() -> None:
    limit = (bytes_of("loop", frugal=True) + bytes_of("loop")) // 2
    assert limit < bytes_of("loop")
    found = planning.plan(convolving(), images(), "loop", memory_limit=limit)
    assert found.frugal
    one = convolving()
    assert memory.peak_bytes(lambda: engine.meta_gradient(one, images(), found), one.parameters()) <= limit * 1.1
    for mine, wanted in zip(
        engine.meta_gradient(one, images(), found)[0].values(),
        engine.meta_gradient(one, images(), "loop")[0].values(),
        strict=True,
    ):
        torch.testing.assert_close(mine, wanted)


def test_what_does_not_fit_says_what_it_takes_and_what_to_change() -> None:
    with pytest.raises(OutOfMemory, match=r"one task takes [\d.]+ KiB .*100 B may be used\. Try fewer queries"):
        planning.plan(learner(), tasks(), memory_limit=100)


def test_torchs_own_error_says_what_to_change(monkeypatch: pytest.MonkeyPatch) -> None:
    def starved(task: Task) -> tuple[torch.Tensor, dict[str, torch.Tensor]]:
        torch.empty(2**60)
        raise AssertionError("so much there is not")

    one = learner()
    monkeypatch.setattr(one, "loss", starved)
    with pytest.raises(OutOfMemory, match=r"4 tasks \(loop\) does not fit: .*allocate.* Try fewer inner steps"):
        engine.meta_gradient(one, tasks(), "loop")


def test_a_plan_of_before_is_kept_where_nothing_changed() -> None:
    slow = Plan("loop", why="before", key=planning.plan(learner(), tasks(), measure=False).key)
    assert planning.plan(learner(), tasks(), before=slow) is slow
    assert planning.plan(learner(), tasks(5), before=slow) is not slow


def test_a_plan_survives_json() -> None:
    plan = Plan("vmap", 3, None, True, "because", (Trial("loop", None, 7, "too big"), Trial("vmap", 0.5, 8)), "key")
    from dataclasses import asdict

    assert Plan.from_dict(json.loads(json.dumps(asdict(plan)))) == plan


def test_training_takes_a_trial_where_it_is_long_and_a_resumed_one_the_same_plan(tmp_path: Path) -> None:
    distribution = Clusters(ways=3, shots=1, queries=2, shape=(8,))
    plans: list[Plan] = []

    def run(**settings: object) -> None:
        for _ in meta_train(
            learner(), distribution, out=tmp_path, batch=2, val_every=0, planned=plans.append, **settings
        ):
            pass

    run(steps=3)
    run(steps=6, resume=True)
    first, second = plans
    assert first.why == "measured now"
    assert second == first
    assert planning.plan(learner(), tasks(2)).why.startswith("measured before")
    short = meta_train(learner(), distribution, steps=3, batch=2, val_every=0)
    assert len(list(short)) == 3
