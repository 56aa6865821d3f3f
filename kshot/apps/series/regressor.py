"""A function from a few of its points, with scikit-learn's conventions. Needs `kshot[sklearn]`.

    curve = FewShotRegressor().fit(days[:, None], values)                # a series with gaps, in any units
    mean, std = curve.predict(others[:, None], return_std=True)
    curve.quantile(others[:, None], 0.975)
    curve.sample_y(others[:, None], n_samples=5)                         # whole functions
    curve.unfamiliar_                                                    # None, or in what way it is out of its depth

    own = FewShotRegressor().meta_fit(GaussianProcess("matern52"))       # from functions of your own
    own.save("own.safetensors"); FewShotRegressor.load("own.safetensors")

A neural process that was meta-trained on many functions predicts a distribution at each x: nothing is trained
at the fit. x is scaled to what the model knows, y standardised (`kshot.apps.series.fitting`).
"""

from __future__ import annotations

import copy
import os
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from sklearn.base import BaseEstimator, MultiOutputMixin, RegressorMixin
from sklearn.utils import check_random_state
from sklearn.utils.validation import check_array, check_is_fitted, validate_data
from torch import Tensor

from kshot import learners
from kshot.apps.series import familiar, fitting
from kshot.apps.series.fitting import Trained
from kshot.learners.processes._process import Process
from kshot.numerics import seeding
from kshot.storage import checkpoint
from kshot.tasks.base import TaskDistribution
from kshot.tasks.functions.standardised import Standardised
from kshot.training.meta import meta_train

__all__ = ["FewShotRegressor", "Trained"]


class FewShotRegressor(MultiOutputMixin, RegressorMixin, BaseEstimator):
    """A function from a few points, with intervals.

    Args:
        model: "curves", which is in the package: functions of one number; "gp" (a Gaussian process with a fitted
            kernel) or "neighbours", which need no training and take any number of features; a folder or file of `kshot
            train gp-...-convcnp` and its like; a file that `save` wrote; a learner of functions
            (`kshot.learners.process`), or a `kshot.apps.series.fitting.Trained`.
        scale_x: "range" maps the seen range of each feature to -2..2; "none" takes X as it is; a number is a factor;
            "auto" tries ranges of 1, 2, 4, 8 and 16 units (4 at most where the model has no grid) and keeps the one
            that gives points that are left out the largest density: with a trained model of one feature and 5 points or
            more, else it is "range".
        random_state: an integer, the seed of what is left out.

    Attributes:
        n_features_in_: d.
        n_outputs_: numbers of y.
        width_: of the seen range of X, as the model sees it: 4 with "range".
        unfamiliar_: None, or a sentence that says how unlike the functions that the model was trained on the points
            look. None where the model does not know (only those of `meta_fit` and "curves" do).
        model_: the `Trained`.

    One point is enough, x may repeat, in any order. A y that does not vary has no unit to measure it by: its
    intervals are those of a deviation of 1. Where X has no range it is taken as it is, about its value.

    Beyond the points by more than half of their range a trained model answers as at this distance, and its interval
    widens from there on, see `kshot.apps.series.fitting.Fitted`.
    """

    n_features_in_: int
    n_outputs_: int
    width_: float
    unfamiliar_: str | None
    model_: Trained
    fitted_: fitting.Fitted
    seen_: tuple[np.ndarray, np.ndarray]

    def __init__(
        self,
        model: str | os.PathLike[str] | Process | Trained = "curves",
        scale_x: str | float = "auto",
        random_state: int = 0,
    ):
        self.model = model
        self.scale_x = scale_x
        self.random_state = random_state

    # ------------------------------------------------------------------------------------------------------- learning

    def meta_fit(
        self,
        tasks: TaskDistribution,
        learner: str = "convcnp",
        steps: int = 2000,
        batch: int = 16,
        meta_lr: float = 1e-3,
        seed: int = 0,
        progress: Callable[[int, int], object] | None = None,
        judged: int = 200,
        **settings: Any,
    ) -> FewShotRegressor:
        """Meta-train a new learner on many functions; from then on it is the model (`model` is set to it).

        Args:
            tasks: functions, as `kshot.tasks.GaussianProcess` or `Curves`; x of about -2..2, as "range" will give it.
                y is standardised by each support set, as the fit will do it (`kshot.tasks.functions.standardised`).
            learner: one of `kshot.learners.names("values", "own")`.
            steps, batch, meta_lr: updates, tasks of each, and the rate (Adam, falling along a cosine).
            seed: of the weights and the tasks.
            progress: called as `progress(updates done, steps)`.
            judged: training tasks that `unfamiliar_` is calibrated on afterwards; 0: it stays None.
            settings: of the learner, for instance `width=32`.

        Raises:
            ValueError: another learner, settings that it does not have, or tasks with classes.
            NonFiniteLoss: see `kshot.training.meta`.
        """
        if learner not in fitting.TRAINED:
            raise ValueError(f"learner={learner!r}: choose from {', '.join(fitting.TRAINED)}")
        if not hasattr(tasks, "sample"):
            raise ValueError(
                f"tasks={tasks!r}: pass a distribution of functions, for instance "
                "kshot.tasks.GaussianProcess('matern52')"
            )
        for name, number, least in (("steps", steps, 1), ("batch", batch, 1), ("judged", judged, 0)):
            if not _whole(number) or number < least:
                raise ValueError(f"{name}={number!r}: pass a whole number of at least {least}")
        query = tasks.sample(seeding.generator(seed, "shape"), 1).query
        if not query.y.is_floating_point():
            raise ValueError("these tasks have classes, not functions: FewShotClassifier is for them")
        given = {"inputs": query.x[0, 0].numel(), "outputs": query.y.shape[-1], **settings}
        with seeding.seeded(seed, "weights"):
            built = learners.process(learner, **given)
        options: dict[str, Any] = {"schedule": "cosine", "clip": 1.0, "val_every": 0, "strategy": "vmap"}
        seen = Standardised(tasks)
        for record in meta_train(built, seen, steps=steps, batch=batch, meta_lr=meta_lr, seed=seed, **options):
            if progress is not None:
                progress(record.step, steps)
        table = familiar.familiar(built.eval(), tasks, judged, seed) if judged else None
        self.model = Trained(built, learner, given, table)
        for name in ("model_", "fitted_", "seen_", "width_", "unfamiliar_", "n_outputs_", "n_features_in_"):
            self.__dict__.pop(name, None)
        return self

    def fit(self, X: Any, y: Any) -> FewShotRegressor:
        """Adapt to the points X `[n, d]`, y `[n]` or `[n, outputs]`, and forget those of before.

        A model that answers with one number takes each column of y on its own.

        Raises:
            ValueError: NaN or infinite values (leave these rows out), dates (pass numbers), an unknown model, a model
                for another number of features, points that reach over more than its grid (with `scale_x` "none" or a
                factor), or a `random_state` that is not a seed.
            CheckpointError: a damaged file.
        """
        if not _whole(self.random_state) or not 0 <= self.random_state < 2**63:
            raise ValueError(f"random_state={self.random_state!r}: pass a whole number of at least 0")
        twin = copy.copy(self)  # where it fails, what was learned before stays whole
        _refuse_dates(X)
        X, y = validate_data(twin, X, y, multi_output=True, y_numeric=True, dtype=np.float64)
        twin.seen_ = np.asarray(X), np.asarray(y, dtype=np.float64)
        twin.model_ = fitting.trained(self.model)
        twin._adapt(self.scale_x, None)
        self.__dict__.update(twin.__dict__)
        return self

    def _adapt(self, scale_x: str | float, width: float | None) -> None:
        x, y = (torch.from_numpy(np.ascontiguousarray(part)) for part in self.seen_)
        y = y[:, None] if y.ndim == 1 else y
        self.fitted_ = fitting.fit(self.model_, x, y, scale_x, self.random_state, width)
        self.n_outputs_, self.width_ = y.shape[1], self.fitted_.width
        self.unfamiliar_ = familiar.unlike(self.model_.familiar, len(y), self.fitted_.density)

    # -------------------------------------------------------------------------------------------------------- answers

    def predict(self, X: Any, return_std: bool = False) -> Any:
        """The mean at X `[m, d]`, `[m]` or `[m, outputs]`; with `return_std` also the standard deviation of a value,
        noise included.
        """
        places = self._places(X)
        mean, std = self.fitted_.mean_std(places)
        return (self._shaped(mean), self._shaped(std)) if return_std else self._shaped(mean)

    def quantile(self, X: Any, q: float | Sequence[float]) -> np.ndarray:
        """Below which a value at X `[m, d]` lies with a chance of q, 0..1: `[m]` or `[m, outputs]`, with several q
        `[len(q), m, ...]`.
        """
        places = self._places(X)
        if np.size(q) == 0 or np.ndim(q) > 1:
            raise ValueError(f"q={q!r}: pass a chance between 0 and 1, or a list of them")
        if np.ndim(q) == 0:
            return self._shaped(self.fitted_.quantile(places, float(q)))  # type: ignore[arg-type]
        return np.stack([self._shaped(self.fitted_.quantile(places, float(share))) for share in q])  # type: ignore[union-attr]

    def log_prob(self, X: Any, y: Any) -> np.ndarray:
        """The log-density of each y at X `[m, d]`, `[m]` or `[m, outputs]`, in the units of y."""
        places = self._places(X)
        values = check_array(y, dtype="float64", ensure_2d=False, input_name="y")
        if values.size != len(places) * self.n_outputs_:
            raise ValueError(f"y of shape {list(values.shape)} at {len(places)} places of {self.n_outputs_} number(s)")
        return self._shaped(self.fitted_.log_prob(places, torch.from_numpy(values.reshape(len(places), -1))))

    def sample_y(self, X: Any, n_samples: int = 1, random_state: Any = 0) -> np.ndarray:
        """Functions at X `[m, d]`, noise included: `[m, n_samples]` or `[m, outputs, n_samples]`.

        A model that predicts marginally draws values autoregressively (Bruinsma et al. 2023, arXiv:2303.14468) at 60
        of the x values, taken at random ("gp", whose kernel is refitted for each value: 60 values in total), and the
        others given these. Places that repeat have one value.

        Args:
            X: input locations.
            n_samples: functions.
            random_state: an integer, numpy's RandomState, or None.

        Raises:
            ValueError: no sample asked for.
        """
        if not _whole(n_samples) or n_samples < 1:
            raise ValueError(f"n_samples={n_samples!r}: pass a whole number of at least 1")
        seed = random_state if isinstance(random_state, int) else check_random_state(random_state).randint(2**31 - 1)
        places = self._places(X)
        drawn = self.fitted_.sample(places, n_samples, seeding.generator(int(seed), "sample"))
        values = drawn.permute(1, 2, 0).numpy()  # [m, outputs, n_samples]
        return values[:, 0] if self.n_outputs_ == 1 else values

    def _places(self, X: Any) -> Tensor:
        check_is_fitted(self, "fitted_")
        _refuse_dates(X)
        return torch.from_numpy(np.ascontiguousarray(validate_data(self, X, reset=False, dtype=np.float64)))

    def _shaped(self, values: Any) -> np.ndarray:
        return values[:, 0].numpy() if self.n_outputs_ == 1 else values.numpy()

    # ---------------------------------------------------------------------------------------------------------- files

    def save(self, path: str | os.PathLike[str]) -> None:
        """Write a safetensors file, no code: the model with its weights, and the points where it is fitted.

        Raises:
            ValueError: a learner whose settings are not known.
            CheckpointError: the disk is full or not writable; what was there is untouched.
        """
        ready = hasattr(self, "fitted_")
        tensors, info = fitting.packed(self.model_ if ready else fitting.trained(self.model))
        info["regressor"] = {"scale_x": self.scale_x, "random_state": self.random_state}
        if ready:
            info["regressor"]["width"] = self.width_
            for name, part in zip(("seen.x", "seen.y"), self.seen_, strict=True):
                tensors[name] = torch.from_numpy(np.ascontiguousarray(part))
        checkpoint.save(Path(path), tensors, info)

    @classmethod
    def load(cls, path: str | os.PathLike[str]) -> FewShotRegressor:
        """The regressor of a file; fitted where it was, with the same answers.

        Raises:
            CheckpointError: no file, a damaged one, or one of another program.
            ValueError: a file that `save` did not write, or with points that do not fit.
        """
        path = Path(path)
        tensors, info = checkpoint.load(path)
        if not isinstance(info.get("regressor"), dict):
            raise ValueError(f"{path} was not written by FewShotRegressor.save: pass it as model=")
        try:
            stated = info["regressor"]
            own = cls(fitting.unpacked(tensors, info, path), stated["scale_x"], stated["random_state"])
            if "seen.x" in tensors:
                given: Any = [tensors[name].double().numpy() for name in ("seen.x", "seen.y")]
                X, y = validate_data(own, *given, multi_output=True, y_numeric=True, dtype=np.float64)
                own.seen_, own.model_ = (np.asarray(X), np.asarray(y)), fitting.trained(own.model)
                own._adapt(own.scale_x, float(stated["width"]))
        except (AttributeError, KeyError, TypeError) as error:
            raise checkpoint.CheckpointError(f"{path} is damaged ({type(error).__name__}: {error})") from error
        return own


def _whole(number: Any) -> bool:
    return isinstance(number, (int, np.integer)) and not isinstance(number, bool)


def _refuse_dates(X: Any) -> None:
    """numpy's dates become numbers of whatever unit they are kept in, which may be another at the next call.

    Raises:
        ValueError: X has some.
    """
    kinds = X.dtypes if hasattr(X, "dtypes") else [getattr(X, "dtype", None)]  # of a data frame, one for each column
    if any(getattr(kind, "kind", "") in ("m", "M") for kind in kinds):
        raise ValueError(
            "X holds dates: pass numbers, for instance (dates - dates[0]) / np.timedelta64(1, 'D'), at fit and predict"
        )
