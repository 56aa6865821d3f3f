"""Reproduce the figures of the README: train, test, record. Each is a command, and this is their list.

    python benchmarks/reproduce.py --list
    python benchmarks/reproduce.py omniglot-5way-1shot-protonet sinusoid-maml
    python benchmarks/reproduce.py --lanes 2          # all of them, two at a time with one thread each

A run lies under `runs/NAME`; one that was broken off is resumed, one that is complete is not trained again, nor tested
again where its result is newer than its weights. Results are written to `benchmarks/results/NAME*.json` with command,
machine, settings and versions. Nothing is chosen on the test classes: the checkpoint is the best by validation.
"""

from __future__ import annotations

import os
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field, replace
from pathlib import Path

import tyro

ROOT = Path(__file__).resolve().parent.parent
RESULTS = Path("benchmarks/results")


@dataclass(frozen=True)
class Job:
    """A training and its tests: `tests` maps a suffix of the result's name to arguments of `kshot evaluate`."""

    recipe: str
    train: tuple[str, ...] = ()
    tests: dict[str, tuple[str, ...]] = field(default_factory=lambda: {"": ("--tasks", "1000")})
    name: str = ""


THOUSAND = ("--tasks", "1000")
ALONE = (*THOUSAND, "--no-floors")  # where another learner's table has the floors of the same tasks
SHORT = ("--tasks", "600", "--no-floors")
UNSEEN = ("--data", "glyphs", "--unseen-scripts")  # scripts that Omniglot's training characters do not hold
AUGMENT4 = (*ALONE, "--augment", "4")
ONE_QUERY = ("--tasks", "4000", "--queries", "1", "--no-floors")  # MAML's protocol: as many queries as shots
TWENTY = (*THOUSAND, "--ways", "20", "--queries", "5")  # protonet trains on the same episodes for 5 and 20 ways


def _grocery(learner: str, shots: str) -> Job:
    own = THOUSAND if learner == "protonet" else ALONE
    steps = {"maml 1shot": "1000", "maml 5shot": "300", "r2d2 5shot": "1000"}.get(f"{learner} {shots}")
    train = ("--steps", steps) if steps else ()
    return Job(f"grocery-5way-{shots}-{learner}", train, tests={"": own, "-augment4": AUGMENT4})


def _augmentation() -> list[Job]:
    """Every augmentation of training, one at a time, beside none, with equal numbers of meta-updates."""
    base = {
        "omniglot": ("omniglot-5way-1shot-protonet", ("--steps", "400", "--train-ways", "20")),
        "glyphs": ("glyphs-5way-1shot-protonet", ()),
        "grocery": ("grocery-5way-1shot-protonet", ("--steps", "200")),
    }
    variants = {
        "none": (),
        "support4": ("--augment", "4"),
        "queries-ops": ("--augment-queries", "ops"),
        "queries-cutmix": ("--augment-queries", "cutmix"),
        "queries-metamix": ("--augment-queries", "metamix"),
        "task-cutmix": ("--augment-task", "0.5"),
        "task-rotate": ("--augment-task", "0.5", "--augment-classes", "rotate"),
    }
    jobs = [
        Job(recipe, (*own, *changes), {"": SHORT}, f"augment-{data}-{variant}")
        for data, (recipe, own) in base.items()
        for variant, changes in variants.items()
    ]
    recipe, own = base["omniglot"]
    return [
        *jobs,
        Job(recipe, (*own, "--rotations", "1"), {"": (*SHORT, "--rotations", "4")}, "augment-omniglot-unrotated"),
    ]


def beside(jobs: list[Job]) -> tuple[str, ...]:
    """Arguments of `kshot evaluate`."""
    return ("--beside", *(f"runs/{name(job)}" for job in jobs))


def _seeded(recipe: str, *train: str, called: str = "") -> list[Job]:
    """Three training seeds; the first has no number in its name."""
    called = called or recipe
    return [
        Job(recipe, (*train, "--seed", seed), {}, called if seed == "0" else f"{called}-seed{seed}")
        for seed in ("0", "1", "2")
    ]


def _tested(jobs: list[Job], *arguments: str) -> list[Job]:
    """The first is tested beside the others, and comes last."""
    first, *rest = jobs
    return [*rest, replace(first, tests={"": (*beside(rest), *arguments)})]


def _later(tasks: str) -> list[Job]:
    """8 million environment steps each: 200 outer steps of 10 tasks x 20 rollouts of 200 steps."""
    halves = {"maml": "10", "promp": "10", "rl2": "5"}
    jobs = [
        job
        for learner, rollouts in halves.items()
        for job in _seeded(f"{tasks}-{learner}", "--batch", "10", "--rollouts", rollouts, "--steps", "200")
    ]
    return _tested(jobs)


def _again() -> list[Job]:
    """Ants without the held-out leg, trained on just that body, from the weights of another run and from none."""
    lost = ("--tasks", "ant-body-lost")
    short = (*lost, "--steps", "100")
    jobs = [
        job
        for start in ("maml", "pretrained")
        for job in _seeded(
            "ant-body-pretrained", *short, "--start", f"runs/ant-body-{start}", called=f"ant-again-{start}"
        )
    ]
    itself = Job("ant-body-pretrained", (*lost, "--steps", "600"), {}, "ant-again-none")
    return _tested([*jobs, itself], "--no-floors")


def _control() -> list[Job]:
    """Policies; those that others are tested beside, or begin with, come first."""
    direction = "cheetah-direction"
    others = [Job(f"{direction}-{learner}", ("--steps", "100"), {}) for learner in ("pretrained", "oracle")]
    twenty = ("--batch", "20", "--steps", "200")  # as many environment steps as 100 steps of 40 tasks
    ants = [Job(f"ant-velocity-{learner}", twenty, {}) for learner in ("pretrained", "oracle")]
    directions = [Job(f"ant-direction-{learner}", ("--steps", "400"), {}) for learner in ("pretrained", "oracle")]
    few = ("--batch", "12", "--rollouts", "10")
    bodies = [
        Job(f"{kind}-body-{learner}", own, {})
        for kind, own in (("cheetah", (*few, "--steps", "400")), ("walker", ()), ("ant", ()))
        for learner in ("pretrained", "oracle")
    ]
    memory = ("--batch", "10", "--rollouts", "5", "--steps", "200", "--lam", "0.95", "--std", "0.4")
    bodies += [Job("ant-body-metasgd", (), {}), Job("ant-body-rl2", memory, {})]

    def held_out(kind: str, *sets: str) -> dict[str, tuple[str, ...]]:
        own = beside([job for job in bodies if job.recipe.startswith(kind)])
        return {"": own, **{f"-{which}": ("--on", f"{kind}-body-{which}", *own) for which in sets}}

    jobs = [
        Job("v5-cheetah-direction-pearl", ("--steps", "250", "--train-tasks", "10"), {"": ()}),  # 1 million steps
        *_tested([*_seeded(f"{direction}-maml"), *others]),
        Job("point-maml", (), {"": ()}),
        *_tested(_seeded("cheetah-velocity-maml", *twenty)),
        *_tested([*_seeded("ant-velocity-maml", *twenty), *ants]),
        *bodies,
        Job("cheetah-body-maml", (*few, "--steps", "200"), held_out("cheetah", "lost")),
        Job("walker-body-maml", (), held_out("walker", "far")),
        Job("ant-body-maml", (), held_out("ant", "lost", "gained")),
        *_tested([*_seeded("ant-direction-maml", "--steps", "524")[:2], *directions]),
        *_later("v5-cheetah-direction"),
        *_later("v5-cheetah-velocity"),
        *_again(),
    ]
    # The records are those of the last checkpoints, which had no validation.
    return [replace(job, train=(*job.train, "--val-every", "0")) for job in jobs]


def name(job: Job) -> str:
    """The name of the run and of its results."""
    return job.name or job.recipe


JOBS = [
    Job(
        "omniglot-5way-1shot-protonet",
        tests={
            "": THOUSAND,
            "-20way": TWENTY,
            "-on-glyphs": (*ALONE, *UNSEEN),
            "-augment4": AUGMENT4,
        },
    ),
    Job(
        "omniglot-5way-1shot-maml",
        tests={
            "": THOUSAND,
            "-1query": ONE_QUERY,
            "-on-glyphs": (*ALONE, *UNSEEN),
            "-augment4": AUGMENT4,
        },
    ),
    Job("sinusoid-maml", tests={"": ("--tasks", "600", "--steps", "10")}),
    Job("omniglot-5way-5shot-protonet", tests={"": THOUSAND, "-20way": TWENTY}),
    Job("omniglot-lake-5way-1shot-protonet"),
    Job("omniglot-lake-5way-1shot-maml", ("--steps", "4000"), tests={"": ALONE, "-1query": ONE_QUERY}),
    *(_grocery(learner, shots) for learner in ("protonet", "r2d2", "maml") for shots in ("1shot", "5shot")),
    *(
        Job(f"omniglot-{task}", train, tests={"": SHORT if task == "20way-5shot-maml" else ALONE})
        for task, train in {
            "5way-1shot-reptile": (),
            "5way-1shot-r2d2": (),
            "5way-5shot-maml": (),
            "20way-1shot-anil": ("--steps", "3000"),
            "20way-1shot-maml": ("--steps", "6000"),
            "20way-5shot-maml": ("--steps", "500"),
        }.items()
    ),
    *_augmentation(),
    *_control(),
]  # fmt: skip


def weights(run: str) -> float:
    """When the weights of a run were written; 0 where there are none."""
    return max((path.stat().st_mtime for path in (Path("runs") / run).glob("*.safetensors")), default=0.0)


def kshot(job: Job, threads: int, *arguments: str) -> str:
    """Run a command; returns what went wrong, or nothing."""
    environment = {**os.environ, "OMP_NUM_THREADS": str(threads), "MKL_NUM_THREADS": str(threads)}
    path = ROOT / "runs" / name(job) / "log.txt"
    path.parent.mkdir(parents=True, exist_ok=True)
    with open(path, "a", encoding="utf-8") as log:
        command = [sys.executable, "-m", "kshot", *arguments]
        code = subprocess.run(command, cwd=ROOT, env=environment, check=False, stdout=log, stderr=log).returncode
    return f"{name(job)}: failed with exit code {code}, see runs/{name(job)}/log.txt" if code else ""


def train(job: Job, budget: str, threads: int) -> str:
    """Train one job, or go on with it; returns a line that says how it went."""
    out = ("--out", f"runs/{name(job)}", "--resume")
    wrong = kshot(job, threads, "train", job.recipe, "--budget", budget, *job.train, *out)
    return wrong or f"{name(job)}: trained"


def test(job: Job, threads: int) -> str:
    """Test one job, where its results are older than any weights they are of; returns a line that says how it went."""
    others = [part.removeprefix("runs/") for part in job.tests.get("", ()) if part.startswith("runs/")]
    if missing := [other for other in (name(job), *others) if not weights(other)]:
        return f"{name(job)}: failed, it is tested beside {', '.join(missing)}: reproduce these too"
    for suffix, arguments in job.tests.items():
        result = RESULTS / f"{name(job)}{suffix}.json"
        if not result.exists() or result.stat().st_mtime < max(map(weights, (name(job), *others))):
            wrong = kshot(job, threads, "evaluate", f"runs/{name(job)}", *arguments, "--json", str(result))
            if wrong:
                return wrong
    return f"{name(job)}: done"


@dataclass(frozen=True)
class Settings:
    """Reproduce the README's figures."""

    names: tyro.conf.Positional[tuple[str, ...]] = ()
    """Which; none means all."""
    budget: str = "quick"
    """"quick" or "paper"."""
    lanes: int = 1
    """Jobs at a time."""
    threads: int = 0
    """Threads of each; 0 shares the cores among the lanes."""
    list: bool = False
    """Show the names and stop."""


def main(settings: Settings) -> int:
    """Run the jobs; the exit code is 1 where one failed, 2 where a name is unknown."""
    os.chdir(ROOT)
    known = {name(job): job for job in JOBS}
    if settings.list:
        print("\n".join(known))
        return 0
    unknown = [n for n in settings.names if n not in known]
    if unknown:
        print(f"unknown: {', '.join(unknown)}; --list shows the names", file=sys.stderr)
        return 2
    RESULTS.mkdir(parents=True, exist_ok=True)
    threads = settings.threads or max(1, (os.cpu_count() or 1) // settings.lanes)
    jobs = [known[n] for n in settings.names or known]
    failed: set[str] = set()
    with ThreadPoolExecutor(settings.lanes) as pool:
        for stage in (lambda job: train(job, settings.budget, threads), lambda job: test(job, threads)):
            jobs = [job for job in jobs if name(job) not in failed]  # what could not be trained is not tested
            for job, line in zip(jobs, pool.map(stage, jobs), strict=True):  # all are trained first
                print(line, flush=True)
                if "failed" in line:
                    failed.add(name(job))
    return int(bool(failed))


if __name__ == "__main__":
    raise SystemExit(main(tyro.cli(Settings)))
