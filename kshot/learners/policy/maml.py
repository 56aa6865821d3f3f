"""MAML for policies: a start from which one step of policy gradient on a task's own rollouts gives that task's policy.

Chelsea Finn, Pieter Abbeel, Sergey Levine: Model-Agnostic Meta-Learning for Fast Adaptation of Deep Networks. ICML
2017, arXiv:1703.03400, section 4.2. The inner step's objective is the likelihood of the actions weighted by their
advantages; the outer objective the same with ratios to the policy that acted, as in a trust region method
(`kshot.learners.policy.trust`).
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from kshot.core import Metrics, Task
from kshot.learners.gradient._inner import descend
from kshot.learners.policy import returns
from kshot.learners.policy.learner import PolicyLearner, check_steps, surrogate_loss

if TYPE_CHECKING:
    from kshot.learners.policy.policy import DiagonalGaussian, GaussianMLP, Params
    from kshot.learners.policy.returns import Steps
    from kshot.learners.policy.rollouts import Trajectory

__all__ = ["EMAML", "PolicyMAML", "ProMP"]


class Feedforward:
    """A policy without memory at work; see `kshot.learners.policy.actor.Actor`."""

    def __init__(self, policy: GaussianMLP, params: Params):
        self.policy, self.params, self.width = policy, params, policy.action

    def begin(self, tasks: int, rollouts: int, generator: torch.Generator) -> None:
        """It draws nothing."""

    def react(self, x: Tensor) -> tuple[Tensor, DiagonalGaussian]:
        """See `Actor.react`."""
        return x, self.policy.distribution(self.params, x)

    def saw(self, actions: Tensor, rewards: Tensor, alive: Tensor) -> None:
        """It remembers nothing."""


class PolicyMAML(PolicyLearner):
    """`adapt` takes one step on the rollouts of one task; further steps fold in further rollouts.

    Args:
        policy: whose weights are the meta-parameters; all of them adapt, the standard deviation too.
        inner_lr: rate of the inner step.
        first_order: do not differentiate through it (FOMAML).
        adapts: False: the meta-objective is that of the policy before any step. One policy is trained for all tasks,
            which is the paper's "pretrained", and its "oracle" where observations include the goal.
        ratio: the inner step's loss is the ratio to the policy that acted, in place of the likelihood, weighted by the
            advantages. At that policy both have one gradient, so the step is the same, but only the ratio's second
            derivative is an estimate of the expected return's (Rothfuss et al. 2019, arXiv:1810.06784, section 5).
        learn_rates: the rates are meta-parameters too: a factor of `inner_lr` for each tensor of weights, at first 1,
            of any sign. Meta-SGD (Zhenguo Li, Fengwei Zhou, Fei Chen, Hang Li: Meta-SGD: Learning to learn quickly for
            few-shot learning. 2017, arXiv:1707.09835) has one for each single weight: a trust region, whose conjugate
            gradient ends after ten steps, hardly moves so many that each matter so little. One for each layer as in
            MAML++ (Antreas Antoniou, Harrison Edwards, Amos Storkey. ICLR 2019, arXiv:1810.09502).
    """

    def __init__(
        self,
        policy: GaussianMLP,
        inner_lr: float = 0.1,
        first_order: bool = False,
        adapts: bool = True,
        ratio: bool = False,
        learn_rates: bool = False,
    ):
        super().__init__()
        if not inner_lr >= 0:
            raise ValueError(f"inner_lr={inner_lr}: pass a rate >= 0")
        if learn_rates and not adapts:
            raise ValueError("learn_rates=True with adapts=False: a policy that takes no steps has no rates to learn")
        self.policy = policy
        self.observation, self.action = policy.observation, policy.action
        self.inner_lr = inner_lr
        self.first_order = self.surrogate = first_order
        self.adapts = adapts
        self.rounds = 2 if adapts else 1
        self.ratio = ratio
        tensors = policy.parameters() if learn_rates else ()
        self.factors = nn.ParameterList(torch.ones((), dtype=p.dtype) for p in tensors)  # in the order of the policy's

    def init(self) -> Params:
        """The policy's weights, and the factors of their rates where these are learned: `{"factors.NAME": []}`."""
        weights = dict(self.policy.named_parameters())
        return {**weights, **{f"factors.{name}": f for name, f in zip(weights, self.factors, strict=False)}}

    def weights(self, state: Params) -> Params:
        """What of a state is the policy's."""
        return {name: p for name, p in state.items() if not name.startswith("factors.")}

    def adapt(self, state: Params, support: Steps, scale: float = 1.0) -> Params:
        """One step of `scale * inner_lr` up the policy gradient of rollouts that the state's policy acted in."""

        def loss(params: Params) -> Tensor:
            return self.inner(self.policy.distribution(params, support.x), support)

        factors = {name: state.get(f"factors.{name}", 1.0) for name in self.weights(state)}
        rates = {name: scale * self.inner_lr * factor for name, factor in factors.items()}
        return descend(loss, state, rates, self.first_order)

    def inner(self, policy: DiagonalGaussian, support: Steps) -> Tensor:
        """The loss of the inner step: minus the likelihood (or ratio) of the actions, weighted by their advantages."""
        gain = policy.log_prob(support.actions)
        check_steps(support, gain)
        if self.ratio:
            gain = (gain - support.acted.log_prob(support.actions)).exp()
        return -(support.weights * support.advantages * gain).sum()

    def actor(self, states: Params) -> Feedforward:
        """See `PolicyLearner.actor`."""
        return Feedforward(self.policy, states)

    def digest(self, trajectory: Trajectory, discount: float = 0.99, lam: float = 1.0) -> Steps:
        """`Steps` with a leading T."""
        return returns.digest(trajectory, discount, lam)

    def experience(self, trajectories: Sequence[Trajectory], discount: float = 0.99, lam: float = 1.0) -> Task[Steps]:
        """`Steps` before the inner step as the support and after it as the query; one set is both."""
        digests = [self.digest(trajectory, discount, lam) for trajectory in trajectories]
        return Task(digests[0], digests[-1])

    def predict(self, state: Params, x: Tensor) -> DiagonalGaussian:
        """The distribution of actions at observations `[M, D]`."""
        return self.policy.distribution(state, x)

    def score(self, prediction: DiagonalGaussian, query: Steps) -> tuple[Tensor, Metrics]:
        """The surrogate loss of a policy on rollouts that another acted in, and the divergence between the two."""
        return surrogate_loss(prediction, query)

    def outer(self, start: Params, after: Params, task: Task[Steps]) -> tuple[Tensor, Metrics]:
        """The meta-objective, given the weights before and after the inner step."""
        return self.score(self.predict(after, task.query.x), task.query)

    def loss(self, task: Task[Steps]) -> tuple[Tensor, Metrics]:
        """The meta-objective of ONE task, whose support and query are `Steps`."""
        start = self.init()
        return self.outer(start, self.adapt(start, task.support) if self.adapts else start, task)


class EMAML(PolicyMAML):
    """E-MAML: the rollouts before the step are also paid for what the policy after it earns: they explore.

    Bradly C. Stadie, Ge Yang, Rein Houthooft, Xi Chen, Yan Duan, Yuhuai Wu, Pieter Abbeel, Ilya Sutskever: Some
    considerations on learning to explore via meta-reinforcement learning. NeurIPS 2018, arXiv:1803.01118, equation 5.

    Differs from the paper: a task's return is standardised over the batch of tasks, and likelihoods are means over
    steps and not sums, which scales the term.
    """

    def outer(self, start: Params, after: Params, task: Task[Steps]) -> tuple[Tensor, Metrics]:
        """See `PolicyMAML.outer`."""
        loss, metrics = super().outer(start, after, task)
        likelihood = self.predict(start, task.support.x).log_prob(task.support.actions)
        return loss - task.query.merit * (task.support.weights * likelihood).sum(), metrics


class ProMP(PolicyMAML):
    """Proximal meta-policy search: the inner step by ratios, the outer objective clipped, the start held near the
    policy that acted; several outer steps on one batch of rollouts (`Outer.method = "ppo"`).

    Jonas Rothfuss, Dennis Lee, Ignasi Clavera, Tamim Asfour, Pieter Abbeel: ProMP: Proximal meta-policy search. ICLR
    2019, arXiv:1810.06784, algorithm 1. Its code has clip 0.3 and a penalty of 5e-4.

    Args:
        policy, inner_lr, first_order, adapts: see `PolicyMAML`.
        clip: a ratio counts up to 1 +- this.
        penalty: factor of the divergence of the start from the policy that acted.
    """

    def __init__(
        self,
        policy: GaussianMLP,
        inner_lr: float = 0.1,
        first_order: bool = False,
        adapts: bool = True,
        clip: float = 0.3,
        penalty: float = 5e-4,
    ):
        super().__init__(policy, inner_lr, first_order, adapts, ratio=True)
        if not (clip > 0 and penalty >= 0):
            raise ValueError(f"clip={clip} must be positive and penalty={penalty} not negative")
        self.clip, self.penalty = clip, penalty

    def outer(self, start: Params, after: Params, task: Task[Steps]) -> tuple[Tensor, Metrics]:
        """See `PolicyMAML.outer`."""
        loss, metrics = surrogate_loss(self.predict(after, task.query.x), task.query, self.clip)
        away = (task.support.weights * task.support.acted.kl(self.predict(start, task.support.x))).sum()
        return loss + self.penalty * away, metrics
