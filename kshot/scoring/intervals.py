"""95 % intervals: of means, of ratios of sums, of anything made of sums over tasks; Student's t, and shares.

    half = interval95(values, cluster)                    # of a mean
    half = interval95(shares, cluster, weights=counts)    # of a ratio of sums
    value, half = jackknife(sums, function, cluster)      # of function(sum over tasks): both are special cases

Tasks of one cluster (a draw that shares something) may depend on each other in any way; clusters are independent. Each
cluster is left out in turn, and the spread of the figures without it is that of the figure.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

import torch
from torch import Tensor

__all__ = ["interval95", "jackknife", "proportion95", "student975"]

# The 97.5 % quantile of Student's t distribution for 1, 2, ... degrees of freedom (any statistics textbook).
_T975 = (12.7062, 4.3027, 3.1824, 2.7764, 2.5706, 2.4469, 2.3646, 2.3060, 2.2622)


def interval95(
    values: Tensor | Sequence[float],
    cluster: Tensor | Sequence[int] | None = None,
    weights: Tensor | Sequence[float] | None = None,
) -> float:
    """Half-width of the 95 % confidence interval of the mean of values, or of a ratio of sums.

    Of T independent values it is `t * std / sqrt(T)`: `std` has T - 1 in its denominator, `t` is the 97.5 % quantile of
    Student's t distribution with T - 1 degrees of freedom, 1.964 for 600 tasks. The papers' 1.96 is its limit, and too
    narrow for few tasks.

    Values of one cluster may depend on each other in any way; clusters are independent. Then it is `t * sqrt(V)` with
    the jackknife over clusters, `V = (G - 1) / G * sum over g of (m_g - m)^2`, where `m = sum(w v) / sum(w)` and m_g is
    the same without cluster g. For clusters of equal weight that is the interval of the G means of the clusters. For
    unequal ones V is not too small on average, whether the values of a cluster are independent or all equal, and t has
    `1 / sum(h^2) - 1` degrees of freedom, where h are the clusters' shares of the weight: G - 1 for equal ones, fewer
    for others, since one large cluster among small ones says little. Where all values are equal it is 0, which for
    shares of 0 or 1 is too little (see `proportion95`).

    Args:
        values: `[T]`, at least 2.
        cluster: `[T]` integers, equal ones for values that are not independent; None: all are independent.
        weights: `[T]`, 0 or more: of a ratio, what each value is a share of. 3 of 4 and 5 of 10 are the values 0.75 and
            0.5 with the weights 4 and 10, and their mean is 8 / 14. None: 1 each.

    Raises:
        ValueError: fewer than 2 values, or all of one cluster (nothing shows how much others differ), or other shapes.

    Source: MacKinnon, Nielsen and Webb, "Fast and reliable jackknife and bootstrap methods for cluster-robust
    inference", Journal of Applied Econometrics 38, 2023, CV3 for a mean; the effective number of clusters is that of
    Kish, "Survey Sampling", 1965. Differs from the source: degrees of freedom by that number and not G - 1, with which
    intervals of very unequal clusters hold the mean in 83 to 90 % only.

    >>> round(interval95([0.9, 1.0, 0.8, 0.9, 0.9, 0.9, 0.9, 0.9, 0.9, 0.9]), 5)  # 2.2622 * 0.04714 / sqrt(10)
    0.03372
    >>> round(interval95([1.0, 1.0, 2.0, 2.0, 4.0, 4.0], cluster=[0, 0, 1, 1, 2, 2]), 4)  # that of 1, 2 and 4
    3.7946
    """
    values = torch.as_tensor(values, dtype=torch.float64)
    if values.dim() != 1 or len(values) < 2:
        raise ValueError(f"an interval needs at least 2 values in a row, got the shape {list(values.shape)}")
    present, w, drawn, share = _clusters(len(values), cluster, weights)
    values, count = values[present], len(share)
    mean = (w * values).sum() / w.sum()
    excess = torch.zeros(count, dtype=torch.float64).index_add_(0, drawn, w / w.sum() * (values - mean))
    return _half(excess / (1 - share), share)  # m - m_g, and no difference of rounded means


def jackknife(
    sums: Tensor,
    function: Callable[[Tensor], Tensor],
    cluster: Tensor | Sequence[int] | None = None,
    weights: Tensor | Sequence[float] | None = None,
) -> tuple[float, float]:
    """A figure that is a function of sums over tasks, and the half-width of its 95 % interval, as `interval95` has it.

    With sums (v, 1) and `lambda s: s[..., 0] / s[..., 1]` it is a mean and its `interval95`; with (a, b) a ratio and
    that of a / b with weights b. The interval is that of the figure's expectation in tests of as many tasks. Where the
    function is smooth that is what the figure tends to; where it is not, as an absolute difference about 0, it is not
    (see `kshot.scoring.classes.calibration_error`).

    Args:
        sums: `[T, ...]`, what each task adds.
        function: `[..., K] -> [...]`: of sums over tasks, the figure; it gets many sums at once.
        cluster: as for `interval95`.
        weights: `[T]`, how much each task counts, for the degrees of freedom; tasks of weight 0 are left out. None: 1.

    Raises:
        ValueError: as `interval95`.

    >>> shares = torch.tensor([[3.0, 4.0], [5.0, 10.0], [1.0, 2.0]])
    >>> value, half = jackknife(shares, lambda s: s[..., 0] / s[..., 1], weights=shares[:, 1])
    >>> round(value, 4), math.isclose(half, interval95(shares[:, 0] / shares[:, 1], weights=shares[:, 1]))
    (0.5625, True)
    """
    sums = sums.double()
    present, _, drawn, share = _clusters(len(sums), cluster, weights)
    each = sums.new_zeros(len(share), *sums.shape[1:]).index_add_(0, drawn, sums[present])
    whole = function(each.sum(0))
    return float(whole), _half(function(each.sum(0) - each) - whole, share)


def _clusters(
    count: int, cluster: Tensor | Sequence[int] | None, weights: Tensor | Sequence[float] | None
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Which of the values count `[T]`; the weights and the cluster numbers 0..G-1 of those; the clusters' shares `[G]`.

    Raises:
        ValueError: see `interval95`.
    """
    w = torch.ones(count, dtype=torch.float64) if weights is None else torch.as_tensor(weights, dtype=torch.float64)
    drawn = torch.arange(count) if cluster is None else torch.as_tensor(cluster)
    if w.shape != (count,) or drawn.shape != (count,):
        raise ValueError(
            f"{count} values, weights {list(w.shape)}, clusters {list(drawn.shape)}: pass one of each for a value"
        )
    if not bool((w >= 0).all()) or not bool(w.isfinite().all()):
        raise ValueError("a weight is negative or not finite: pass numbers >= 0")
    present = w > 0
    w, drawn = w[present], drawn[present].unique(return_inverse=True)[1]
    groups = int(drawn.max()) + 1 if len(drawn) else 0
    if groups < 2:
        raise ValueError(
            f"{len(w)} values of {groups} cluster{'s' * (groups != 1)} (draws): an interval needs at least 2, since "
            "nothing shows how much others would differ; draw more"
        )
    return present, w, drawn, torch.zeros(groups, dtype=torch.float64).index_add_(0, drawn, w / w.sum())


def _half(moved: Tensor, share: Tensor) -> float:
    """From the changes `[G]` of a figure without each cluster, and the clusters' shares `[G]`."""
    variance = (len(moved) - 1) / len(moved) * moved.square().sum()
    return student975(1 / float(share.square().sum()) - 1) * float(variance.sqrt())


def proportion95(right: int, of: int) -> tuple[float, float]:
    """95 % interval of a share of `of` single answers, valid where all are right, too: 25 of 25 is 87 % or more.

    For a leave-one-out accuracy it is about classifiers that were taught one example fewer, of which it holds the
    accuracy in 92 to 94 % of simulations. With two or three examples in a class the one taught with all is better: by
    17 and 7 points there.

    Source: Wilson, "Probable inference, the law of succession, and statistical inference", JASA 22, 1927.

    >>> low, high = proportion95(25, 25)
    >>> round(low, 3), round(high, 3)
    (0.867, 1.0)
    """
    if of < 1:
        return 0.0, 1.0
    z, p = 1.959963984540054, right / of
    middle = (p + z * z / (2 * of)) / (1 + z * z / of)
    half = z / (1 + z * z / of) * math.sqrt(p * (1 - p) / of + z * z / (4 * of * of))
    return max(0.0, middle - half), min(1.0, middle + half)


def student975(freedom: float) -> float:
    """The 97.5 % quantile of Student's t: a table, then Abramowitz and Stegun's expansion 26.7.5 (error < 1e-4). Where
    the table has no such number of degrees of freedom, that of the next smaller one, which is larger.
    """
    if freedom < len(_T975) + 1:
        return _T975[max(1, int(freedom + 1e-9)) - 1]
    z = 1.959963985
    g1 = (z**3 + z) / 4
    g2 = (5 * z**5 + 16 * z**3 + 3 * z) / 96
    g3 = (3 * z**7 + 19 * z**5 + 17 * z**3 - 15 * z) / 384
    return z + g1 / freedom + g2 / freedom**2 + g3 / freedom**3
