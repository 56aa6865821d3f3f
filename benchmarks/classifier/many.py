"""Ten thousand photos through `kshot predict`: files a second, memory against their number, and a run that is killed in
the middle and gone on with.

    KSHOT_DATA=... python benchmarks/classifier/many.py --json benchmarks/results/classifier-many.json

The photos are those of the grocery set, JPEG of 96 pixels, some of them under two names.
"""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
import time
import zipfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import tyro

from kshot.cli._shared import write_record


@dataclass(frozen=True)
class Settings:
    """Measure `kshot predict`."""

    files: int = 10_000
    """How many."""
    json: Path | None = None
    """Write the figures to this file."""


def predict(classifier: Path, folder: Path, table: Path, *more: str, kill_after: int = 0) -> tuple[float, float]:
    """Seconds and peak MiB of a run; it is killed once `kill_after` rows are written."""
    command = [sys.executable, "-m", "kshot", "predict", str(classifier), str(folder), "--csv", str(table), *more]
    began, peak, part = time.perf_counter(), 0.0, table.with_name(f".{table.name}.part")
    with subprocess.Popen(command, stdout=subprocess.DEVNULL) as process:
        while process.poll() is None:
            try:
                for line in Path(f"/proc/{process.pid}/status").read_text("utf-8").splitlines():
                    if line.startswith("VmHWM"):
                        peak = max(peak, int(line.split()[1]) / 1024)
            except OSError:
                break
            if kill_after and part.exists() and part.read_bytes().count(b"\n") > kill_after:
                process.kill()
            time.sleep(0.05)
    if not kill_after and process.returncode:
        raise SystemExit(f"kshot predict ended with {process.returncode}")
    return time.perf_counter() - began, peak


def main(settings: Settings) -> int:
    source = Path(os.environ["KSHOT_DATA"]) / "grocery-store.zip"
    rows: dict[str, Any] = {}
    with tempfile.TemporaryDirectory() as name, zipfile.ZipFile(source) as archive:
        folder = Path(name)
        photos = sorted(n for n in archive.namelist() if n.endswith(".jpg"))
        test = [n for n in photos if "/test/" in n]
        classes = sorted({n.split("/")[2] for n in test})[:20]
        for label in classes:
            (folder / "support" / label).mkdir(parents=True)
            for k, n in enumerate([n for n in test if n.split("/")[2] == label][:5]):
                (folder / "support" / label / f"{k}.jpg").write_bytes(archive.read(n))
        for count in (settings.files // 10, settings.files):
            (folder / str(count)).mkdir()
            for k in range(count):
                (folder / str(count) / f"{k:06d}.jpg").write_bytes(archive.read(photos[k % len(photos)]))
        classifier = folder / "a.kshot"
        fit = [sys.executable, "-m", "kshot", "fit", str(folder / "support"), "--out", str(classifier)]
        subprocess.run(fit, check=True, stdout=subprocess.DEVNULL)
        for count in (settings.files // 10, settings.files):
            seconds, peak = predict(classifier, folder / str(count), folder / f"{count}.csv")
            rows[f"{count} files"] = {"seconds": seconds, "files_per_second": count / seconds, "peak_mib": peak}
            print(count, rows[f"{count} files"], flush=True)
        broken = folder / "broken.csv"
        predict(classifier, folder / str(settings.files), broken, kill_after=settings.files // 2)
        done = broken.with_name(f".{broken.name}.part").read_bytes().count(b"\n") - 1
        seconds, _ = predict(classifier, folder / str(settings.files), broken, "--resume")
        same = broken.read_bytes() == (folder / f"{settings.files}.csv").read_bytes()
        rows["killed"] = {"rows_when_killed": done, "seconds_to_go_on": seconds, "same_csv": same}
        print(rows["killed"])
    write_record(settings.json, rows, seeds={})
    return 0 if rows["killed"]["same_csv"] else 1


if __name__ == "__main__":
    raise SystemExit(main(tyro.cli(Settings)))
