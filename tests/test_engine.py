"""The engine against plain autograd, strategy by strategy."""

from __future__ import annotations

import threading
import warnings

import pytest
import torch
from torch import nn

from kshot import engine
from kshot import nn as knn
from kshot.core import Batch, Learner, Task, to
from kshot.engine import gradients
from kshot.learners import build
from kshot.nn import functional
from kshot.numerics import tree
from kshot.testing import Clusters

TASKS = to(Clusters(ways=3, shots=2, queries=3).sample(torch.Generator().manual_seed(0), 5), dtype=torch.float64)


class OneStep(Learner):
    """MAML in six lines: one gradient step on all of the body."""

    def __init__(self, body: nn.Module):
        super().__init__()
        self.body = body

    def init(self):
        return dict(self.body.named_parameters())

    def adapt(self, state, support):
        slope = torch.func.grad(lambda p: self.criterion(knn.call(self.body, p, support.x), support.y))(state)
        return tree.axpy(-0.3, slope, state)

    def predict(self, state, x):
        return knn.call(self.body, state, x)


def one_step() -> OneStep:
    return OneStep(knn.MLP(8, 6, 3, activation="tanh")).double()


def by_hand(learner: Learner, tasks: Task) -> dict[str, torch.Tensor]:
    """The gradient of the mean loss, by torch.autograd alone."""
    params = dict(learner.named_parameters())
    total = torch.stack([learner.loss(tree.index(tasks, i))[0] for i in range(len(tasks.query.x))]).mean()
    return dict(zip(params, torch.autograd.grad(total, list(params.values())), strict=True))


@pytest.mark.parametrize(
    ("strategy", "chunk_size"),
    [
        ("auto", None),
        ("loop", None),
        ("loop", 2),
        ("threads", None),
        ("vmap", None),
        ("vmap", 1),
        ("vmap", 2),
        ("vmap", 5),
        ("vmap", 99),
    ],
)
def test_meta_gradient_is_autograds_of_the_mean_loss(strategy, chunk_size):
    learner = one_step()
    wanted = by_hand(learner, TASKS)
    gradient, outcome = engine.meta_gradient(learner, TASKS, strategy, chunk_size)
    assert gradient.keys() == wanted.keys()
    for name, value in wanted.items():
        torch.testing.assert_close(gradient[name], value, rtol=1e-10, atol=1e-12)
    losses = torch.stack([learner.loss(tree.index(TASKS, i))[0] for i in range(5)])
    torch.testing.assert_close(outcome.loss, losses.detach(), rtol=1e-10, atol=1e-12)
    assert outcome.metrics["accuracy"].shape == (5,)
    assert not outcome.loss.requires_grad
    assert all(p.grad is None for p in learner.parameters())


@pytest.fixture
def two_threads():
    count = torch.get_num_threads()
    torch.set_num_threads(2)
    yield
    torch.set_num_threads(count)


@pytest.mark.usefixtures("two_threads")
def test_threads_share_the_tasks_and_give_equal_bits():
    seen, both = set(), threading.Barrier(2, timeout=60)

    class Tells(OneStep):
        def predict(self, state, x):
            name = threading.current_thread().name
            if name.startswith("kshot-engine") and name not in seen:
                seen.add(name)
                both.wait()  # on a busy machine one could do all before the other wakes; raises were there but one
            return super().predict(state, x)

    learner = Tells(one_step().body).double()
    first, outcome = engine.meta_gradient(learner, TASKS, "threads")
    assert len(seen) == 2
    wanted = by_hand(learner, TASKS)
    for _ in range(20):
        again, same = engine.meta_gradient(learner, TASKS, "threads")
        assert all(torch.equal(again[name], value) for name, value in first.items())
        assert torch.equal(same.loss, outcome.loss)
    for name, value in wanted.items():
        torch.testing.assert_close(first[name], value, rtol=1e-10, atol=1e-12)
    assert torch.get_num_threads() == 2  # the caller's number, and that of threads to come
    later = []
    thread = threading.Thread(target=lambda: later.append(torch.get_num_threads()))
    thread.start()
    thread.join()
    assert later == [2]


@pytest.mark.usefixtures("two_threads")
def test_threads_work_on_the_learners_memory():
    """A copy is made for each call; what it sees are the parameters as they are now."""
    learner = one_step()
    before, _ = engine.meta_gradient(learner, TASKS, "threads")
    with torch.no_grad():
        for parameter in learner.parameters():
            parameter.mul_(1.5)
    after, _ = engine.meta_gradient(learner, TASKS, "threads")
    wanted = by_hand(learner, TASKS)
    for name, value in wanted.items():
        torch.testing.assert_close(after[name], value, rtol=1e-10, atol=1e-12)
        assert not torch.equal(before[name], after[name])
    twin = gradients._copy(learner)
    assert [p.data_ptr() for p in twin.parameters()] == [p.data_ptr() for p in learner.parameters()]


@pytest.mark.usefixtures("two_threads")
def test_a_learner_that_draws_random_numbers_goes_by_loop():
    class Noisy(OneStep):
        def predict(self, state, x):
            return super().predict(state, x) + (torch.rand(3, dtype=x.dtype) if self.training else 0)

    learner = Noisy(one_step().body).double()
    results = []
    for strategy in ("loop", "threads", "threads"):
        torch.manual_seed(5)
        results.append(engine.meta_gradient(learner, TASKS, strategy)[1].loss)
    assert torch.equal(results[0], results[1])  # and the trial drew nothing from the caller's stream
    assert torch.equal(results[0], results[2])
    assert gradients._DRAWS[learner] == {True: True}
    engine.meta_gradient(learner.eval(), TASKS, "threads")
    assert gradients._DRAWS[learner] == {True: True, False: False}


@pytest.mark.usefixtures("two_threads")
def test_an_error_in_a_thread_is_the_callers():
    class Fails(OneStep):
        def predict(self, state, x):
            raise RuntimeError("no such luck")

    with pytest.raises(RuntimeError, match="no such luck"):
        engine.meta_gradient(Fails(one_step().body).double(), TASKS, "threads")


@pytest.mark.parametrize(("strategy", "chunk_size"), [("loop", None), ("threads", None), ("vmap", None), ("vmap", 2)])
def test_meta_loss_is_the_same_without_a_graph(strategy, chunk_size):
    learner = one_step()
    _, wanted = engine.meta_gradient(learner, TASKS, "loop")
    outcome = engine.meta_loss(learner, TASKS, strategy, chunk_size)
    torch.testing.assert_close(outcome.loss, wanted.loss, rtol=1e-10, atol=1e-12)
    torch.testing.assert_close(outcome.metrics["accuracy"], wanted.metrics["accuracy"])
    assert not outcome.loss.requires_grad


@pytest.mark.parametrize("strategy", ["loop", "vmap"])
def test_parameters_without_a_gradient(strategy):
    """One that is not trained is left out, one that takes no part gets zeros."""
    learner = one_step()
    learner.unused = nn.Parameter(torch.ones(2, dtype=torch.float64))
    learner.body.layers[0].weight.requires_grad_(False)  # type: ignore[union-attr, index]
    gradient, _ = engine.meta_gradient(learner, TASKS, strategy)
    assert "body.layers.0.weight" not in gradient
    assert torch.equal(gradient["unused"], torch.zeros(2, dtype=torch.float64))
    assert gradient["body.layers.1.weight"].any()


def test_a_learner_with_nothing_to_learn():
    class Constant(Learner):
        def init(self):
            return torch.zeros(3)

        def adapt(self, state, support):
            return state

        def predict(self, state, x):
            return state.expand(len(x), 3)

    gradient, outcome = engine.meta_gradient(Constant(), TASKS)
    assert gradient == {}
    torch.testing.assert_close(outcome.loss, torch.full((5,), 3.0).log())


def test_choose():
    small, convolving = one_step(), OneStep(knn.Conv4(width=2, size=16, pool="stride", out=3))
    assert engine.choose(small) == "vmap"
    count = torch.get_num_threads()  # a mapped convolution is a slow grouped one on a CPU
    assert engine.choose(convolving) == ("threads" if count > 1 else "loop")
    assert engine.choose(convolving, "vmap") == "vmap"
    with pytest.raises(ValueError, match="unknown strategy 'fast': use 'auto', 'loop', 'threads' or 'vmap'"):
        engine.choose(small, "fast")  # type: ignore[arg-type]


class Features(Learner):
    """Passes the support set, then the query set, through a batch norm with population statistics."""

    def __init__(self):
        super().__init__()
        self.norm = knn.BatchNorm(8, population=True)

    def init(self):
        return self.norm.weight.new_zeros(3, 8)

    def adapt(self, state, support):
        return state + self.norm(support.x)[:3]

    def predict(self, state, x):
        return self.norm(x) @ state.T


def test_calibrate_sets_population_statistics_of_these_tasks():
    learner = Features().double().eval()
    engine.set_population_statistics(learner, TASKS)
    batches = [x for i in range(5) for x in (TASKS.support.x[i], TASKS.query.x[i])]
    means = torch.stack([x.mean(0) for x in batches])
    variances = torch.stack([x.var(0, unbiased=False) for x in batches])
    torch.testing.assert_close(learner.norm.population_mean, means.mean(0))
    torch.testing.assert_close(learner.norm.population_var, variances.mean(0) + means.var(0, unbiased=False))
    assert not learner.training
    assert learner.norm.recorded is None
    x = TASKS.query.x[0]
    expected = (x - means.mean(0)) / (learner.norm.population_var + 1e-5).sqrt()
    torch.testing.assert_close(learner.norm(x), expected)


def test_calibrate_leaves_other_learners_alone():
    class Refuses(OneStep):
        def loss(self, task):
            raise AssertionError("not to be called")

    engine.set_population_statistics(Refuses(knn.MLP(8, 3)), TASKS)


# ------------------------------------------------------------------------------------------- other people's networks


class Sequence(nn.Module):
    """Rows `[N, 8]` as sequences of 4 of 6 numbers, through a layer of another's, to 3 scores."""

    def __init__(self, layer: nn.Module):
        super().__init__()
        self.inward, self.layer, self.head = nn.Linear(8, 24), layer, nn.Linear(6, 3)

    def forward(self, x):
        h = self.layer(self.inward(x).unflatten(1, (4, 6)))
        return self.head((h[0] if isinstance(h, tuple) else h).mean(1))


class Attention(nn.Module):
    """The bare operation, which no type of a layer tells of."""

    def forward(self, x):
        x = x[:, None]
        return nn.functional.scaled_dot_product_attention(x, x, x)[:, 0]


def encoder() -> nn.Module:
    return nn.TransformerEncoderLayer(6, 2, 8, dropout=0.0, batch_first=True)


class ZeroAtFirst(nn.Module):
    """A residual branch that begins with zeros: the layer norm behind it has no part in the first gradients."""

    def __init__(self):
        super().__init__()
        self.norm, self.out = nn.LayerNorm(6), nn.Linear(6, 6)
        nn.init.zeros_(self.out.weight)
        nn.init.zeros_(self.out.bias)

    def forward(self, x):
        return x + self.out(self.norm(x))


WRONG = {
    "layer norm": lambda: nn.LayerNorm(6),
    "instance norm": lambda: nn.InstanceNorm1d(4, affine=True),
    "encoder": encoder,
    "zero at first": ZeroAtFirst,
    "LSTM": lambda: nn.LSTM(6, 6, batch_first=True),
    "GRU": lambda: nn.GRU(6, 6, batch_first=True),
    "RNN": lambda: nn.RNN(6, 6, batch_first=True),
}
CONVERTED = ("layer norm", "instance norm", "encoder", "zero at first")


def strange(layer: nn.Module, name: str = "maml") -> Learner:
    return build(name, Sequence(layer), 3, inner_lr=0.4).double()


def same(found: dict[str, torch.Tensor], wanted: dict[str, torch.Tensor]) -> None:
    assert found.keys() == wanted.keys()
    for name, value in wanted.items():
        torch.testing.assert_close(found[name], value, rtol=1e-9, atol=1e-11)


OTHERS = [("layer norm", name) for name in ("metasgd", "mamlpp", "boil")]


@pytest.mark.parametrize(("kind", "name"), [*((kind, "maml") for kind in WRONG), *OTHERS])
def test_layers_that_cannot_be_mapped_go_by_loop_with_one_warning(kind, name):
    """torch's own gradient through vmap is wrong, or there is none; the loop's is autograd's."""
    learner = strange(WRONG[kind](), name)
    wanted = by_hand(learner, TASKS)
    said = f"{type(learner).__name__} with .*mapped over tasks.*the strategy is"
    with pytest.warns(RuntimeWarning, match=said):
        gradient, _ = engine.meta_gradient(learner, TASKS)
    with warnings.catch_warnings():
        warnings.simplefilter("error")  # it was said
        again, _ = engine.meta_gradient(learner, TASKS)
    same(gradient, wanted)
    same(again, wanted)
    for asked in ("vmap", engine.Plan("vmap")):
        with pytest.raises(ValueError, match=r"mapped over tasks.*use the strategy 'auto', 'loop' or 'threads'"):
            engine.meta_gradient(learner, TASKS, asked)
    assert engine.resolve(learner, TASKS, "loop").strategy == "loop"
    if kind in CONVERTED:
        ours = strange(knn.convert(learner.body.layer), name)
        ours.load_state_dict(learner.state_dict())
        assert engine.resolve(ours, TASKS).strategy == "vmap"
        same(engine.meta_gradient(ours, TASKS)[0], wanted)


@pytest.mark.parametrize("kind", ["attention", "attention without weights", "encoder, first order", "dropout"])
def test_layers_that_can_be_mapped_are_mapped(kind, recwarn):
    made = {
        "attention": Attention,
        "attention without weights": lambda: nn.LayerNorm(6, elementwise_affine=False),
        "encoder, first order": encoder,
        "dropout": lambda: nn.Sequential(nn.Dropout(0.5), nn.LayerNorm(6, elementwise_affine=False)),
    }
    learner = strange(made[kind](), "fomaml" if kind.endswith("first order") else "maml")
    assert engine.resolve(learner, TASKS).strategy == "vmap"
    if kind != "dropout":
        same(engine.meta_gradient(learner, TASKS, "vmap")[0], engine.meta_gradient(learner, TASKS, "loop")[0])
    assert not recwarn.list


@pytest.mark.parametrize("kind", ["layer norm", "LSTM", "encoder"])
@pytest.mark.parametrize("training", [True, False])
def test_losses_alone_are_mapped_where_that_is_right(kind, training):
    """`vmap(grad)` is right for all norms; what has no rule for vmap is looped over."""
    learner = strange(WRONG[kind]()).train(training)
    wanted = torch.stack([learner.loss(tree.index(TASKS, i))[0] for i in range(5)]).detach()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore" if kind == "LSTM" else "error")
        found = engine.meta_loss(learner, TASKS).loss
        assert engine.resolve(learner, TASKS, gradient=False).strategy == ("loop" if kind == "LSTM" else "vmap")
    torch.testing.assert_close(found, wanted, rtol=1e-9, atol=1e-11)


@pytest.mark.parametrize(("name", "layer"), [("maml", encoder), ("imaml", Attention), ("finetune", encoder)])
def test_attention_has_a_second_derivative(name, layer):
    """torch's fused kernels, and its fast path in `eval()` mode, have none."""
    settings = {"maml": {}, "imaml": {"inner_steps": 2, "cg_steps": 1}, "finetune": {"steps": 2}}[name]
    learner = build(name, Sequence(layer()), 3, **settings).double()
    losses = {}
    for training in (True, False):
        learner.train(training)
        gradient, outcome = engine.meta_gradient(learner, TASKS, "loop")
        assert all(g.isfinite().all() for g in gradient.values())
        losses[training] = engine.meta_loss(learner, TASKS, "loop").loss
        torch.testing.assert_close(losses[training], outcome.loss, rtol=1e-9, atol=1e-11)
    torch.testing.assert_close(losses[True], losses[False], rtol=1e-9, atol=1e-11)  # there is no dropout
    assert torch.backends.mha.get_fastpath_enabled()
    assert torch.backends.cuda.flash_sdp_enabled()


def test_a_plan_of_an_annealed_learner_is_for_the_whole_training():
    """Of first order at its beginning, where nothing is wrong, and of second order later."""
    learner = build("mamlpp", Sequence(nn.LayerNorm(6)), 3, first_order_share=0.5).double()
    learner.set_progress(0.0)
    with pytest.warns(RuntimeWarning):
        assert engine.resolve(learner, TASKS).strategy == "loop"


def test_a_network_that_knows_one_dtype_alone_is_compared_in_it():
    class Single(nn.Module):
        def forward(self, x):
            return x + torch.zeros(6)[None].float() if x.dtype == torch.float32 else torch.mm(x[0], torch.zeros(6, 6))

    learner = build("maml", nn.Sequential(nn.Linear(8, 6), Single(), nn.Linear(6, 3)), 3)
    assert engine.resolve(learner, to(TASKS, dtype=torch.float32)).strategy == "vmap"
    wrong = build("maml", nn.Sequential(nn.Linear(8, 6), Single(), nn.LayerNorm(6), nn.Tanh(), nn.Linear(6, 3)), 3)
    with pytest.warns(RuntimeWarning, match="LayerNorm, Single gets another meta-gradient"):
        assert engine.resolve(wrong, to(TASKS, dtype=torch.float32)).strategy == "loop"


# What makes a layer for rows of 4 channels with so many axes behind them; the others take no arguments.
LAYERS = {
    nn.Linear: lambda axes: nn.Linear(4, 4),
    nn.Embedding: None,  # of numbers; see below
    nn.GroupNorm: lambda axes: nn.GroupNorm(2, 4),
    nn.RMSNorm: lambda axes: nn.RMSNorm(4),
    nn.LocalResponseNorm: lambda axes: nn.LocalResponseNorm(2),
    nn.Upsample: lambda axes: nn.Upsample(scale_factor=2, mode="bilinear"),
    nn.PixelShuffle: lambda axes: nn.PixelShuffle(2),
    nn.Softmax: lambda axes: nn.Softmax(1),
    nn.LogSoftmax: lambda axes: nn.LogSoftmax(1),
    nn.GLU: lambda axes: nn.GLU(1),
    nn.Unflatten: lambda axes: nn.Unflatten(1, (2, 2)),
}
CONTAINERS = {nn.Sequential, nn.ModuleList, nn.ModuleDict, nn.ParameterList, nn.ParameterDict}


@pytest.mark.parametrize("layer", sorted(functional._PLAIN - CONTAINERS, key=lambda kind: kind.__name__))
def test_layers_that_are_believed_can_be_mapped(layer):
    """`kshot.nn.unknown` passes them over, and the engine compares nothing: so the comparison is here."""
    name = layer.__name__
    axes = (
        int(name[-2])
        if name[-2:-1].isdigit()
        else 2
        if name in ("Upsample", "PixelShuffle", "LocalResponseNorm")
        else 0
    )
    inward: nn.Module = nn.Unflatten(1, (4,) + (4,) * axes) if axes else nn.Identity()
    if layer in LAYERS and LAYERS[layer] is not None:
        made = LAYERS[layer](axes)
    elif layer is nn.Embedding:
        made = nn.Sequential(nn.Flatten(), Bins())
    elif name.startswith("Conv") and not name.startswith("Constant"):
        made = layer(4, 2, 3, padding=1)
    elif "Pool" in name or "Pad" in name:
        made = layer(*((1, 0.5) if name.startswith("Constant") else (1,) if "Pad" in name else (2,)))
    else:
        made = layer()
    body = nn.Sequential(nn.Linear(8, 4 * 4**axes), nn.Tanh(), inward, made, nn.Flatten(), nn.LazyLinear(3))
    body(torch.randn(2, 8))
    learner = build("maml", body, 3).double().eval()  # dropout draws other numbers mapped than looped
    tasks = tree.map_(lambda leaf: leaf[:2], TASKS)
    same(engine.meta_gradient(learner, tasks, "vmap")[0], by_hand(learner, tasks))


class Bins(nn.Module):
    """An embedding of which bin a number is in, times the number."""

    def __init__(self):
        super().__init__()
        self.table = nn.Embedding(3, 5)

    def forward(self, x):
        return self.table((x > 0).long() + (x > 0.5).long()) * x[..., None]


def test_outcome_is_in_the_order_of_the_tasks():
    reversed_tasks = Task(*(Batch(*(leaf.flip(0) for leaf in part)) for part in TASKS))
    learner = one_step()
    forward, backward = (engine.meta_loss(learner, t, "vmap", 2).loss for t in (TASKS, reversed_tasks))
    torch.testing.assert_close(forward, backward.flip(0))
