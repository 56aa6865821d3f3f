"""Your own folder of photos, one folder per class: learn to distinguish new classes from one photo each.

    python examples/03_folder_of_photos.py [FOLDER] [--quick]

Without a folder it draws one: 24 classes of coloured shapes. Classes are split at random (by a seed) into training and
test, so that the tested classes are ones that the network never saw.
"""

import sys
import tempfile
from pathlib import Path

import torch
from PIL import Image, ImageDraw

from kshot.data import load
from kshot.learners import build
from kshot.nn import Conv4
from kshot.numerics import seeding, tree
from kshot.plots import draw_episode
from kshot.scoring.evaluate import evaluate
from kshot.tasks import Episodes
from kshot.training.meta import meta_train

COLOURS = {"red": (200, 50, 50), "green": (50, 170, 70), "blue": (60, 80, 200), "yellow": (220, 200, 60)}
SHAPES = {"triangle": 3, "square": 4, "pentagon": 5, "hexagon": 6, "circle": 0, "ring": 0}


def draw_photos(folder: Path, per_class: int = 12, side: int = 48) -> None:
    """A folder of class folders: shapes of a place, size, turn and shade that differ from photo to photo."""
    random = seeding.generator(0, "photos")

    def uniform(low: float, high: float) -> float:
        return low + (high - low) * float(torch.rand((), generator=random))

    for colour, rgb in COLOURS.items():
        for shape, corners in SHAPES.items():
            (folder / f"{colour}-{shape}").mkdir(parents=True)
            for i in range(per_class):
                grey = int(uniform(90, 170))
                photo = Image.new("RGB", (side, side), (grey, grey, grey))
                fill = tuple(int(channel + uniform(-30, 30)) for channel in rgb)
                x, y, radius = uniform(0.4, 0.6) * side, uniform(0.4, 0.6) * side, uniform(0.22, 0.38) * side
                pen = ImageDraw.Draw(photo)
                if corners:
                    pen.regular_polygon((x, y, radius), corners, rotation=uniform(0, 360), fill=fill)
                else:
                    box = (x - radius, y - radius, x + radius, y + radius)
                    pen.ellipse(box, fill=None if shape == "ring" else fill, outline=fill, width=5)
                photo.save(folder / f"{colour}-{shape}" / f"{i:02}.jpg", quality=90)


def learn(folder: Path, quick: bool) -> None:
    fractions = (0.6, 0.0, 0.4)  # of the classes: training, validation, test
    train = load(f"folder:{folder}", "train", size=32, channels=3, fractions=fractions)
    test = load(f"folder:{folder}", "test", size=32, channels=3, fractions=fractions)
    print(f"training on {train.num_classes} classes, testing on {test.num_classes} others: {', '.join(test.classes)}")

    train_tasks = Episodes(train, ways=min(10, train.num_classes), shots=1, queries=5, drop_small=True)
    test_tasks = Episodes(test, ways=5, shots=1, queries=5, drop_small=True)
    with seeding.seeded(0, "weights"):
        learner = build("protonet", Conv4(channels=3, width=32, size=32, population=True), ways=train_tasks.ways)
    for record in meta_train(
        learner, train_tasks, steps=60 if quick else 600, batch=1, meta_lr=2e-3, schedule="cosine"
    ):
        if record.step % (10 if quick else 100) == 0:
            print(f"step {record.step}: loss {record.loss:.3f}")

    result = evaluate(learner, test_tasks, 100 if quick else 600, seed=1)
    print(f"5-way 1-shot on unseen classes, {result.mode}: accuracy {result.mean:.3f} ± {result.interval95:.3f}")
    episode = tree.index(test_tasks.sample(seeding.generator(0, "picture"), 1), 0)
    draw_episode(learner, episode, Path("episode.png"))
    print("an episode and its guesses: episode.png")


def main() -> None:
    given = [argument for argument in sys.argv[1:] if not argument.startswith("-")]
    quick = "--quick" in sys.argv
    if given:
        learn(Path(given[0]), quick)
        return
    with tempfile.TemporaryDirectory() as scratch:
        draw_photos(Path(scratch) / "photos")
        learn(Path(scratch) / "photos", quick)


if __name__ == "__main__":
    main()
