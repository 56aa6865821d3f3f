"""Gaussian process regression, the kernel fitted to each support set: what a learner of functions has to beat.

    kernel = scale^2 RBF(length) + noise^2, by the largest marginal likelihood of the support set
    answer = the marginal posterior

Carl Rasmussen, Christopher Williams: Gaussian Processes for Machine Learning. MIT Press 2006, chapters 2 and 5. By
scikit-learn's GaussianProcessRegressor: no gradients, one task at a time.
"""

from __future__ import annotations

import warnings
from typing import Any

import torch
from torch import Tensor

from kshot.learners.processes._process import Memory, Remembering
from kshot.numerics.distributions import Gaussian

__all__ = ["FittedGP"]


_STARTS = [(length, noise) for noise in (0.1, 0.5) for length in (1.0, 0.03, 0.1, 0.3, 3.0)]  # length, noise / size


class FittedGP(Remembering):
    """A Gaussian process fitted to the support set. It has no meta-parameters.

    Args:
        inputs, outputs: numbers of x and of y; each output is fitted on its own.
        least: the smallest standard deviation of the noise.
        restarts: of the search for the kernel's parameters, from random starts; the first start is the likeliest of
            ten.
    """

    maps = False

    def __init__(self, *, inputs: int = 1, outputs: int = 1, least: float = 1e-3, restarts: int = 1):
        super().__init__(inputs, outputs, least)
        self.restarts = restarts

    def predict(self, state: Memory, x: Tensor) -> Gaussian:
        """A distribution for each of x `[M, I]`; without points a standard normal one.

        Raises:
            ImportError: scikit-learn is not installed.
        """
        try:
            from sklearn.exceptions import ConvergenceWarning
            from sklearn.gaussian_process import GaussianProcessRegressor
            from sklearn.gaussian_process.kernels import RBF, ConstantKernel, WhiteKernel
        except ImportError as error:
            raise ImportError("a fitted Gaussian process needs scikit-learn: pip install 'kshot[sklearn]'") from error
        x = self.rows(x)
        here = state.here > 0
        if not bool(here.any()):
            return Gaussian(x.new_zeros(len(x), self.outputs), x.new_ones(len(x), self.outputs))
        seen, values = state.x[here].double().cpu().numpy(), state.y[here].double().cpu().numpy()
        means, stds = [], []
        for d in range(self.outputs):
            y = values[:, d]
            size = max(float(y.std()), 1e-3)

            def kernel(length: float, share: float, size: float = size) -> Any:
                noise = WhiteKernel((share * size) ** 2, (self.least**2, 10 * size**2 + self.least**2))
                return ConstantKernel(size**2, (1e-4 * size**2, 1e4 * size**2)) * RBF(length, (1e-2, 1e2)) + noise

            def likelihood(start: tuple[float, float], y: Any = y, kernel: Any = kernel) -> float:
                fixed = GaussianProcessRegressor(kernel(*start), optimizer=None).fit(seen, y)  # pyright: ignore
                return float(fixed.log_marginal_likelihood_value_)  # pyright: ignore

            best = max(_STARTS, key=likelihood)  # the likelihood of many points has many tops
            fitted = GaussianProcessRegressor(kernel(*best), n_restarts_optimizer=self.restarts, random_state=0)
            with warnings.catch_warnings():
                warnings.simplefilter("ignore", ConvergenceWarning)
                fitted.fit(seen, y)
                mean, std = fitted.predict(x.double().cpu().numpy(), return_std=True)
            means.append(torch.from_numpy(mean))
            stds.append(torch.from_numpy(std))
        return Gaussian(torch.stack(means, 1).to(x), torch.stack(stds, 1).to(x))
