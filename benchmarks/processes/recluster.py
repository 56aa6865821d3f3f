"""Records that counted the 16 tasks of a draw as independent: the widest interval by draws that they leave possible.

    python benchmarks/processes/recluster.py benchmarks/results/processes-gp-full.json ...

The tasks of a draw share a number of points or a family, so an interval has to count draws
(`kshot.scoring.intervals.interval95`). These records hold a mean and the half-width of an interval over tasks, not the
tasks, and the weights that were tested are not kept; so the interval by draws cannot be computed, but it has a bound:
the squared deviations of the G means of 16 tasks are at most those of all T tasks, `16 sum (m_g - m)^2 <= sum (x -
m)^2`, with equality where the tasks of a draw are all alike. With the standard deviation s over tasks,

    half-width <= t(G - 1) s sqrt((T - 1) / (T (G - 1)))

which takes the place of every half-width, in by_context too (nothing where all tasks are of one draw). What a record
had is kept beside it under "as_independent". A record that has draws already is left as it is.
"""

from __future__ import annotations

import json
import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import tyro

from kshot.scoring.intervals import student975

BATCH = 16  # tasks of a draw


@dataclass(frozen=True)
class Settings:
    """Widen the intervals of records."""

    records: tyro.conf.Positional[tuple[Path, ...]]
    """Files that `compare.py` wrote before it counted draws."""


def widest(half: float | None, tasks: int) -> float | None:
    """The bound for a half-width over so many tasks; None where they are one draw."""
    draws = tasks // BATCH
    if half is None or draws < 2:
        return None
    deviation = half * math.sqrt(tasks) / student975(tasks - 1)
    return student975(draws - 1) * deviation * math.sqrt((tasks - 1) / (tasks * (draws - 1)))


def widened(row: dict[str, Any]) -> dict[str, Any]:
    """A result, or the figures of one value after another, with intervals by draws."""
    tasks = row["num_tasks"]
    before = {name: value for name, value in row.items() if name.endswith("interval95")}
    found = row | {name: widest(half, tasks) for name, half in before.items()} | {"draws": tasks // BATCH}
    if "by_context" in row:
        before["by_context"] = row["by_context"]
        found["by_context"] = [[*r[:4], widest(r[4], r[2]), *r[5:]] for r in row["by_context"]]
    if "autoregressive" in row:
        found["autoregressive"] = widened(row["autoregressive"])
    return found | {"as_independent": before}


def main(settings: Settings) -> int:
    """Rewrite the records in place."""
    for path in settings.records:
        record = json.loads(path.read_text("utf-8"))
        for learner, rows in record.items():
            if isinstance(rows, dict) and "updates" in rows:
                for data, row in rows.items():
                    if isinstance(row, dict) and "draws" not in row:
                        rows[data] = widened(row)
                        new = rows[data]["interval95"]
                        print(f"{path.stem}, {learner} on {data}: {row['interval95']:.4f} -> {new:.4f}")
        path.write_text(json.dumps(record, indent=1) + "\n", "utf-8")
    return 0


if __name__ == "__main__":
    raise SystemExit(main(tyro.cli(Settings)))
