"""The checks of a learner, in the order in which they run."""

from __future__ import annotations

import copy
import inspect
import math
import tempfile
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils import _pytree as pytree

from kshot import engine
from kshot import nn as knn
from kshot.core import PADDING, UNLABELLED, Batch, Learner, Task, num_tasks, to
from kshot.numerics import losses, seeding, tree
from kshot.storage import checkpoint
from kshot.tasks.base import ActsItself, TaskDistribution
from kshot.testing._report import (
    CLOSE,
    Report,
    Skip,
    apart,
    copied,
    differing,
    distance,
    equal_bits,
    fail,
    few,
    paths,
    run_checks,
    snapshot,
)


def numbers(prediction: Any) -> Tensor:
    """Predictions as one tensor: those that are a distribution, its parameters side by side `[M, ..., P]`."""
    if isinstance(prediction, Tensor):
        return prediction
    if hasattr(prediction, "quantile"):  # kshot.numerics.distributions
        return torch.cat([prediction.mean, prediction.std], dim=-1)
    leaves = [leaf for leaf in tree.leaves(prediction) if isinstance(leaf, Tensor)]
    return torch.cat(torch.broadcast_tensors(*leaves), dim=-1)


def rows(support: Any, index: Any) -> Any:
    """The support set with other rows in its leading axis; leaves that do not go by rows stay."""
    count = len(support.x)
    return tree.map_(lambda leaf: leaf[index] if leaf.ndim and len(leaf) == count else leaf, support)


def _partly_unlabelled(tasks: Task[Batch]) -> Task[Batch]:
    """Every other query row is an unlabelled support row instead, for learners that claim to use them."""
    (x, y), (asked, truth) = tasks
    y = torch.cat([y, torch.full_like(truth[:, ::2], UNLABELLED)], 1)
    return Task(Batch(torch.cat([x, asked[:, ::2]], 1), y), Batch(asked[:, 1::2], truth[:, 1::2]))


class _Case:
    """What a check works on: fresh copies of the learner, and tasks by purpose. Nothing of the caller's is changed."""

    def __init__(self, learner: Learner, factory: Callable[[], Learner] | None, tasks: Any, seed: int, steps: int):
        self._learner = learner
        self.factory = factory
        self.tasks = tasks
        self.seed = seed
        self.steps = steps
        self.unlabelled = False
        self.acts = not isinstance(self.tasks.sample(seeding.generator(seed, "kind"), 1).support, Batch)
        self.regression = self.acts or self.batch("kind", 1).support.y.is_floating_point()
        self.unlabelled = learner.uses_unlabelled and not self.regression

    def learner(self, train: bool = False, dtype: torch.dtype = torch.float64) -> Learner:
        """A deep copy, in eval mode or in training mode with dropout and noise off."""
        learner = copy.deepcopy(self._learner).to(dtype=dtype).train(train)
        for module in learner.modules():
            if isinstance(module, (nn.modules.dropout._DropoutNd, knn.Noise, knn.NoiseLike)):
                module.eval()
        return learner

    def batch(self, purpose: str, num_tasks: int, dtype: torch.dtype = torch.float64) -> Task:
        tasks = to(self.tasks.sample(seeding.generator(self.seed, purpose), num_tasks), dtype=dtype)
        return _partly_unlabelled(tasks) if self.unlabelled else tasks

    def task(self, purpose: str, dtype: torch.dtype = torch.float64) -> Task:
        return tree.index(self.batch(purpose, 1, dtype), 0)

    def predict(self, learner: Learner, support: Batch, x: Tensor) -> Tensor:
        """Predictions `[M, ...]` after adapting, from the same random numbers in every call."""
        with seeding.seeded(self.seed, "predict"), torch.no_grad():
            return numbers(learner.predict(learner.adapt(learner.init(), support), x))

    def loss(self, learner: Learner, task: Task) -> Tensor:
        with seeding.seeded(self.seed, "loss"), torch.no_grad():
            return learner.loss(task)[0]

    def garbage(self, x: Tensor, rows: int) -> Tensor:
        """Rows that are nothing like `x` `[N, ...]`."""
        generator = seeding.generator(self.seed, "garbage")
        return 3 + 10 * torch.randn((rows, *x.shape[1:]), generator=generator).to(x)

    def needs_classes(self) -> None:
        if self.acts:
            raise Skip("the tasks have actions, not classes")
        if self.regression:
            raise Skip("targets are numbers, not classes")

    def needs(self, claim: str) -> None:
        if not getattr(self._learner, claim):
            raise Skip("not claimed")

    def trained(self, learner: Learner) -> dict[str, nn.Parameter]:
        """The parameters that must get a meta-gradient."""
        return {n: p for n, p in learner.named_parameters() if p.requires_grad and not n.startswith(learner.frozen)}


LearnerCheck = Callable[[_Case], None]
LEARNER_CHECKS: dict[str, LearnerCheck] = {}
"""Every check of `check_learner` by name, in the order in which they run."""


def _learner_check(check: LearnerCheck) -> LearnerCheck:
    LEARNER_CHECKS[check.__name__] = check
    return check


@_learner_check
def shapes(case: _Case) -> None:
    """Prediction `[M, W]` (or `[M, D]`), a finite 0-d loss, metrics that are named finite 0-d tensors."""
    for train in (False, True):
        learner, task = case.learner(train), case.task("shapes")
        prediction = case.predict(learner, task.support, task.query.x)
        count = len(task.query.x)
        if case.acts:
            fits, width = len(prediction) == count, "...]"
        elif case.regression:
            fits, width = prediction.shape == task.query.y.shape, str(list(task.query.y.shape[1:]))
            raw = learner.predict(learner.adapt(learner.init(), task.support), task.query.x)
            if not isinstance(raw, Tensor):  # a distribution
                fits = raw.mean.shape == raw.std.shape == task.query.y.shape
        else:
            ways = int(max(task.support.y.max(), task.query.y.max())) + 1
            fits, width = prediction.dim() == 2 and prediction.shape[1] >= ways, f"W] with W >= {ways}"
            fits = fits and len(prediction) == count
        if not fits:
            fail(
                f"predict gave a tensor of shape {list(prediction.shape)} for {count} queries",
                f"one row per query: [{count}, {width.lstrip('[')}",
                "let predict return the scores of all classes (or the D values) for each row of x, and build the "
                "learner for at least as many ways as the tasks have",
            )
        if not prediction.isfinite().all() and prediction.isnan().any():
            fail("predict gave NaN after adapt", "numbers", "look for 0/0, log(0) or sqrt'(0) in adapt and predict")
        loss, metrics = learner.loss(task)
        for name, value in {"the loss": loss, **{f"metric '{k}'": v for k, v in metrics.items()}}.items():
            if not isinstance(value, Tensor) or value.dim() != 0 or not value.isfinite():
                fail(
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
        bad = {path: type(leaf).__name__ for path, leaf in paths(known).items() if not isinstance(leaf, Tensor)}
        if bad:
            fail(
                f"the state from {where} has leaves that are not tensors: {bad}",
                "a NamedTuple or dict of tensors",
                "hold numbers as 0-d tensors or as attributes of the learner, leave None out, and make a dataclass a "
                "NamedTuple (vmap and the checkpoint see tensors only)",
            )


@_learner_check
def pure(case: _Case) -> None:
    """adapt, predict, adapt_path and loss change neither the state, nor the task, nor the module."""
    for train in (False, True):
        learner, task = case.learner(train), case.task("pure")
        module, given = snapshot(learner), copied(task)
        state = learner.init()
        initial = copied(state)

        def verify(call: str, learner=learner, task=task, module=module, given=given, train=train) -> None:
            mode = "train()" if train else "eval()"
            changed = differing(module, snapshot(learner))
            if changed:
                fail(
                    f"{call} in {mode} mode changed the module: {few(changed)}",
                    "the module as it was",
                    "put what is learnt from a task into the returned state; for running statistics use "
                    "kshot.nn.BatchNorm or kshot.nn.convert(module)",
                )
            changed = differing(paths(given), paths(task))
            if changed:
                fail(f"{call} in {mode} mode changed the task: {few(changed)}", "the task as it was", "copy first")

        def unchanged(call: str, now: Any, before: Any) -> None:
            changed = differing(paths(before), paths(now))
            if changed:
                fail(
                    f"{call} changed the state that it was given: {few(changed)}",
                    "a new state, and the old one as it was",
                    "replace in-place operations (+=, .add_(), state[...] = ) by new tensors, state._replace(...) or a "
                    "new dict",
                )

        adapted = learner.adapt(state, task.support)
        unchanged("adapt", state, initial)
        verify("adapt")
        learnt = copied(adapted)
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
        first = numbers(learner.predict(learner.adapt(learner.init(), task.support), task.query.x))
        learner.predict(learner.adapt(learner.init(), other.support), other.query.x)
        state = learner.adapt(learner.init(), task.support)
        again, third = (numbers(learner.predict(state, task.query.x)) for _ in range(2))
    for what, now in (("adapting and predicting", again), ("predicting from one state", third)):
        if not equal_bits(first, now):
            fail(
                f"{what} twice on the same task in eval() mode gave two answers, {distance(first, now):.2g} apart",
                "the same bits",
                "keep nothing of a task outside the returned state, and draw no random numbers in adapt and predict "
                "in eval() mode",
            )


def _equals_loop(learner: Learner, tasks: Task, how: str, fix: str, *plans: engine.Plan) -> None:
    """Loss, metrics and meta-gradient by these plans of the engine equal those of its "loop", to `CLOSE`."""
    looped, expected = engine.meta_gradient(learner, tasks, "loop")
    for plan in plans:
        gradient, outcome = engine.meta_gradient(learner, tasks, plan)
        pairs = {"the loss": (outcome.loss, expected.loss)}
        pairs |= {f"metric '{k}'": (outcome.metrics[k], v) for k, v in expected.metrics.items()}
        pairs |= {f"the meta-gradient of {k}": (gradient[k], v) for k, v in looped.items()}
        for name, (value, wanted) in pairs.items():
            if distance(value, wanted) > CLOSE:
                fail(
                    f"{name} {how} differs from a loop over tasks by {distance(value, wanted):.2g} ({plan.name})",
                    f"a relative difference of at most {CLOSE:g} in float64",
                    fix,
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
    if distance(silent, loss) > CLOSE:
        fail(
            f"the loss under torch.no_grad() differs from that with a graph by {distance(silent, loss):.2g}",
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
    """Recomputing the inner loop changes neither loss, metrics nor meta-gradient: in float64 they are equal to 1e-8."""
    learner, tasks = case.learner(train=True), case.batch("frugal", 2)
    if engine.draws_numbers(learner, tree.index(tasks, 0)):
        raise Skip("it draws random numbers in its loss, so graphs cannot be recomputed")
    _equals_loop(
        learner,
        tasks,
        "with the inner loop recomputed",
        "a function given to kshot.engine.rematerialise.recomputed must be pure, and what has a gradient must be an "
        "argument of it",
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
        raise Skip("no trainable parameters")
    if learner.surrogate:
        raise Skip("the gradient of its loss is an estimator by design (surrogate)")
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
            fail(
                f"along a random direction in {few(group)} the meta-gradient is {ours:.8g} and a finite difference of "
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
        raise Skip("no trainable parameters")
    loss = torch.stack([learner.loss(tree.index(tasks, i))[0] for i in range(2)]).mean()
    found: dict[str, Any] = dict.fromkeys(params)
    if loss.requires_grad:
        values = torch.autograd.grad(loss, list(params.values()), allow_unused=True)
        found = dict(zip(params, values, strict=True))
    wanted = case.trained(learner)
    missing = [n for n in wanted if found[n] is None]
    if missing:
        fail(
            f"no meta-gradient reaches {few(missing)}",
            "a gradient for every parameter that is not declared frozen",
            "use the parameter in init, adapt or predict without .detach(); or name it (a prefix) in `frozen`, or make "
            "it a buffer",
        )
    bad = [n for n in wanted if not found[n].isfinite().all()]
    if bad:
        fail(
            f"the meta-gradient of {few(bad)} is infinite or NaN",
            "finite numbers",
            "look for sqrt, norm or log at 0; torch.where does not stop the NaN of the branch not taken",
        )
    if wanted and not any(bool(found[n].any()) for n in wanted):
        fail("the meta-gradient is zero everywhere", "one parameter at least with a gradient", "see adapt and loss")
    leaking = [n for n, g in found.items() if n not in wanted and g is not None and bool(g.any())]
    if leaking:
        fail(
            f"{few(leaking)} are declared frozen ({learner.frozen}) and get a meta-gradient",
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
    apart(
        after[:, renamed],
        before,
        f"with classes renamed {list(range(ways))} -> {renamed.tolist()} the predictions' columns are not renamed "
        "likewise: they differ by {gap}",
        "treat all classes alike (no parameter per class), or set permutation_equivariant = False",
    )


@_learner_check
def support_order(case: _Case) -> None:
    """The order of the support set does not matter, if claimed."""
    case.needs("order_invariant")
    learner, task = case.learner(), case.task("order")
    order = torch.randperm(len(task.support.x), generator=seeding.generator(case.seed, "order"))
    before = case.predict(learner, task.support, task.query.x)
    after = case.predict(learner, rows(task.support, order), task.query.x)
    found = "the support set in another order changed the predictions by {gap}"
    apart(after, before, found, "sum or average over the support set, or set order_invariant = False")


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
        if distance(after, before) > CLOSE:
            fail(
                f"3 support rows with y = {PADDING} (padding) changed the predictions by "
                f"{distance(after, before):.2g} in {'train()' if train else 'eval()'} mode",
                "padding rows to change nothing",
                "weight the rows by losses.one_hot(y, ways), which is zero there, and keep them out of batch "
                "statistics: kshot.nn.call(body, params, x, mask=y >= 0), with a network whose forward takes a mask",
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
            if distance(case.predict(learner, plausible._replace(y=y), task.query.x), before) <= CLOSE:
                fail(
                    f"support rows with y = {UNLABELLED} (unlabelled) changed nothing in {mode} mode",
                    "a change, because uses_unlabelled is claimed",
                    "use them in adapt, or set uses_unlabelled = False",
                )
            continue
        after = case.predict(learner, _appended(case, task.support, UNLABELLED), task.query.x)
        if distance(after, before) > CLOSE:
            fail(
                f"3 support rows with y = {UNLABELLED} (unlabelled) changed the predictions by "
                f"{distance(after, before):.2g} in {mode} mode",
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
    fix = "average over the rows with y >= 0 only, as kshot.numerics.losses does"
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
        if distance(value, wanted) > CLOSE:
            fail(
                f"the {name} counts query rows with y < 0: it is {value.item():.8g}",
                f"{wanted.item():.8g}, as without them",
                fix,
            )
    empty = task._replace(query=Batch(task.query.x, torch.full_like(y, PADDING)))
    value = case.loss(learner, empty)
    if not value.isfinite():
        fail(f"with no query to score the loss is {value.item()}", "a finite number, 0 for instance", fix)


@_learner_check
def folding(case: _Case) -> None:
    """Adapting on two halves in turn equals adapting on the whole, if claimed."""
    case.needs("folds")
    learner, task = case.learner(), case.task("folding")
    whole = case.predict(learner, task.support, task.query.x)
    if case.acts and not learner.order_invariant:  # trials, whose order in time matters
        half, count = task.support.x.shape[1] // 2, task.support.x.shape[1]
        parts = slice(0, half), slice(half, None)
        halves = [
            tree.map_(lambda leaf, part=part: leaf[:, part] if leaf.shape[1:2] == (count,) else leaf, task.support)
            for part in parts
        ]
    else:
        halves = [tree.map_(lambda leaf, i=i: leaf[i::2], task.support) for i in range(2)]
    with seeding.seeded(case.seed, "predict"), torch.no_grad():
        state = learner.adapt(learner.adapt(learner.init(), halves[0]), halves[1])
        folded = numbers(learner.predict(state, task.query.x))
    apart(
        folded,
        whole,
        "adapting on two halves in turn differs from adapting on the whole by {gap}",
        "hold sums and counts in the state rather than means, and no statistics of the batch at hand; or set "
        "folds = False",
        ", because folds is claimed",
    )


@_learner_check
def queries_are_independent(case: _Case) -> None:
    """The prediction of a query does not depend on the other queries in eval() mode, unless `transductive`."""
    learner, task = case.learner(), case.task("independent")
    if learner.transductive:
        raise Skip("transductive is claimed: queries may depend on each other")
    if case.acts and not learner.order_invariant:
        raise Skip("the rows are episodes, each with a hidden state of its own")
    x = task.query.x
    half = max(1, len(x) // 2)
    together = case.predict(learner, task.support, x)[:half]
    others = torch.cat([x[:half], case.garbage(x, len(x) - half)])
    for what, now in (
        ("with other queries beside it", case.predict(learner, task.support, others)[:half]),
        ("alone", torch.cat([case.predict(learner, task.support, x[i : i + 1]) for i in range(half)])),
    ):
        apart(
            now,
            together,
            f"a query predicted {what} gets another prediction, {{gap}} apart",
            "normalise queries by population statistics (kshot.nn.BatchNorm(population=True)) or by the support "
            "set's (a mask), or set transductive = True on the instance, so that every score says so",
            ", because transductive is False",
        )


@_learner_check
def path_ends_at_adapt(case: _Case) -> None:
    """`adapt_path` has a state before the first step and ends where `adapt` does; it takes as many steps as it is asked
    for where `stepwise` is claimed, and two states else.
    """
    learner, task = case.learner(), case.task("path")
    if "steps" not in inspect.signature(learner.adapt_path).parameters:
        fail(
            f"adapt_path{inspect.signature(learner.adapt_path)} does not take `steps`",
            "adapt_path(state, support, steps=None)",
            "add the argument; without `stepwise` it may be ignored",
        )
    with torch.no_grad():
        state = learner.init()
        path = learner.adapt_path(state, task.support)
        end = numbers(learner.predict(path[-1], task.query.x))
        wanted = numbers(learner.predict(learner.adapt(state, task.support), task.query.x))
        longer = {steps: learner.adapt_path(state, task.support, steps) for steps in (2, 3)}
        third = [numbers(learner.predict(p[min(2, len(p) - 1)], task.query.x)) for p in longer.values()]
    fix = "return [state, ..., adapt(state, support)]; the default does that for learners that take no steps"
    if len(path) < 2:
        fail(f"adapt_path gave {len(path)} states", "at least two, before the first step and after the last", fix)
    expected = learner.inner_steps + 1 if learner.stepwise else 2
    found = {"": len(path), **{f", steps={steps}": len(p) for steps, p in longer.items()}}
    right = {"": expected, **{f", steps={steps}": steps + 1 if learner.stepwise else 2 for steps in longer}}
    for how, count in found.items():
        if count != right[how]:
            fail(
                f"adapt_path(state, support{how}) gave {count} states",
                f"{right[how]}, because stepwise is {learner.stepwise} and inner_steps {learner.inner_steps}",
                "give a state before the first step and after each, set inner_steps to what adapt takes, and claim "
                "`stepwise` where `steps` is heeded",
            )
    if learner.stepwise:
        what = "the state after 2 steps of 3 predicts otherwise than that after 2 of 2, by {gap}"
        apart(third[0], third[1], what, "let a step depend on the steps before it and not on how many are to come")
    apart(end, wanted, "the last state of adapt_path predicts otherwise than adapt's, by {gap}", fix)


@_learner_check
def progress(case: _Case) -> None:
    """What a training loop says of its progress changes the loss or its gradient where `anneals` is claimed, and
    nothing else.
    """
    if not case._learner.anneals and type(case._learner).set_progress is Learner.set_progress:
        return
    tasks = case.batch("progress", 2)

    def at(fraction: float | None) -> dict[str, Tensor]:
        learner = case.learner(train=True)
        if fraction is not None:
            learner.set_progress(fraction)
        with seeding.seeded(case.seed, "progress"):
            gradient, outcome = engine.meta_gradient(learner, tasks, "loop")
        return {**gradient, "the loss": outcome.loss}

    end = at(1.0)
    changed = differing(end, at(None))
    if changed:
        fail(
            f"before set_progress is called, {few(changed)} are others than at its end, set_progress(1.0)",
            "the same bits: a learner without a training loop is at the end of its annealing",
            "begin with the settings of the end",
        )
    changed = [name for fraction in (0.0, 0.3, 0.6) for name in differing(end, at(fraction))]
    if changed and not case._learner.anneals:
        fail(
            f"set_progress changed {few(sorted(set(changed)))}",
            "no change, because anneals is not claimed",
            "set anneals = True: another number of steps is then another run, and the engine looks for the costliest "
            "part of training",
        )
    if case._learner.anneals and not changed:
        fail(
            "set_progress(0.0), (0.3) and (0.6) changed neither the loss nor its gradient",
            "a change, because anneals is claimed",
            "override set_progress, or leave anneals = False",
        )


@_learner_check
def checkpoint_round_trip(case: _Case) -> None:
    """Module and state, saved to a file and loaded into a copy with other weights: the same, and the same answers."""
    learner, task = case.learner(), case.task("checkpoint")
    with torch.no_grad():
        state = learner.adapt(learner.init(), task.support)
        wanted = numbers(learner.predict(state, task.query.x))
    leaves, structure = pytree.tree_flatten(state)
    tensors = {f"learner.{n}": t for n, t in learner.state_dict().items()}
    tensors |= {f"state.{i}": leaf for i, leaf in enumerate(leaves)}
    with tempfile.TemporaryDirectory() as folder:
        checkpoint.save(Path(folder) / "check.safetensors", tensors, {})
        loaded, _ = checkpoint.load(Path(folder) / "check.safetensors")
    changed = differing(tensors, loaded)
    if changed:
        fail(f"{few(changed)} changed in a file", "the same bits", "use tensors that safetensors can hold")
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
            "from the saved state": numbers(twin.predict(known, task.query.x)),
            "after adapting again": numbers(twin.predict(twin.adapt(twin.init(), task.support), task.query.x)),
        }
    for what, now in answers.items():
        apart(
            now,
            wanted,
            f"a learner loaded from a checkpoint predicts otherwise {what}, {{gap}} apart",
            "hold every tensor of the module as a parameter or a buffer, and everything that a task taught in the "
            "state" + (f"; plain tensor attributes here: {few(own)}" if own else ""),
        )


def _everything(learner: Learner, task: Task) -> dict[str, Tensor]:
    """All that a learner gives of a task: state, prediction, loss, metrics."""
    state = learner.adapt(learner.init(), task.support)
    loss, metrics = learner.loss(task)
    found = {f"state{path}": leaf for path, leaf in paths(state).items()}
    found |= {"the prediction": numbers(learner.predict(state, task.query.x)), "the loss": loss}
    return found | {f"metric '{k}'": v for k, v in metrics.items()}


@_learner_check
def dtype_is_respected(case: _Case) -> None:
    """float32 in, float32 out; float64 in, float64 out: states, predictions, losses, metrics."""
    for dtype in (torch.float32, torch.float64):
        learner, task = case.learner(dtype=dtype), case.task("dtype", dtype)
        found = _everything(learner, task)
        wrong = {n: str(t.dtype) for n, t in found.items() if t.is_floating_point() and t.dtype != dtype}
        if wrong:
            fail(
                f"with parameters and inputs of {dtype} these are of another dtype: {wrong}",
                f"{dtype} throughout",
                "make new tensors with x.new_zeros(...), dtype=x.dtype or losses.one_hot(y, ways, x.dtype)",
            )


@_learner_check
def device_is_respected(case: _Case) -> None:
    """Everything stays on the device of parameters and inputs (CUDA where there is one)."""
    if not torch.cuda.is_available():
        raise Skip("no CUDA device here")
    learner = case.learner(dtype=torch.float32).to("cuda")
    task = to(case.task("device", torch.float32), "cuda")
    wrong = {n: str(t.device) for n, t in _everything(learner, task).items() if t.device.type != "cuda"}
    if wrong:
        fail(
            f"with parameters and inputs on cuda these are elsewhere: {wrong}",
            "all on cuda",
            "make new tensors with x.new_zeros(...) or device=x.device, and constants buffers",
        )


def _updates(learner: Learner, tasks: Any, seed: int, first: int, last: int, optimizer: Any, strategy: Any) -> None:
    """Meta-updates `first` to `last` - 1, each on 4 tasks."""
    tasks = (
        tasks.by(learner) if isinstance(tasks, ActsItself) else tasks
    )  # what a policy is trained on, it acted itself
    for step in range(first, last):
        batch = to(tasks.sample(seeding.generator(seed, "train", step), 4), dtype=torch.float32)
        gradient, _ = engine.meta_gradient(learner, batch, strategy)
        engine.assign(learner, gradient)
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
                prediction = numbers(learner.predict(learner.adapt(learner.init(), task.support), task.query.x))
        ends.append({**{n: t.clone() for n, t in learner.state_dict().items()}, "(the prediction)": prediction})
    changed = differing(*ends)
    if changed:
        fail(
            f"two runs from equal seeds differ in {few(changed)}",
            "the same bits",
            "draw random numbers from torch's global generator or from kshot.numerics.seeding, and from nothing else "
            "(no "
            "random, numpy, time, set order)",
        )


def _scores(learner: Learner, tasks: Task, adapted: bool = True) -> tuple[Tensor, Tensor]:
    """Criterion and, for classes, accuracy minus chance of each task, `[T]` each, in the learner's mode."""
    found, above = [], []
    with torch.no_grad():
        for i in range(num_tasks(tasks)):
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
    """After a few meta-updates (none, if nothing is to be trained) it beats chance, or its own start in a regression
    or in tasks of control.

    A regression without trainable parameters must be better after adapting than before.
    """
    learner = case.learner(dtype=torch.float32)
    if case.acts:
        _earns_more(case, learner)
        return
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
        engine.set_population_statistics(learner, known)
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
    fail(
        found,
        expected,
        "look at the signs (scores grow with likelihood), at what adapt does with the labels, and at the inner "
        "learning rate; hard tasks may need steps > " + str(case.steps),
    )


def _earns_more(case: _Case, learner: Learner) -> None:
    """In the same 24 tasks, the last round of rollouts earns more than before the meta-updates; and more than the
    first round, where the learner adapts between them.
    """
    tasks: Any = case.tasks
    rounds = getattr(learner, "rounds", 1)  # of a policy
    params = list(case.trained(learner).values())
    if not params:
        raise Skip("no trainable parameters")

    def paid() -> list[Tensor]:
        return tasks.by(learner).returns(seeding.generator(case.seed, "returns"), 24)

    before, done = paid()[-1], 0
    optimizer = torch.optim.Adam(params, 1e-2)
    while True:
        _updates(learner, tasks, case.seed, done, min(done + 10, case.steps), optimizer, "auto")
        done = min(done + 10, case.steps)
        now = paid()
        gain, adapted = now[-1] - before, now[-1] - now[0]
        if _clearly_positive(gain) and (rounds == 1 or _clearly_positive(adapted)):
            return
        if done >= case.steps:
            break
    if not _clearly_positive(gain):
        fail(
            f"after {done} meta-updates the returns in 24 tasks changed by {gain.mean().item():.3g} on average",
            "a clear rise (4 standard errors)",
            "look at the signs (a loss falls where returns rise) and at what the rollouts are weighted by",
        )
    fail(
        f"after {done} meta-updates the last round of rollouts earns {adapted.mean().item():.3g} more than the first",
        "clearly more (4 standard errors), since the learner adapts between them",
        "look at the sign of the inner step and at what adapt keeps; pass tasks whose goal the start cannot know",
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
        tasks: what it learns: classification (int64 y `[N]`) or regression (float y `[N, D]`), see `Clusters`; or, for
            policies, control tasks with rollouts, `kshot.learners.policy.learner.Rollouts`.
        only: names of the checks to run; None runs all.
        seed: of tasks, weights and directions.
        steps: the most meta-updates (of 4 tasks) that `better_than_chance` may take; it stops when it is satisfied.

    Returns:
        The names of the checks that ran, and of those skipped with the reason.

    Raises:
        ContractError: a promise that is not kept: what was found, what was expected, how to fix it.
        TypeError: `learner_or_factory` neither is nor makes a Learner, or `tasks` has no `sample`.
        ValueError: a name in `only` that is not a check.
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
    return run_checks(LEARNER_CHECKS, case, type(learner).__name__, only)
