"""How sure a classifier may be: the temperature of its scores, and the threshold of "none of these".

Both are read off the support set. Each example is left out of its class in turn, so that what is seen is what a new
image of a known class looks like; each class is left out in turn, for what an image of no class looks like.

    start = prior_temperature(spread, ways, trained)
    temperature = fit_temperature(scores, y, start)
    novelty = fit_novelty(own, strange, groups)
    novelty.p_none(distances)
"""

from __future__ import annotations

import math
from typing import NamedTuple

import torch
from torch import Tensor

__all__ = ["Novelty", "fit_novelty", "fit_temperature", "prior_temperature"]

KEPT = 0.95  # of known examples that the threshold is to keep
DEVIATION, WEIGHT = 0.4, 1.0  # prior of log-distances within a class: its deviation, and as how many it counts
COARSE = 20  # steps of temperatures in the first search
IDENTICAL = 1e-9  # of the usual distance to another class: closer examples are copies and say nothing


class Novelty(NamedTuple):
    """When an example is of no class, by its novelty (a squared distance, or minus a score).

    Attributes:
        threshold: novelty at which it is as likely as not; infinity: it is never said.
        slope: of the log-odds in the novelty, in its logarithm where `log`.
        log: whether novelties are distances, which are compared by their ratios.
        why: why there is no threshold; "" where there is one.
    """

    threshold: float
    slope: float = 1.0
    log: bool = True
    why: str = ""

    def p_none(self, novelty: Tensor) -> Tensor:
        """`[N]` probabilities of being of no class, of novelties `[N]`; above 1/2 exactly above the threshold."""
        if not math.isfinite(self.threshold):
            return torch.zeros_like(novelty)
        if not self.log:
            return (self.slope * (novelty - self.threshold)).sigmoid()
        return (self.slope * (_log(novelty) - _log(torch.tensor(self.threshold, dtype=torch.float64)))).sigmoid()


def fit_novelty(own: Tensor, strange: Tensor, classes: Tensor, log: bool = True) -> Novelty:
    """The threshold that keeps about 95 % of known examples, or more where that is all it takes.

    (Logarithms of) novelties of known examples are taken as normal, and those of strange ones as normal with the same
    deviation: the log-odds are linear, and the threshold lies in the middle, but never where it would refuse more than
    5 % of the known ones by the predictive distribution, Student's t.

    Args:
        own: `[K]` novelties of examples left out of their class.
        strange: `[S]` novelties of examples whose class is left out.
        classes: `[K]` the class of each of `own`.
        log: whether they are distances.
    """
    x, far = (_log(own), _log(strange)) if log else (own.double(), strange.double())
    if log and len(far):
        fresh = own > IDENTICAL * strange.median()
        x, classes = x[fresh], classes[fresh]
    free = len(x) - len(torch.unique(classes))  # two examples of a class are equally far from each other: one number
    if free < 2:
        return Novelty(math.inf, log=log, why="too few different examples of a class to set a threshold")
    # A conjugate prior: `WEIGHT` observations of a deviation, DEVIATION of log-distances and that of `own` itself else.
    prior = DEVIATION**2 if log else float(x.var(correction=0).clamp_min(1e-12))
    freedom = free - 1 + WEIGHT
    deviation = math.sqrt((float(x.var(correction=0)) * free + WEIGHT * prior) / freedom)
    least = float(x.mean()) + _student(KEPT, freedom) * deviation * math.sqrt(1 + 1 / free)
    gap = float(far.mean() - x.mean()) if len(far) else 4 * deviation
    if not gap > 0:
        return Novelty(math.inf, log=log, why="examples of other classes are as near as those of the own class")
    spread = deviation
    if len(far) > 1:
        spread = math.sqrt((deviation**2 * free + float(far.var()) * (len(far) - 1)) / (free + len(far) - 1))
    at = max(least, float(x.mean()) + gap / 2)
    return Novelty(math.exp(at) if log else at, gap / spread**2, log)


def prior_temperature(spread: float, ways: int, trained: bool) -> float:
    """What scores are multiplied by before anything was left out.

    Args:
        spread: the median over support examples of the best score less the mean score.
        ways: W.
        trained: whether the scores' own scale was meta-trained, and then is 1.

    `(2 + 3 ln W) / spread` does not depend on the scale of the scores. It was chosen on validation classes, with one
    example of each of 2, 5 and 20 classes (docs/classifier.md). A trained scale goes half of the way to it (in
    logarithms) where it is surer: outside of what it was trained on it is overconfident.
    """
    if ways < 2 or not spread > 1e-12:
        return 1.0
    free = (2 + 3 * math.log(ways)) / spread
    return math.sqrt(min(1.0, free)) if trained else free


def fit_temperature(scores: Tensor, y: Tensor, start: float) -> float:
    """The s whose softmax(s * scores) fits the labels best, held near `start` by a normal prior of log s with deviation
    1: a few examples that are all right would make it infinite.

    Args:
        scores: `[K, W]` of examples that were left out.
        y: `[K]` their class ids.
        start: the prior's median.
    """
    if not len(y):
        return start
    steps = torch.linspace(-5, 5, 401, dtype=torch.float64)
    near = COARSE * int(_losses(scores, y, start, steps[::COARSE]).argmin())
    steps = steps[max(0, near - COARSE) : near + COARSE + 1]
    return float(steps[_losses(scores, y, start, steps).argmin()].exp() * start)


def fit_loss(scores: Tensor, y: Tensor, start: float) -> float:
    """The loss of these labels at about that temperature, with its prior, by which heads are compared."""
    return float(_losses(scores, y, start, torch.linspace(-2, 2, 9, dtype=torch.float64)).min())


def _losses(scores: Tensor, y: Tensor, start: float, steps: Tensor) -> Tensor:
    """The labels' negative log-likelihood and the prior's, for logarithms `steps` of the temperature over `start`."""
    scores, rows = scores.double(), torch.arange(len(y))
    found = [-(scores * t).log_softmax(-1)[rows, y].sum() for t in (steps.exp() * start).tolist()]
    return torch.stack(found) + steps.square() / 2


def youden(own: Tensor, strange: Tensor, log: bool = True) -> Novelty:
    """The threshold of `.kshot` files of format 1: where most of both are on their side."""
    if not len(own) or not len(strange):
        both = (strange.amin() if len(strange) else own.amax() if len(own) else torch.tensor(math.inf)).item()
        return Novelty(both, log=log)
    grid = torch.cat([own, strange]).sort().values
    middle = (grid[1:] + grid[:-1]) / 2
    right = (own[None] <= middle[:, None]).float().mean(1) + (strange[None] > middle[:, None]).float().mean(1)
    return Novelty(float(middle[right.argmax()]), log=log)


def _log(x: Tensor) -> Tensor:
    return x.double().clamp_min(1e-300).log()


def _student(level: float, freedom: float) -> float:
    from scipy.special import stdtrit  # comes with scikit-learn

    return float(stdtrit(freedom, level))
