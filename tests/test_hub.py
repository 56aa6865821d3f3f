"""Bodies of the hub: the real loading code on tiny models with random weights that lie in a folder."""

from __future__ import annotations

import json
import sys
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from kshot.apps import FewShotClassifier, FileError
from kshot.apps.classify import models
from kshot.apps.classify.models import hub

transformers = pytest.importorskip("transformers")


def saved(kind: str, folder: Path) -> Any:
    torch.manual_seed(0)
    small = {"hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2, "image_size": 28}
    model = {
        "dinov2": lambda: transformers.Dinov2Model(transformers.Dinov2Config(**small, patch_size=14)),
        "clip": lambda: transformers.CLIPVisionModel(
            transformers.CLIPVisionConfig(**small, patch_size=14, intermediate_size=32)
        ),
        "convnext": lambda: transformers.ConvNextModel(
            transformers.ConvNextConfig(hidden_sizes=[8, 16], depths=[1, 1], num_stages=2, image_size=28)
        ),
    }[kind]()
    model.eval().save_pretrained(folder)
    told = {"image_mean": [0.5, 0.4, 0.3], "image_std": [0.2, 0.3, 0.4], "crop_size": {"height": 28, "width": 28}}
    (folder / "preprocessor_config.json").write_text(json.dumps(told))
    return model


def pictures(seed: int = 0) -> tuple[list[np.ndarray], list[str]]:
    rng = np.random.default_rng(seed)
    found = [rng.integers(0, 120, (28, 28, 3), dtype=np.uint8) + (0, 130)[k % 2] for k in range(6)]
    return [x.astype(np.uint8) for x in found], ["dark", "bright"] * 3


@pytest.mark.parametrize("kind", ["dinov2", "clip", "convnext"])
def test_features_are_those_of_transformers(kind: str, tmp_path: Path) -> None:
    theirs = saved(kind, tmp_path / kind)
    model = models.get(tmp_path / kind)
    X, y = pictures()
    x = torch.from_numpy(np.stack([model.picture(p) for p in X]))
    assert list(x.shape) == [6, 3, 28, 28]
    mean, std = torch.tensor([0.5, 0.4, 0.3]).view(3, 1, 1), torch.tensor([0.2, 0.3, 0.4]).view(3, 1, 1)
    with torch.no_grad():
        wanted = theirs(pixel_values=(x.float() / 255 - mean) / std).pooler_output
    torch.testing.assert_close(model.encode(x), wanted, rtol=1e-4, atol=1e-5)
    classifier = FewShotClassifier(tmp_path / kind).fit(X, y)
    Q, truth = pictures(1)
    assert classifier.score(Q, truth) == 1
    # The file holds the weights, and needs neither the folder nor a network.
    classifier.save(tmp_path / "a.kshot")
    for path in (tmp_path / kind).iterdir():
        path.unlink()
    again = FewShotClassifier.load(tmp_path / "a.kshot")
    np.testing.assert_array_equal(again.predict_proba(Q), classifier.predict_proba(Q))


def test_a_file_that_asks_for_a_huge_network_is_refused(tmp_path: Path) -> None:
    saved("dinov2", tmp_path / "m")
    X, y = pictures()
    FewShotClassifier(tmp_path / "m").fit(X, y).save(tmp_path / "a.kshot")
    with zipfile.ZipFile(tmp_path / "a.kshot") as archive:
        parts = {name: archive.read(name) for name in archive.namelist()}
    weights = parts["model.safetensors"]
    length = int.from_bytes(weights[:8], "little")
    header = json.loads(weights[8 : 8 + length])
    told = json.loads(header["__metadata__"]["kshot"])
    for key, value in {
        "hidden_size": 10**8,
        "num_hidden_layers": 10**6,
        "mlp_ratio": 3,
        "model_type": "nothing",
    }.items():
        changed = {**told, "hub": {**told["hub"], "config": {**told["hub"]["config"], key: value}}}
        text = json.dumps({**header, "__metadata__": {"kshot": json.dumps(changed)}}).encode()
        text += b" " * (-len(text) % 8)
        with zipfile.ZipFile(tmp_path / "b.kshot", "w") as archive:
            for name, content in parts.items():
                own = len(text).to_bytes(8, "little") + text + weights[8 + length :]
                archive.writestr(name, own if name == "model.safetensors" else content)
        with pytest.raises(FileError):
            FewShotClassifier.load(tmp_path / "b.kshot")


def test_what_cannot_be_had_is_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    monkeypatch.setenv("HF_HOME", str(tmp_path))
    import huggingface_hub.constants

    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(tmp_path))
    with pytest.raises(hub.Missing, match="without a network take a shipped one"):
        models.get("dinov2-small")
    (tmp_path / "m").mkdir()
    (tmp_path / "m" / "config.json").write_text('{"model_type": "dinov2"}')
    with pytest.raises(hub.Missing, match="cannot be had"):  # no weights there
        models.get(tmp_path / "m")
    monkeypatch.setitem(sys.modules, "transformers", None)
    with pytest.raises(hub.Missing, match=r"pip install 'kshot\[pretrained\]'"):
        models.get("dinov2-small")
