"""The one table of measurements: a name, one command, one record.

`JOBS` has a job for each file of `benchmarks/results`: `python benchmarks/reproduce.py NAME` runs the job's command,
which writes `benchmarks/results/NAME.json`. `RUNS` has the command that trains each folder under `runs/`
that a job tests. A job without a file says so in `--list` ("not recorded yet"); a file without a job, or with another
command than its job's, is a failed test (`tests/test_jobs.py`).
"""

from __future__ import annotations

import shlex
from typing import Literal, NamedTuple

__all__ = ["JOBS", "RUNS", "Job", "needed"]

About = Literal["a minute", "minutes", "half an hour", "hours"]


class Job(NamedTuple):
    """A measurement.

    Attributes:
        name: of its record.
        measure: the command, without the record's path.
        about: how long it takes on two cores, training runs included, by order of magnitude.
        extra: what has to be there beside kshot and the data of its training runs.
    """

    name: str
    measure: str
    about: About
    extra: str = ""

    @property
    def command(self) -> str:
        """The whole command."""
        return f"{self.measure} --json benchmarks/results/{self.name}.json"

    @property
    def runs(self) -> list[str]:
        """The training runs that have to be there, in their order: those that others start from come first."""
        return needed(self.measure)

    @property
    def needs(self) -> str:
        """Data and packages."""
        words = [word for run in self.runs for word in RUNS[run].split()[1:3]]
        found = {kind for word in words for start, kind in _KINDS.items() if word.startswith(start)}
        return ", ".join(sorted({*found, *filter(None, [self.extra])}))


_CONTROL = "kshot[rl]"
_KINDS = {
    "omniglot": "omniglot",
    "pixels-omniglot": "omniglot",
    "grocery": "grocery",
    "benchmarks/processes/full.py": "a GPU",
    **dict.fromkeys(("ant-", "cheetah-", "point-", "v5-", "walker-"), _CONTROL),
}
"""How the name of a training run's recipe or script begins -> what it needs."""


def needed(command: str) -> list[str]:
    """The folders of `runs/` that a command reads, after those that these are trained from."""
    found: list[str] = []
    for word in shlex.split(command):
        run = word.removeprefix("runs/")
        if run != word and run in RUNS:
            before = RUNS[run].partition(" --out ")[0]
            found += [own for own in (*needed(before), run) if own not in found]
    return found


def _trained(recipe: str, *changes: str, called: str = "") -> dict[str, str]:
    """A folder, and the command that makes it."""
    name = called or recipe
    return {name: " ".join(["kshot train", recipe, "--budget quick", *changes, f"--out runs/{name}"])}


def _seeds(recipe: str, *changes: str, called: str = "", count: int = 3) -> dict[str, str]:
    """As many training seeds; the first has no number in its name."""
    called = called or recipe
    found = _trained(recipe, *changes, "--seed 0", called=called)
    for seed in range(1, count):
        found |= _trained(recipe, *changes, f"--seed {seed}", called=f"{called}-seed{seed}")
    return found


def _test(name: str, *words: str, run: str = "", about: About = "minutes", extra: str = "") -> Job:
    """A test of the run of that name, or of another."""
    return Job(name, " ".join(["kshot evaluate", f"runs/{run or name}", *words]), about, extra)


def _beside(*runs: str) -> str:
    return " ".join(["--beside", *(f"runs/{run}" for run in runs)])


# ------------------------------------------------------------------------------------------------------ classes, curves

THOUSAND = "--tasks 1000"
ALONE = f"{THOUSAND} --no-baselines"  # where another learner's table has the baselines of the same tasks
SHORT = "--tasks 600 --no-baselines"
ONE_QUERY = "--tasks 4000 --queries 1 --no-baselines"  # MAML's protocol: as many queries as shots
TWENTY = f"{THOUSAND} --ways 20 --queries 5"  # protonet trains on the same episodes for 5 and 20 ways
UNSEEN = f"{ALONE} --on glyphs --unseen-scripts"  # scripts that Omniglot's training characters do not hold

_IMAGES = {
    **_trained("omniglot-5way-1shot-protonet"),
    **_trained("omniglot-5way-5shot-protonet"),
    **_trained("omniglot-lake-5way-1shot-protonet"),
    **_trained("omniglot-5way-1shot-maml"),
    **_trained("omniglot-lake-5way-1shot-maml", "--steps 4000"),
    **_trained("omniglot-5way-1shot-reptile"),
    **_trained("omniglot-5way-1shot-r2d2"),
    **_trained("omniglot-5way-5shot-maml"),
    **_trained("omniglot-20way-1shot-anil", "--steps 3000"),
    **_trained("omniglot-20way-1shot-maml", "--steps 6000"),
    **_trained("omniglot-20way-5shot-maml", "--steps 500"),
    **_trained("grocery-5way-1shot-protonet"),
    **_trained("grocery-5way-5shot-protonet"),
    **_trained("grocery-5way-1shot-r2d2"),
    **_trained("grocery-5way-5shot-r2d2", "--steps 1000"),
    **_trained("grocery-5way-1shot-maml", "--steps 1000"),
    **_trained("grocery-5way-5shot-maml", "--steps 300"),
    **_trained("sinusoid-maml"),
    **_trained("pixels-omniglot-convcnp2d", "--steps 2500"),
}

# Every augmentation of training, one at a time, beside none, with equal numbers of meta-updates.
_AUGMENTED = {
    "omniglot": ("omniglot-5way-1shot-protonet", "--steps 400 --train-ways 20"),
    "glyphs": ("glyphs-5way-1shot-protonet",),
    "grocery": ("grocery-5way-1shot-protonet", "--steps 200"),
}
_VARIANTS: dict[str, tuple[str, ...]] = {
    "none": (),
    "support4": ("--augment 4",),
    "queries-ops": ("--augment-queries ops",),
    "queries-cutmix": ("--augment-queries cutmix",),
    "queries-metamix": ("--augment-queries metamix",),
    "task-cutmix": ("--augment-task 0.5",),
    "task-rotate": ("--augment-task 0.5 --augment-classes rotate",),
}
_LONGER = [f"augment-glyphs-{variant}" for variant in ("none", "support4", "queries-ops", "queries-cutmix")]
_AUGMENT_RUNS = {
    name: words
    for data, (recipe, *own) in _AUGMENTED.items()
    for variant, changes in _VARIANTS.items()
    for name, words in _trained(recipe, *own, *changes, called=f"augment-{data}-{variant}").items()
} | _trained(*_AUGMENTED["omniglot"], "--rotations 1", called="augment-omniglot-unrotated")

_IMAGE_JOBS = [
    Job("quickstart", "python benchmarks/quickstart.py", "a minute"),
    Job("demo-glyphs-5way-1shot", "kshot demo", "minutes"),
    _test("omniglot-5way-1shot-protonet", THOUSAND, about="half an hour"),
    *(
        _test(f"omniglot-5way-1shot-protonet-{what}", words, run="omniglot-5way-1shot-protonet", about="half an hour")
        for what, words in {"20way": TWENTY, "on-glyphs": UNSEEN, "augment4": f"{ALONE} --augment 4"}.items()
    ),
    _test("omniglot-5way-1shot-maml", THOUSAND, about="hours"),
    *(
        _test(f"omniglot-5way-1shot-maml-{what}", words, run="omniglot-5way-1shot-maml", about="hours")
        for what, words in {"1query": ONE_QUERY, "on-glyphs": UNSEEN, "augment4": f"{ALONE} --augment 4"}.items()
    ),
    _test("sinusoid-maml", "--tasks 600 --steps 10"),
    _test("omniglot-5way-5shot-protonet", THOUSAND, about="half an hour"),
    _test("omniglot-5way-5shot-protonet-20way", TWENTY, run="omniglot-5way-5shot-protonet", about="half an hour"),
    _test("omniglot-lake-5way-1shot-protonet", THOUSAND, about="half an hour"),
    _test("omniglot-lake-5way-1shot-maml", ALONE, about="hours"),
    _test("omniglot-lake-5way-1shot-maml-1query", ONE_QUERY, run="omniglot-lake-5way-1shot-maml", about="hours"),
    *(
        job
        for shots in ("1shot", "5shot")
        for learner in ("protonet", "r2d2", "maml")
        for run in [f"grocery-5way-{shots}-{learner}"]
        for job in (
            _test(run, THOUSAND if learner == "protonet" else ALONE, about="half an hour"),
            _test(f"{run}-augment4", f"{ALONE} --augment 4", run=run, about="half an hour"),
        )
    ),
    _test("omniglot-5way-1shot-r2d2", ALONE, about="half an hour"),
    *(
        _test(f"omniglot-{task}", SHORT if task == "20way-5shot-maml" else ALONE, about="hours")
        for task in (
            "5way-1shot-reptile",
            "5way-5shot-maml",
            "20way-1shot-anil",
            "20way-1shot-maml",
            "20way-5shot-maml",
        )
    ),
    *(_test(run, ALONE if run in _LONGER else SHORT) for run in _AUGMENT_RUNS if run != "augment-omniglot-unrotated"),
    _test("augment-omniglot-unrotated", SHORT, "--rotations 4"),
    _test("pixels-omniglot-convcnp2d", "--tasks 256 --no-baselines --plot docs/completion.png", about="half an hour"),
]

# ------------------------------------------------------------------------------------------------------------- policies

_V5 = {
    run: words
    for tasks in ("v5-cheetah-direction", "v5-cheetah-velocity")
    for learner, rollouts in {"maml": 10, "promp": 10, "rl2": 5}.items()
    for run, words in _seeds(f"{tasks}-{learner}", f"--batch 10 --rollouts {rollouts} --steps 200").items()
}
"""8 million environment steps each: 200 outer steps of 10 tasks x 20 rollouts of 200 steps."""
_TWENTY = "--batch 20 --steps 200"  # as many environment steps as 100 steps of 40 tasks
_FEW = "--batch 12 --rollouts 10"
_LOST = "--tasks ant-body-lost"
_AGAIN = {  # ants without the held-out leg, trained on just that body, from the weights of another run
    run: words
    for called, start in {
        "ant-again-maml": "ant-body-maml",
        "ant-again-pretrained": "ant-body-pretrained",
        "ant-again-maml1": "ant-body-maml-seed1",
        "ant-again-pretrained1": "ant-body-pretrained-seed1",
    }.items()
    for run, words in _seeds(
        "ant-body-pretrained", _LOST, "--steps 100", f"--start runs/{start}", called=called
    ).items()
}
_POLICIES = {
    **_seeds("cheetah-direction-maml"),
    **_trained("cheetah-direction-pretrained", "--steps 100"),
    **_trained("cheetah-direction-oracle", "--steps 100"),
    **_trained("point-maml"),
    **_seeds("cheetah-velocity-maml", _TWENTY),
    **_trained("cheetah-velocity-pretrained", _TWENTY),
    **_trained("cheetah-velocity-oracle", _TWENTY),
    **_seeds("ant-velocity-maml", _TWENTY),
    **_trained("ant-velocity-pretrained", _TWENTY),
    **_trained("ant-velocity-oracle", _TWENTY),
    **_seeds("ant-direction-maml", "--steps 524", count=2),
    **_trained("ant-direction-pretrained", "--steps 86"),
    **_trained("ant-direction-oracle", "--steps 345"),
    **_trained("cheetah-body-maml", _FEW, "--steps 200"),
    **_trained("cheetah-body-pretrained", _FEW, "--steps 400"),
    **_trained("cheetah-body-oracle", _FEW, "--steps 400"),
    **_trained("walker-body-maml"),
    **_trained("walker-body-pretrained"),
    **_trained("walker-body-oracle"),
    **_seeds("ant-body-maml", count=2),
    **_seeds("ant-body-pretrained", count=2),
    **_trained("ant-body-oracle"),
    **_trained("ant-body-metasgd"),
    **_trained("ant-body-rl2", "--batch 10 --rollouts 5 --steps 200 --lam 0.95 --std 0.4"),
    **_AGAIN,
    **_trained("ant-body-pretrained", _LOST, "--steps 600", called="ant-again-none"),
    **_V5,
    **_trained("v5-cheetah-direction-pearl", "--steps 250 --train-tasks 10"),  # 1 million environment steps
}
# The records are those of the last checkpoints, which had no validation.
_POLICIES = {run: words.replace(" --out ", " --val-every 0 --out ") for run, words in _POLICIES.items()}


def _policy(name: str, *words: str, run: str = "") -> Job:
    return _test(name, *words, run=run, about="hours")


def _slow(run: str, tasks: str, rate: str) -> Job:
    """Adapted by smaller steps than it was trained for."""
    name = f"{run}-{tasks.rpartition('-')[2]}-slow"
    return _policy(name, f"--on {tasks} --inner-lr {rate} --no-baselines", run=run)


_DIRECTION, _V5_DIRECTION, _V5_VELOCITY = "cheetah-direction", "v5-cheetah-direction", "v5-cheetah-velocity"
_ANTS = _beside("ant-body-pretrained", "ant-body-oracle", "ant-body-metasgd", "ant-body-rl2")
_CHEETAHS = _beside("cheetah-body-pretrained", "cheetah-body-oracle")
_WALKERS = _beside("walker-body-pretrained", "walker-body-oracle")

_POLICY_JOBS = [
    _policy(
        f"{_DIRECTION}-maml",
        _beside(*(f"{_DIRECTION}-{run}" for run in ("maml-seed1", "maml-seed2", "pretrained", "oracle"))),
        "--plot docs/cheetah-returns.png --learning-curve docs/cheetah-learning.png",
    ),
    _policy(f"{_DIRECTION}-maml-200tasks", "--tasks 200 --no-baselines", run=f"{_DIRECTION}-maml"),
    _test("point-maml", about="half an hour"),
    _policy("cheetah-velocity-maml", "--plot docs/velocity-returns.png"),
    *(_policy(f"cheetah-velocity-maml-seed{seed}", "--no-baselines") for seed in (1, 2)),
    _policy("cheetah-velocity-floors", _beside("cheetah-velocity-pretrained"), run="cheetah-velocity-oracle"),
    _policy("ant-velocity-maml"),
    _policy(
        "ant-velocity-maml-seed1",
        _beside("ant-velocity-maml-seed2", "ant-velocity-pretrained", "ant-velocity-oracle"),
        "--no-baselines",
    ),
    _policy("ant-direction-maml"),
    _policy("ant-direction-maml-seed1", "--no-baselines"),
    _policy("ant-direction-oracle", _beside("ant-direction-pretrained"), "--no-baselines"),
    _policy("cheetah-body-maml", _CHEETAHS),
    _policy(
        "cheetah-body-maml-lost",
        f"--on cheetah-body-lost {_CHEETAHS} --plot docs/body-returns.png",
        run="cheetah-body-maml",
    ),
    _slow("cheetah-body-pretrained", "cheetah-body-lost", "0.003"),
    _policy("walker-body-maml", _WALKERS),
    _policy("walker-body-maml-far", f"--on walker-body-far {_WALKERS}", run="walker-body-maml"),
    _slow("walker-body-pretrained", "walker-body-far", "0.01"),
    _policy("ant-body-maml", _ANTS, "--learning-curve docs/ant-learning.png"),
    _policy("ant-body-maml-lost", f"--on ant-body-lost {_ANTS} --plot docs/ant-returns.png", run="ant-body-maml"),
    _policy("ant-body-maml-gained", f"--on ant-body-gained {_ANTS}", run="ant-body-maml"),
    *(
        job
        for run in ("ant-body-maml-seed1", "ant-body-pretrained-seed1")
        for job in (
            _policy(run, "--no-baselines"),
            _policy(f"{run}-lost", "--on ant-body-lost --no-baselines", run=run),
            _policy(f"{run}-gained", "--on ant-body-gained --no-baselines", run=run),
        )
    ),
    _slow("ant-body-pretrained", "ant-body-lost", "0.01"),
    _slow("ant-body-pretrained", "ant-body-gained", "0.01"),
    _slow("ant-body-pretrained-seed1", "ant-body-lost", "0.01"),
    _policy(
        "ant-again-maml",
        _beside(
            "ant-again-maml-seed1",
            "ant-again-maml-seed2",
            "ant-again-pretrained",
            "ant-again-pretrained-seed1",
            "ant-again-pretrained-seed2",
            "ant-again-none",
        ),
        "--no-baselines --learning-curve docs/ant-again.png",
    ),
    *(
        _policy(
            f"ant-again-{start}-seed1",
            _beside(f"ant-again-{start}1-seed1", f"ant-again-{start}1-seed2"),
            "--no-baselines --steps 0",
            run=f"ant-again-{start}1",
        )
        for start in ("maml", "pretrained")
    ),
    _policy(f"{_V5_DIRECTION}-maml", _beside(f"{_V5_DIRECTION}-promp", f"{_V5_DIRECTION}-rl2")),
    *(
        _policy(f"{_V5_DIRECTION}-{learner}-seed{seed}", "--no-baselines")
        for learner in ("maml", "promp")
        for seed in (1, 2)
    ),
    _policy(f"{_V5_DIRECTION}-rl2-seed1", _beside(f"{_V5_DIRECTION}-rl2-seed2"), "--no-baselines"),
    _policy(f"{_V5_DIRECTION}-pearl"),
    _policy(f"{_V5_DIRECTION}-pearl-two", "--rollouts 2 --no-baselines", run=f"{_V5_DIRECTION}-pearl"),
    _policy(f"{_V5_VELOCITY}-maml", _beside(*[run for run in _V5 if run.startswith(_V5_VELOCITY)][1:])),
]

# ---------------------------------------------------------------------------------------------------- neural processes

_COMPARE = "python benchmarks/processes/compare.py"
_GPU = {"full": "python benchmarks/processes/full.py --out runs/full"}


def _published(kind: str, *words: str) -> str:
    on = " ".join(f"np-{kind}{where}" for where in ("", ":beyond", ":extrapolation"))
    own = f"--tasks 4096 --no-ragged --autoregressive 160 --learners cnp acnp convcnp --train np-{kind} --on {on}"
    return " ".join([_COMPARE, *words, own])


_FULL = "--minutes 0 --out runs/full"
_PROCESS_JOBS = [
    Job(
        "processes-full-training",
        "python benchmarks/processes/full.py --minutes 7 --jobs "
        + " ".join(f"gp-rbf/{who}" for who in ("convcnp", "tnpd", "acnp", "cnp", "anp", "np", "gnp"))
        + " np-sawtooth/convcnp",
        "minutes",
        "a GPU",
    ),
    Job(
        "processes-gp-full",
        f"{_COMPARE} {_FULL} --tasks 48000 --no-ragged --autoregressive 320 --learners convcnp cnp acnp anp gnp tnpd",
        "hours",
    ),
    Job("processes-gp-full-2", f"{_COMPARE} {_FULL} --tasks 48000 --no-ragged --learners np bnp convgnp", "hours"),
    Job(
        "processes-gp",
        f"{_COMPARE} --minutes 4 --tasks 4800 --no-ragged --autoregressive 320"
        " --learners convcnp tnpd convgnp cnp acnp gnp",
        "hours",
    ),
    Job(
        "processes-gp-latent", f"{_COMPARE} --minutes 4 --tasks 4800 --no-ragged --learners np anp bnp", "half an hour"
    ),
    *(
        job
        for kind in ("sawtooth", "mixture")
        for job in (
            Job(f"processes-np-{kind}", _published(kind, "--minutes 8"), "hours"),
            Job(f"processes-np-{kind}-full", _published(kind, _FULL), "hours"),
        )
    ),
    Job("processes-stations", "python benchmarks/processes/stations.py --minutes 1", "half an hour", "curves"),
    Job("processes-series", "python benchmarks/processes/series.py", "minutes", "curves"),
    Job("processes-many", "python benchmarks/processes/many.py", "minutes"),
    Job("processes-speed", "python benchmarks/processes/speed.py", "minutes", "gpytorch"),
]

# -------------------------------------------------------------------------------------- classifiers, engine, simulation

_MEASURE = "python benchmarks/classifier/measure.py"
_PEERS = "benchmarks/engine/requirements.txt"
_OTHER_JOBS = [
    Job("pixels", "python benchmarks/pixels.py", "minutes", "omniglot, grocery"),
    *(Job(f"classifier-{data}", f"{_MEASURE} --data {data}", "half an hour", data) for data in ("omniglot", "grocery")),
    Job("classifier-grocery-val", f"{_MEASURE} --data grocery --split val --only fine accuracy", "minutes", "grocery"),
    Job("classifier-folder", "python benchmarks/classifier/folder.py", "minutes", "omniglot, grocery"),
    Job("classifier-lake", "python benchmarks/classifier/lake.py", "a minute", "omniglot"),
    Job("classifier-many", "python benchmarks/classifier/many.py", "minutes", "grocery"),
    Job("engine-cpu", "python benchmarks/engine/compare.py --repeats 5", "minutes", _PEERS),
    Job("engine-gpu", "python benchmarks/engine/compare.py --device cuda", "minutes", f"{_PEERS}, a GPU"),
    Job("engine-breakdown", "python benchmarks/engine/breakdown.py --repeats 3", "minutes"),
    Job("engine-scaling", "python benchmarks/engine/scaling.py steps processes --repeats 3", "minutes"),
    Job("engine-scaling-tasks", "python benchmarks/engine/scaling.py tasks --repeats 3", "minutes"),
    Job(
        "rl-simulation",
        "python benchmarks/rl/simulation.py --count 800 --rounds 5",
        "minutes",
        f"{_CONTROL}, benchmarks/rl/requirements.txt",
    ),
    Job("rl-simulation-one-step", "python benchmarks/rl/simulation.py --rounds 3", "minutes", _CONTROL),
    Job(
        "rl-simulation-gpu",
        "python benchmarks/rl/simulation.py --rounds 1 --seconds 0.7 --processes 4 --warp 8192",
        "minutes",
        "kshot[rl,warp], a GPU",
    ),
]

RUNS: dict[str, str] = {**_IMAGES, **_AUGMENT_RUNS, **_POLICIES, **_GPU}
"""A folder under runs/ -> the command that trains it."""
JOBS: dict[str, Job] = {job.name: job for job in (*_IMAGE_JOBS, *_POLICY_JOBS, *_PROCESS_JOBS, *_OTHER_JOBS)}
"""A record's name -> how it is made."""
