"""Meta reinforcement learning: tasks are control problems, and a learner's data are the rollouts of its own policy.

    control.py      families of control tasks: what a body is, sees, is paid for, and when it has fallen
    sim.py          all rollouts of all tasks stepped together by MuJoCo's own threads
    policy.py       Gaussian policies whose weights may differ from task to task
    returns.py      discounted returns, the linear feature baseline, generalised advantages
    maml.py         the learner: policy gradient steps from a common start
    trust.py        the outer step: a trust region around the policies after adaptation
    meta.py         the outer loop, a generator of records; returns after 0, 1, 2, 3 steps on tasks never seen

MuJoCo is an extra: pip install 'kshot[rl]'. The families "point" need none.
"""
