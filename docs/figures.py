"""Make the charts of docs/results.md and docs/how-many.md from benchmarks/results, and docs/series.png.

    python docs/figures.py

Bars and points are figures of records. Figures of papers are in `PAPERS` and `RETURNS`, as in the tables of the pages.
"""

from __future__ import annotations

import csv
import json
import re
from pathlib import Path
from typing import Any

import matplotlib

matplotlib.use("agg")
import matplotlib.pyplot as plt

from kshot.scoring.scores import Scores

HERE = Path(__file__).resolve().parent
RESULTS = HERE.parent / "benchmarks" / "results"
OURS, PAPER, GREY = "#3f51b5", "#ef6c00", "#9e9e9e"
INDUCTIVE, TRANSDUCTIVE = "inductive", "transductive"

PAPERS = [  # what, record, mode, the paper's accuracy in %
    ("protonet, 5-way 1-shot", "omniglot-5way-1shot-protonet", INDUCTIVE, 98.8),
    ("protonet, 5-way 5-shot", "omniglot-5way-5shot-protonet", INDUCTIVE, 99.7),
    ("protonet, 20-way 1-shot", "omniglot-5way-1shot-protonet-20way", INDUCTIVE, 96.0),
    ("protonet, 20-way 5-shot", "omniglot-5way-5shot-protonet-20way", INDUCTIVE, 98.9),
    ("MAML, 5-way 1-shot, 1 query", "omniglot-5way-1shot-maml-1query", TRANSDUCTIVE, 98.7),
    ("MAML, 5-way 5-shot", "omniglot-5way-5shot-maml", TRANSDUCTIVE, 99.9),
    ("MAML, 20-way 1-shot (short run)", "omniglot-20way-1shot-maml", TRANSDUCTIVE, 95.8),
    ("MAML, 20-way 5-shot (short run)", "omniglot-20way-5shot-maml", TRANSDUCTIVE, 98.9),
    ("ANIL, 20-way 1-shot (short run)", "omniglot-20way-1shot-anil", TRANSDUCTIVE, 96.2),
    ("Reptile, 5-way 1-shot (short run)", "omniglot-5way-1shot-reptile", TRANSDUCTIVE, 97.68),
]
RETURNS = [  # what, (record, result) of each training seed, the paper's return after one gradient step
    ("half-cheetah\ndirection", [("cheetah-direction-maml", f"maml-trpo (seed {k})") for k in range(3)], 293.2),
    ("ant\ndirection", [(f"ant-direction-maml{end}", "maml-trpo") for end in ("", "-seed1")], 499.1),
    ("ant\nvelocity", [("ant-velocity-maml", "maml-trpo"),
                       *(("ant-velocity-maml-seed1", f"maml-trpo (seed {k})") for k in (1, 2))], 97.0),
    ("half-cheetah\nvelocity", [(f"cheetah-velocity-maml{end}", "maml-trpo") for end in ("", "-seed1", "-seed2")],
     -78.6),
]  # fmt: skip
AUGMENTED = {
    "support4": "support set fourfold",
    "queries-ops": "queries changed",
    "queries-cutmix": "CutMix of queries",
    "queries-metamix": "MetaMix of queries",
    "task-cutmix": "half of the classes by CutMix",
    "task-rotate": "half of the classes turned",
}


def record(name: str) -> Any:
    return json.loads((RESULTS / f"{name}.json").read_text("utf-8"))


def results(name: str) -> list[Scores]:
    return [Scores.from_dict(row) for row in record(name)["results"]]


def result(name: str, who: str) -> Scores:
    """The result of that name, or the first of a learner in that mode."""
    return next(r for r in results(name) if who in (r.name, r.mode) and not r.name.startswith("baseline"))


def accuracy(name: str, who: str = INDUCTIVE) -> tuple[float, float]:
    """In per cent, with half of its interval."""
    found = result(name, who)
    return 100 * found.mean, 100 * found.interval95


def percent(column: Any) -> tuple[float, float]:
    return 100 * column["mean"], 100 * column["interval95"]


def save(figure: Any, name: str) -> None:
    figure.tight_layout()
    figure.savefig(HERE / f"{name}.png", metadata={"Software": None})
    plt.close(figure)


def how_many() -> None:
    figure, axis = plt.subplots(figsize=(6.4, 3.8), dpi=120)
    for name, words in {"omniglot": "handwritten characters", "grocery": "photos of groceries"}.items():
        rows = record(f"classifier-{name}")["curve, 5 ways"]
        shots = [row["shots"] for row in rows]
        mean, half = zip(*(percent(row["accuracy"]) for row in rows), strict=True)
        axis.errorbar(shots, mean, half, marker="o", capsize=3, label=words)
    axis.set_xscale("log")
    axis.set_xticks([1, 2, 5, 10, 20], ["1", "2", "5", "10", "20"])
    axis.minorticks_off()
    axis.set_xlabel("images per class")
    axis.set_ylabel("accuracy, %")
    axis.set_title("five classes that the backbone never saw")
    axis.grid(alpha=0.3)
    axis.legend()
    save(figure, "how-many")


def beside_papers() -> None:
    figure, axis = plt.subplots(figsize=(7.6, 4.2), dpi=120)
    for row, (_, name, mode, published) in enumerate(PAPERS):
        mean, half = accuracy(name, mode)
        axis.plot([mean, published], [row, row], color=GREY, lw=1, zorder=1)
        axis.errorbar(
            mean, row, xerr=half, fmt="o", color=OURS, capsize=3, label="kshot, 95 % interval" if not row else ""
        )
        axis.plot(published, row, "D", color=PAPER, label="the paper" if not row else "")
    axis.set_yticks(range(len(PAPERS)), [words for words, *_ in PAPERS])
    axis.invert_yaxis()
    axis.set_xlabel("accuracy on Omniglot, %")
    axis.grid(axis="x", alpha=0.3)
    axis.legend(loc="lower center", bbox_to_anchor=(0.4, 1), ncols=2, frameon=False)
    save(figure, "results-omniglot")


def robots() -> None:
    figure, axes = plt.subplots(1, len(RETURNS), figsize=(7.6, 3.2), dpi=120)
    for axis, (words, seeds, published) in zip(axes, RETURNS, strict=True):
        for at, (name, who) in enumerate(seeds):
            _, mean, half = result(name, who).per_step[1]
            axis.errorbar(at, mean, half, fmt="o", color=OURS, capsize=3, label="kshot, a seed each" if not at else "")
        axis.axhline(published, color=PAPER, label="the paper")
        axis.set_xlim(-0.8, 2.8)
        axis.set_xticks([])
        axis.set_title(words, fontsize=10)
        axis.grid(axis="y", alpha=0.3)
        axis.set_xlabel(" ")  # room for the legend
    axes[0].set_ylabel("return after one step")
    figure.legend(*axes[0].get_legend_handles_labels(), loc="lower center", ncols=2, frameon=False, fontsize=9)
    save(figure, "results-robots")


def baselines() -> None:
    groups = {
        "glyphs": [("protonet", "demo-glyphs-5way-1shot", INDUCTIVE)],
        "Omniglot": [("protonet", "omniglot-5way-1shot-protonet", INDUCTIVE),
                     ("r2d2", "omniglot-5way-1shot-r2d2", INDUCTIVE), ("maml", "omniglot-5way-1shot-maml", INDUCTIVE)],
        "grocery photos": [("protonet", "grocery-5way-1shot-protonet", INDUCTIVE),
                           ("r2d2", "grocery-5way-1shot-r2d2", INDUCTIVE),
                           ("maml", "grocery-5way-1shot-maml", INDUCTIVE)],
    }  # fmt: skip
    figure, axis = plt.subplots(figsize=(7.6, 3.8), dpi=120)
    labels: list[str] = []
    middles = []
    for data, learners in groups.items():
        rows = {row.name: row for row in results(learners[0][1]) if row.mode == INDUCTIVE}
        bars = [(who, accuracy(name, mode), OURS) for who, name, mode in learners]
        bars += [
            (words, (100 * rows[f"baseline: {words}"].mean, 100 * rows[f"baseline: {words}"].interval95), GREY)
            for words in ("pre-trained", "pixels", "from scratch")
        ]
        pixels = {"Omniglot": "omniglot 5-way 1-shot", "grocery photos": "grocery 5-way 1-shot"}.get(data)
        if pixels:  # classified again, by a stronger rule
            row = record("pixels")["test"][pixels]
            bars = [(w, percent(row) if w == "pixels" else v, c) for w, v, c in bars]
        start = len(labels)
        for words, (mean, half), colour in bars:
            axis.bar(len(labels), mean, yerr=half, color=colour, capsize=2)
            labels.append(words)
        middles.append((data, (start + len(labels) - 1) / 2))
        labels.append("")
    axis.axhline(20, color="black", lw=0.8, ls=":")
    axis.set_xticks(range(len(labels)), labels, rotation=60, ha="right", fontsize=8)
    for data, middle in middles:
        axis.text(middle, 104, data, ha="center")
    axis.set_ylim(0, 112)
    axis.set_ylabel("5-way 1-shot accuracy, %\n(inductive; dotted: chance)")
    axis.grid(axis="y", alpha=0.3)
    save(figure, "results-baselines")


def augmentation() -> None:
    figure, axis = plt.subplots(figsize=(7.6, 3.6), dpi=120)
    for place, data in enumerate(("omniglot", "glyphs", "grocery")):
        usual = accuracy(f"augment-{data}-none")[0]
        found = [accuracy(f"augment-{data}-{variant}") for variant in AUGMENTED]
        axis.errorbar([mean - usual for mean, _ in found], [row + 0.22 * (place - 1) for row in range(len(found))],
                      xerr=[half for _, half in found], fmt="o", capsize=2, label=data)  # fmt: skip
    axis.axvline(0, color="black", lw=0.8)
    axis.set_yticks(range(len(AUGMENTED)), list(AUGMENTED.values()))
    axis.invert_yaxis()
    axis.set_xlabel("change of the accuracy, points (bars: 95 % interval of the accuracy)")
    axis.grid(axis="x", alpha=0.3)
    axis.legend()
    save(figure, "results-augmentation")


def processes() -> None:
    full = {"cnp": "", "acnp": "", "anp": "", "gnp": "", "tnpd": "", "convcnp": "", "np": "-2", "bnp": "-2",
            "convgnp": "-2"}  # fmt: skip
    rows = []
    for who, end in full.items():
        gap = Scores.from_dict(record(f"processes-gp-full{end}")[who]["gp-rbf"])["gap"]
        rows.append((gap.mean, gap.interval95, who))
    rows.sort()
    figure, axis = plt.subplots(figsize=(6.4, 3.4), dpi=120)
    axis.barh([who for *_, who in rows], [mean for mean, *_ in rows], xerr=[half for _, half, _ in rows], color=OURS,
              capsize=3)  # fmt: skip
    axis.invert_yaxis()
    axis.set_xlabel("gap to the optimal posterior, nats a value (less is better)")
    axis.grid(axis="x", alpha=0.3)
    save(figure, "results-processes")


def engine() -> None:
    rows = [row for row in record("engine-cpu")["rows"] if len(row["seconds"]) > 2]
    figure, axis = plt.subplots(figsize=(7.6, 3.6), dpi=120)
    names = [re.sub(r"^(ResNet-12|Conv4|MLP) ", r"\1, ", row["row"]["name"]) for row in rows]
    peers = sorted({who for row in rows for who in row["seconds"]} - {"kshot"})
    for place, who in enumerate(["kshot", *peers]):
        at = [index + 0.2 * (place - 1.5) for index, row in enumerate(rows) if who in row["seconds"]]
        own = [
            row["seconds"][who]["median"] / row["seconds"]["kshot"]["median"] for row in rows if who in row["seconds"]
        ]
        axis.barh(at, own, 0.2, label=who, color=OURS if who == "kshot" else None)
    axis.set_yticks(range(len(rows)), names, fontsize=8)
    axis.invert_yaxis()
    axis.set_xlabel("time of a meta-gradient, kshot = 1 (less is better)")
    axis.grid(axis="x", alpha=0.3)
    axis.legend(fontsize=8)
    save(figure, "results-engine")


def series() -> None:
    """Of `kshot curve examples/series.csv --out FILE`, made on the spot: the model is shipped."""
    import tempfile

    from kshot.cli.curve import Curve

    own = HERE.parent / "examples" / "series.csv"
    with tempfile.TemporaryDirectory() as folder:
        Curve(own, out=Path(folder) / "filled.csv", plot=HERE / "series.png").run()
        with (Path(folder) / "filled.csv").open(encoding="utf-8") as file:
            assert next(csv.reader(file))


def main() -> None:
    for chart in (how_many, beside_papers, robots, baselines, augmentation, processes, engine, series):
        chart()
        print(chart.__name__)


if __name__ == "__main__":
    main()
