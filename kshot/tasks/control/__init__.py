"""Control tasks: a task is a control problem, its data are the rollouts of a policy in it.

    control.py      what a distribution of control tasks is; what it is simulated by (`Simulator`, `Physics`)
    sim.py          all rollouts of all tasks stepped together by MuJoCo's own threads; warp.py, on a GPU
    mujoco.py       a family whose body MuJoCo simulates
    paper.py v5.py  the families of MAML's paper, and of the papers after it on gymnasium's bodies
    bodies.py       families whose task is the body
    registry.py     all of them by name
    observed.py     a family whose policies see the goal; camera.py, images of robots

Policies are in `kshot.learners.policy`, their training in `kshot.families.control`, their test in
`kshot.scoring.returns`. MuJoCo is an extra: pip install 'kshot[rl]'. The families "point" need none.
"""
