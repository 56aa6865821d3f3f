"""What is tried, what fits, what is remembered."""

from __future__ import annotations

import json
from dataclasses import asdict, replace
from pathlib import Path

import pytest
import torch
from torch import nn

from kshot import engine
from kshot import nn as knn
from kshot.core import Batch, Learner, Task, to
from kshot.engine import OutOfMemory, Plan, Trial, gradients, planning, rematerialise
from kshot.learners import build
from kshot.learners.gradient.maml import MAML
from kshot.storage import checkpoint
from kshot.testing import Clusters
from kshot.training.meta import Outer, meta_train


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
        if len(tasks.query.x) > 2:  # fewer are an estimate of bytes
            taken.append(strategy.name)
        now[0] += seconds[strategy.name]
        return original(learner, tasks, strategy, chunk_size)

    monkeypatch.setattr(gradients, "meta_gradient", meta_gradient)
    monkeypatch.setattr(planning, "clock", lambda device: now[0])
    return taken


@pytest.mark.parametrize("fastest", ["loop", "threads", "vmap"])
def test_the_fastest_is_chosen_written_and_read(fastest: str, own_cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    times = {"loop": 0.3, "threads": 0.25, "vmap": 0.2}
    taken = clock_says(monkeypatch, {**times, fastest: 0.1})
    found = planning.plan(learner(), tasks())
    assert found.name == fastest
    assert {t.name: round(t.seconds or 0, 6) for t in found.tried} == {**times, fastest: 0.1}
    assert found.why == "measured"
    (file,) = own_cache.iterdir()
    assert json.loads(file.read_text())["for"]["learner"] == "MAML"

    before = len(taken)
    again = planning.plan(learner(), tasks())
    assert len(taken) == before  # nothing was tried
    assert (again.name, again.tried, again.key) == (found.name, found.tried, found.key)
    assert str(file) in again.why
    file.write_text("{ broken")
    assert planning.plan(learner(), tasks()).why == "measured"


def test_what_is_much_slower_is_given_up(monkeypatch: pytest.MonkeyPatch) -> None:
    taken = clock_says(monkeypatch, {"loop": 1.0, "threads": 0.15, "vmap": 0.1})
    found = planning.plan(learner(), tasks())
    assert taken.count("loop") == 2
    assert taken.count("vmap") == taken.count("threads") == 4
    assert next(t.note for t in found.tried if t.name == "loop")


def test_what_matters_is_in_the_key() -> None:
    def body(**changes: object) -> nn.Module:
        return knn.Conv4(**{"width": 4, "size": 16, "out": 3, **changes})  # type: ignore[arg-type]

    def maml(network: nn.Module, **changes: object) -> Learner:
        return build("maml", network, 3, **changes)

    frozen = maml(body())
    next(iter(frozen.body.parameters())).requires_grad_(False)  # type: ignore[union-attr]
    last = maml(body())
    last.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    plain: tuple = (images(), "auto", None, None)
    keys = [
        planning.key(one, *asked)  # type: ignore[arg-type]
        for one, asked in (
            (maml(body()), plain),
            (maml(body()), (images(5), "auto", None, None)),
            (maml(body()), (images(), "loop", None, None)),
            (maml(body()), (images(), "auto", 2, None)),
            (maml(body()), (images(), "auto", None, 2**30)),
            (maml(body(pool="avg")), plain),
            (maml(body(activation="softplus")), plain),
            (maml(body(activation="leaky_relu")), plain),
            (maml(body(width=5)), plain),
            (maml(body(), inner_steps=2), plain),
            (maml(body(), adapts=("head",)), plain),
            (build("anil", body(), 3), plain),
            (frozen, plain),
            (last, plain),
            (maml(body()).double(), plain),
        )
    ]
    assert len(set(keys)) == len(keys)
    torch.manual_seed(1)
    assert planning.key(maml(body()).eval(), *plain) == keys[0]
    torch.set_num_threads(1)
    assert planning.key(maml(body()), *plain) != keys[0]


def bytes_of(strategy: str, frugal: bool = False) -> int:
    one, how = convolving(), Plan("vmap" if strategy == "vmap" else "loop", frugal=frugal)
    return rematerialise.peak_bytes(lambda: engine.meta_gradient(one, images(1), how), one.parameters())


def test_a_limit_makes_chunks_and_fewer_threads() -> None:
    each = bytes_of("vmap")
    found = planning.plan(convolving(), images(), "vmap", memory_limit=3 * each + each // 2)
    assert (found.strategy, found.chunk_size, found.frugal) == ("vmap", 3, False)
    one = convolving()
    assert rematerialise.peak_bytes(lambda: engine.meta_gradient(one, images(), found), one.parameters()) <= 3.5 * each
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
    assert rematerialise.peak_bytes(lambda: engine.meta_gradient(one, images(), found), one.parameters()) <= limit * 1.1
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


class Asks(nn.Module):
    """A body that vmap cannot map, and a loop can."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(8, 3)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.layer(x) * (1 if float(x.detach().sum().item()) < 1e9 else 2)


class Nearest(Learner):
    """With a body of its own kind, and no transform of torch.func inside."""

    def __init__(self, body: nn.Module) -> None:
        super().__init__()
        self.body = body

    def init(self) -> dict[str, torch.Tensor]:
        return {"means": torch.zeros(3, 3)}

    def adapt(self, state: dict[str, torch.Tensor], support: Batch) -> dict[str, torch.Tensor]:
        belongs = (support.y[:, None] == torch.arange(3)).float()
        return {"means": belongs.T @ self.body(support.x)}

    def predict(self, state: dict[str, torch.Tensor], x: torch.Tensor) -> torch.Tensor:
        return -(self.body(x)[:, None] - state["means"]).square().sum(-1)


def test_what_a_learner_cannot_take_is_left_out_with_the_reason() -> None:
    found = planning.plan(Nearest(Asks()).train(), tasks())
    assert found.strategy in ("loop", "threads")
    (note,) = [t.note for t in found.tried if t.name == "vmap"]
    assert note.startswith("cannot be taken: ")
    assert "item" in note
    with pytest.raises(ValueError, match=r"Nearest with Asks, Nearest cannot be mapped over tasks .*item"):
        planning.plan(Nearest(Asks()).train(), tasks(), "vmap")


def test_a_gradient_that_mapping_makes_wrong_is_left_out(own_cache: Path) -> None:
    body = nn.Sequential(nn.Linear(8, 16), nn.LayerNorm(16), nn.Tanh(), nn.Linear(16, 3))
    with pytest.warns(RuntimeWarning, match="MAML with LayerNorm gets another meta-gradient"):
        found = planning.plan(build("maml", body, 3).train(), tasks())
    assert found.strategy in ("loop", "threads")
    assert planning.plan(build("maml", body, 3).train(), tasks()).strategy == found.strategy  # as the cache knows
    assert list(own_cache.rglob("*.json"))


def test_a_learner_that_draws_random_numbers_keeps_its_graphs() -> None:
    body = nn.Sequential(nn.Linear(8, 64), nn.Dropout(0.5), nn.Tanh(), nn.Linear(64, 3))
    one = build("maml", body, 3, inner_steps=10).train()
    with pytest.raises(ValueError, match=r"draws random numbers.*frugal=False"):
        engine.meta_gradient(one, tasks(), Plan("loop", frugal=True))
    kept = planning.bytes_of_one(one, tasks())
    with pytest.raises(OutOfMemory, match="fewer inner steps"):
        planning.plan(one, tasks(), memory_limit=kept // 3)
    assert not planning.plan(one, tasks(), memory_limit=2 * kept).frugal
    frugal = planning.plan(one.eval(), tasks(), "loop", memory_limit=int(0.9 * planning.bytes_of_one(one, tasks())))
    assert frugal.frugal


def test_a_learner_whose_criterion_may_use_other_parameters_keeps_its_graphs() -> None:
    class Warm(MAML):
        def __init__(self) -> None:
            super().__init__(knn.MLP(8, 6, 3), ways=3, inner_steps=2)
            self.temperature = nn.Parameter(torch.tensor(2.0))

        def criterion(self, prediction: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
            return super().criterion(prediction / self.temperature, y)

    one = Warm().double()
    batch = to(tasks(), dtype=torch.float64)
    for how in (Plan("loop", frugal=True), Plan("vmap", frugal=True)):
        found, wanted = (engine.meta_gradient(one, batch, plan)[0] for plan in (how, "loop"))
        torch.testing.assert_close(found, wanted, rtol=1e-9, atol=1e-12)


def test_a_first_estimate_that_does_not_fit_leads_to_the_frugal(monkeypatch: pytest.MonkeyPatch) -> None:
    real = engine.meta_gradient

    def starved(learner: Learner, tasks: Task, strategy: Plan, chunk_size: int | None = None) -> object:
        if not strategy.frugal:
            raise OutOfMemory("graphs do not fit")
        return real(learner, tasks, strategy, chunk_size)

    monkeypatch.setattr(gradients, "meta_gradient", starved)
    found = planning.plan(convolving(), images())
    assert found.frugal
    assert any("graphs do not fit" in trial.note for trial in found.tried)


def test_a_moment_of_little_memory_is_not_remembered(own_cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    limit = (bytes_of("loop", frugal=True) + bytes_of("loop")) // 2
    with monkeypatch.context() as little:
        little.setattr(rematerialise, "available", lambda device: int(limit / planning.HEADROOM))
        assert planning.plan(convolving(), images()).frugal
    assert not own_cache.exists() or not list(own_cache.iterdir())
    assert not planning.plan(convolving(), images()).frugal
    with monkeypatch.context() as shared:
        shared.setenv("LOCAL_WORLD_SIZE", "1000000000000")
        with pytest.raises(OutOfMemory):
            planning.plan(convolving(), images())


def test_the_plan_is_for_the_largest_share() -> None:
    """Of three tasks two processes have one and two: rank 0 plans with rank 1's."""
    seen = []

    def note(learner: Learner, batch: Task, *rest: object) -> Plan:
        seen.append(len(batch.query.x))
        return Plan("loop")

    from kshot.engine.processes import World
    from kshot.training.meta import MetaGradient

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(planning, "plan", note)
        patch.setattr(World, "broadcast", lambda self, value: value)
        stepper = MetaGradient(
            learner(), Clusters(ways=3, shots=1, queries=2, shape=(8,)), Outer(steps=200, batch=3), world=World(0, 2)
        )
        stepper._planned(0)
    assert seen == [2]


def test_a_plan_survives_json() -> None:
    plan = Plan("vmap", 3, None, True, "because", (Trial("loop", None, 7, "too big"), Trial("vmap", 0.5, 8)), "key")
    assert Plan.from_dict(json.loads(json.dumps(asdict(plan)))) == plan


def test_long_trainings_take_a_trial_and_resumed_ones_the_same_plan(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    distribution = Clusters(ways=3, shots=1, queries=2, shape=(8,))
    trials = []
    real = planning.plan

    def slowest(*given: object) -> Plan:
        trials.append(given)
        found = real(*given)  # type: ignore[arg-type]
        return replace(found, strategy="loop")  # which the rule would not take

    monkeypatch.setattr(planning, "plan", slowest)

    def run(steps: int, stop_at: int, resume: bool = False, **more: object) -> Plan:
        outer = Outer(steps=steps, batch=2, val_every=0, save_every=1)
        for record in meta_train(learner(), distribution, outer, out=tmp_path, resume=resume, **more):  # type: ignore[arg-type]
            if record.step == stop_at:
                break
        return Plan.from_dict(checkpoint.load(tmp_path / "last.safetensors")[1]["engine"])

    assert run(99, 2).why == "the rule"
    assert not trials
    assert run(99, 4, True, planned=lambda plan: None).why == "the rule"  # nor because it is looked at
    assert not trials
    first = run(100, 2)
    assert len(trials) == 1
    assert first.strategy == "loop"
    assert run(100, 4, True) == first
    assert len(trials) == 1
    assert run(100, 6, True, strategy="vmap").strategy == "vmap"
