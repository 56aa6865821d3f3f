"""The gradient-based learners against independent references: hand-written loops, closed forms, finite differences."""

from __future__ import annotations

import copy
from functools import partial

import pytest
import torch
from torch import Tensor, nn
from torch.func import functional_call

from kshot import engine
from kshot import nn as knn
from kshot.core import PADDING, UNLABELLED, Batch, Task
from kshot.engine import gradients as gradients_module
from kshot.learners.gradient.anil import ANIL
from kshot.learners.gradient.boil import BOIL
from kshot.learners.gradient.imaml import IMAML
from kshot.learners.gradient.maml import MAML
from kshot.learners.gradient.mamlpp import MAMLpp
from kshot.learners.gradient.metasgd import MetaSGD
from kshot.learners.gradient.reptile import Reptile
from kshot.numerics import losses, tree

LEARNERS = {
    "maml": partial(MAML, inner_steps=2),
    "fomaml": partial(MAML, inner_steps=2, first_order=True),
    "anil": partial(ANIL, inner_steps=2),
    "boil": partial(BOIL, inner_steps=2),
    "metasgd": partial(MetaSGD, inner_steps=2),
    "mamlpp": partial(MAMLpp, inner_steps=3),
    "reptile": partial(Reptile, inner_steps=3, inner_batch=4),
    "reptile-sgd": partial(Reptile, inner_steps=2, inner_optimizer="sgd", inner_batch=None, inner_lr=0.1),
    "imaml": partial(IMAML, inner_steps=3, cg_steps=3),
}
every = pytest.mark.parametrize("name", LEARNERS)
both = pytest.mark.parametrize("kind", ["mlp", "conv"])
WAYS, SHOTS, QUERIES = 3, 2, 3


def body(kind: str) -> nn.Module:
    torch.manual_seed(0)
    if kind == "conv":
        return knn.Conv4(width=4, pool="stride", features="mean", out=WAYS, activation="softplus").double()
    return knn.MLP(5, 6, WAYS, activation="tanh").double()


def build(name: str, kind: str, **settings) -> gradients_module.Learner:
    return LEARNERS[name](body(kind), ways=WAYS, **settings).double()


def draw(kind: str, num_tasks: int = 2, seed: int = 1) -> Task:
    """Random tasks `[T, ...]` in float64."""
    generator = torch.Generator().manual_seed(seed)
    shape = (1, 16, 16) if kind == "conv" else (5,)

    def batch(each: int) -> Batch:
        y = torch.arange(WAYS).repeat(num_tasks, each)
        x = torch.randn(num_tasks, WAYS * each, *shape, generator=generator, dtype=torch.float64)
        return Batch(x + y.view(*y.shape, *(1,) * len(shape)), y)

    return Task(batch(SHOTS), batch(QUERIES))


def one(kind: str) -> Task:
    return tree.index(draw(kind), 0)


def reference(
    net: nn.Module, task: Task, lr: float, steps: int, second_order: bool, adapts=None
) -> tuple[Tensor, dict]:
    """MAML by hand, with torch.autograd alone: the query loss and its gradient in the start."""
    phi = {name: p.detach().clone().requires_grad_() for name, p in net.named_parameters()}
    theta = dict(phi)
    names = list(phi) if adapts is None else adapts
    for _ in range(steps):
        scores = functional_call(net, theta, (task.support.x,))
        loss = nn.functional.cross_entropy(scores, task.support.y)
        gradients = torch.autograd.grad(loss, [theta[n] for n in names], create_graph=second_order)
        theta = {**theta, **{n: theta[n] - lr * g for n, g in zip(names, gradients, strict=True)}}
    loss = nn.functional.cross_entropy(functional_call(net, theta, (task.query.x,)), task.query.y)
    return loss.detach(), dict(zip(phi, torch.autograd.grad(loss, list(phi.values())), strict=True))


def gradient(learner, tasks: Task, strategy: engine.Strategy = "loop") -> dict[str, Tensor]:
    return engine.meta_gradient(learner, tasks, strategy)[0]


def close(a: dict[str, Tensor], b: dict[str, Tensor], tolerance: float) -> None:
    assert a.keys() == b.keys()
    for name in a:
        assert (a[name] - b[name]).abs().max() < tolerance, name


@both
def test_maml_of_no_steps_is_the_plain_network(kind):
    task, net = one(kind), body(kind)
    learner = MAML(net, ways=WAYS, inner_steps=0)
    scores = learner.predict(learner.adapt(learner.init(), task.support), task.query.x)
    assert torch.equal(scores, net(task.query.x))


@both
@pytest.mark.parametrize("steps", [1, 2, 3])
@pytest.mark.parametrize("second_order", [True, False])
def test_maml_equals_a_loop_by_hand(kind, steps, second_order):
    task, net = one(kind), body(kind)
    loss, expected = reference(net, task, 0.3, steps, second_order)
    learner = MAML(net, ways=WAYS, inner_lr=0.3, inner_steps=steps, first_order=not second_order)
    found, outcome = engine.meta_gradient(learner, tree.map_(lambda leaf: leaf[None], task), "loop")
    assert abs(outcome.loss[0] - loss) < 1e-12
    close({name.removeprefix("body."): g for name, g in found.items()}, expected, 1e-10)


@both
@pytest.mark.parametrize("first_order", [True, False])
@pytest.mark.parametrize("which", [ANIL, BOIL])
def test_anil_and_boil_equal_a_loop_by_hand(kind, first_order, which):
    task, net = one(kind), body(kind)
    head = {id(p) for p in net.head.parameters()}
    adapts = [name for name, p in net.named_parameters() if (id(p) in head) == (which is ANIL)]
    _, expected = reference(net, task, 0.3, 3, not first_order, adapts)
    learner = which(net, ways=WAYS, inner_lr=0.3, inner_steps=3, first_order=first_order)
    found = gradient(learner, tree.map_(lambda leaf: leaf[None], task))
    close({name.removeprefix("body."): g for name, g in found.items()}, expected, 1e-10)


@both
@every
def test_mapped_equals_the_loop(name, kind):
    tasks, learner = draw(kind), build(name, kind)
    for transductive in (True, False):
        learner.transductive = transductive
        a, loop = engine.meta_gradient(learner, tasks, "loop")
        b, mapped = engine.meta_gradient(learner, tasks, "vmap")
        close(a, b, 1e-8)
        assert (loop.loss - mapped.loss).abs().max() < 1e-8
        assert (engine.meta_loss(learner, tasks, "vmap").loss - loop.loss).abs().max() < 1e-8


@both
@pytest.mark.parametrize("name", [n for n in LEARNERS if n not in ("fomaml", "imaml") and "reptile" not in n])
def test_meta_gradient_equals_a_finite_difference(name, kind):
    tasks, learner = draw(kind), build(name, kind)
    assert not learner.surrogate
    for progress in (0.0, 0.05, 1.0) if name == "mamlpp" else (1.0,):
        if name == "mamlpp":
            learner.set_progress(progress)
        found = gradient(learner, tasks)
        generator = torch.Generator().manual_seed(3)
        way = {n: torch.randn(p.shape, generator=generator, dtype=p.dtype) for n, p in learner.named_parameters()}
        start = {n: p.detach().clone() for n, p in learner.named_parameters()}

        def value(scale: float, learner=learner, start=start, way=way) -> Tensor:
            with torch.no_grad():
                for n, p in learner.named_parameters():
                    p.copy_(start[n] + scale * way[n])
            return engine.meta_loss(learner, tasks, "loop").loss.mean()

        def central(h: float, value=value) -> Tensor:
            return (value(h) - value(-h)) / (2 * h)

        slope = (4 * central(1e-5) - central(2e-5)) / 3  # Richardson: the error falls with the fourth power
        value(0.0)
        assert abs(slope - tree.dot(found, way)) < 1e-7 * max(1.0, abs(slope))
        assert all((g != 0).any() for g in found.values())


@both
@every
@pytest.mark.parametrize("absent", [UNLABELLED, PADDING])
def test_rows_without_a_label_are_ignored(name, kind, absent):
    task, learner = one(kind), build(name, kind)
    junk = 1e3 * torch.randn_like(task.support.x[:4])
    more = Batch(
        torch.cat([junk[:2], task.support.x, junk[2:]]), nn.functional.pad(task.support.y, (2, 2), value=absent)
    )
    for transductive in (True, False):
        learner.transductive = transductive
        without = learner.predict(learner.adapt(learner.init(), task.support), task.query.x)
        ignored = learner.predict(learner.adapt(learner.init(), more), task.query.x)
        assert (without - ignored).abs().max() < 1e-10
        garbage = more._replace(x=torch.where((more.y < 0).view(-1, *(1,) * (more.x.dim() - 1)), -7.0, more.x))
        assert torch.equal(ignored, learner.predict(learner.adapt(learner.init(), garbage), task.query.x))


@every
def test_inductive_predictions_do_not_depend_on_other_queries(name):
    task, learner = one("conv"), build(name, "conv")
    assert learner.transductive
    assert not build(name, "mlp").transductive
    assert not build(name, "conv", transductive=False).transductive
    learner.transductive = False
    for state in learner.adapt_path(learner.init(), task.support):
        among = learner.predict(state, task.query.x)
        assert (among[:1] - learner.predict(state, task.query.x[:1])).abs().max() < 1e-12
    learner.transductive = True
    assert (learner.predict(state, task.query.x)[:1] - learner.predict(state, task.query.x[:1])).abs().max() > 1e-3


@every
def test_inductive_is_transductive_where_the_queries_are_the_support_set(name):
    task, learner = one("conv"), build(name, "conv")
    state = learner.adapt(learner.init(), task.support)
    among = learner.predict(state, task.support.x)
    learner.transductive = False
    assert (learner.predict(state, task.support.x) - among).abs().max() < 1e-12


@every
def test_regression(name):
    """Float targets have no labels to miss: every row counts, mapped as well as not."""
    learner = LEARNERS[name](knn.MLP(4, 6, 2, activation="tanh").double(), ways=0).double()
    tasks = tree.stack([Task(line(6, i), line(5, i + 9)) for i in range(3)])
    a, loop = engine.meta_gradient(learner, tasks, "loop")
    b, mapped = engine.meta_gradient(learner, tasks, "vmap")
    close(a, b, 1e-8)
    assert (loop.metrics["mse"] - loop.loss).abs().max() < 1e-12  # one query loss in all of them, at the end
    assert (loop.loss - mapped.loss).abs().max() < 1e-8


@both
def test_anil_keeps_the_body_and_boil_keeps_the_head(kind):
    task, net = one(kind), body(kind)
    head = {id(p) for p in net.head.parameters()}
    for learner, moves in ((ANIL(net, ways=WAYS), True), (BOIL(net, ways=WAYS), False)):
        state = learner.adapt(learner.init(), task.support)
        for name, p in net.named_parameters():
            assert torch.equal(state.params[name], p) == ((id(p) in head) != moves), name


def test_anil_runs_the_body_once():
    net, task = body("mlp"), one("mlp")
    calls = []
    net.layers[0].register_forward_hook(lambda *_: calls.append(1))
    ANIL(net, ways=WAYS, inner_steps=5).adapt_path(ANIL(net, ways=WAYS).init(), task.support)
    assert len(calls) == 1


@both
@pytest.mark.parametrize("name", ["maml", "fomaml", "anil", "boil", "metasgd", "reptile-sgd"])
def test_k_steps_are_k_times_one(name, kind):
    task = one(kind)
    learner = build(name, kind)
    learner.inner_steps = 3
    at_once = learner.adapt(learner.init(), task.support)
    learner.inner_steps = 1
    state = learner.init()
    for _ in range(3):
        state = learner.adapt(state, task.support)
    close(at_once.params, state.params, 1e-12)


@every
def test_the_path_may_be_longer_than_in_training(name):
    task, learner = one("conv"), build(name, "conv")
    path = learner.adapt_path(learner.init(), task.support, steps=5)
    assert len(path) == 6
    close(path[learner.inner_steps].params, learner.adapt(learner.init(), task.support).params, 1e-12)
    assert len(learner.adapt_path(learner.init(), task.support)) == learner.inner_steps + 1


@every
def test_adapt_changes_neither_state_nor_module(name):
    task, learner = one("conv"), build(name, "conv")
    before = {n: t.clone() for n, t in learner.state_dict().items()}
    state = learner.init()
    copy = {n: t.detach().clone() for n, t in state.params.items()}
    learner.adapt(state, task.support)
    close(copy, tree.detach(state.params), 1e-300)
    close(before, learner.state_dict(), 1e-300)


def line(num: int, seed: int) -> Batch:
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(num, 4, generator=generator, dtype=torch.float64)
    return Batch(x, torch.randn(num, 2, generator=generator, dtype=torch.float64))


class Linear(nn.Module):
    """A linear model without a bias: everything about it has a closed form."""

    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.head = nn.Linear(4, 2, bias=False).double()

    def forward(self, x: Tensor) -> Tensor:
        return self.head(x)


def test_one_step_on_a_line_is_the_closed_form():
    support, query, net, lr = line(6, 1), line(5, 2), Linear(), 0.05
    learner = MAML(net, ways=0, inner_lr=lr, inner_steps=1)
    found = gradient(learner, tree.map_(lambda leaf: leaf[None], Task(support, query)))["body.head.weight"]
    w = net.head.weight.detach()  # [2, 4]; the loss is the mean over rows and the 2 dimensions
    curvature = support.x.T @ support.x * 2 / support.y.numel()
    theta = w - lr * (support.x @ w.T - support.y).T @ support.x * 2 / support.y.numel()
    slope = (query.x @ theta.T - query.y).T @ query.x * 2 / query.y.numel()
    expected = slope @ (torch.eye(4, dtype=torch.float64) - lr * curvature)
    assert (found - expected).abs().max() < 1e-12
    assert torch.allclose(learner.adapt(learner.init(), support).params["head.weight"], theta)


def test_imaml_on_a_line_is_the_implicit_gradient():
    support, query, net, lam = line(6, 1), line(5, 2), Linear(), 2.0
    learner = IMAML(net, ways=0, inner_lr=0.2, inner_steps=200, lam=lam, cg_steps=8)
    found = gradient(learner, tree.map_(lambda leaf: leaf[None], Task(support, query)))["body.head.weight"]
    w = net.head.weight.detach()
    curvature = support.x.T @ support.x * 2 / support.y.numel()  # H, the same for both outputs
    pulled = torch.linalg.inv(curvature + lam * torch.eye(4, dtype=torch.float64))
    theta = (lam * w + support.y.T @ support.x * 2 / support.y.numel()) @ pulled  # argmin L + lam / 2 |theta - w|^2
    assert (learner.adapt(learner.init(), support).params["head.weight"] - theta).abs().max() < 1e-9
    slope = (query.x @ theta.T - query.y).T @ query.x * 2 / query.y.numel()
    assert (found - lam * slope @ pulled).abs().max() < 1e-6


def test_imaml_equals_maml_through_a_long_inner_run():
    """The same meta-gradient by differentiating through many proximal steps, on a network."""
    task, net = one("mlp"), body("mlp")
    learner = IMAML(net, ways=WAYS, inner_lr=0.1, inner_steps=150, lam=2.0, cg_steps=25)
    found = gradient(learner, tree.map_(lambda leaf: leaf[None], task))
    phi = {n: p.detach().clone().requires_grad_() for n, p in net.named_parameters()}
    theta = dict(phi)
    for _ in range(150):
        loss = losses.default(functional_call(net, theta, (task.support.x,)), task.support.y)
        loss = loss + sum((theta[n] - phi[n]).square().sum() for n in phi)  # lam / 2 = 1
        gradients = torch.autograd.grad(loss, list(theta.values()), create_graph=True)
        theta = {n: theta[n] - 0.1 * g for n, g in zip(theta, gradients, strict=True)}
    query = losses.default(functional_call(net, theta, (task.query.x,)), task.query.y)
    expected = dict(zip(phi, torch.autograd.grad(query, list(phi.values())), strict=True))
    close({n.removeprefix("body."): g for n, g in found.items()}, expected, 1e-6)


def test_imaml_of_no_cg_steps_is_the_first_order_gradient():
    tasks = draw("mlp")
    learner = IMAML(body("mlp"), ways=WAYS, cg_steps=0, inner_steps=0)
    plain = MAML(body("mlp"), ways=WAYS, inner_steps=0)
    close(gradient(learner, tasks), gradient(plain, tasks), 1e-12)


@both
@pytest.mark.parametrize("name", ["reptile", "reptile-sgd"])
def test_reptile_is_the_difference_of_weights(name, kind):
    tasks, learner = draw(kind), build(name, kind)
    found, outcome = engine.meta_gradient(learner, tasks, "loop")
    expected: dict[str, Tensor] = {n: torch.zeros_like(p) for n, p in learner.body.named_parameters()}
    for i in range(2):
        task = tree.index(tasks, i)
        whole = Batch(torch.cat([task.support.x, task.query.x]), torch.cat([task.support.y, task.query.y]))
        theta = learner.adapt(learner.init(), whole).params
        phi = dict(learner.body.named_parameters())
        expected = {n: e + (phi[n] - theta[n]).detach() / 2 for n, e in expected.items()}
        scores = learner.predict(learner.adapt(learner.init(), task.support), task.query.x)
        assert abs(outcome.loss[i] - losses.default(scores, task.query.y)) < 1e-12
    close({n.removeprefix("body."): g for n, g in found.items() if n.startswith("body.")}, expected, 1e-12)


def test_reptiles_adam_lives_on_from_task_to_task():
    """One task at a time it is the authors' loop: torch's Adam, its state kept while the weights are put back."""
    net, rate = body("mlp"), 0.5
    learner = Reptile(copy.deepcopy(net), ways=WAYS, inner_lr=0.01, inner_steps=3, inner_batch=None).double()
    optimizer = torch.optim.Adam(net.parameters(), lr=0.01, betas=(0.0, 0.999))
    outer = torch.optim.SGD([p for n, p in learner.named_parameters() if n.startswith("body.")], lr=rate)
    for k in range(3):
        tasks = draw("mlp", 1, k)
        task = tree.index(tasks, 0)
        start = {n: p.detach().clone() for n, p in net.named_parameters()}
        x, y = torch.cat([task.support.x, task.query.x]), torch.cat([task.support.y, task.query.y])
        for _ in range(3):
            optimizer.zero_grad()
            nn.functional.cross_entropy(net(x), y).backward()
            optimizer.step()
        with torch.no_grad():
            for n, p in net.named_parameters():
                p.copy_(start[n] + rate * (p - start[n]))
        engine.assign(learner, engine.meta_gradient(learner, tasks, "loop")[0])
        outer.step()
        close({n: p.detach() for n, p in learner.body.named_parameters()}, dict(net.named_parameters()), 1e-10)


def test_reptile_equals_torch_optimizers():
    task = one("mlp")
    for kind, make in (("adam", partial(torch.optim.Adam, betas=(0.0, 0.999))), ("sgd", torch.optim.SGD)):
        net = body("mlp")
        learner = Reptile(net, ways=WAYS, inner_lr=0.01, inner_steps=4, inner_optimizer=kind, inner_batch=None)
        found = tree.detach(learner.adapt(learner.init(), task.support).params)
        optimizer = make(net.parameters(), lr=0.01)
        for _ in range(4):
            optimizer.zero_grad()
            nn.functional.cross_entropy(net(task.support.x), task.support.y).backward()
            optimizer.step()
        close(found, {n: p.detach() for n, p in net.named_parameters()}, 1e-10)


def test_mini_batches_take_every_row_in_turn():
    from kshot.learners.gradient.reptile import _part

    y = torch.tensor([0, -1, 1, 2, -2, 3, 4, 5])
    batch = Batch(torch.arange(8.0)[:, None], y)
    seen = torch.cat([_part(batch, k, 3).y for k in range(2)])
    assert sorted(seen.tolist()) == [0, 1, 2, 3, 4, 5]
    assert sorted(_part(batch, 5, 7).y.tolist()) == [PADDING, 0, 1, 2, 3, 4, 5]
    assert (_part(batch, 3, 3).x[:, 0] == torch.tensor([y.tolist().index(c) for c in _part(batch, 3, 3).y])).all()


def test_metasgd_starts_as_maml_and_mamlpp_too():
    task = one("conv")
    plain = MAML(body("conv"), ways=WAYS, inner_lr=0.1, inner_steps=2)
    state = plain.adapt(plain.init(), task.support)
    learned = MetaSGD(body("conv"), ways=WAYS, inner_lr=0.1, inner_steps=2).double()
    close(state.params, learned.adapt(learned.init(), task.support).params, 1e-12)
    task = one("mlp")  # without batch norms, which MAML++ does not adapt
    plain = MAML(body("mlp"), ways=WAYS, inner_lr=0.1, inner_steps=2)
    learned = MAMLpp(body("mlp"), ways=WAYS, inner_lr=0.1, inner_steps=2)
    state = plain.adapt(plain.init(), task.support)
    close(state.params, learned.adapt(learned.init(), task.support).params, 1e-12)


def test_mamlpp_anneals():
    tasks = draw("conv")
    learner = MAMLpp(body("conv"), ways=WAYS, inner_steps=4, multi_step=0.5, first_order_share=0.3)
    assert learner.weights(4) == [0.0, 0.0, 0.0, 1.0]
    learner.set_progress(0.0)
    assert learner.weights(4) == [0.25] * 4
    learner.set_progress(0.25)
    assert learner.weights(4) == [0.125, 0.125, 0.125, 0.625]
    assert learner.weights(0) == [1]
    assert learner.surrogate
    cheap = gradient(learner, tasks)
    learner.first_order_share = 0.0
    assert not learner.surrogate
    assert max((cheap[n] - g).abs().max() for n, g in gradient(learner, tasks).items()) > 1e-6
    task = tree.index(tasks, 0)
    path = learner.adapt_path(learner.init(), task.support)
    parts = [losses.default(learner.predict(state, task.query.x), task.query.y) for state in path[1:]]
    expected = sum(w * part for w, part in zip(learner.weights(4), parts, strict=True))
    assert abs(learner.loss(task)[0] - expected) < 1e-12


def test_mamlpp_has_batch_norms_of_each_step():
    task, learner = one("conv"), build("mamlpp", "conv")
    with torch.no_grad():
        learner.norms[0][1] += 1.0  # the weights of the first norm in step 3
    path = learner.adapt_path(learner.init(), task.support, steps=4)
    weights = [state.params["blocks.0.norm.weight"][0].item() for state in path]
    assert weights == [1.0, 1.0, 1.0, 2.0, 2.0]


def test_only_the_named_parameters_adapt():
    net, task = body("conv"), one("conv")
    learner = MAML(net, ways=WAYS, adapts=("blocks.3", "head"))
    state = learner.adapt(learner.init(), task.support)
    moved = {name for name, p in net.named_parameters() if not torch.equal(p, state.params[name])}
    assert moved == {name for name, _ in net.named_parameters() if name.startswith(("blocks.3", "head"))}


def test_errors_say_what_to_do():
    with pytest.raises(ValueError, match="no parameter of the network begins with"):
        MAML(body("mlp"), ways=WAYS, adapts=("neck",))
    with pytest.raises(ValueError, match=r"no layer 'neck'.*head="):
        ANIL(body("mlp"), ways=WAYS, head="neck")
    with pytest.raises(ValueError, match="nothing but its head"):
        BOIL(Linear(), ways=2)
    with pytest.raises(ValueError, match="inner_steps=-1"):
        MetaSGD(body("mlp"), ways=WAYS, inner_steps=-1)
    with pytest.raises(ValueError, match="'adam' or 'sgd'"):
        Reptile(body("mlp"), ways=WAYS, inner_optimizer="lion")  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="inner_batch=0"):
        Reptile(body("mlp"), ways=WAYS, inner_batch=0)
    with pytest.raises(ValueError, match="lam=0: pass"):
        IMAML(body("mlp"), ways=WAYS, lam=0)
    with pytest.raises(ValueError, match=r"kshot\.nn\.convert"):
        MAMLpp(nn.Sequential(nn.Linear(2, 2), nn.BatchNorm1d(2)), ways=2)


def test_numbers_of_steps_are_whole():
    learner = Reptile(body("mlp"), ways=WAYS, inner_steps=2.0, inner_batch=7.0)  # type: ignore[arg-type]
    assert (learner.inner_steps, learner.inner_batch) == (2, 7)
    assert type(learner.inner_batch) is int
    task = one("mlp")
    plain = Reptile(body("mlp"), ways=WAYS, inner_steps=2, inner_batch=7)
    close(learner.adapt(learner.init(), task.support).params, plain.adapt(plain.init(), task.support).params, 1e-300)
    assert IMAML(body("mlp"), ways=WAYS, cg_steps=3.0).cg_steps == 3  # type: ignore[arg-type]
    for settings in ({"inner_batch": 7.5}, {"inner_batch": True}, {"inner_steps": float("nan")}, {"inner_steps": "5"}):
        (name, value), *_ = settings.items()
        with pytest.raises(ValueError, match=f"{name}={value!r}: pass an integer >= "):
            Reptile(body("mlp"), ways=WAYS, **settings)
    with pytest.raises(ValueError, match="cg_steps=-1: pass an integer >= 0"):
        IMAML(body("mlp"), ways=WAYS, cg_steps=-1)


class Stateful(knn.MLP):
    """A network with a side effect in `forward`."""

    def __init__(self, effect: str):
        super().__init__(5, 6, WAYS)
        self.effect = effect
        self.register_buffer("count", torch.zeros(()))
        self.register_buffer("seen", torch.zeros(6))
        self.kept = torch.zeros(())
        self.double()

    def forward(self, x: Tensor) -> Tensor:
        if self.effect == "count":
            self.count += 1
        elif self.effect == "average":
            self.seen.add_(self.layers[0](x).mean(0))
        elif self.effect == "replace":
            self.seen = self.seen + 1
        elif self.effect == "attribute":
            self.kept += 1
        elif self.effect == "input":
            x = x.relu_()
        return super().forward(x) + 0 * self.count  # buffers that stay as they are may be used


# ANIL's body runs under vmap alone, where torch lets a change of the input pass and does not count it.
EFFECTS = [(n, e) for n in LEARNERS for e in ("count", "average", "replace", "attribute", "input")]
EFFECTS.remove(("anil", "input"))


@pytest.mark.parametrize(("name", "effect"), EFFECTS)
def test_side_effects_of_a_body_are_refused(name, effect):
    named = {"count": "count", "replace": "seen", "average": "seen", "attribute": "kept|attribute, or"}
    told = named.get(effect, "its own input")
    for run in (
        lambda learner: learner.adapt(learner.init(), one("mlp").support),
        lambda learner: engine.meta_gradient(learner, draw("mlp"), "vmap"),
    ):
        with pytest.raises(ValueError, match=f"(?s)^Stateful change.*({told}).*Keep no state.*kshot.nn.convert"):
            run(LEARNERS[name](Stateful(effect), ways=WAYS).double())


@every
def test_buffers_that_stay_are_no_side_effect(name):
    learner = LEARNERS[name](Stateful(""), ways=WAYS).double()
    loop, mapped = gradient(learner, draw("mlp")), gradient(learner, draw("mlp"), "vmap")
    close(loop, mapped, 1e-8)


def test_other_errors_of_a_body_are_left_alone():
    learner = MAML(knn.MLP(4, WAYS).double(), ways=WAYS)
    with pytest.raises(RuntimeError, match="mat1 and mat2"):
        learner.adapt(learner.init(), one("mlp").support)


def test_maml_takes_smaller_steps_later_where_asked():
    """Three steps of rates a, a / 2, a / 2 are a step of a and two of a / 2."""
    torch.manual_seed(0)
    body = knn.MLP(1, 8, 1, activation="tanh").double()
    support = Batch(torch.randn(5, 1, dtype=torch.float64), torch.randn(5, 1, dtype=torch.float64))
    together = MAML(body, ways=1, inner_lr=0.1, inner_steps=3, later_lr_factor=0.5)
    first, rest = (MAML(body, ways=1, inner_lr=lr, inner_steps=n) for lr, n in ((0.1, 1), (0.05, 2)))
    expected = rest.adapt(first.adapt(first.init(), support), support)
    torch.testing.assert_close(together.adapt(together.init(), support).params, expected.params, rtol=1e-12, atol=0)
    with pytest.raises(ValueError, match="later_lr_factor=-1"):
        MAML(body, ways=1, later_lr_factor=-1)
