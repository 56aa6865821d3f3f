"""Exact bits of tiny runs of every family, through the command line of a source tree.

    python again.py TREE OUT.json              # a minute or two; PYTHONPATH is set to TREE for it
    python again.py --compare A.json B.json    # a line per run: equal bits, or the first difference and the largest
    python again.py TREE OUT.json maml fit     # some of the runs

Of each run: the records (all but clocks), SHA-256 of the final weights, whether a run that was broken off after one step
and resumed ends with the same records and weights, the figures of `kshot evaluate`. The images are PNGs in a
folder of the system's temporary one (`--data TREE` makes them), so that a tree's own glyphs play no part.
"""
# ruff: noqa: E501

from __future__ import annotations

import contextlib
import csv
import hashlib
import io
import json
import math
import os
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path

DATA = Path(tempfile.gettempdir()) / "kshot-again-glyphs"
CLOCK = {"seconds", "sampling", "simulation", "policy", "update"}

IMAGES = f"--data folder:{DATA} --width 8 --batch 2 --steps 5 --val-every 2 --val-tasks 4 --train-queries 3 --queries 3 --train-ways 5"
POINT = "--hidden 8 8 --batch 2 --rollouts 2 --steps 5 --val-every 0"
TEST_IMAGES, TEST_POINT = "--tasks 6 --no-floors", "--tasks 4 --rollouts 4 --no-floors"
# name: (train, evaluate); flags that a tree does not know ("Unrecognized") are left out, those of OPTIONAL alone
RUNS = {
    "protonet": (f"glyphs-5way-1shot-protonet {IMAGES}", "--tasks 6 --pretrain 0"),
    "maml": (f"glyphs-5way-1shot-maml {IMAGES} --inner-steps 2", TEST_IMAGES),
    "reptile": (f"glyphs-5way-1shot-reptile {IMAGES} --inner-steps 2", TEST_IMAGES),
    "mamlpp": (f"glyphs-5way-1shot-mamlpp {IMAGES} --inner-steps 2", TEST_IMAGES),
    "r2d2": (f"glyphs-5way-1shot-r2d2 {IMAGES} --schedule cosine --clip 1 --optimizer adamw", TEST_IMAGES),
    "sinusoid-maml": (
        "sinusoid-maml --width 8 --batch 4 --steps 5 --val-every 2 --val-tasks 4",
        "--tasks 4 --no-floors",
    ),
    "gp-rbf-cnp": ("gp-rbf-cnp --layers 1 --batch 4 --steps 5 --val-every 0", "--tasks 16 --floors 8"),
    "gp-rbf-np": ("gp-rbf-np --layers 1 --batch 4 --steps 5 --val-every 0", "--tasks 16 --floors 0"),
    "gp-matern52-convgnp": (
        "gp-matern52-convgnp --levels 2 --density 8 --batch 4 --steps 5 --val-every 0",
        "--tasks 16 --floors 0 --autoregressive",
    ),
    "np-sawtooth-maml": ("np-sawtooth-maml --width 8 --batch 4 --steps 5 --val-every 0", "--tasks 16 --floors 0"),
    "point-maml": (f"point-maml {POINT}", "--tasks 4 --rollouts 4"),
    "point-maml-vpg": (f"point-maml-vpg {POINT}", TEST_POINT),
    "point-promp": (f"point-promp {POINT}", TEST_POINT),
    "point-rl2": (
        f"point-rl2 {POINT.replace('--hidden 8 8', '--hidden 8').replace('--rollouts 2', '--rollouts 4')}",
        TEST_POINT,
    ),
    "point-pearl": (
        f"point-pearl {POINT} --epochs 3 --train-tasks 4 --context 32 --transitions 16 --memory 3200",
        TEST_POINT,
    ),
    "point-oracle": (f"point-oracle {POINT}", TEST_POINT),
    "cheetah-direction-maml": (f"cheetah-direction-maml {POINT}", TEST_POINT),
}
OPTIONAL = {"--val-every": 1}


# ------------------------------------------------------------------------------------------- in a process of the tree


def call(*arguments: str) -> str:
    """`kshot ARGUMENTS` in this process; what it said."""
    from kshot import cli

    told = list(arguments)
    while True:
        said, code = io.StringIO(), None
        sys.argv = ["kshot", *told]
        with contextlib.redirect_stdout(said), contextlib.redirect_stderr(said):
            try:
                cli.main()
            except SystemExit as done:
                code = done.code
        text = said.getvalue()
        if code == 0:
            return text
        unknown = [flag for flag in OPTIONAL if code == 2 and "nrecognized" in text and flag in text and flag in told]
        if not unknown:
            raise RuntimeError(f"kshot {' '.join(told)}: exit code {code}: {text[-600:]}")
        for flag in unknown:
            at = told.index(flag)
            del told[at : at + 1 + OPTIONAL[flag]]


def bits(value: object) -> object:
    """Floats as text of all their bits."""
    if isinstance(value, dict):
        return {name: bits(v) for name, v in value.items()}
    if isinstance(value, list | tuple):
        return [bits(v) for v in value]
    return value.hex() if isinstance(value, float) else value


def records(folder: Path) -> list[dict]:
    rows = [json.loads(line) for line in (folder / "records.jsonl").read_text("utf-8").splitlines()]
    flat = [{**{k: v for k, v in row.items() if k != "metrics"}, **row["metrics"]} for row in rows]
    return [{k: v for k, v in sorted(row.items()) if k not in CLOCK} for row in flat]


def weights(path: Path) -> str:
    from safetensors import safe_open

    digest = hashlib.sha256()
    with safe_open(path, "pt") as file:
        for name in sorted(file.keys()):
            if name.startswith("learner."):
                tensor = file.get_tensor(name).contiguous()
                digest.update(f"{name} {tensor.dtype} {list(tensor.shape)}".encode())
                digest.update(tensor.numpy().tobytes())
    return digest.hexdigest()


def figures(results: object) -> list[dict]:
    """Of each row of `kshot evaluate --json` what both forms of results have: {"mse mean": ..., "mse path 1": ...}."""
    rows = [row for group in results.values() for row in group] if isinstance(results, dict) else results
    found = []
    for row in rows:
        out = {"num_tasks": row["num_tasks"], "seed": row["seed"]}

        def column(name: str, mean=None, half=None, path=(), per_task=(), out=out) -> None:
            if mean is None:
                return
            out[f"{name} mean"] = mean
            if half is not None:
                out[f"{name} half"] = half
            for step, m, h in path:
                out[f"{name} path {step}"], out[f"{name} path {step} half"] = m, h
            for k, v in enumerate(per_task):
                out[f"{name} task {k}"] = v

        if "columns" in row:
            for name, c in row["columns"].items():
                column(name, c["mean"], c.get("interval95"), c.get("path", ()), c.get("per_task", ()))
        elif "metric" in row:
            column(row["metric"], row["mean"], row["interval95"], row["per_step"], row["per_task"])
            column("ece", row["ece"])
        elif "log_likelihood" in row:
            column("log_likelihood", row["log_likelihood"], row["interval95"])
            for name in ("gap", "joint", "joint_gap", "mse"):
                column(name, row[name], row[f"{name}_interval95"])
            for k, v in row["coverage"].items():
                column(f"coverage {k}", v, row.get("coverage_interval95", {}).get(k))
            for name in ("oracle", "joint_oracle", "calibration", "sharpness"):
                column(name, row[name])
        else:  # returns
            path = list(zip(range(99), row["mean"], row["interval95"], strict=False))
            column("return", row["mean"][-1], row["interval95"][-1], path, row["per_task"][-1])
        found.append(out)
    return found


def worker(out: Path, chosen: list[str]) -> None:
    import kshot

    print(f"{kshot.__file__}", flush=True)
    done: dict[str, object] = {}
    for name, (train, evaluate) in RUNS.items():
        if chosen and name not in chosen:
            continue
        began = time.monotonic()
        try:
            call("train", *train.split(), "--out", name, "--json", f"{name}-record.json")
            call("train", *train.split(), "--out", f"{name}-broken", "--minutes", "1e-6")
            call("train", *train.split(), "--out", f"{name}-broken", "--resume")
            one, other = Path(name), Path(f"{name}-broken")
            call("evaluate", name, *evaluate.split(), "--json", f"{name}.json")
            kept = json.loads(Path(f"{name}-record.json").read_text())
            best = {k: v for k, v in (kept.get("best") or {}).items() if k in ("step", "mean", "interval95")}
            done[name] = bits(
                {
                    "records": records(one),
                    "weights": weights(one / "last.safetensors"),
                    "best": best,
                    "best weights": weights(one / "best.safetensors") if (one / "best.safetensors").exists() else None,
                    "resume is equal": records(one) == records(other)
                    and weights(one / "last.safetensors") == weights(other / "last.safetensors"),
                    "figures": figures(json.loads(Path(f"{name}.json").read_text())["results"]),
                }
            )
        except Exception as error:
            done[name] = {"error": f"{type(error).__name__}: {error}"[:900]}
        shown = done[name].get("error") or f"resume equal: {done[name]['resume is equal']}"
        print(f"{name}: {time.monotonic() - began:.1f} s, {shown}", flush=True)
    if not chosen or "fit" in chosen:
        try:
            found: dict[str, object] = {}
            call("fit", str(DATA / "test"), "--out", "a.kshot", "--json", "fit.json")
            kept = json.loads(Path("fit.json").read_text())
            found["fit"] = {k: v for k, v in kept.items() if k not in ("command", "machine")}
            call("predict", "a.kshot", str(DATA / "test"), str(DATA / "val"), "--csv", "a.csv")
            with open("a.csv", encoding="utf-8", newline="") as file:
                found["predict"] = list(csv.reader(file))
            done["fit"] = bits(found)
        except Exception as error:
            done["fit"] = {"error": f"{type(error).__name__}: {error}"[:900]}
        print(f"fit: {done['fit'].get('error', 'done')}", flush=True)
    if not chosen or "curve" in chosen:
        try:
            rows = ["x,a"] + [f"{k},{'' if k % 4 == 1 else round(math.sin(k / 3), 3)}" for k in range(20)]
            Path("series.csv").write_text("\n".join(rows) + "\n")
            call("curve", "series.csv", "--out", "curve.csv", "--samples", "2")
            with open("curve.csv", encoding="utf-8", newline="") as file:
                done["curve"] = {"rows": list(csv.reader(file))}
        except Exception as error:
            done["curve"] = {"error": f"{type(error).__name__}: {error}"[:900]}
        print(f"curve: {done['curve'].get('error', 'done')}", flush=True)
    out.write_text(json.dumps(done, indent=1) + "\n")


def measure(tree: Path, out: Path, chosen: list[str]) -> None:
    if not DATA.exists():
        raise SystemExit(f"{DATA} is not there: python again.py --data TREE makes it")
    python = sys.executable
    env = {k: v for k, v in os.environ.items() if not k.startswith("KSHOT")}
    env |= {"PYTHONPATH": str(tree.resolve()), "OMP_NUM_THREADS": "1", "MKL_NUM_THREADS": "1"}
    folder = Path(tempfile.mkdtemp(prefix="again-"))
    env["KSHOT_CACHE"] = str(folder / "cache")
    try:
        subprocess.run([python, __file__, "--worker", str(out.resolve()), *chosen], cwd=folder, env=env, check=True)
    finally:
        shutil.rmtree(folder)


# -------------------------------------------------------------------------------------------------------- comparison


def leaves(value: object, at: str = "") -> dict[str, object]:
    if isinstance(value, dict):
        return {k: v for name, part in value.items() for k, v in leaves(part, f"{at}/{name}").items()}
    if isinstance(value, list):
        return {k: v for i, part in enumerate(value) for k, v in leaves(part, f"{at}/{i}").items()}
    return {at: value}


def number(value: object) -> float | None:
    with contextlib.suppress(TypeError, ValueError):
        return float.fromhex(value) if isinstance(value, str) else float(value)
    return None


def compare(a: dict, b: dict) -> bool:
    good = True
    for name in [*a, *(n for n in b if n not in a)]:
        if name not in a or name not in b:
            print(f"{name}: only in {'the first' if name in a else 'the second'}")
            good = False
            continue
        if "error" in a[name] or "error" in b[name]:
            print(f"{name}: error: {a[name].get('error')} / {b[name].get('error')}")
            good = False
            continue
        equal, other, count = [], [], 0
        for part in sorted({*a[name], *b[name]}, key=list({**a[name], **b[name]}).index):
            one, two = leaves(a[name].get(part)), leaves(b[name].get(part))
            shared = [k for k in one if k in two]
            differ = [k for k in shared if one[k] != two[k]]
            if part == "resume is equal":
                if not one == two == {"": True}:
                    other.append(f"a resumed run ends as an unbroken one: {one.get('')} / {two.get('')}")
                continue
            count += len(shared)
            if alone := [k for k in (*one, *two) if k not in shared]:
                other.append(f"{part}: {len(alone)} in one of them alone ({alone[0]})")
            if not differ:
                equal.append(part)
                continue
            largest = 0.0
            for k in differ:
                x, y = number(one[k]), number(two[k])
                if x is None or y is None or not (math.isfinite(x) and math.isfinite(y)):
                    largest = math.inf
                else:
                    largest = max(largest, abs(x - y) / max(abs(x), abs(y), 1e-300))
            k = differ[0]
            x, y = number(one[k]), number(two[k])
            first = f"{k}: {one[k]} / {two[k]}" if x is None or y is None else f"{k}: {x!r} / {y!r}"
            other.append(f"{part}: {len(differ)} of {len(shared)} differ, by {largest:.2g} at most; {first}")
        good &= not other
        print(
            f"{name:24} {f'equal bits, {count} values' if not other else 'equal: ' + (', '.join(equal) or 'nothing')}"
        )
        for text in other:
            print(f"{'':24}   {text}")
    return good


def make_data(tree: Path) -> None:
    sys.path.insert(0, str(tree.resolve()))
    from PIL import Image

    from kshot.data import load

    for split, count in (("train", 12), ("val", 6), ("test", 8)):
        bank = load("glyphs", split, size=28)
        for c in range(count):
            folder = DATA / split / f"{split}{c:02d}"
            folder.mkdir(parents=True)
            images = bank.images[20 * c : 20 * c + 8]
            for i, image in enumerate(images):
                Image.fromarray(255 - image[0].numpy() if bank.ink else image[0].numpy()).save(folder / f"{i}.png")


if __name__ == "__main__":
    if sys.argv[1] == "--worker":
        worker(Path(sys.argv[2]), sys.argv[3:])
    elif sys.argv[1] == "--compare":
        raise SystemExit(0 if compare(*(json.loads(Path(p).read_text()) for p in sys.argv[2:4])) else 1)
    elif sys.argv[1] == "--data":
        make_data(Path(sys.argv[2]))
    else:
        measure(Path(sys.argv[1]), Path(sys.argv[2]), sys.argv[3:])
