"""The library in 20 lines: meta-train on letters of some scripts, test on unseen scripts.

python examples/01_library_in_20_lines.py [--quick]
"""

import sys

from kshot.data import load
from kshot.learners import build
from kshot.nn import Conv4
from kshot.numerics import seeding
from kshot.scoring.evaluate import evaluate
from kshot.tasks import Episodes
from kshot.training.meta import meta_train

quick = "--quick" in sys.argv
steps = 60 if quick else 600

train_tasks = Episodes(load("glyphs", "train"), ways=20, shots=1, queries=5)  # embedded: nothing to download
test_tasks = Episodes(load("glyphs", "test"), ways=5, shots=1, queries=5)

with seeding.seeded(0, "weights"):
    learner = build("protonet", Conv4(width=32, population=True), ways=20)

for record in meta_train(learner, train_tasks, steps=steps, batch=1, meta_lr=2e-3, schedule="cosine"):
    if record.step % (steps // 6) == 0:
        print(f"step {record.step}: loss {record.loss:.3f} on 20-way tasks")

result = evaluate(learner, test_tasks, num_tasks=100 if quick else 600, seed=1)
print(f"5-way 1-shot on unseen scripts, {result.mode}: accuracy {result.mean:.3f} ± {result.interval95:.3f}")
