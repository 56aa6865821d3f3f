"""Pre-training: a backbone learns to distinguish all training classes, by plain cross-entropy. No tasks, no episodes.

    repeat steps times: theta = optimizer step on cross_entropy(head(body(x)), class of x)     # x: any training images
    throw the head away

What comes of it is the baseline that meta-training has to beat:

    body = Conv4(population=True)
    for record in pretrain(body, bank, steps=1000):
        print(record.step, record.loss, record.metrics["accuracy"])

    FineTune(Classifier(body, ways=5), ways=5, fresh_head=True, mode="head")       # "Baseline": a new last layer
    FineTune(Classifier(body, ways=5), ways=5, fresh_head=True, mode="all", lr=1e-3)          # the whole network
    SimpleShot.pretrained(body, feature_mean(body, bank), ways=5)                  # nearest class mean, "CL2N"

The rate of mode="all" is small since a few examples move all weights: with 0.01, which suits the head, much of what was
learned is lost (on the bank of tests/test_pretrain.py). A learner made by hand is put into `eval()` mode before it
adapts (`evaluate` does it), so that the backbone uses its population statistics.

`save` keeps a finished backbone and `restore` loads it, also from the `last.safetensors` of a run that was given a
folder. `Supervised` is one step, and `kshot.training.loop` everything around it: a run that was killed and resumed is
bit-identical to an uninterrupted one (equal seed, backbone and bank, same machine).

Wei-Yu Chen, Yen-Cheng Liu, Zsolt Kira, Yu-Chiang Frank Wang, Jia-Bin Huang: A Closer Look at Few-shot Classification.
ICLR 2019, arXiv:1904.04232. Yan Wang, Wei-Lun Chao, Kilian Q. Weinberger, Laurens van der Maaten: SimpleShot:
Revisiting Nearest-Neighbor Classification for Few-Shot Learning. 2019, arXiv:1911.04623.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from kshot import nn as knn
from kshot._moved import renamed
from kshot.numerics import seeding
from kshot.storage import checkpoint
from kshot.training.loop import Optimiser, Outer, Record, Update, loop, norm_of, refuse_non_finite

if TYPE_CHECKING:
    from kshot.data.bank import Bank

__all__ = ["Classifier", "Supervised", "feature_mean", "pretrain", "restore", "save", "set_population_statistics"]


class Classifier(nn.Module):
    """A backbone and a linear last layer, `head`: `[N, ...]` -> features `[N, D]` -> scores `[N, ways]`.

    What `FineTune(..., fresh_head=True)` needs around a backbone that gives features.

    Args:
        body: inputs -> features `[N, D]`, with D as its attribute `out_features`. It is shared and not copied.
        ways: number of scores, at least 1.

    Raises:
        ValueError: a backbone without `out_features`.

    >>> Classifier(knn.Conv4(1, 8, size=16), ways=5)(torch.zeros(3, 1, 16, 16)).shape
    torch.Size([3, 5])
    """

    def __init__(self, body: nn.Module, ways: int):
        super().__init__()
        self.body = body
        device, dtype = knn.place(body)
        self.head: nn.Module = nn.Linear(_features(body), ways, device=device, dtype=dtype)

    def forward(self, x: Tensor, mask: Tensor | None = None) -> Tensor:
        return self.head(knn.call(self.body, None, x, mask))


class _Cosine(nn.Module):
    """Scores `scale * cos(feature, weight of the class)`, of `[N, D]` -> `[N, K]`."""

    def __init__(self, features: int, classes: int):
        super().__init__()
        self.weight = nn.Parameter(torch.empty(classes, features))
        nn.init.normal_(self.weight)  # only directions count
        self.scale = nn.Parameter(torch.tensor(10.0))  # 10: Gidaris and Komodakis 2018, arXiv:1804.09458

    def forward(self, x: Tensor) -> Tensor:
        return self.scale * F.linear(F.normalize(x, dim=-1), F.normalize(self.weight, dim=-1))


def pretrain(
    body: nn.Module,
    bank: Bank,
    *,
    steps: int,
    batch: int = 128,
    lr: float = 1e-3,
    optimizer: Literal["adam", "adamw", "sgd"] = "adam",
    schedule: Literal["constant", "linear", "cosine"] = "cosine",
    weight_decay: float = 0.0,
    rotations: int = 1,
    classifier: Literal["linear", "cosine"] = "linear",
    seed: int = 0,
    out: Path | str | None = None,
    resume: bool = False,
    stop: Callable[[], bool] | None = None,
) -> Iterator[Record]:
    """Train `body` in place to distinguish all classes of `bank`, yielding a `Record` after each step.

    The images of step i are drawn (with replacement) from `seeding.generator(seed, "pretrain", i)`, so equal seeds,
    backbones and banks give equal weights on the same machine. With the last step, the one at which `stop` said so and
    those that are saved, the backbone's population statistics are set from the training images
    (`set_population_statistics`) and it is put into `eval()` mode. Whoever leaves the loop with `break` does both
    himself.

    Args:
        body: inputs -> features `[N, D]`, with D as its attribute `out_features` and no last layer of its own
            (`Conv4(out=None)`). A batch norm should be `kshot.nn.BatchNorm(population=True)`.
        bank: the training classes, K of them, at least 2 (with their rotations).
        steps: total updates, at least 0.
        batch: images of an update. SimpleShot: 256; Chen et al.: 16.
        lr: rate at the first step, > 0. 1e-3 with Adam: Chen et al.; 0.1 with SGD: SimpleShot.
        optimizer: "adam" (Chen et al.), "adamw", or "sgd" with a momentum of 0.9 (SimpleShot).
        schedule: of the rate: "cosine" or "linear" (to 0), or "constant" (Chen et al.).
        weight_decay: of the optimiser, >= 0.
        rotations: 4 makes every class turned by 90, 180 and 270 degrees a class of its own, as in `Episodes`; or 1.
        classifier: "linear", or "cosine": scores are cosines with one weight vector per class ("Baseline++").
        seed: of the last layer and of the images. The backbone's weights are the caller's.
        out: folder for `last.safetensors`, which `restore` reads too, and `records.jsonl`; None keeps nothing.
        resume: continue from `out/last.safetensors` where there is one.
        stop: asked after each step; True saves and ends (SIGINT, a time limit).

    Returns:
        An iterator of records: `loss` is the cross-entropy of the batch, `metrics["accuracy"]` its share of right
        answers among all K classes, `meta_lr` the rate. Nothing is trained until it is asked for its records.

    Raises:
        ValueError: fewer than 2 classes, a backbone without `out_features`, with a last layer of its own, with running
            statistics or without anything to train, rotations of what cannot be turned, or a number out of range.
        NonFiniteLoss: (while training) the loss or its gradient is infinite or NaN; the weights are the last finite
            ones.
        CheckpointError: (while training) a checkpoint that cannot be written or read; another run is in `out`.

    Differs from the papers: images are drawn with replacement and not epoch by epoch, a cosine schedule (SimpleShot's
    code: steps), no augmentation of images; "cosine" has one learned scale and not one learned norm per class.

    >>> from kshot.data.bank import Bank
    >>> images = torch.tensor([0, 255]).repeat_interleave(8).view(16, 1, 1, 1).expand(16, 1, 2, 2).byte()
    >>> bank = Bank(images, torch.arange(2).repeat_interleave(8), ("black", "white"), "toy", "train")
    >>> body = knn.MLP(4, 8)
    >>> records = list(pretrain(body, bank, steps=50, batch=8, lr=0.1))
    >>> records[-1].metrics["accuracy"], feature_mean(body, bank).shape
    (1.0, torch.Size([8]))
    """
    if not 0 < lr < float("inf"):
        raise ValueError(f"lr={lr}: pass a positive learning rate, for instance 1e-3 with Adam")
    if classifier not in ("linear", "cosine"):
        raise ValueError(f"unknown classifier {classifier!r}: use 'linear' or 'cosine'")
    momentum = 0.9 if optimizer == "sgd" else 0.0
    outer = Outer(
        steps=steps, batch=batch, meta_lr=lr, optimizer=optimizer, momentum=momentum, schedule=schedule,
        weight_decay=weight_decay, seed=seed,
    )  # fmt: skip
    _check_turns(bank, rotations)
    classes = bank.num_classes * rotations
    if classes < 2:
        raise ValueError(
            f"{bank!r} has one class, and there is nothing to distinguish it from: use a split with at least 2 "
            "classes, or pass rotations=4 (a class turned is a class of its own)"
        )
    knn.require_functional(body)
    size = _features(body)
    if not any(p.requires_grad for p in body.parameters()):
        raise ValueError(f"{type(body).__name__} has no trainable parameters: there is nothing to pre-train")
    with torch.no_grad(), knn.evaluating(body):
        x, _ = _draw(bank, seeding.generator(seed, "pretrain", 0), 1, rotations, body)
        shape = list(body(x).shape)
    if shape != [1, size]:
        raise ValueError(
            f"{type(body).__name__} says out_features={size} but gives {shape} for one image: pass a backbone that "
            "gives its features [N, D], without a last layer of its own (out=None)"
        )
    with seeding.seeded(seed, "pretrain head"):
        network = Classifier(body, classes)
        if classifier == "cosine":
            device, dtype = knn.place(body)
            network.head = _Cosine(size, classes).to(device, dtype)
    stepper, own = Supervised(network, bank, outer, rotations), {"rotations": rotations, "classifier": classifier}
    return loop(stepper, outer, family="pretraining", settings=own, out=out, resume=resume, stop=stop)


class Supervised:
    """A stepper: one step along the gradient of the cross-entropy of a batch of images. See `pretrain`."""

    extendable = True

    def __init__(self, network: Classifier, bank: Bank, outer: Outer, rotations: int):
        self.network, self.bank, self.outer, self.rotations = network, bank, outer, rotations
        self.optimiser = Optimiser(network, outer)

    def __call__(self, i: int) -> Update:
        network, outer = self.network, self.outer
        network.train()  # the caller's loop may have evaluated it
        began = time.perf_counter()
        generator = seeding.generator(outer.seed, "pretrain", i)
        x, y = _draw(self.bank, generator, outer.batch, self.rotations, network.body)
        sampling = time.perf_counter() - began
        with seeding.seeded(outer.seed, "pretrain noise", i):  # dropout and the like
            scores = network(x)  # [B, K]
        loss = F.cross_entropy(scores, y)
        self.optimiser.torch.zero_grad(set_to_none=True)
        loss.backward()
        norm = norm_of(p.grad for p in self.optimiser.params if p.grad is not None)
        what = f"pre-training step {i}, on the images of seeding.generator({outer.seed}, 'pretrain', {i})"
        hint = f". The backbone is as before this step. Try a smaller learning rate than lr={outer.meta_lr}"
        refuse_non_finite(loss.detach(), norm, what, hint)
        rate = self.optimiser.step(i, norm)
        right = float((scores.detach().argmax(-1) == y).float().mean())
        return Update(float(loss.detach()), {"accuracy": right}, float(norm), rate, sampling)

    def tensors(self) -> dict[str, Tensor]:
        return {**self.network.state_dict(), **self.optimiser.tensors()}  # "body.*", "head.*", "optimizer.*"

    def numbers(self) -> dict[str, Any]:
        return self.optimiser.numbers()

    def restore(self, tensors: dict[str, Tensor], numbers: dict[str, Any]) -> None:
        checkpoint.load_into(self.network.body, tensors, "the checkpoint", "body.")
        checkpoint.load_into(self.network.head, tensors, "the checkpoint", "head.")
        self.optimiser.restore(tensors, numbers)

    def settle(self) -> None:
        body, outer = self.network.body, self.outer
        set_population_statistics(body, self.bank, batch=outer.batch, rotations=self.rotations, seed=outer.seed)
        body.eval()


def set_population_statistics(
    body: nn.Module, bank: Bank, *, batch: int = 128, batches: int = 16, rotations: int = 1, seed: int = 0
) -> None:
    """Set the population statistics of the backbone's batch norms from images of `bank`, as they are with these
    weights.

    `pretrain` does it at its end. A backbone without `kshot.nn.BatchNorm(population=True)` is left as it is.

    Args:
        body: inputs -> features.
        bank: the training classes.
        batch: images of one batch.
        batches: how many batches the statistics are averaged over, at least 1 (see `kshot.nn.recording`).
        rotations: 1, or 4: turned images too.
        seed: of the images, drawn from `seeding.generator(seed, "pretrain set_population_statistics", i)`.
    """
    if not any(isinstance(part, knn.BatchNorm) and part.population for part in body.modules()):
        return
    if batch < 1 or batches < 1:
        raise ValueError(f"batch={batch}, batches={batches}: both must be at least 1")
    _check_turns(bank, rotations)
    with torch.no_grad(), seeding.seeded(seed, "pretrain calibrate"), knn.recording(body):
        for i in range(batches):
            x, _ = _draw(bank, seeding.generator(seed, "pretrain calibrate", i), batch, rotations, body)
            body(x)


@torch.no_grad()
def feature_mean(body: nn.Module, bank: Bank, *, rotations: int = 1, batch: int = 256) -> Tensor:
    """The mean `[D]` of the backbone's features over all images of `bank`: the centre of `SimpleShot.set_mean`.

    The backbone is asked in `eval()` mode; afterwards every module has its own mode again. Sums are float64; the result
    has the features' dtype and device.

    Args:
        body: inputs -> features `[N, D]`, with population statistics if it has batch norms.
        bank: the training classes (Wang et al. 2019: the base classes), never those of the test.
        rotations: 1, or 4: over turned images too, for a backbone that was pre-trained on them.
        batch: images in memory at a time, at least 1. The mean does not depend on it, but for rounding.

    Raises:
        ValueError: a backbone whose features depend on the batch, or rotations of what cannot be turned.
    """
    if batch < 1:
        raise ValueError(f"batch={batch}: at least one image at a time is needed")
    _check_turns(bank, rotations)
    if any(isinstance(part, knn.BatchNorm) and not part.population for part in body.modules()):
        raise ValueError(
            f"{type(body).__name__} normalises by the statistics of the batch at hand, so an image has no features of "
            "its own to average: make the backbone with population=True"
        )
    total = torch.zeros((), dtype=torch.float64)
    features = total
    with knn.evaluating(body):
        for turn in range(rotations):
            for rows in torch.arange(len(bank)).split(batch):
                features = body(_images(bank, rows, torch.full_like(rows, turn), rotations, body))  # [B, D]
                total = total.to(features.device) + features.double().sum(0)
    return (total / (len(bank) * rotations)).to(features.dtype)


def save(body: nn.Module, path: Path | str, settings: dict[str, Any] | None = None) -> None:
    """Keep a pre-trained backbone in one safetensors file: its weights, its population statistics, JSON-able
    `settings`.

    Raises:
        CheckpointError: see `kshot.storage.checkpoint.write_beside`.
    """
    tensors = {f"body.{name}": tensor for name, tensor in body.state_dict().items()}
    checkpoint.save(path, tensors, {"settings": settings or {}, "versions": checkpoint.versions()})


def restore(body: nn.Module, path: Path | str) -> dict[str, Any]:
    """Load what `save` wrote into a backbone of the same architecture; returns the settings.

    Raises:
        CheckpointError: see `kshot.storage.checkpoint.load`, or weights of another network.
    """
    tensors, info = checkpoint.load(path)
    checkpoint.load_into(body, tensors, path, "body.")
    return info["settings"]


# ------------------------------------------------------------------------------------------------------------- pieces


def _features(body: nn.Module) -> int:
    size = getattr(body, "out_features", None)
    if not isinstance(size, int):
        raise ValueError(
            f"{type(body).__name__} does not say how many features it gives: give it the attribute `out_features`"
        )
    return size


def _check_turns(bank: Bank, rotations: int) -> None:
    if rotations not in (1, 4):
        raise ValueError(f"rotations={rotations!r}: pass 1, or 4 to make every class turned by 90 degrees its own")
    shape = bank.images.shape[1:]
    if rotations == 4 and (len(shape) != 3 or shape[1] != shape[2]):
        raise ValueError(f"rotations=4 needs square images, but {bank!r} has {list(shape)}: pass rotations=1")


def _draw(bank: Bank, generator: torch.Generator, batch: int, rotations: int, body: nn.Module) -> tuple[Tensor, Tensor]:
    """Images `[B, ...]` and ids `[B]` in `0..K * rotations - 1` of their classes, as the backbone takes them."""
    picks = torch.randint(len(bank) * rotations, (batch,), generator=generator)  # [B]
    row, turn = picks % len(bank), picks // len(bank)
    x = _images(bank, row, turn, rotations, body)
    y = bank.targets[row.to(bank.targets.device)].to(x.device) + turn.to(x.device) * bank.num_classes
    return x, y


def _images(bank: Bank, row: Tensor, turn: Tensor, rotations: int, body: nn.Module) -> Tensor:
    """Rows `[B]` of the bank, turned `[B]` times by 90 degrees: `[B, C, H, Wd]` in 0..1, or features `[B, D]`."""
    device, dtype = knn.place(body)
    images = bank.images[row.to(bank.images.device)].to(device)
    for k in range(1, rotations):
        turned = (turn == k).nonzero().flatten().to(device)
        images[turned] = images[turned].rot90(k, (-2, -1))
    x = images.to(dtype)
    return x if images.is_floating_point() else x / 255


__getattr__ = renamed(__name__, {"calibrate": "set_population_statistics"})
