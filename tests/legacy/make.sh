#!/usr/bin/env bash
# Makes what is in this folder again: bash tests/legacy/make.sh TREE LATER, checkouts of d82f3ac and of 01c200d; PYTHON
# names a Python that has what kshot needs. Commands are those of commands.txt. Every run is stopped after two of its four
# steps (a limit of no minutes ends it after each one); what it gives when it is resumed is kept in expected/.
# LATER makes one figure alone: between the two, the test tasks of functions got a number of points each.
set -euo pipefail
later=$(cd "$2" && pwd)
export PYTHONPATH=$(cd "$1" && pwd) OMP_NUM_THREADS=1 MKL_NUM_THREADS=1
python=${PYTHON:-python}
cd "$(dirname "$0")"
rm -rf runs expected drawings
mkdir -p runs expected

"$python" - <<'PY'
"""drawings/SPLIT/CLASS/I.png: a class is a line through five places, an example moves each of them a little."""
import os
import numpy as np
from PIL import Image, ImageDraw

rng = np.random.default_rng(0)
for split, classes in (("train", "abcd"), ("val", "efg"), ("test", "hijk")):
    for name in classes:
        line = rng.uniform(4, 24, (5, 2))
        os.makedirs(f"drawings/{split}/{name}")
        for i in range(4):
            image = Image.new("L", (28, 28), 255)
            ImageDraw.Draw(image).line([tuple(p) for p in line + rng.normal(0, 1, (5, 2))], 0, 2)
            image.convert("1").save(f"drawings/{split}/{name}/{i}.png", optimize=True)

x = np.linspace(0, 10, 20)
with open("series.csv", "w") as file:
    print("x,wave,line", file=file)
    for k, value in enumerate(x):
        cells = "" if k % 5 == 2 else f"{20 + 3 * np.sin(value):.3f}", "" if k % 7 == 3 else f"{5 - value / 2:.3f}"
        print(f"{value:.3f},{cells[0]},{cells[1]}", file=file)
PY

kshot() { "$python" -m kshot "$@"; }

resumed=$(mktemp -d)
while IFS='|' read -r name train evaluate; do
  [[ $name == \#* ]] && continue
  name=${name// /}
  kshot train $train --out "runs/$name" --minutes 1e-6
  kshot train $train --out "runs/$name" --minutes 1e-6 --resume
  of=$([[ $name == process ]] && echo "$later" || echo "$PYTHONPATH")
  PYTHONPATH=$of kshot evaluate "runs/$name" $evaluate --json "expected/$name.json"
  cp -r "runs/$name" "$resumed"
  kshot train $train --out "$resumed/$name" --resume
  cp "$resumed/$name/records.jsonl" "expected/$name.jsonl"
done < commands.txt

train=$(sed -n 's/^protonet *|\([^|]*\)|.*/\1/p' commands.txt)
kshot train $train --precision float32 --out "$resumed/body"
kshot fit drawings/test --model "$resumed/body" --out own.kshot
rm -r "$resumed/body"
kshot fit drawings/test --out shipped.kshot
for name in own shipped; do kshot predict $name.kshot drawings/test drawings/val --csv "expected/$name.csv"; done
"$python" - <<'PY'
from kshot.estimators import FewShotRegressor
from kshot.tasks import GaussianProcess

FewShotRegressor().meta_fit(GaussianProcess("rbf"), "cnp", steps=20, batch=4, width=8, judged=20).save("own.safetensors")
PY
for model in runs/process own.safetensors; do
  kshot curve series.csv --model $model --out "expected/curve-$(basename ${model%.safetensors}).csv"
done

"$python" - "$resumed" <<'PY'
"""The weights at the ends of the runs, in one file; and of the JSON files what does not depend on the machine."""
import json
import pathlib
import sys
from safetensors.torch import load_file, save_file

final = {}
for folder in sorted(pathlib.Path(sys.argv[1]).iterdir()):
    tensors = load_file(folder / "last.safetensors")
    final |= {f"{folder.name}/{name}": t for name, t in tensors.items() if name.startswith("learner.")}
save_file(final, "expected/final.safetensors")
for path in pathlib.Path("expected").glob("*.json"):
    path.write_text(json.dumps(json.loads(path.read_text())["results"]) + "\n")
PY
rm -r "$resumed"
du -sh .
