"""The contract, executable: what every learner and every task distribution promises, as checks that explain themselves.

A learner that passes `check_learner` can be trained, evaluated, mapped, saved and resumed by everything else in kshot.
Each check is a small function below, registered by its name; the first that fails raises one `ContractError` that says
what was found, what was expected and how to fix it.

    report = check_learner(MyLearner(MLP(8, 16, activation="tanh"), ways=3), Clusters(ways=3, shots=2, queries=4))
    print(report)                                       # the checks that ran, and those skipped with the reason
    check_learner(learner, tasks, only=["finite_difference"])          # one check, while writing a learner
    check_tasks(Clusters(ways=3, shots=2, queries=4))
    check_control(kshot.tasks.control.registry.family("point"))                     # a distribution of control tasks

Claims that a learner does not make are not checked, and the report says so: compare `report.ran` with what you expect,
as `tests/test_contract.py` does, so that no check can vanish in silence.
"""

from __future__ import annotations

from kshot.testing._control import CONTROL_CHECKS, check_control
from kshot.testing._learner import LEARNER_CHECKS, check_learner
from kshot.testing._report import ContractError, Report
from kshot.testing._tasks import TASK_CHECKS, check_tasks
from kshot.testing.clusters import Clusters

__all__ = ["CONTROL_CHECKS", "LEARNER_CHECKS", "TASK_CHECKS", "Clusters", "ContractError", "Report", "check_control",
           "check_learner", "check_tasks"]  # fmt: skip
