"""The contract, executable: what every learner and every task distribution promises, as checks that explain themselves.

A learner that passes `check_learner` can be trained, evaluated, mapped, saved and resumed by everything else in kshot.
Each check is a small function below, registered by its name; the first that fails raises one `ContractError` that says
what was found, what was expected and how to mend it.

    report = check_learner(MyLearner(MLP(8, 16, activation="tanh"), ways=3), Clusters(ways=3, shots=2, queries=4))
    print(report)                                       # the checks that ran, and those skipped with the reason
    check_learner(learner, tasks, only=["finite_difference"])          # one check, while writing a learner
    check_tasks(Clusters(ways=3, shots=2, queries=4))

Claims that a learner does not make are not checked, and the report says so: compare `report.ran` with what you expect,
as `tests/test_contract.py` does, so that no check can vanish in silence.
"""

from __future__ import annotations

import copy
import math
import random
import sys
import tempfile
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NoReturn

import torch
from torch import Tensor, nn
from torch.utils import _pytree as pytree

from kshot import checkpoint, engine, losses, seeding, tree
from kshot.core import PADDING, UNLABELLED, Batch, Learner, Task, to
from kshot.tasks.base import TaskDistribution

__all__ = ["LEARNER_CHECKS", "TASK_CHECKS", "Clusters", "ContractError", "Report", "check_learner", "check_tasks"]

CLOSE = 1e-8
"""Largest difference, relative to the larger of 1 and the values, of two float64 results that should be equal."""


class ContractError(AssertionError):
    """A promise of the contract that is not kept. `check` is the name of the check that found it."""

    def __init__(self, message: str, check: str = ""):
        super().__init__(message)
        self.check = check


@dataclass(frozen=True)
class Report:
    """What `check_learner` or `check_tasks` did.

    Attributes:
        subject: the class that was checked.
        ran: names of the checks that ran, all of which passed.
        skipped: name of a check that did not run -> the reason.
    """

    subject: str
    ran: tuple[str, ...]
    skipped: dict[str, str] = field(default_factory=dict)

    def __str__(self) -> str:
        lines = [f"{self.subject} keeps the contract: {len(self.ran)} checks passed, {len(self.skipped)} skipped"]
        lines += [f"  passed   {name}" for name in self.ran]
        lines += [f"  skipped  {name}: {reason}" for name, reason in self.skipped.items()]
        return "\n".join(lines)


class Clusters:
    """Tasks of Gaussian clusters: each class is a random prototype, its examples are the prototype plus noise.

    Args:
        ways: classes of a task, W. At least 2.
        shots: labelled support examples per class. At least 1.
        queries: query examples per class. At least 1.
        shape: of one example, without the batch axis: (D,) or (C, H, Wd).
        noise: standard deviation of the examples around their prototype, whose entries have standard deviation 1.

    A sample has float32 x: support `[T, W * shots, *shape]`, query `[T, W * queries, *shape]`, grouped by class, on the
    generator's device.

    >>> task = Clusters(ways=3, shots=1, queries=2, shape=(8,)).sample(torch.Generator().manual_seed(0), num_tasks=2)
    >>> task.support.x.shape, task.query.y[0].tolist()
    (torch.Size([2, 3, 8]), [0, 0, 1, 1, 2, 2])
    """

    classification = True

    def __init__(
        self,
        ways: int = 3,
        shots: int = 2,
        queries: int = 4,
        shape: tuple[int, ...] = (8,),
        noise: float = 0.5,
    ):
        if ways < 2 or shots < 1 or queries < 1 or not noise >= 0:
            raise ValueError(
                f"ways={ways}, shots={shots}, queries={queries}, noise={noise}: pass ways >= 2, shots >= 1, "
                "queries >= 1 and noise >= 0"
            )
        self.ways, self.shots, self.queries, self.noise = ways, shots, queries, noise
        self.input_shape = tuple(shape)

    def sample(self, generator: torch.Generator, num_tasks: int) -> Task:
        """`num_tasks` tasks: a Task with a leading T on every leaf."""

        def normal(examples: int) -> Tensor:
            size = (num_tasks, self.ways, examples, *self.input_shape)
            return torch.randn(size, generator=generator, device=generator.device)

        prototypes = normal(1)  # [T, W, 1, ...]
        classes = torch.arange(self.ways, device=generator.device)

        def draw(examples: int) -> Batch:
            x = (prototypes + self.noise * normal(examples)).flatten(1, 2)  # [T, W * examples, ...]
            return Batch(x, classes.repeat_interleave(examples).expand(num_tasks, -1).contiguous())

        return Task(draw(self.shots), draw(self.queries))


# ------------------------------------------------------------------------------------------------ how a check is made


class _Skip(Exception):
    """Raised inside a check that does not apply; its text is the reason in the report."""


def _fail(found: str, expected: str, mend: str) -> NoReturn:
    raise ContractError(f"{found}. Expected: {expected}. To mend: {mend}.")


class _Case:
    """What a check works on: fresh copies of the learner, and tasks by purpose. Nothing of the caller's is changed."""

    def __init__(self, learner: Learner, factory: Callable[[], Learner] | None, tasks: Any, seed: int, steps: int):
        self._learner = learner
        self.factory = factory
        self.tasks = tasks
        self.seed = seed
        self.steps = steps
        self.regression = self.batch("kind", 1).support.y.is_floating_point()

    def learner(self, train: bool = False, dtype: torch.dtype = torch.float64) -> Learner:
        """A deep copy, in eval mode or in training mode with dropout off."""
        learner = copy.deepcopy(self._learner).to(dtype=dtype).train(train)
        for module in learner.modules():
            if isinstance(module, nn.modules.dropout._DropoutNd):
                module.eval()
        return learner

    def batch(self, purpose: str, num_tasks: int, dtype: torch.dtype = torch.float64) -> Task:
        return to(self.tasks.sample(seeding.generator(self.seed, purpose), num_tasks), dtype=dtype)

    def task(self, purpose: str, dtype: torch.dtype = torch.float64) -> Task:
        return tree.index(self.batch(purpose, 1, dtype), 0)

    def predict(self, learner: Learner, support: Batch, x: Tensor) -> Tensor:
        """Predictions `[M, ...]` after adapting, from the same random numbers in every call."""
        with seeding.seeded(self.seed, "predict"), torch.no_grad():
            return learner.predict(learner.adapt(learner.init(), support), x)

    def loss(self, learner: Learner, task: Task) -> Tensor:
        with seeding.seeded(self.seed, "loss"), torch.no_grad():
            return learner.loss(task)[0]

    def garbage(self, x: Tensor, rows: int) -> Tensor:
        """Rows that are nothing like `x` `[N, ...]`."""
        generator = seeding.generator(self.seed, "garbage")
        return 3 + 10 * torch.randn((rows, *x.shape[1:]), generator=generator).to(x)

    def needs_classes(self) -> None:
        if self.regression:
            raise _Skip("targets are numbers, not classes")

    def needs(self, claim: str) -> None:
        if not getattr(self._learner, claim):
            raise _Skip("not claimed")

    def trained(self, learner: Learner) -> dict[str, nn.Parameter]:
        """The parameters that must get a meta-gradient."""
        return {n: p for n, p in learner.named_parameters() if p.requires_grad and not n.startswith(learner.frozen)}


def _gap(a: Tensor, b: Tensor) -> float:
    """The largest difference, relative to the larger of 1 and the values; infinite for different shapes or NaN."""
    if a.shape != b.shape:
        return math.inf
    if not a.numel() or torch.equal(a, b):
        return 0.0
    a, b = a.detach().double(), b.detach().double()
    different = ~((a == b) | (a.isnan() & b.isnan()))  # equal infinities are equal
    gap = ((a - b)[different].abs().max() / torch.stack([a, b])[:, different].abs().max().clamp_min(1)).item()
    return gap if math.isfinite(gap) else math.inf


def _few(names: Iterable[str], limit: int = 6) -> str:
    names = list(names)
    return ", ".join(names[:limit]) + (f" and {len(names) - limit} more" if len(names) > limit else "")


def _changed(before: dict[str, Any], after: dict[str, Any]) -> list[str]:
    """Names whose value differs, bit by bit, or that one side lacks."""

    def same(name: str) -> bool:
        if name not in before or name not in after:
            return False
        a, b = before[name], after[name]
        return _bits(a, b) if isinstance(a, Tensor) and isinstance(b, Tensor) else bool(a == b)

    return sorted(name for name in before.keys() | after.keys() if not same(name))


def _bits(a: Tensor, b: Tensor) -> bool:
    return a.dtype == b.dtype and a.shape == b.shape and torch.equal(a.nan_to_num(), b.nan_to_num())


def _leaves(state: Any) -> dict[str, Any]:
    """A pytree as `{path: leaf}`."""
    return {pytree.keystr(path) or "(the state itself)": leaf for path, leaf in pytree.tree_flatten_with_path(state)[0]}


def _copied(values: Any) -> Any:
    return tree.map_(lambda leaf: leaf.detach().clone() if isinstance(leaf, Tensor) else leaf, values)


def _snapshot(learner: Learner) -> dict[str, Any]:
    """Everything of a module that a pure function leaves alone: weights, buffers, gradients, plain attributes."""
    found: dict[str, Any] = {name: t.detach().clone() for name, t in learner.state_dict().items()}
    for name, param in learner.named_parameters():
        found[f"{name}.requires_grad"] = param.requires_grad
        found[f"{name}.grad"] = None if param.grad is None else param.grad.clone()
    for name, module in learner.named_modules():
        for key, value in vars(module).items():
            if isinstance(value, Tensor):
                found[f"{name}.{key}".lstrip(".")] = value.detach().clone()
            elif isinstance(value, (bool, int, float, str)):
                found[f"{name}.{key}".lstrip(".")] = value
    return found


LearnerCheck = Callable[[_Case], None]
LEARNER_CHECKS: dict[str, LearnerCheck] = {}
"""Every check of `check_learner` by name, in the order in which they run."""


def _learner_check(check: LearnerCheck) -> LearnerCheck:
    LEARNER_CHECKS[check.__name__] = check
    return check


def _run(checks: dict[str, Callable[[Any], None]], case: Any, subject: str, only: Iterable[str] | None) -> Report:
    chosen = list(checks) if only is None else list(only)
    unknown = [name for name in chosen if name not in checks]
    if unknown:
        raise ValueError(f"unknown checks {unknown}: choose from {', '.join(checks)}")
    ran, skipped = [], {}
    for name in chosen:
        try:
            checks[name](case)
        except _Skip as skip:
            skipped[name] = str(skip)
        except ContractError as error:
            raise ContractError(f"{subject} fails the check '{name}': {error}", name) from None
        except Exception as error:
            raise ContractError(
                f"{subject} fails the check '{name}': it raised {type(error).__name__}: {error}. Expected: no error "
                "on these tasks. To mend: see the traceback above and the rules in kshot.core's docstring; run this "
                f"check alone with only=['{name}'].",
                name,
            ) from error
        else:
            ran.append(name)
    return Report(subject, tuple(ran), skipped)


# -------------------------------------------------------------------------------------------- the checks of a learner


@_learner_check
def shapes(case: _Case) -> None:
    """Prediction `[M, W]` (or `[M, D]`), a finite 0-d loss, metrics that are named finite 0-d tensors."""
    for train in (False, True):
        learner, task = case.learner(train), case.task("shapes")
        prediction = case.predict(learner, task.support, task.query.x)
        rows = len(task.query.x)
        if case.regression:
            fits, width = prediction.shape == task.query.y.shape, str(list(task.query.y.shape[1:]))
        else:
            ways = int(max(task.support.y.max(), task.query.y.max())) + 1
            fits, width = prediction.dim() == 2 and prediction.shape[1] >= ways, f"W] with W >= {ways}"
            fits = fits and len(prediction) == rows
        if not fits:
            _fail(
                f"predict gave a tensor of shape {list(prediction.shape)} for {rows} queries",
                f"one row per query: [{rows}, {width.lstrip('[')}",
                "let predict return the scores of all classes (or the D values) for each row of x, and build the "
                "learner for at least as many ways as the tasks have",
            )
        if not prediction.isfinite().all() and prediction.isnan().any():
            _fail("predict gave NaN after adapt", "numbers", "look for 0/0, log(0) or sqrt'(0) in adapt and predict")
        loss, metrics = learner.loss(task)
        for name, value in {"the loss": loss, **{f"metric '{k}'": v for k, v in metrics.items()}}.items():
            if not isinstance(value, Tensor) or value.dim() != 0 or not value.isfinite():
                _fail(
                    f"{name} is {value!r}",
                    "a finite 0-d tensor",
                    "reduce over queries inside loss, and keep Python numbers out of the metrics (vmap refuses them)",
                )


@_learner_check
def state_is_tensors(case: _Case) -> None:
    """States are NamedTuples, dicts, tuples or lists of tensors, nothing else."""
    learner, task = case.learner(), case.task("state")
    state = learner.init()
    for where, known in (("init()", state), ("adapt()", learner.adapt(state, task.support))):
        bad = {path: type(leaf).__name__ for path, leaf in _leaves(known).items() if not isinstance(leaf, Tensor)}
        if bad:
            _fail(
                f"the state from {where} has leaves that are no tensors: {bad}",
                "a NamedTuple or dict of tensors",
                "hold numbers as 0-d tensors or as attributes of the learner, leave None out, and make a dataclass a "
                "NamedTuple (vmap and the checkpoint see tensors only)",
            )


@_learner_check
def pure(case: _Case) -> None:
    """adapt, predict, adapt_path and loss change neither the state, nor the task, nor the module."""
    for train in (False, True):
        learner, task = case.learner(train), case.task("pure")
        module, given = _snapshot(learner), _copied(task)
        state = learner.init()
        initial = _copied(state)

        def verify(call: str, learner=learner, task=task, module=module, given=given, train=train) -> None:
            mode = "train()" if train else "eval()"
            changed = _changed(module, _snapshot(learner))
            if changed:
                _fail(
                    f"{call} in {mode} mode changed the module: {_few(changed)}",
                    "the module as it was",
                    "put what is learnt from a task into the returned state; for running statistics use "
                    "kshot.nn.BatchNorm or kshot.nn.convert(module)",
                )
            changed = _changed(_leaves(given), _leaves(task))
            if changed:
                _fail(f"{call} in {mode} mode changed the task: {_few(changed)}", "the task as it was", "copy first")

        def unchanged(call: str, now: Any, before: Any) -> None:
            changed = _changed(_leaves(before), _leaves(now))
            if changed:
                _fail(
                    f"{call} changed the state that it was given: {_few(changed)}",
                    "a new state, and the old one as it was",
                    "replace in-place operations (+=, .add_(), state[...] = ) by new tensors, state._replace(...) or a "
                    "new dict",
                )

        adapted = learner.adapt(state, task.support)
        unchanged("adapt", state, initial)
        verify("adapt")
        learnt = _copied(adapted)
        learner.predict(adapted, task.query.x)
        unchanged("predict", adapted, learnt)
        verify("predict")
        learner.adapt_path(state, task.support)
        unchanged("adapt_path", state, initial)
        verify("adapt_path")
        learner.loss(task)
        verify("loss")


@_learner_check
def repeatable(case: _Case) -> None:
    """The same call twice gives the same answer, bit by bit, also when another task came in between."""
    learner, task, other = case.learner(), case.task("repeatable"), case.task("repeatable, another")
    with torch.no_grad():
        first = learner.predict(learner.adapt(learner.init(), task.support), task.query.x)
        learner.predict(learner.adapt(learner.init(), other.support), other.query.x)
        state = learner.adapt(learner.init(), task.support)
        again, third = (learner.predict(state, task.query.x) for _ in range(2))
    for what, now in (("adapting and predicting", again), ("predicting from one state", third)):
        if not _bits(first, now):
            _fail(
                f"{what} twice on the same task in eval() mode gave two answers, {_gap(first, now):.2g} apart",
                "the same bits",
                "keep nothing of a task outside the returned state, and draw no random numbers in adapt and predict "
                "in eval() mode",
            )


def _equals_loop(learner: Learner, tasks: Task, how: str, mend: str, *plans: engine.Plan) -> None:
    """Loss, metrics and meta-gradient by these plans of the engine equal those of its "loop", to `CLOSE`."""
    looped, expected = engine.meta_gradient(learner, tasks, "loop")
    for plan in plans:
        gradient, outcome = engine.meta_gradient(learner, tasks, plan)
        pairs = {"the loss": (outcome.loss, expected.loss)}
        pairs |= {f"metric '{k}'": (outcome.metrics[k], v) for k, v in expected.metrics.items()}
        pairs |= {f"the meta-gradient of {k}": (gradient[k], v) for k, v in looped.items()}
        for name, (value, wanted) in pairs.items():
            if _gap(value, wanted) > CLOSE:
                _fail(
                    f"{name} {how} differs from a loop over tasks by {_gap(value, wanted):.2g} ({plan.name})",
                    f"a relative difference of at most {CLOSE:g} in float64",
                    mend,
                )


@_learner_check
def mapped_equals_loop(case: _Case) -> None:
    """Loss, metrics and meta-gradient of the engine's "vmap" equal those of its "loop" in float64, to 1e-8."""
    learner, tasks = case.learner(train=True), case.batch("mapped", 3)
    _equals_loop(
        learner,
        tasks,
        "mapped over tasks",
        "look for state kept between tasks, shapes that count on a batch axis, and torch's batch_norm, whose gradient "
        "through vmap is wrong (use kshot.nn.BatchNorm)",
        engine.Plan("vmap"),
    )
    silent, loss = engine.meta_loss(learner, tasks, "loop").loss, engine.meta_gradient(learner, tasks, "loop")[1].loss
    if _gap(silent, loss) > CLOSE:
        _fail(
            f"the loss under torch.no_grad() differs from that with a graph by {_gap(silent, loss):.2g}",
            f"a relative difference of at most {CLOSE:g} in float64",
            "take the inner gradients inside torch.enable_grad(), or with torch.func.grad",
        )


@_learner_check
def threads_equal_loop(case: _Case) -> None:
    """Loss, metrics and meta-gradient of the engine's "threads" equal those of its "loop" in float64, to 1e-8."""
    count = torch.get_num_threads()
    torch.set_num_threads(2)
    try:
        _equals_loop(
            case.learner(train=True),
            case.batch("threads", 5),
            "of tasks shared among threads",
            "every thread works on a deep copy of the learner: look for state outside of it (globals, class "
            "attributes, caches) that one task leaves for another",
            engine.Plan("threads"),
        )
    finally:
        torch.set_num_threads(count)


@_learner_check
def frugal_equals_loop(case: _Case) -> None:
    """Loss, metrics and meta-gradient without kept graphs of inner steps equal those with them in float64, to 1e-8."""
    learner, tasks = case.learner(train=True), case.batch("frugal", 2)
    if engine.draws_numbers(learner, tree.index(tasks, 0)):
        raise _Skip("it draws random numbers in its loss, so graphs cannot be made anew")
    _equals_loop(
        learner,
        tasks,
        "without kept graphs",
        "a function given to kshot.memory.recomputed must be pure, and what has a gradient must be an argument of it",
        engine.Plan("loop", frugal=True),
        engine.Plan("vmap", frugal=True),
    )


@_learner_check
def finite_difference(case: _Case) -> None:
    """The meta-gradient equals a central finite difference of the mean loss in float64, group by group of parameters.

    Needs a smooth network: a kink (ReLU, max-pooling) within 1e-5 of the point makes the difference meaningless.
    """
    learner, tasks = case.learner(train=True), case.batch("difference", 2)
    params = case.trained(learner)
    if not params:
        raise _Skip("no trainable parameters")
    if getattr(learner, "surrogate", False):
        raise _Skip("the gradient of its loss is an estimator by design (surrogate)")
    with seeding.seeded(case.seed, "difference"):
        gradient, _ = engine.meta_gradient(learner, tasks, "loop")
    generator = seeding.generator(case.seed, "directions")
    names = list(params)
    groups = [names[i::12] for i in range(min(12, len(names)))]  # a wrong one is not drowned in the others

    def mean_loss() -> float:
        with seeding.seeded(case.seed, "difference"):
            return engine.meta_loss(learner, tasks, "loop").loss.mean().item()

    here = abs(mean_loss())
    for group in groups:
        direction = {n: torch.randn(params[n].shape, generator=generator).to(params[n]) for n in group}
        length = tree.dot(direction, direction).sqrt()
        direction = {n: d / length for n, d in direction.items()}
        ours = tree.dot(direction, gradient).item()
        size = math.sqrt(sum(gradient[n].square().sum().item() for n in group))
        tolerance = 1e-6 * size + 1e-9 * max(1.0, here)
        start = {n: params[n].detach().clone() for n in group}
        measured = math.nan
        for step in (1e-5, 1e-4, 1e-6):  # a wrong gradient fails at each; a right one may need a shorter or longer step
            ends = []
            for sign in (1, -1):
                with torch.no_grad():
                    for n in group:
                        params[n].copy_(start[n] + sign * step * direction[n])
                ends.append(mean_loss())
            measured = (ends[0] - ends[1]) / (2 * step)
            if abs(measured - ours) <= tolerance:
                break
        with torch.no_grad():
            for n in group:
                params[n].copy_(start[n])
        if not abs(measured - ours) <= tolerance:
            _fail(
                f"along a random direction in {_few(group)} the meta-gradient is {ours:.8g} and a finite difference of "
                f"the mean loss {measured:.8g}",
                f"a difference of at most {tolerance:.1g}",
                "look for .detach(), no_grad, create_graph=False or an approximate solver between the parameters and "
                "the loss; if the gradient is an estimator by design set `surrogate = True`, if a parameter gets none "
                "by design name it in `frozen`; and pass a smooth network (activation='softplus' or 'tanh', "
                "pool='avg' or 'stride')",
            )


@_learner_check
def gradient_reaches_parameters(case: _Case) -> None:
    """Every parameter gets a finite meta-gradient, those declared frozen get none, and one at least is not zero."""
    learner, tasks = case.learner(train=True), case.batch("reach", 2)
    params = {n: p for n, p in learner.named_parameters() if p.requires_grad}
    if not params:
        raise _Skip("no trainable parameters")
    loss = torch.stack([learner.loss(tree.index(tasks, i))[0] for i in range(2)]).mean()
    found: dict[str, Tensor | None] = dict.fromkeys(params)
    if loss.requires_grad:
        values = torch.autograd.grad(loss, list(params.values()), allow_unused=True)
        found = dict(zip(params, values, strict=True))
    wanted = case.trained(learner)
    missing = [n for n in wanted if found[n] is None]
    if missing:
        _fail(
            f"no meta-gradient reaches {_few(missing)}",
            "a gradient for every parameter that is not declared frozen",
            "use the parameter in init, adapt or predict without .detach(); or name it (a prefix) in `frozen`, or make "
            "it a buffer",
        )
    bad = [n for n in wanted if not found[n].isfinite().all()]  # type: ignore[union-attr]
    if bad:
        _fail(
            f"the meta-gradient of {_few(bad)} is infinite or NaN",
            "finite numbers",
            "look for sqrt, norm or log at 0; torch.where does not stop the NaN of the branch not taken",
        )
    if wanted and not any(bool(found[n].any()) for n in wanted):  # type: ignore[union-attr]
        _fail("the meta-gradient is zero everywhere", "one parameter at least with a gradient", "see adapt and loss")
    leaking = [n for n, g in found.items() if n not in wanted and g is not None and bool(g.any())]
    if leaking:
        _fail(
            f"{_few(leaking)} are declared frozen ({learner.frozen}) and get a meta-gradient",
            "none, or zero",
            "detach them, or take them out of `frozen`",
        )


@_learner_check
def class_permutation(case: _Case) -> None:
    """Renaming the classes of the support set renames the columns of the predictions, if claimed."""
    case.needs_classes()
    case.needs("permutation_equivariant")
    learner, task = case.learner(), case.task("permutation")
    before = case.predict(learner, task.support, task.query.x)  # [M, W]
    ways = before.shape[1]
    renamed = torch.arange(ways).roll(1)  # class c becomes renamed[c]; no class keeps its name
    y = torch.where(task.support.y >= 0, renamed[task.support.y.clamp_min(0)], task.support.y)
    after = case.predict(learner, Batch(task.support.x, y), task.query.x)
    gap = _gap(after[:, renamed], before)
    if gap > CLOSE:
        _fail(
            f"with classes renamed {list(range(ways))} -> {renamed.tolist()} the predictions' columns are not renamed "
            f"likewise: they differ by {gap:.2g}",
            f"a difference of at most {CLOSE:g}",
            "treat all classes alike (no parameter per class), or set permutation_equivariant = False",
        )


@_learner_check
def support_order(case: _Case) -> None:
    """The order of the support set does not matter, if claimed."""
    case.needs("order_invariant")
    learner, task = case.learner(), case.task("order")
    order = torch.randperm(len(task.support.x), generator=seeding.generator(case.seed, "order"))
    before = case.predict(learner, task.support, task.query.x)
    after = case.predict(learner, tree.map_(lambda leaf: leaf[order], task.support), task.query.x)
    if _gap(after, before) > CLOSE:
        _fail(
            f"the support set in another order changed the predictions by {_gap(after, before):.2g}",
            f"a difference of at most {CLOSE:g}",
            "sum or average over the support set, or set order_invariant = False",
        )


def _appended(case: _Case, support: Batch, y: int) -> Batch:
    rows = case.garbage(support.x, 3)
    return Batch(torch.cat([support.x, rows]), torch.cat([support.y, support.y.new_full((3,), y)]))


@_learner_check
def padding_is_ignored(case: _Case) -> None:
    """Support rows with y = -2 change nothing, whatever is in them."""
    case.needs_classes()
    for train in (False, True):
        learner, task = case.learner(train), case.task("padding")
        before = case.predict(learner, task.support, task.query.x)
        after = case.predict(learner, _appended(case, task.support, PADDING), task.query.x)
        if _gap(after, before) > CLOSE:
            _fail(
                f"3 support rows with y = {PADDING} (padding) changed the predictions by {_gap(after, before):.2g} in "
                f"{'train()' if train else 'eval()'} mode",
                "rows that are not there to change nothing",
                "weight the rows by losses.one_hot(y, ways), which is zero there, and keep them out of batch "
                "statistics: kshot.nn.call(body, params, x, mask=y >= 0), with a body whose forward takes a mask",
            )


@_learner_check
def unlabelled_rows(case: _Case) -> None:
    """Support rows with y = -1 change nothing, or something where `uses_unlabelled` is claimed."""
    case.needs_classes()
    for train in (False, True):
        learner, task = case.learner(train), case.task("unlabelled")
        mode = "train()" if train else "eval()"
        before = case.predict(learner, task.support, task.query.x)
        if learner.uses_unlabelled:
            plausible = Batch(torch.cat([task.support.x, task.query.x]), task.support.y)
            y = torch.cat([task.support.y, torch.full_like(task.query.y, UNLABELLED)])
            if _gap(case.predict(learner, plausible._replace(y=y), task.query.x), before) <= CLOSE:
                _fail(
                    f"support rows with y = {UNLABELLED} (unlabelled) changed nothing in {mode} mode",
                    "a change, because uses_unlabelled is claimed",
                    "use them in adapt, or set uses_unlabelled = False",
                )
            continue
        after = case.predict(learner, _appended(case, task.support, UNLABELLED), task.query.x)
        if _gap(after, before) > CLOSE:
            _fail(
                f"3 support rows with y = {UNLABELLED} (unlabelled) changed the predictions by "
                f"{_gap(after, before):.2g} in {mode} mode",
                "no change, because uses_unlabelled is not claimed",
                "mask them as padding (y >= 0), or set uses_unlabelled = True if they are used on purpose",
            )


@_learner_check
def unscored_queries(case: _Case) -> None:
    """Query rows with y < 0 count neither in the criterion, nor in the metrics, nor in the loss."""
    case.needs_classes()
    learner, task = case.learner(), case.task("unscored")
    prediction = case.predict(learner, task.support, task.query.x)
    y = task.query.y.clone()
    y[::2] = UNLABELLED
    kept = y >= 0
    mend = "average over the rows with y >= 0 only, as kshot.losses does"
    pairs = {"criterion": (learner.criterion(prediction, y), learner.criterion(prediction[kept], y[kept]))}
    shorter = learner.metrics(prediction[kept], y[kept])
    pairs |= {f"metric '{k}'": (v, shorter[k]) for k, v in learner.metrics(prediction, y).items()}
    hidden = [task._replace(query=Batch(task.query.x, y.where(kept, torch.tensor(v)))) for v in (UNLABELLED, PADDING)]
    pairs["loss (y = -2 in place of y = -1)"] = (case.loss(learner, hidden[0]), case.loss(learner, hidden[1]))
    if not learner.transductive:
        x = torch.cat([task.query.x, case.garbage(task.query.x, 3)])
        longer = task._replace(query=Batch(x, torch.cat([task.query.y, task.query.y.new_full((3,), PADDING)])))
        pairs["loss (3 rows of padding appended)"] = (case.loss(learner, longer), case.loss(learner, task))
    for name, (value, wanted) in pairs.items():
        if _gap(value, wanted) > CLOSE:
            _fail(
                f"the {name} counts query rows with y < 0: it is {value.item():.8g}",
                f"{wanted.item():.8g}, as without them",
                mend,
            )
    empty = task._replace(query=Batch(task.query.x, torch.full_like(y, PADDING)))
    value = case.loss(learner, empty)
    if not value.isfinite():
        _fail(f"with no query to score the loss is {value.item()}", "a finite number, 0 for instance", mend)


@_learner_check
def folding(case: _Case) -> None:
    """Adapting on two halves in turn equals adapting on the whole, if claimed."""
    case.needs("folds")
    learner, task = case.learner(), case.task("folding")
    whole = case.predict(learner, task.support, task.query.x)
    halves = [tree.map_(lambda leaf, i=i: leaf[i::2], task.support) for i in range(2)]
    with seeding.seeded(case.seed, "predict"), torch.no_grad():
        state = learner.adapt(learner.adapt(learner.init(), halves[0]), halves[1])
        folded = learner.predict(state, task.query.x)
    if _gap(folded, whole) > CLOSE:
        _fail(
            f"adapting on two halves in turn differs from adapting on the whole by {_gap(folded, whole):.2g}",
            f"a difference of at most {CLOSE:g}, because folds is claimed",
            "hold sums and counts in the state rather than means, and no statistics of the batch at hand; or set "
            "folds = False",
        )


@_learner_check
def queries_are_independent(case: _Case) -> None:
    """The prediction of a query does not depend on the other queries in eval() mode, unless `transductive`."""
    learner, task = case.learner(), case.task("independent")
    if learner.transductive:
        raise _Skip("transductive is claimed: queries may depend on each other")
    x = task.query.x
    half = max(1, len(x) // 2)
    together = case.predict(learner, task.support, x)[:half]
    others = torch.cat([x[:half], case.garbage(x, len(x) - half)])
    for what, now in (
        ("with other queries beside it", case.predict(learner, task.support, others)[:half]),
        ("alone", torch.cat([case.predict(learner, task.support, x[i : i + 1]) for i in range(half)])),
    ):
        if _gap(now, together) > CLOSE:
            _fail(
                f"a query predicted {what} gets another prediction, {_gap(now, together):.2g} apart",
                f"a difference of at most {CLOSE:g}, because transductive is False",
                "normalise queries by population statistics (kshot.nn.BatchNorm(population=True)) or by the support "
                "set's (a mask), or set transductive = True on the instance, so that every score tells it",
            )


@_learner_check
def path_ends_at_adapt(case: _Case) -> None:
    """`adapt_path` has a state before the first step and ends where `adapt` does."""
    learner, task = case.learner(), case.task("path")
    with torch.no_grad():
        state = learner.init()
        path = learner.adapt_path(state, task.support)
        end = learner.predict(path[-1], task.query.x)
        wanted = learner.predict(learner.adapt(state, task.support), task.query.x)
    mend = "return [state, ..., adapt(state, support)]; the default does that for learners that take no steps"
    if len(path) < 2:
        _fail(f"adapt_path gave {len(path)} states", "at least two, before the first step and after the last", mend)
    if _gap(end, wanted) > CLOSE:
        _fail(
            f"the last state of adapt_path predicts otherwise than adapt's, by {_gap(end, wanted):.2g}",
            f"a difference of at most {CLOSE:g}",
            mend,
        )


@_learner_check
def checkpoint_round_trip(case: _Case) -> None:
    """Module and state, saved to a file and loaded into a copy with other weights: the same, and the same answers."""
    learner, task = case.learner(), case.task("checkpoint")
    with torch.no_grad():
        state = learner.adapt(learner.init(), task.support)
        wanted = learner.predict(state, task.query.x)
    leaves, structure = pytree.tree_flatten(state)
    tensors = {f"learner.{n}": t for n, t in learner.state_dict().items()}
    tensors |= {f"state.{i}": leaf for i, leaf in enumerate(leaves)}
    with tempfile.TemporaryDirectory() as folder:
        checkpoint.save(Path(folder) / "check.safetensors", tensors, {})
        loaded, _ = checkpoint.load(Path(folder) / "check.safetensors")
    changed = _changed(tensors, loaded)
    if changed:
        _fail(f"{_few(changed)} changed in a file", "the same bits", "use tensors that safetensors can hold")
    twin = case.learner()
    own = {key: value for module in twin.modules() for key, value in vars(module).items() if isinstance(value, Tensor)}
    with torch.no_grad():
        for value in [*twin.state_dict().values(), *own.values()]:
            if value.is_floating_point():
                value.add_(1 + torch.rand(value.shape, generator=seeding.generator(case.seed, "other")).to(value))
    twin.load_state_dict({n.removeprefix("learner."): t for n, t in loaded.items() if n.startswith("learner.")})
    with torch.no_grad():
        known = pytree.tree_unflatten([loaded[f"state.{i}"] for i in range(len(leaves))], structure)
        answers = {
            "from the saved state": twin.predict(known, task.query.x),
            "after adapting anew": twin.predict(twin.adapt(twin.init(), task.support), task.query.x),
        }
    for what, now in answers.items():
        if _gap(now, wanted) > CLOSE:
            _fail(
                f"a learner loaded from a checkpoint predicts otherwise {what}, {_gap(now, wanted):.2g} apart",
                f"a difference of at most {CLOSE:g}",
                "hold every tensor of the module as a parameter or a buffer, and everything that a task taught in the "
                "state" + (f"; plain tensor attributes here: {_few(own)}" if own else ""),
            )


@_learner_check
def dtype_is_respected(case: _Case) -> None:
    """float32 in, float32 out; float64 in, float64 out: states, predictions, losses, metrics."""
    for dtype in (torch.float32, torch.float64):
        learner, task = case.learner(dtype=dtype), case.task("dtype", dtype)
        state = learner.adapt(learner.init(), task.support)
        loss, metrics = learner.loss(task)
        found = {f"state{path}": leaf for path, leaf in _leaves(state).items()}
        found |= {"the prediction": learner.predict(state, task.query.x), "the loss": loss}
        found |= {f"metric '{k}'": v for k, v in metrics.items()}
        wrong = {n: str(t.dtype) for n, t in found.items() if t.is_floating_point() and t.dtype != dtype}
        if wrong:
            _fail(
                f"with parameters and inputs of {dtype} these are of another dtype: {wrong}",
                f"{dtype} throughout",
                "make new tensors with x.new_zeros(...), dtype=x.dtype or losses.one_hot(y, ways, x.dtype)",
            )


@_learner_check
def device_is_respected(case: _Case) -> None:
    """Everything stays on the device of parameters and inputs (CUDA where there is one)."""
    if not torch.cuda.is_available():
        raise _Skip("no CUDA device here")
    learner = case.learner(dtype=torch.float32).to("cuda")
    task = to(case.task("device", torch.float32), "cuda")
    state = learner.adapt(learner.init(), task.support)
    loss, metrics = learner.loss(task)
    found = {f"state{path}": leaf for path, leaf in _leaves(state).items()}
    found |= {"the prediction": learner.predict(state, task.query.x), "the loss": loss, **metrics}
    wrong = {n: str(t.device) for n, t in found.items() if t.device.type != "cuda"}
    if wrong:
        _fail(
            f"with parameters and inputs on cuda these are elsewhere: {wrong}",
            "all on cuda",
            "make new tensors with x.new_zeros(...) or device=x.device, and constants buffers",
        )


def _updates(learner: Learner, tasks: Any, seed: int, first: int, last: int, optimizer: Any, strategy: Any) -> None:
    """Meta-updates `first` to `last` - 1, each on 4 tasks."""
    params = dict(learner.named_parameters())
    for step in range(first, last):
        batch = to(tasks.sample(seeding.generator(seed, "train", step), 4), dtype=torch.float32)
        gradient, _ = engine.meta_gradient(learner, batch, strategy)
        for name, value in gradient.items():
            params[name].grad = value
        optimizer.step()


@_learner_check
def equal_seeds(case: _Case) -> None:
    """Two runs of three meta-updates from equal seeds end with the same bits; a factory gives equal weights too."""
    ends = []
    for _ in range(2):
        with seeding.seeded(case.seed, "weights"):
            learner = case.factory().float() if case.factory else case.learner(dtype=torch.float32)
        learner.train()
        with seeding.seeded(case.seed, "run"):
            params = list(case.trained(learner).values())
            if params:
                _updates(learner, case.tasks, case.seed, 0, 3, torch.optim.Adam(params, 1e-2), "auto")
            task = case.task("run", torch.float32)
            with torch.no_grad():
                prediction = learner.predict(learner.adapt(learner.init(), task.support), task.query.x)
        ends.append({**{n: t.clone() for n, t in learner.state_dict().items()}, "(the prediction)": prediction})
    changed = _changed(*ends)
    if changed:
        _fail(
            f"two runs from equal seeds differ in {_few(changed)}",
            "the same bits",
            "draw random numbers from torch's global generator or from kshot.seeding, and from nothing else (no "
            "random, numpy, time, set order)",
        )


def _scores(learner: Learner, tasks: Task, adapted: bool = True) -> tuple[Tensor, Tensor]:
    """Criterion and, for classes, accuracy minus chance of each task, `[T]` each, in the learner's mode."""
    found, above = [], []
    with torch.no_grad():
        for i in range(len(tasks.query.x)):
            task = tree.index(tasks, i)
            state = learner.init()
            state = learner.adapt(state, task.support) if adapted else state
            prediction = learner.predict(state, task.query.x)
            found.append(learner.criterion(prediction, task.query.y))
            if not task.query.y.is_floating_point():
                ways = len(task.query.y[task.query.y >= 0].unique())
                above.append(losses.accuracy(prediction, task.query.y) - 1 / ways)
    return torch.stack(found), torch.stack(above) if above else torch.empty(0)


def _clearly_positive(values: Tensor) -> bool:
    """The mean of `values` `[T]` is more than 4 standard errors above 0."""
    return bool(values.mean() > 4 * values.std() / math.sqrt(len(values))) and bool(values.mean() > 0)


@_learner_check
def better_than_chance(case: _Case) -> None:
    """After a few meta-updates (none, if nothing is to be trained) it beats chance, or its own start in a regression.

    A regression without trainable parameters must be better after adapting than before.
    """
    learner = case.learner(dtype=torch.float32)
    params = list(case.trained(learner).values())
    blocks = [case.batch(f"chance, {i}", 24, torch.float32) for i in range(4)]
    known = case.batch("calibrate", 8, torch.float32)
    optimizer = torch.optim.Adam(params, 1e-2) if params else None
    untrained = copy.deepcopy(learner).eval()

    def gains(block: Task) -> tuple[Tensor, Tensor]:
        """What each task gained, and the same as a share in -1..1: losses of functions are too unequal to average."""
        score, above = _scores(learner.eval(), block)
        if not case.regression:
            return above, above
        start, _ = _scores(untrained, block, adapted=bool(params))
        return start - score, (start - score) / (start + score).clamp_min(1e-30)

    done, values, shares = 0, [], []
    while True:
        engine.calibrate(learner, known)
        last = optimizer is None or done >= case.steps
        values, shares = [], []
        for block in blocks if last else blocks[:1]:  # the last look is a closer one
            value, share = gains(block)
            values.append(value)
            shares.append(share)
            if _clearly_positive(torch.cat(shares)):
                return
        if last:
            break
        learner.train()
        with seeding.seeded(case.seed, "chance", done):
            _updates(learner, case.tasks, case.seed, done, done + 10, optimizer, "auto")
        done += 10
    after = f"after {done} meta-updates" if params else "with nothing to meta-train"
    all_values = torch.cat(values)
    if not case.regression:
        found = f"{after} its accuracy on {len(all_values)} tasks is {all_values.mean().item():+.3f} from chance"
        expected = "clearly above chance (4 standard errors)"
    else:
        found = f"{after} its loss on {len(all_values)} tasks fell by {all_values.mean().item():.3g} on average"
        expected = "a clear fall, relative to each task's loss (4 standard errors)"
    _fail(
        found,
        expected,
        "look at the signs (scores grow with likelihood), at what adapt does with the labels, and at the inner "
        "learning rate; hard tasks may need steps > " + str(case.steps),
    )


def check_learner(
    learner_or_factory: Learner | Callable[[], Learner],
    tasks: TaskDistribution,
    *,
    only: Iterable[str] | None = None,
    seed: int = 0,
    steps: int = 60,
) -> Report:
    """Check that a learner keeps the contract of `kshot.core.Learner` on these tasks.

    The learner is copied for every check and left as it was. Give it a small and smooth network (`MLP(...,
    activation="tanh")`, or `Conv4(width=4, pool="stride", activation="softplus")`): a finite difference is taken of its
    loss in float64. `LEARNER_CHECKS` lists the checks, each with its docstring.

    Args:
        learner_or_factory: the learner, or a function without arguments that builds it (then it is also checked that
            equal seeds build equal weights).
        tasks: what it learns: classification (int64 y `[N]`) or regression (float y `[N, D]`); see `Clusters`.
        only: names of the checks to run; None runs all.
        seed: of tasks, weights and directions.
        steps: the most meta-updates (of 4 tasks) that `better_than_chance` may take; it stops when it is satisfied.

    Returns:
        The names of the checks that ran, and of those skipped with the reason.

    Raises:
        ContractError: a promise that is not kept: what was found, what was expected, how to mend it.
        TypeError: `learner_or_factory` neither is nor makes a Learner, or `tasks` has no `sample`.
        ValueError: a name in `only` that is no check.
    """
    if not isinstance(tasks, TaskDistribution):
        raise TypeError(f"tasks is a {type(tasks).__name__}: pass a distribution with sample(generator, num_tasks)")
    factory = None
    if isinstance(learner_or_factory, Learner):
        learner = learner_or_factory
    else:
        factory = learner_or_factory
        with seeding.seeded(seed, "weights"):
            learner = factory() if callable(factory) else factory
    if not isinstance(learner, Learner):
        raise TypeError(f"got a {type(learner).__name__}: pass a kshot.core.Learner, or a function that builds one")
    case = _Case(copy.deepcopy(learner).cpu(), factory, tasks, seed, steps)
    return _run(LEARNER_CHECKS, case, type(learner).__name__, only)


# ------------------------------------------------------------------------------------------------ the checks of tasks


class _TasksCase:
    def __init__(self, distribution: Any, num_tasks: int, seed: int):
        self.distribution = distribution
        self.num_tasks = num_tasks
        self.seed = seed
        kind = getattr(distribution, "classification", None)
        first = self.draw()
        self.classification = not first.query.y.is_floating_point() if kind is None else bool(kind)

    def draw(self, purpose: str = "tasks", num_tasks: int | None = None) -> Task:
        count = self.num_tasks if num_tasks is None else num_tasks
        return self.distribution.sample(seeding.generator(self.seed, purpose), count)

    def needs_classes(self) -> None:
        if not self.classification:
            raise _Skip("targets are numbers, not classes")


TasksCheck = Callable[[_TasksCase], None]
TASK_CHECKS: dict[str, TasksCheck] = {}
"""Every check of `check_tasks` by name, in the order in which they run."""


def _tasks_check(check: TasksCheck) -> TasksCheck:
    TASK_CHECKS[check.__name__] = check
    return check


@_tasks_check
def leading_axis(case: _TasksCase) -> None:
    """A Task of Batches, a leading T on every leaf, as many targets as inputs, the same shapes in every call."""
    task = case.draw()
    if not (isinstance(task, Task) and all(isinstance(part, Batch) for part in task)):
        _fail(
            f"sample gave a {type(task).__name__}", "a kshot.core.Task of two Batches", "return Task(Batch(...), ...)"
        )
    count = case.num_tasks
    shapes = {path: list(leaf.shape) for path, leaf in _leaves(task).items()}
    for part, batch in zip(task._fields, task, strict=True):
        if batch.x.dim() < 3 or len(batch.x) != count or batch.y.shape[:2] != batch.x.shape[:2]:
            _fail(
                f"sample(generator, {count}) gave shapes {shapes}",
                f"{part} x [{count}, N, ...] and y [{count}, N] or [{count}, N, D]",
                "stack the tasks in front",
            )
    for other in (case.draw("other"), case.draw("other", count + 1)):
        now = {path: list(leaf.shape) for path, leaf in _leaves(other).items()}
        if {p: s[1:] for p, s in now.items()} != {p: s[1:] for p, s in shapes.items()}:
            _fail(
                f"two samples have tasks of shapes {shapes} and {now}",
                "the same shapes in every call",
                f"pad tasks of unequal size and give the padded rows y = {PADDING}",
            )


@_tasks_check
def dtypes(case: _TasksCase) -> None:
    """Inputs are floating; class ids are int64, targets of a regression floating."""
    for part, batch in zip(Task._fields, case.draw(), strict=True):
        if not batch.x.is_floating_point():
            _fail(f"{part}.x is {batch.x.dtype}", "a floating dtype", "images as x.float() / 255")
        if case.classification and batch.y.dtype != torch.int64:
            _fail(f"{part}.y is {batch.y.dtype}", "int64 class ids", "y.long(), or classification = False")
        if not case.classification and not batch.y.is_floating_point():
            _fail(f"{part}.y is {batch.y.dtype}", "floating targets", "y.float(), or classification = True")


@_tasks_check
def finite(case: _TasksCase) -> None:
    """No NaN and no infinity."""
    bad = [path for path, leaf in _leaves(case.draw()).items() if not leaf.isfinite().all()]
    if bad:
        _fail(f"{_few(bad)} have infinite values or NaN", "finite numbers", "look at the normalisation of the inputs")


@_tasks_check
def equal_generators(case: _TasksCase) -> None:
    """Equal generators give equal tasks, different ones different tasks, and the tasks of one sample differ."""
    first, again, other = case.draw(), case.draw(), case.draw("other")
    changed = _changed(_leaves(first), _leaves(again))
    if changed:
        _fail(
            f"two samples from equal generators differ in {_few(changed)}",
            "the same bits",
            "draw every random number from the generator that sample is given, and keep no state between calls",
        )
    if torch.equal(first.support.x, other.support.x):
        _fail("generators with different seeds gave the same tasks", "different tasks", "draw from the generator")
    if case.num_tasks > 1 and all(torch.equal(first.support.x[0], x) for x in first.support.x[1:]):
        _fail("all tasks of one sample are the same task", "different tasks", "draw each task anew")


@_tasks_check
def global_randomness(case: _TasksCase) -> None:
    """Sampling leaves the global generators of torch, random and numpy alone."""

    def states() -> dict[str, Any]:
        found: dict[str, Any] = {"torch": torch.get_rng_state(), "random": repr(random.getstate())}
        if "numpy" in sys.modules:
            found["numpy"] = repr([str(part) for part in sys.modules["numpy"].random.get_state()])
        return found

    before = states()
    case.draw("global")
    changed = _changed(before, states())
    if changed:
        _fail(
            f"sample drew from the global generator of {_few(changed)}",
            "only the generator that it is given",
            "pass generator=generator to torch's functions (torch.rand, randperm, randint, multinomial)",
        )


@_tasks_check
def labels(case: _TasksCase) -> None:
    """Class ids of a task are 0..w-1, each in the support set and (if balanced) the query set, or -1 or -2."""
    case.needs_classes()
    task = case.draw()
    ways = getattr(case.distribution, "ways", None)
    for i in range(case.num_tasks):
        support, query = task.support.y[i], task.query.y[i]
        low = min(support.min().item(), query.min().item())
        if low < PADDING:
            _fail(f"task {i} has y = {low}", f"0..W-1, {UNLABELLED} or {PADDING}", "see kshot.core.Batch")
        taught, asked = set(support[support >= 0].tolist()), set(query[query >= 0].tolist())
        if taught != set(range(len(taught))) or not taught or (ways is not None and len(taught) > ways):
            _fail(
                f"task {i} has the support classes {sorted(taught)}",
                f"0..w-1 with w at most {'the ways' if ways is None else ways}",
                "number the classes of each task from 0",
            )
        if not asked <= taught or not asked:
            _fail(
                f"task {i} asks for the classes {sorted(asked)} and taught {sorted(taught)}",
                "at least one query, and none of a class that the support set lacks",
                "draw support and query from the same classes",
            )
        if getattr(case.distribution, "balanced", True) and asked != taught:
            _fail(
                f"task {i} never asks for the classes {sorted(taught - asked)}",
                "every class in the query set",
                "draw queries of each class, or set balanced = False on the distribution",
            )


@_tasks_check
def support_and_query_differ(case: _TasksCase) -> None:
    """No query row is also a support row of its class, or an unlabelled one: the answer would be given away."""
    case.needs_classes()
    task = case.draw()
    for i in range(case.num_tasks):
        support, query = task.support.x[i].flatten(1), task.query.x[i].flatten(1)
        told, asked = task.support.y[i], task.query.y[i]
        same = (query[:, None] == support).all(-1)  # [M, N]
        counts = (asked[:, None] >= 0) & ((asked[:, None] == told) | (told == UNLABELLED))
        rows = (same & counts).nonzero()
        if len(rows):
            m, n = rows[0].tolist()
            _fail(
                f"in task {i} query row {m} (class {asked[m].item()}) is support row {n} (y = {told[n].item()}), and "
                f"{len(rows) - 1} more pairs are the same",
                "no example in both sets",
                "draw the examples of a class without replacement and split them; look for doubles in the data",
            )


@_tasks_check
def follows_the_generator(case: _TasksCase) -> None:
    """Tasks are on the generator's device."""
    devices = {path: str(leaf.device) for path, leaf in _leaves(case.draw()).items() if leaf.device.type != "cpu"}
    if devices:
        _fail(f"with a generator on the cpu these are elsewhere: {devices}", "all on the cpu", "use generator.device")


def check_tasks(
    distribution: TaskDistribution, num_tasks: int = 4, *, only: Iterable[str] | None = None, seed: int = 0
) -> Report:
    """Check that a task distribution keeps the contract of `kshot.tasks.TaskDistribution`.

    Whether it is classification is told by its attribute `classification`, else by the dtype of y. `TASK_CHECKS` lists
    the checks, each with its docstring.

    Args:
        distribution: has `sample(generator, num_tasks) -> Task`.
        num_tasks: how many tasks to draw and look at. At least 1.
        only: names of the checks to run; None runs all.
        seed: of the generators.

    Returns:
        The names of the checks that ran, and of those skipped with the reason.

    Raises:
        ContractError: a promise that is not kept: what was found, what was expected, how to mend it.
        TypeError: no `sample`.
        ValueError: num_tasks < 1, or a name in `only` that is no check.

    >>> len(check_tasks(Clusters()).ran)
    8
    """
    if not isinstance(distribution, TaskDistribution):
        raise TypeError(f"got a {type(distribution).__name__}: pass an object with sample(generator, num_tasks)")
    if num_tasks < 1:
        raise ValueError(f"num_tasks={num_tasks}: pass at least 1")
    return _run(TASK_CHECKS, _TasksCase(distribution, num_tasks, seed), type(distribution).__name__, only)
