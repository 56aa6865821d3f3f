"""MAML for policies: a start from which one step of policy gradient on a task's own rollouts gives that task's policy.

Chelsea Finn, Pieter Abbeel, Sergey Levine: Model-Agnostic Meta-Learning for Fast Adaptation of Deep Networks. ICML
2017, arXiv:1703.03400, section 4.2. The inner step's objective is the likelihood of the actions weighted by their
advantages; the outer objective the same with ratios to the policy that acted, as in a trust region method
(`kshot.rl.trust`).
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from torch import Tensor

from kshot.core import Learner, Metrics
from kshot.learners._inner import gradient

if TYPE_CHECKING:
    from kshot.rl.policy import Gaussian, GaussianMLP, Params
    from kshot.rl.returns import Steps

__all__ = ["PolicyMAML"]


class PolicyMAML(Learner):
    """`adapt` takes one step on the rollouts of one task; further steps fold in further rollouts.

    Args:
        policy: whose weights are the meta-parameters; all of them adapt, the standard deviation too.
        inner_lr: rate of the inner step.
        first_order: do not differentiate through it (FOMAML).
        adapts: False: the meta-objective is that of the policy before any step. One policy is trained for all tasks,
            which is the paper's "pretrained", and its "oracle" where observations tell the goal.
    """

    def __init__(self, policy: GaussianMLP, inner_lr: float = 0.1, first_order: bool = False, adapts: bool = True):
        super().__init__()
        if not inner_lr >= 0:
            raise ValueError(f"inner_lr={inner_lr}: pass a rate >= 0")
        self.policy = policy
        self.inner_lr = inner_lr
        self.first_order = first_order
        self.adapts = adapts

    def init(self) -> Params:
        """The policy's weights."""
        return dict(self.policy.named_parameters())

    def adapt(self, state: Params, support: Steps, scale: float = 1.0) -> Params:  # pyright: ignore
        """One step of `scale * inner_lr` up the policy gradient of rollouts that the state's policy acted in."""

        def loss(params: Params) -> Tensor:
            likelihood = self.policy.distribution(params, support.x).log_prob(support.actions)
            return -(support.weights * support.advantages * likelihood).sum()

        slope = gradient(loss, state, state, self.first_order)
        return {name: p - scale * self.inner_lr * slope[name] for name, p in state.items()}

    def adapt_path(self, state: Params, support: Steps) -> list[Params]:  # pyright: ignore
        """Before and after one step."""
        return [state, self.adapt(state, support)]

    def predict(self, state: Params, x: Tensor) -> Gaussian:  # pyright: ignore
        """The distribution of actions at observations `[M, D]`."""
        return self.policy.distribution(state, x)

    def end(self, support: Steps) -> Params:
        """The weights that the meta-objective is about: after the step, or the start where there is none."""
        return self.adapt(self.init(), support) if self.adapts else self.init()

    def score(self, prediction: Gaussian, query: Steps) -> tuple[Tensor, Metrics]:
        """The surrogate loss of a policy on rollouts that another acted in, and the divergence between the two."""
        ratio = (prediction.log_prob(query.actions) - query.acted.log_prob(query.actions)).exp()
        loss = -(query.weights * query.advantages * ratio).sum()
        divergence = (query.weights * query.acted.kl(prediction)).sum()
        entropy = (query.weights * prediction.entropy()).sum()
        return loss, {"kl": divergence.detach(), "entropy": entropy.detach()}

    def loss(self, task: Any) -> tuple[Tensor, Metrics]:
        """The meta-objective of ONE task, whose support and query are `Steps`."""
        return self.score(self.predict(self.end(task.support), task.query.x), task.query)
