"""Meta reinforcement learning: tasks are control problems, and a learner's data are the rollouts of its own policy.

    control.py      what a family of control tasks is: its body, what it sees, is paid for, and when it has fallen
    paper.py v5.py  the families of MAML's paper, and of the papers after it on gymnasium's bodies
    sim.py          all rollouts of all tasks stepped together by MuJoCo's own threads
    policy.py       Gaussian policies whose weights may differ from task to task
    rollouts.py     acting in many tasks at once
    returns.py      discounted returns, the linear feature baseline, generalised advantages
    maml.py         the learner: policy gradient steps from a common start
    trust.py        the outer step: a trust region around the policies after adaptation
    train.py        the outer loop, a generator of records; the test: returns after 0, 1, 2, 3 steps
    recipe.py       the settings of a run, kept in its checkpoint

MuJoCo is an extra: pip install 'kshot[rl]'. The families "point" need none.
"""
