"""Pictures are made, whole, beside and then in place; what they claim (how many right, which are wrong) is true."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image
from torch import Tensor

from kshot.core import PADDING, UNLABELLED, Batch, Learner, Task
from kshot.plots import draw_episode, plot_context, plot_shots, plot_sinusoid, plot_steps
from kshot.plots import scores as plots
from kshot.scoring.scores import SHOWN, Column, Mode, Scores
from kshot.storage.checkpoint import CheckpointError


class Corner(Learner):
    """The class is written in an image's first pixel: always right, but that classes in `confused` are called 0."""

    def __init__(self, confused: tuple[int, ...] = (), ways: int = 5):
        super().__init__()
        self.confused = confused
        self.ways = ways

    def init(self) -> Tensor:
        return torch.zeros(1)

    def adapt(self, state: Tensor, support: Batch) -> Tensor:
        assert not self.training
        return state

    def predict(self, state: Tensor, x: Tensor) -> Tensor:
        told = (x[:, 0, 0, 0] * 100).round().long()
        for c in self.confused:
            told = torch.where(told == c, 0, told)
        return (told[:, None] == torch.arange(self.ways)).float()


class Slopes(Learner):
    """y = step number * x."""

    def __init__(self, takes_steps: bool):
        super().__init__()
        if takes_steps:
            self.adapt_path = self.path

    def init(self) -> Tensor:
        return torch.zeros(1)

    def adapt(self, state: Tensor, support: Batch) -> Tensor:
        return state + 1

    def path(self, state: Tensor, support: Batch, steps: int | None = None) -> list[Tensor]:
        return [state + i for i in range((steps or 1) + 1)]

    def predict(self, state: Tensor, x: Tensor) -> Tensor:
        return state * x


def episode(ways: int = 5, shots: int = 1, queries: int = 3, channels: int = 1) -> Task:
    def batch(count: int) -> Batch:
        y = torch.arange(ways).repeat_interleave(count)
        x = torch.rand(len(y), channels, 12, 12, generator=torch.Generator().manual_seed(count))
        x[:, :, 0, 0] = y[:, None] / 100
        return Batch(x, y)

    return Task(batch(shots), batch(queries))


def result(
    name: str, means: list[float], mode: Mode = "inductive", metric: str = "accuracy", shots: int = 1, **more: Any
) -> Scores:
    column = Column(means[-1], 0.01, path=[(i, mean, 0.01) for i, mean in enumerate(means)], **SHOWN[metric])
    baseline = name.startswith("baseline")
    return Scores(name, {metric: column}, metric, 600, 0, mode, settings={"shots": shots}, baseline=baseline, **more)


def levels(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """The heights of level lines that are drawn."""
    from matplotlib.axes import Axes

    found: list[float] = []
    monkeypatch.setattr(Axes, "axhline", lambda self, y, **_: found.append(y))
    return found


@pytest.fixture
def texts(monkeypatch) -> list[str]:
    """What is written in a picture."""
    found: list[str] = []
    save = plots.save

    def spy(figure, path):
        for axes in figure.axes:
            written = [*axes.texts, axes.title, *axes.get_legend_handles_labels()[1]]
            legend = axes.get_legend()
            written += legend.get_texts() if legend else []
            found.extend(t if isinstance(t, str) else t.get_text() for t in written)
            found.extend(f"frame {patch.get_edgecolor()}" for patch in axes.patches)
        save(figure, path)

    monkeypatch.setattr(plots, "save", spy)
    return found


def whole(path: Path) -> Image.Image:
    image = Image.open(path)
    image.load()
    assert list(path.parent.iterdir()) == [path]  # no part file
    return image


def test_steps(tmp_path, texts):
    results = [
        result("maml", [0.2, 0.8, 0.9]),
        result("maml", [0.2, 0.85, 0.95], "transductive"),
        result("protonet", [0.2, 0.9]),
        result("baseline: pixels", [0.2, 0.5]),
    ]
    plot_steps(results, tmp_path / "steps.png", title="test")
    assert whole(tmp_path / "steps.png").width > 800
    for text in ("maml (inductive)", "maml (transductive)", "baseline: pixels"):
        assert text in texts
    assert any("600 tasks" in t and "95 %" in t and "seed 0" in t for t in texts)


def test_steps_of_one_pass_and_of_errors(tmp_path):
    plot_steps([result("protonet", [0.2, 0.9])], tmp_path / "deep" / "a.png")
    whole(tmp_path / "deep" / "a.png")
    plot_steps([result("baseline: pixels", [0.2, 0.9])], tmp_path / "b.svg")
    plot_steps([result("maml", [4.0, 0.9, 0.4], metric="mse")], tmp_path / "c.png")
    plot_steps([result("maml", [4.0, float("nan")], metric="mse")], tmp_path / "d.png")  # diverged
    with pytest.raises(ValueError, match="one metric"):
        plot_steps([result("a", [0.2]), result("b", [0.2], metric="mse")], tmp_path / "e.png")
    with pytest.raises(ValueError, match="no results"):
        plot_steps([], tmp_path / "e.png")
    with pytest.raises(ValueError, match="png"):
        plot_steps([result("a", [0.2])], tmp_path / "e.docx")


def test_shots(tmp_path, texts):
    points = [result("protonet", [0.2, 0.9 + s / 100], shots=s) for s in (5, 1)]
    points += [result("baseline: pixels", [0.2, 0.5], shots=s) for s in (1, 5, 10)]
    plot_shots(iter(points), tmp_path / "shots.png")
    whole(tmp_path / "shots.png")
    assert "protonet" in texts
    with pytest.raises(ValueError, match="does not say its shots"):
        plot_shots([Scores("x", {"accuracy": Column(1.0)}, "accuracy", 2, 0)], tmp_path / "no.png")
    plot_shots(points, tmp_path / "again.png", setting="shots")
    with pytest.raises(ValueError, match="does not say its ways"):
        plot_shots(points, tmp_path / "no.png", setting="ways")


def test_returns_are_steps_too(tmp_path, texts, monkeypatch):
    """A policy that takes no step is a level line, a baseline that takes as many is none."""
    found = levels(monkeypatch)
    results = [result("maml", [-90.0, -60.0], "", "return"), result("oracle", [-20.0], "", "return")]
    results.append(result("baseline: random", [-95.0, -96.0], "", "return"))
    plot_steps(results, tmp_path / "returns.png", across="adaptation steps")
    whole(tmp_path / "returns.png")
    assert found == [-20.0]
    assert {"maml", "oracle", "baseline: random"} <= set(texts)
    found.clear()
    plot_steps(
        [result("maml", [0.2, 0.3, 0.4]), result("protonet", [0.2, 0.9]), result("baseline", [0.1] * 9)],
        tmp_path / "a.png",
    )
    assert found == [90.0, 10.0]  # one pass, and a baseline of other numbers of steps


def test_context(tmp_path, texts):
    own = result(
        "convcnp",
        [0.5],
        "",
        "log_likelihood",
        details={"by_context": [(1, 3, 9, 0.2, 0.1, 0.4), (4, 6, 9, 0.7, 0.1, 1.0)]},
    )
    plot_context([own], tmp_path / "context.png", "gp-rbf")
    whole(tmp_path / "context.png")
    assert {"convcnp", "oracle"} <= set(texts)
    one = Scores("gp", {"log_likelihood": Column(-0.5, **SHOWN["log_likelihood"])}, "log_likelihood", 4, 0)
    plot_steps([one], tmp_path / "context.png")  # of one draw: no interval, and no steps
    whole(tmp_path / "context.png")


@pytest.mark.parametrize("channels", [1, 3])
def test_episode(tmp_path, texts, channels):
    learner = Corner(confused=(3,)).train()
    draw_episode(learner, episode(channels=channels), tmp_path / "e.png", ink=channels == 1)
    assert learner.training
    assert whole(tmp_path / "e.png").width > 500
    assert "5-way 1-shot: 12 of 15 right (80.0 %)" in texts
    assert texts.count("A → D") == 3  # guess → truth, and no other mistakes
    assert sum("→" in t for t in texts) == 3 + 1  # and the explanation
    frames = [t for t in texts if t.startswith("frame")]
    assert sorted(frames.count(f) for f in set(frames)) == [3, 5, 12]  # wrong, support, right


def test_episode_of_many_classes_with_names(tmp_path, texts):
    names = [f"a rather long name of the class with number {i:02d}" for i in range(30)]
    draw_episode(Corner(ways=30), episode(30, 2, 5), tmp_path / "e.png", names, max_queries=2, max_shots=1)
    whole(tmp_path / "e.png")
    assert "30-way 2-shot: 150 of 150 right (100.0 %)" in texts
    assert "queries (the first 2 of each class)" in texts
    assert "30" in texts  # numbers where letters don't suffice
    assert "a rather long na…ss with number 29" in texts
    with pytest.raises(ValueError, match="class_names has 3"):
        draw_episode(Corner(), episode(), tmp_path / "e.png", names[:3])


def test_episode_with_padding_and_unlabelled(tmp_path, texts):
    support, query = episode()
    support = Batch(
        torch.cat([support.x, support.x[:2]]), torch.tensor([0, 1, 2, PADDING, PADDING, UNLABELLED, UNLABELLED])
    )
    query = Batch(query.x, torch.where(query.y < 3, query.y, PADDING))
    draw_episode(Corner(), Task(support, query), tmp_path / "e.png")
    assert "3-way 1-shot: 9 of 9 right (100.0 %)" in texts
    assert "support + 2 unlabelled" in texts


def test_episode_refuses_what_it_cannot_draw(tmp_path):
    task = episode()
    flat = Task(Batch(task.support.x.flatten(1), task.support.y), task.query)
    with pytest.raises(ValueError, match="images"):
        draw_episode(Corner(), flat, tmp_path / "e.png")
    batch = Task(Batch(task.support.x[None], task.support.y[None]), Batch(task.query.x[None], task.query.y[None]))
    with pytest.raises(ValueError, match="One task of a batch"):
        draw_episode(Corner(), batch, tmp_path / "e.png")


def test_what_stood_there_stays_when_the_disk_is_full(tmp_path, monkeypatch):
    from matplotlib.figure import Figure

    path = tmp_path / "e.png"
    path.write_bytes(b"old")

    def full(self, file, **options):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(Figure, "savefig", full)
    with pytest.raises(CheckpointError, match="disk is full"):
        draw_episode(Corner(), episode(), path)
    assert path.read_bytes() == b"old"
    assert list(tmp_path.iterdir()) == [path]


def wave() -> Task:
    x = torch.linspace(-4, 4, 12)[:, None]
    y = 2 * torch.sin(x - 1)
    return Task(Batch(x[::3], y[::3]), Batch(x, y))


def test_sinusoid(tmp_path, texts):
    plot_sinusoid(Slopes(True), wave(), tmp_path / "s.png")
    whole(tmp_path / "s.png")
    for text in ("function", "support (4 points)", "after 0 steps", "after 1 step", "after 10 steps"):
        assert text in texts


def test_another_regression(tmp_path, texts):
    task = wave()
    task = Task(task.support, Batch(task.query.x, task.query.x**2))
    plot_sinusoid(Slopes(False), task, tmp_path / "s.png")
    assert "queries" in texts  # it is no sine wave, so none is drawn
    assert "function" not in texts
    assert "after 10 steps" not in texts  # this learner takes one
    with pytest.raises(ValueError, match="one function"):
        plot_sinusoid(Slopes(False), episode(), tmp_path / "s.png")
    with pytest.raises(ValueError, match="below 0"):
        plot_sinusoid(Slopes(False), task, tmp_path / "s.png", steps=(-1,))


def test_the_wave_is_found():
    x = torch.linspace(-4, 4, 9).double()
    found = plots._wave(x, 3 * torch.sin(x - 0.7))
    assert found is not None
    at = torch.tensor([0.3, 2.0]).double()
    torch.testing.assert_close(found(at), 3 * torch.sin(at - 0.7))
    assert plots._wave(x, x**2) is None


def test_matplotlib_is_imported_late():
    import subprocess
    import sys

    code = (
        "import sys, kshot.plots, kshot.scoring.evaluate; sys.exit('matplotlib' in sys.modules or 'rich' in "
        "sys.modules)"
    )
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
