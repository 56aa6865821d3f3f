"""What `FewShotRegressor` and `kshot curve` share: models of functions by name, their fit to some points in the points'
own units, and answers in these units. Without scikit-learn, whose import takes longer than a fit.

    model = trained("curves")                            # or "gp", a folder of `kshot train`, a learner
    fitted = fit(model, x, y, "auto")                    # x [n, I], y [n, D], float64, any units
    fitted.mean_std(places), fitted.quantile(places, 0.975)

A model sees y by its mean and standard deviation, and x by its range: how wide that range is for the model is set by
leaving points out.
"""

from __future__ import annotations

import copy
import math
import numbers
import os
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor

from kshot import families, learners
from kshot import nn as knn
from kshot.core import Batch, Learner
from kshot.learners.processes._process import Process
from kshot.learners.processes.convcnp2d import ConvCNP2d
from kshot.numerics import seeding
from kshot.numerics.distributions import Gaussian
from kshot.scoring.autoregressive import joint_sample
from kshot.storage import checkpoint
from kshot.tasks.functions.standardised import moments
from kshot.training import settings

__all__ = [
    "SHIPPED",
    "UNTRAINED",
    "Fitted",
    "Trained",
    "fit",
    "left_out",
    "packed",
    "parts_of",
    "summary",
    "trained",
    "unpacked",
]

SHIPPED = ("curves",)
"""Models in the package, files of the folder of `kshot.apps.classify.models`."""
UNTRAINED = tuple(learners.names("values", "own", baselines=True))
TRAINED = tuple(learners.names("values", "own"))
"""Learners that need no training and take any number of features."""
WIDTH = 4.0  # of the seen range of x, as "range" maps it: -2..2, what most models are trained on
WIDTHS = (4.0, 2.0, 8.0, 1.0, 16.0)  # that "auto" tries; the first of equals is taken
MAX_EXTRAPOLATION = 0.5  # of the seen range: how far beyond it a trained model is asked, as "varied" taught it
MARGIN = 0.25  # of the seen range, by which a grid reaches farther than that
SLOPE = math.sqrt(12.0)  # see `Fitted`
PRIOR_COUNT = 5.0  # points left out, against which what they say of the intervals is weighed
MIN_POINTS = 5  # points, for "auto"
FOLDS = 5
MAX_LEFT_OUT = 1000  # points that are left out in turn; of more, as many at even ranks
MAX_GRID = 16_384  # points of a grid
MAX_JOINT = 60  # points of a function that are drawn autoregressively
MAX_ABS = 1e300
CHUNK = 4096  # x values of one prediction


@dataclass(frozen=True, eq=False, repr=False)
class Trained:
    """A learner of functions with what is needed to build and to assess it.

    Attributes:
        learner: a `Process`; None for a name of `UNTRAINED`, which is built for the numbers of x and y at the fit.
        name: of `kshot list learners`; "" where it is not known, and such a model cannot be saved.
        settings: of `kshot.learners.build`.
        familiar: what `kshot.apps.series.familiar.familiar` gave, or None.
    """

    learner: Process | None
    name: str = ""
    settings: dict[str, Any] = field(default_factory=dict)
    familiar: dict[str, Any] | None = None

    def __repr__(self) -> str:
        return f"Trained({self.name or type(self.learner).__name__})"

    def of(self, inputs: int, outputs: int) -> Process:
        """The learner for x of `inputs` and y of `outputs` numbers.

        Raises:
            ValueError: it was trained for others.
        """
        if self.learner is None:
            return learners.process(self.name, **{**self.settings, "inputs": inputs, "outputs": outputs})
        own = self.learner
        if own.inputs != inputs or own.outputs not in (1, outputs):
            raise ValueError(
                f"{self} takes {own.inputs} feature(s) and answers with {own.outputs} number(s), got {inputs} and "
                f"{outputs}: pass model='gp' or 'neighbours', which take any number, or meta-train one for them"
            )
        return own


def trained(model: str | os.PathLike[str] | Process | Trained) -> Trained:
    """The model of that name: of `SHIPPED` or `UNTRAINED`, a folder or a file of `kshot train`, a file that
    `FewShotRegressor.save` wrote, or a learner.

    Raises:
        ValueError: an unknown name, or a model whose answers are not distributions of functions.
        CheckpointError: a damaged file, or one of another program.
    """
    if isinstance(model, Trained):
        return model
    if isinstance(model, Learner):
        if not isinstance(model, Process):
            raise ValueError(
                f"{type(model).__name__} is not a learner of functions with densities: pass one of {', '.join(TRAINED)}"
            )
        return Trained(model)
    if not isinstance(model, (str, os.PathLike)):
        raise ValueError(
            f"model={model!r}: pass one of {', '.join((*SHIPPED, *UNTRAINED))}, the folder of a training run, or a "
            "learner"
        )
    name = os.fspath(model)
    if name in UNTRAINED:
        return Trained(None, name)
    path = Path(__file__).parent / "models" / f"{name}.safetensors" if name in SHIPPED else Path(name)
    path = checkpoint.best(path) if path.is_dir() else path
    if not path.is_file():
        if name in SHIPPED:
            raise ValueError(
                f"the model {name!r} is not in this installation: pass 'gp', or the folder of a training run"
            )
        known = ", ".join((*SHIPPED, *UNTRAINED))
        raise ValueError(f"unknown model {name!r}: choose from {known}, or give the folder of a 'kshot train gp-...'")
    return unpacked(*checkpoint.load(path), path)


def summary(name: str) -> str:
    """A name of `SHIPPED` or `UNTRAINED` in a line."""
    if name in UNTRAINED:
        return f"{learners.REGISTRY[name].purpose}, {learners.REGISTRY[name].paper}"
    return f"{trained(name).name} on functions of many sorts (kshot.tasks.functions.varied)"


def packed(model: Trained) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """Tensors and info of a checkpoint, the inverse of `unpacked`.

    Raises:
        ValueError: a learner whose settings are not known.
    """
    if not model.name:
        raise ValueError(
            f"{model}: with which settings it was made is not known, so it cannot be saved; pass "
            "model=Trained(learner, name, settings), with the name and settings of kshot.learners.build"
        )
    weights = {} if model.learner is None else model.learner.state_dict()
    info = {"model": {"learner": model.name, "settings": model.settings}, "familiar": model.familiar}
    return {f"learner.{name}": tensor for name, tensor in weights.items()}, {**info, "versions": checkpoint.versions()}


def unpacked(tensors: dict[str, Tensor], info: dict[str, Any], path: Path | str) -> Trained:
    """The model of a checkpoint's tensors and info: of `packed`, or of `kshot train`.

    Raises:
        CheckpointError: weights of another learner or network than its settings say.
        ValueError: a model that does not answer with distributions of functions.
    """
    stated = info.get("model")
    about = info.get("about")
    familiar = info.get("familiar") or (about.get("familiar") if isinstance(about, dict) else None)
    _check_familiar(familiar, path)
    if not isinstance(stated, dict):
        learner, recipe, *_ = families.rebuild(tensors, info, path)
        if not isinstance(learner, Process) or isinstance(learner, ConvCNP2d):
            raise ValueError(
                f"{path} was trained with {recipe.learner} on {recipe.data}: a regressor needs a learner of functions "
                "with densities, for instance 'kshot train gp-matern52-convcnp'"
            )
        own = {"inputs": learner.inputs, "outputs": learner.outputs, **recipe.options}
        return Trained(learner.eval(), recipe.learner, own, familiar)
    name, own = stated.get("learner"), stated.get("settings")
    if name not in (*UNTRAINED, *TRAINED) or not isinstance(own, dict):
        raise ValueError(
            f"{path}: a model {name!r:.60} with the settings {own!r:.60}, expected one of "
            f"{', '.join((*UNTRAINED, *TRAINED))} with names and values: update kshot, or train again"
        )
    settings.check_limits({"options": own}, path)
    made = checkpoint.rebuilt(lambda: learners.process(name, **own).to(_kind_of(tensors)), tensors, path)
    return Trained(None, name, own) if name in UNTRAINED else Trained(made.eval(), name, own, familiar)


def _check_familiar(table: Any, path: Path | str) -> None:
    """Refuse a table that `kshot.apps.series.familiar.familiar` did not make."""
    if table is None:
        return
    edges, quantiles = (table.get(name) if isinstance(table, dict) else None for name in ("n", "q01"))
    if isinstance(edges, list) and isinstance(quantiles, list) and len(edges) == len(quantiles) + 1 > 1:
        numbers = [*edges, *quantiles]
        if all(isinstance(number, int | float) for number in numbers):
            return
    raise ValueError(f"{path}: its table of familiar functions is {table!r:.60}: take another copy of it")


def _kind_of(tensors: dict[str, Tensor]) -> torch.dtype:
    """The type of a learner's weights."""
    kinds = (t.dtype for name, t in tensors.items() if name.startswith("learner.") and t.is_floating_point())
    return next(kinds, torch.float32)


# Leaving points out.


def parts_of(x: Tensor, y: Tensor, seed: int = 0) -> Tensor:
    """`[n]` int64: which of five parts each point of x `[n, I]`, y `[n, D]` is left out with (fewer points: each
    alone); -1 for one that is not left out. At random, and the same whatever the order of the points.
    """
    order = torch.arange(len(x))
    for column in torch.cat([x, y], 1).flip(1).T:
        order = order[column[order].argsort(stable=True)]
    some = torch.linspace(0, len(x) - 1, MAX_LEFT_OUT).round().long() if len(x) > MAX_LEFT_OUT else order.new_tensor(
        range(len(x))
    )  # fmt: skip
    mixed = some[torch.randperm(len(some), generator=seeding.generator(seed, "left out"))]
    parts = torch.full((len(x),), -1)
    parts[order[mixed]] = torch.arange(len(mixed)) % FOLDS
    return parts


class LeftOut(NamedTuple):
    """How well values are foretold from the points of the other parts, `[T]` each; NaN where nothing is left out.

    Attributes:
        density: mean log-density of a value.
        misfit: mean square of what a value is off, in standard deviations of the answer: 1 where these are right.
        values: how many were left out.
    """

    density: Tensor
    misfit: Tensor
    values: Tensor

    @property
    def factor(self) -> Tensor:
        """What the intervals are to be multiplied by: the root of the misfit, weighed against `PRIOR_COUNT` values that
        would fit, and at least 1.
        """
        return ((PRIOR_COUNT + self.values * self.misfit) / (PRIOR_COUNT + self.values)).clamp_min(1).sqrt()

    @property
    def widened(self) -> Tensor:
        """The mean log-density with intervals that are wider by `factor`; exact where answers are normal."""
        return self.density + 0.5 * self.misfit * (1 - self.factor**-2) - self.factor.log()


@torch.no_grad()
def left_out(learner: Process, x: Tensor, y: Tensor, parts: Tensor) -> LeftOut:
    """Values foretold from the points of the other parts.

    Args:
        learner: whose answers are distributions.
        x, y: `[T, N, I]`, `[T, N, D]`.
        parts: `[T, N]`, see `parts_of`.

    Points with y = NaN are not there; points of part -1 are always given.
    """
    folds = torch.arange(FOLDS)
    held = (parts[:, None] == folds[:, None]) & ~y.isnan().any(-1)[:, None]  # [T, F, N]

    def one(x: Tensor, y: Tensor, held: Tensor) -> Tensor:
        state = learner.adapt(learner.init(), Batch(x, torch.where(held[:, None], torch.nan, y)))
        answer, here = learner.predict(state, x), torch.where(held[:, None], y, torch.nan)
        off = torch.where(here.isnan(), 0.0, (here - answer.mean) / answer.std)
        return torch.stack([answer.log_prob(here).sum(), off.square().sum()])

    every = [t.repeat_interleave(FOLDS, 0) for t in (x, y)]
    with knn.evaluating(learner):
        if learner.maps:
            total = torch.vmap(one, chunk_size=80)(every[0], every[1], held.flatten(0, 1))
        else:
            total = torch.stack([one(*row) for row in zip(*every, held.flatten(0, 1), strict=True)])
    count = held.sum((1, 2)) * y.shape[-1]
    density, misfit = (total.unflatten(0, (-1, FOLDS)).sum(1) / count[:, None]).unbind(1)
    return LeftOut(density, misfit, count)


def widened(learner: Process, width: float) -> Process:
    """The learner, with the same weights, with a grid that holds a range of x of this width and what may be asked
    beyond it.
    """
    if width <= 0 or learner.reach is None:
        return learner
    own: Any = copy.copy(learner)
    beside = 0.5 + MAX_EXTRAPOLATION + MARGIN
    own.reach = max(float(own.reach), beside * width)
    if own.size > MAX_GRID:
        raise ValueError(
            f"the points reach over {width:.3g} units of the model's x, and its grid of {MAX_GRID} points over "
            f"{MAX_GRID / own.density / 2 / beside:.3g}: pass scale_x='auto', 'range' or a smaller factor"
        )
    return own


def widths(learner: Process, auto: bool) -> tuple[float, ...]:
    """Those that the seen range of x may be mapped to."""
    if not auto or learner.inputs != 1 or not any(True for _ in learner.parameters()):
        return (WIDTH,)
    return WIDTHS if learner.reach is not None else tuple(w for w in WIDTHS if w <= WIDTH)


# The fit.


@dataclass(frozen=True, eq=False)
class Fitted:
    """A model adapted to some points; what goes in and comes out is in their units.

    Attributes:
        parts: a learner with its state for all outputs together, or for each of them.
        x_shift, x_factor: `[I]`; the model sees (x - shift) / factor.
        y_shift, y_factor: `[D]`.
        width: of the seen range, as the model sees it.
        count: points seen.
        density: mean log-density of a value given the points of other parts, standardised; None where it was not asked
            for.
        factor: `[D]`, that intervals are wider by than the model's own.
        flat: `[D]` bool, values that are all equal.
        known: `[2, I]`, the lowest and highest x that were seen, and where they are one, those that may be asked; None
            for a model without weights, which answers anywhere.

    Where values that were left out were further off than the answers said, all intervals are wider by one factor.

    A trained model knows nothing of x far from all that it saw in training. Beyond half of the seen range to
    either side, its answer is that at this edge, and the values continue from there on a line of unknown slope, normal
    with mean 0 and a standard deviation of sqrt(12) deviations of y for each range of x, independent at either side:
    that is the slope of values that lie on one line.

    Values that are all equal do not show how they vary: the mean is that value, and the deviation of y that the
    answers are multiples of is its size (1 for 0). A model without weights answers with that deviation everywhere.
    """

    parts: list[tuple[Process, Any]]
    x_shift: Tensor
    x_factor: Tensor
    y_shift: Tensor
    y_factor: Tensor
    width: float
    count: int
    density: float | None
    factor: Tensor
    flat: Tensor
    known: Tensor | None = None

    def beyond(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """x `[M, I]` moved to the edge of where the model is asked, and by how many ranges it was beyond, `[M, I]`,
        negative below."""
        if self.known is None:
            return x, torch.zeros_like(x)
        low, high = self.known
        span = high - low
        near = torch.minimum(torch.maximum(x, low - MAX_EXTRAPOLATION * span), high + MAX_EXTRAPOLATION * span)
        return near, (x - near) / span

    def _seen(self, x: Tensor, learner: Process) -> Tensor:
        return ((x - self.x_shift) / self.x_factor).to(*_kind(learner))

    def _collect(self, x: Tensor, what: Callable[[Any, slice, slice], Tensor]) -> Tensor:
        """`[M, D]` of what is asked of the parts' answers in the units of y, given which rows and columns."""
        columns = []
        x, over = self.beyond(x)
        far = over.square().sum(1, keepdim=True).sqrt()  # [M, 1]
        for own, learner, state in self._by_column():
            rows = []
            with knn.evaluating(learner), torch.no_grad():
                for begin in range(0, len(x), CHUNK):
                    here = slice(begin, begin + CHUNK)
                    answer = self._answer(own, learner, state, x[here])
                    rows.append(what(answer.plus_noise(SLOPE * far[here] * self.y_factor[own]), here, own))
            columns.append(torch.cat(rows))
        return torch.cat(columns, 1)

    def _answer(self, own: slice, learner: Process, state: Any, x: Tensor) -> Any:
        """The distribution at x within the model's reach, in the units of y, in float64."""
        answer: Any = learner.predict(state, self._seen(x, learner))
        answer = answer.widened(self.factor[own].to(answer.mean))
        flat = self.flat[own].to(answer.mean.device)
        if bool(flat.any()):
            answer = answer.affine(-torch.where(flat, answer.mean, 0.0), 1.0)
            if not any(True for _ in learner.parameters()):  # those without weights predict marginally
                answer = Gaussian(answer.mean, torch.where(flat, 1.0, answer.std))
        answer = type(answer)(*(leaf.double().cpu() for leaf in answer))
        return answer.affine(self.y_shift[own], self.y_factor[own])

    def _by_column(self) -> Iterator[tuple[slice, Process, Any]]:
        first = 0
        for learner, state in self.parts:
            yield slice(first, first + learner.outputs), learner, state
            first += learner.outputs

    def mean_std(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Mean and standard deviation `[M, D]` at x `[M, I]`, noise included."""
        both = self._collect(x, lambda answer, *_: torch.stack([answer.mean, answer.std], 2).flatten(1))
        mean, std = both.unflatten(1, (-1, 2)).unbind(2)
        return mean, std

    def band(self, x: Tensor, level: float = 0.95) -> tuple[Tensor, Tensor, Tensor]:
        """Mean, low and high `[M, D]` at x `[M, I]`: a value lies between low and high with the chance `level`."""

        def three(answer: Any, *_: slice) -> Tensor:
            edges = (answer.quantile(0.5 + sign * level / 2) for sign in (-1, 1))
            return torch.stack([answer.mean, *edges], 2).flatten(1)

        mean, low, high = self._collect(x, three).unflatten(1, (-1, 3)).unbind(2)
        return mean, low, high

    def quantile(self, x: Tensor, share: float) -> Tensor:
        """`[M, D]`: below which a value lies with a chance of `share`, 0..1."""
        return self._collect(x, lambda answer, *_: answer.quantile(share))

    def log_prob(self, x: Tensor, y: Tensor) -> Tensor:
        """`[M, D]`: log-density of each value of y `[M, D]`."""
        return self._collect(x, lambda answer, rows, columns: answer.log_prob(y[rows, columns]))

    def sample(self, x: Tensor, count: int, generator: torch.Generator | None = None) -> Tensor:
        """`[count, M, D]`: functions at x `[M, I]`, noise included. A model that predicts marginally draws values
        autoregressively at 60 of the x values, taken at random ("gp", which is refitted for each value: 60 values of
        all functions), and the others given these, each on its own (`kshot.scoring.autoregressive`).
        """
        columns = []
        near, over = self.beyond(x)
        for own, learner, state in self._by_column():
            once, where = torch.unique(self._seen(near, learner), dim=0, return_inverse=True)
            most = MAX_JOINT if learner.maps else max(1, MAX_JOINT // count)
            with knn.evaluating(learner), torch.no_grad():
                answer = learner.predict(state, once)
                drawn = (
                    joint_sample(learner, state, once, count, generator, most)
                    if answer.independent
                    else answer.sample(count, generator)
                )
                scaled = self._answer(own, learner, state, near)
            slopes = SLOPE * torch.randn(
                (count, *over.shape[1:], 2, drawn.shape[2]), generator=generator, dtype=torch.float64
            )
            sides = torch.stack([over.clamp_max(0), over.clamp_min(0)], -1)  # [M, I, 2]
            middle = (scaled.mean - self.y_shift[own]) / self.y_factor[own]
            apart = (drawn.double().cpu() - answer.mean.double().cpu())[:, where] * self.factor[own]
            values = middle + apart + torch.einsum("mis,cisd->cmd", sides, slopes)
            columns.append(values * self.y_factor[own] + self.y_shift[own])
        return torch.cat(columns, 2)


def fit(
    model: Trained,
    x: Tensor,
    y: Tensor,
    scale_x: str | float = "auto",
    seed: int = 0,
    width: float | None = None,
    extent: Tensor | None = None,
) -> Fitted:
    """The model adapted to points.

    Args:
        model: see `trained`.
        x: `[n, I]` float64, any units; n >= 1; in any order, x may repeat.
        y: `[n, D]` float64. A model of one output takes each column on its own.
        scale_x: "range" maps the seen range of each feature to -2..2; "none" takes x as it is; a number is a factor;
            "auto" maps it to the width of 1, 2, 4, 8 or 16 (4 at most where the model has no grid) that gives left-out
            points the largest density: for trained models of one feature and 5 points or more, else "range".
        seed: of the parts that are left out.
        width: that "auto" once chose, in place of a search.
        extent: `[2, I]`, the lowest and highest x that there may be, for a feature of which all points have one value.

    Raises:
        ValueError: another `scale_x`, a model for other numbers of x or y, points over more than its grid, or numbers
            beyond 1e300.
    """
    wanted = scale(scale_x)
    if bool((torch.cat([x, y], 1).abs() > MAX_ABS).any()):
        raise ValueError(f"numbers beyond {MAX_ABS:g}: divide them by a power of ten")
    learner = model.of(x.shape[1], y.shape[1])
    y_shift, y_factor = (part[0] for part in moments(y))
    flat = (y == y[0]).all(0)
    y_factor = torch.where(flat & (y[0] != 0), y[0].abs(), y_factor)
    y_shift = torch.where(flat, y[0], y_shift)
    low, high = x.amin(0), x.amax(0)
    spans = torch.where(high > low, high - low, 0.0)
    wide_x = torch.zeros_like(spans) if extent is None else 2 * torch.maximum(extent[1] - high, low - extent[0])
    spans = torch.where(spans > 0, spans, wide_x.clamp_min(0.0))
    z = (y - y_shift) / y_factor
    if isinstance(wanted, float):
        shift, factor = torch.zeros_like(low), torch.full_like(low, 1 / wanted)
        options = [float((spans / factor).amax())]
    else:
        shift, factor = low + 0.5 * (high - low), torch.where(spans > 0, spans, WIDTH)  # to a width of 1
        enough = wanted == "auto" and len(x) >= MIN_POINTS and bool((high > low).all())
        options = [width] if width is not None else list(widths(learner, enough))

    def view(wide: float) -> tuple[Process, Tensor]:
        by = factor if isinstance(wanted, float) else factor / wide
        return widened(learner, wide), ((x - shift) / by).to(*_kind(learner))

    density, widening = None, torch.ones(y.shape[1], dtype=torch.float64)
    weights = any(True for _ in learner.parameters())
    judged = (weights and len(x) >= MIN_POINTS) or (model.familiar is not None and len(x) > 1)
    if len(options) > 1 or judged:
        parts, z_own = parts_of(x, y, seed), z.to(*_kind(learner))
        found = [_left_out_of(*view(wide), z_own, parts) for wide in options]
        scores = [float(each.widened.mean()) for each in found]
        best = max(range(len(found)), key=lambda k: (scores[k] if math.isfinite(scores[k]) else -math.inf, -k))
        density = max(float(each.density.mean()) for each in found)
        options = [options[best]]
        if len(x) >= MIN_POINTS and bool(torch.isfinite(found[best].factor).all()):
            widening = found[best].factor.double().expand(y.shape[1])
    wide = options[0]
    own, seen = view(wide)
    each = [z] if own.outputs == z.shape[1] else list(z.split(1, 1))
    with knn.evaluating(own), torch.no_grad():
        states = [(own, own.adapt(own.init(), Batch(seen, part.to(seen)))) for part in each]
    by = factor if isinstance(wanted, float) else factor / wide
    known = None
    if weights:
        half = 0.5 * (torch.maximum(spans, WIDTH * by) if isinstance(wanted, float) else WIDTH * by * (wide / WIDTH))
        known = 0.5 * (low + high) + torch.stack([-half, half])
    return Fitted(states, shift, by, y_shift, y_factor, wide, len(x), density, widening, flat, known)


def scale(scale_x: Any) -> str | float:
    """ "auto", "range", or a factor ("none" is 1).

    Raises:
        ValueError: something else.
    """
    if isinstance(scale_x, str) and scale_x in ("auto", "range"):
        return scale_x
    if scale_x == "none":
        return 1.0
    if isinstance(scale_x, numbers.Real) and not isinstance(scale_x, bool) and 0 < float(scale_x) < math.inf:
        return float(scale_x)
    raise ValueError(f"scale_x={scale_x!r}: pass 'auto', 'range', 'none' or a factor above 0")


def _left_out_of(learner: Process, x: Tensor, y: Tensor, parts: Tensor) -> LeftOut:
    """Of each of the learner's answers: all D values together, or each on its own."""
    each: Sequence[Tensor] = [y] if learner.outputs == y.shape[1] else y.split(1, 1)
    found = [left_out(learner, x[None], part[None], parts[None]) for part in each]
    return LeftOut(*(torch.cat(leaves) for leaves in zip(*found, strict=True)))


def _kind(learner: Process) -> tuple[torch.device, torch.dtype]:
    """Where a learner's numbers are and of what kind; float64 for one without weights."""
    where, dtype = knn.place(learner)
    return where, dtype if any(True for _ in learner.parameters()) else torch.float64
