"""The REST interface: what it does, what it refuses, and that it keeps what its OpenAPI says (schemathesis)."""

from __future__ import annotations

import io
import json
import re
import signal
import subprocess
import sys
import threading
import time
import urllib.request
import zipfile
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pytest
import torch
from PIL import Image

pytest.importorskip("fastapi")
pytest.importorskip("httpx")
from fastapi.testclient import TestClient

from kshot.apps import FewShotClassifier
from kshot.apps.classify import fitted
from kshot.apps.classify.serve import Limits, Session, create_app
from kshot.apps.classify.serve import session as session_module
from kshot.apps.classify.serve.session import Refused, Store
from kshot.data import load
from kshot.storage.checkpoint import packed as safetensors_of


def png(picture: Any) -> bytes:
    out = io.BytesIO()
    Image.fromarray(np.asarray(picture)).save(out, "PNG")
    return out.getvalue()


def letters(ways: int = 3, each: int = 4) -> dict[str, list[bytes]]:
    """Printed letters, black on white."""
    bank, rng = load("glyphs", "test"), np.random.default_rng(0)
    found = {}
    for c in rng.choice([c for c in range(len(bank.classes)) if bank.counts[c] >= each], ways, replace=False):
        rows = int(bank.starts[c]) + rng.permutation(int(bank.counts[c]))[:each]
        found[f"letter {c}"] = [png(255 - bank.images[r, 0].numpy()) for r in rows]
    return found


def sent(pictures: list[bytes]) -> list[Any]:
    return [("pictures", (f"{k}.png", blob, "image/png")) for k, blob in enumerate(pictures)]


def test_from_pictures_to_answers_and_back_from_the_file() -> None:
    client, some = TestClient(create_app(page=False)), letters()
    made = client.post("/v1/classifiers", json={"model": "omniglot", "open_set": False})
    assert made.status_code == 201
    at = f"/v1/classifiers/{made.json()['id']}"
    for label, pictures in some.items():
        told = client.post(f"{at}/fit", data={"label": label}, files=sent([*pictures[:2], b"no picture"]))
        assert told.status_code == 200
        assert told.json()["refused"] == {"2": "not a JPEG, PNG or WebP image"}
    about = client.get(at).json()
    assert about["classes"] == dict.fromkeys(sorted(some), 2)
    assert 0 <= about["left_out_accuracy"] <= 1
    asked = [blob for pictures in some.values() for blob in pictures[2:]]
    truth = [label for label, pictures in some.items() for _ in pictures[2:]]
    answers = client.post(f"{at}/predict", files=sent([*asked, b"nothing"])).json()["answers"]
    assert np.mean([a["label"] == t for a, t in zip(answers, truth, strict=False)]) > 0.6
    assert all(abs(sum(a["probabilities"].values()) - 1) < 1e-6 for a in answers[:-1])
    for answer in answers[:-1]:
        assert abs(sum(answer["p_classes"].values()) + answer["p_none"] - 1) < 1e-6
        assert answer["p_none"] == 0  # without open_set
    assert answers[-1]["label"] is None
    assert answers[-1]["p_none"] is None
    assert answers[-1]["error"]
    file = client.get(f"{at}/file").content
    again = client.post("/v1/classifiers/load", files={"file": ("a.kshot", file)})
    assert again.status_code == 201
    same = client.post(f"/v1/classifiers/{again.json()['id']}/predict", files=sent(asked)).json()["answers"]
    assert [a["probabilities"] for a in same] == [a["probabilities"] for a in answers[:-1]]
    assert client.delete(at).status_code == 204
    assert client.get(at).status_code == 404


def test_none_and_the_classes_share_one(monkeypatch: pytest.MonkeyPatch) -> None:
    """REST and the page give P(none) and P(class), which sum to 1; the page shows the best and the sum of the rest."""
    from kshot.apps.classify.serve import markup

    judge = FewShotClassifier.judge
    monkeypatch.setattr(
        FewShotClassifier, "judge", lambda self, *given: [a._replace(p_none=0.25) for a in judge(self, *given)]
    )
    client, some = TestClient(create_app(page=False)), letters(7, 1)
    at = f"/v1/classifiers/{client.post('/v1/classifiers', json={}).json()['id']}"
    session = Session("omniglot")
    for label, pictures in some.items():
        client.post(f"{at}/fit", data={"label": label}, files=sent(pictures))
        session.add(label, pictures)
    asked = next(iter(some.values()))
    (said,) = client.post(f"{at}/predict", files=sent(asked)).json()["answers"]
    assert said["p_none"] == 0.25
    assert sum(said["p_classes"].values()) == pytest.approx(0.75)
    assert said["p_classes"] == pytest.approx({name: 0.75 * p for name, p in said["probabilities"].items()})
    assert sum(said["probabilities"].values()) == pytest.approx(1)
    answers, images, _ = session.judge(asked)
    assert images[0] is not None
    text = markup.answered(session, answers[0], images[0])
    shown = [float(p) for p in re.findall(r"<meter[^>]* value='([\d.]+)'", text)]
    assert len(shown) == markup.SHOWN + 2
    assert sum(shown) == pytest.approx(1, abs=1e-3)
    assert 0.25 in shown
    assert "2 other classes" in text
    percents = [int(p) for p in re.findall(r"<span>(\d+) %</span>", text)]
    assert sum(percents) == 100
    assert markup._percents([0.694, 0.206, 0.066, 0.034]) == [69, 21, 7, 3]  # each rounded: 69, 21, 7, 3
    assert markup._percents([0.686, 0.208, 0.068, 0.038]) == [68, 21, 7, 4]  # each rounded would be 69, 21, 7, 4
    assert markup._percents([1 / 3] * 3) == [34, 33, 33]
    assert markup._percents([1.0, 0.0]) == [100, 0]


def test_what_is_refused() -> None:
    small = Limits(classes=2, pictures=4, at_once=3, bytes=2000, pixels=10_000, request=50_000, sessions=2)
    client, some = TestClient(create_app(page=False, limits=small)), letters(2, 4)
    at = f"/v1/classifiers/{client.post('/v1/classifiers', json={}).json()['id']}"
    one = next(iter(some.values()))
    assert client.post(f"{at}/predict", files=sent(one[:1])).status_code == 409  # no classes yet
    for label in ("", " ", "x" * 61, "none of these"):
        assert client.post(f"{at}/fit", data={"label": label}, files=sent(one[:1])).status_code in (409, 422), label
    assert client.post(f"{at}/fit", data={"label": "a"}, files=sent(one)).status_code == 409  # 4 at once
    bomb = png(np.zeros((200, 200), np.uint8))
    heavy = png(np.random.default_rng(0).integers(0, 255, (90, 90), dtype=np.uint8))
    told = client.post(f"{at}/fit", data={"label": "a"}, files=sent([bomb, heavy])).json()["refused"]
    assert "200x200 pixels" in told["0"]
    assert "MiB, larger than" in told["1"]
    assert client.post(f"{at}/fit", data={"label": "a"}, files=sent(one[:3])).status_code == 200
    told = client.post(f"{at}/fit", data={"label": "b"}, files=sent(one[:3]))
    assert told.status_code == 409
    assert "more than 4" in told.json()["detail"]
    assert client.get(at).json()["classes"] == {"a": 3}
    large = client.post(f"{at}/predict", files=sent([bytes(60_000)]))
    assert large.status_code == 413
    # Sent in pieces, without its length.
    form = {"content-type": "multipart/form-data; boundary=x"}
    pieces = client.post(f"{at}/predict", content=(bytes(10_000) for _ in range(9)), headers=form)
    assert pieces.status_code == 413
    for blob in (b"", b"PK\3\4", bytes(100)):
        assert client.post("/v1/classifiers/load", files={"file": ("a", blob)}).status_code == 409
    assert client.post("/v1/classifiers", json={"model": "/etc/passwd"}).status_code == 422
    first = at
    for _ in range(2):
        client.post("/v1/classifiers", json={})
    assert client.get(first).status_code == 404  # the one longest unused went


def test_the_token() -> None:
    client = TestClient(create_app(page=False, token="secret"))
    assert client.get("/v1/health").status_code == 200
    for headers in ({}, {"Authorization": "Bearer wrong"}, {"Authorization": "Basic c2VjcmV0"}):
        told = client.post("/v1/classifiers", json={}, headers=headers)
        assert told.status_code == 401
        assert told.headers["WWW-Authenticate"] == "Bearer"
    assert client.post("/v1/classifiers", json={}, headers={"Authorization": "Bearer secret"}).status_code == 201


def test_a_session_forgets_what_is_taken_away() -> None:
    some = letters(3, 3)
    session = Session("omniglot")
    for label, pictures in some.items():
        session.add(label, pictures)
    whole = Session("omniglot")
    for label, pictures in list(some.items())[:2]:
        whole.add(label, pictures)
    session.remove([6, 7, 8])
    assert session.classes == whole.classes
    asked = next(iter(some.values()))
    ours, theirs = session.judge(asked)[0], whole.judge(asked)[0]
    assert [a.label for a in ours] == [a.label for a in theirs]
    np.testing.assert_array_equal([a.probabilities for a in ours], [a.probabilities for a in theirs])
    with pytest.raises(Refused, match="there is no image 17"):
        session.remove([17])
    session.remove(list(range(6)))
    assert session.classes == {}
    with pytest.raises(Refused, match="no classes yet"):
        session.judge(asked)


def test_numbers_of_images_do_not_change_hands() -> None:
    """Who asks for the removal of an image that went meanwhile is refused, and no other image goes in its place."""
    (one, first), (two, second) = letters(2, 2).items()
    session = Session("omniglot")
    session.add(one, first)
    session.add(two, second)
    assert session.ids == [0, 1, 2, 3]
    session.remove([1])
    with pytest.raises(Refused, match="there is no image 1"):
        session.remove([1, 2])
    assert session.classes == {one: 1, two: 2}
    session.undo()
    assert session.ids == [0, 1, 2, 3]
    with pytest.raises(Refused, match="nothing to undo"):
        session.undo()
    twin, images = session.twin(), session.decoded(first[:1])[0]
    session.remove([3])
    assert session.learn(one, images) == [4]  # 3 is not given again
    session.remove([0])
    session.undo()  # the last change alone
    assert session.ids == [0, 1, 2, 4]
    assert session.labels == [one, one, two, one]
    assert (twin.ids, len(twin.thumbs), twin.classes) == ([0, 1, 2, 3], 4, {one: 2, two: 2})


def test_what_is_kept_for_many_has_bounds(monkeypatch: pytest.MonkeyPatch) -> None:
    now = [0.0]
    monkeypatch.setattr(session_module, "monotonic", lambda: now[0])

    class Thing(NamedTuple):
        pictures: int

    store = Store[Thing](Limits(sessions=3, kept=10, seconds=100))
    for name in "abc":
        store.put(name, Thing(3))
    assert store.get("a") == Thing(3)  # used, so it is not the one that goes
    store.put("d", Thing(1))
    assert [store.get(name) is not None for name in "abcd"] == [True, False, True, True]
    store.put("d", Thing(9))  # 3 + 3 + 9 are more than 10
    assert [store.get(name) is not None for name in "acd"] == [False, False, True]
    store.put("e", Thing(1000))  # one that is larger than all may be stays alone
    assert [store.get(name) is not None for name in "de"] == [False, True]
    now[0] = 100.0
    assert store.get("e") is not None
    now[0] = 201.0
    assert store.get("e") is None
    assert store.get("e", lambda: Thing(2)) is store.get("e", lambda: Thing(3))
    assert store.remove("e")
    assert not store.remove("e")


def test_other_sites_and_other_names_are_refused() -> None:
    client = TestClient(create_app(page=False, hosts=("testserver",)))
    assert client.post("/v1/classifiers", json={}, headers={"Origin": "http://testserver"}).status_code == 201
    assert client.post("/v1/classifiers", json={}, headers={"Origin": "http://evil.example"}).status_code == 403
    assert client.get("/v1/health", headers={"Host": "evil.example"}).status_code == 403
    for odd in ("http://[", "null", "http://testserver.evil.example"):
        assert client.post("/v1/classifiers", json={}, headers={"Origin": odd}).status_code == 403, odd
    assert client.get("/v1/health", headers={"Host": "["}).status_code == 403
    headers = client.get("/v1/health").headers
    assert headers["Content-Security-Policy"] == "frame-ancestors 'none'"
    assert headers["X-Content-Type-Options"] == "nosniff"


def test_files_of_strangers_may_ask_for_little(tmp_path: Path) -> None:
    """Small files that would take much memory, much time, the network or another model are refused."""
    session, some = Session("omniglot"), letters(2, 2)
    for label, pictures in some.items():
        session.add(label, pictures)
    with zipfile.ZipFile(io.BytesIO(session.save())) as archive:
        parts = {name: archive.read(name) for name in archive.namelist()}
    manifest = json.loads(parts["manifest.json"])
    del manifest["sha256"]  # which whoever means harm leaves out, too

    def packed(**changed: Any) -> bytes:
        out, content = io.BytesIO(), dict(parts)
        support = changed.pop("support", None)
        if support is not None:
            content["support.safetensors"] = support
        content["manifest.json"] = json.dumps({**manifest, **changed}).encode()
        with zipfile.ZipFile(out, "w", zipfile.ZIP_DEFLATED) as archive:
            for name, blob in content.items():
                archive.writestr(name, blob)
        return out.getvalue()

    settings, many = manifest["settings"], [f"{k}" for k in range(4)]
    hostile = {
        "another model": packed(model={"name": "dinov2-small", "fingerprint": "", "weights": False}),
        "a path": packed(model={"name": "/etc/hostname", "fingerprint": "", "weights": False}),
        "no name": packed(model={"name": 123, "fingerprint": "", "weights": False}),
        "wide labels": packed(label_kind="V400000000"),
        "wide support": packed(support=safetensors_of({"support": torch.zeros(4, 2**20, dtype=torch.uint8)}, {})),
        "slow": packed(settings={**settings, "unlabelled": True, "steps": 1000}),
        "a control character": packed(labels=["a\x1b[31m", "a\x1b[31m", "b", "b"]),
        "a surrogate": packed(labels=["a\ud800", "a\ud800", "b", "b"]),
        "a long name": packed(labels=["a" * 100, "a" * 100, "b", "b"]),
        "many classes": packed(labels=many),
    }
    small = Session("omniglot", Limits(classes=3))
    small.add("own", next(iter(some.values())))
    for name, blob in hostile.items():
        with pytest.raises(Refused) as caught:
            small.load(blob)
        assert len(str(caught.value)) < 500, name
        assert "SHA-256" not in str(caught.value), name
        assert small.classes == {"own": 2}, name
    Session().load(packed())


def test_what_fails_leaves_a_session_as_it_was(monkeypatch: pytest.MonkeyPatch) -> None:
    some = letters(2, 2)
    session = Session("omniglot")
    (one, first), (two, second) = some.items()

    def broken(*_: Any) -> None:
        raise ValueError("no room")

    with monkeypatch.context() as patch:
        patch.setattr(fitted, "fit", broken)
        with pytest.raises(Refused, match="no room"):
            session.add(one, first)
        assert session.classes == {}
    session.add(one, first)
    with monkeypatch.context() as patch:
        patch.setattr(fitted, "fit", broken)
        with pytest.raises(Refused, match="no room"):
            session.add(two, second)
    assert session.classes == {one: 2}
    assert len(session.thumbs) == 2
    assert session.judge(first)[0][0].label == one
    session.remove([0, 1])
    session.add(two, second)
    assert session.classes == {two: 2}


def test_threads_of_one_session_do_not_disturb_each_other() -> None:
    session, pictures = Session("omniglot"), next(iter(letters(1, 1).values()))
    session.add("start", pictures)
    threads = [
        threading.Thread(target=lambda n=n: [session.add(f"class {n}", pictures) for _ in range(5)]) for n in range(4)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert session.classes == {"start": 1} | {f"class {n}": 5 for n in range(4)}
    assert len(session.thumbs) == len(session.labels) == 21


@pytest.mark.parametrize("token", [None, "secret"])
def test_it_keeps_what_its_openapi_says(token: str | None) -> None:
    schemathesis = pytest.importorskip("schemathesis")
    from hypothesis import HealthCheck, Phase, given, settings
    from schemathesis.specs.openapi.checks import positive_data_acceptance

    app = create_app(page=False, token=token, limits=Limits(pictures=20, sessions=5))
    headers = {"Authorization": f"Bearer {token}"} if token else {}
    schema = schemathesis.openapi.from_asgi("/openapi.json", app)
    client = TestClient(app, headers=headers)
    name = client.post("/v1/classifiers", json={"model": "omniglot"}).json()["id"]
    client.post(f"/v1/classifiers/{name}/fit", data={"label": "a"}, files=sent(letters(1, 1).popitem()[1]))
    tried = 0
    for operation in schema.get_all_operations():

        @given(case=operation.ok().as_strategy())
        @settings(max_examples=15, deadline=None, derandomize=True, database=None,
                  phases=[Phase.explicit, Phase.generate], suppress_health_check=list(HealthCheck))  # fmt: skip
        def check(case: Any) -> None:
            nonlocal tried
            if "name" in (case.path_parameters or {}) and tried % 2:  # also on one that is there
                case.path_parameters["name"] = name
            unsayable = [positive_data_acceptance] if case.path.endswith("/load") else []
            case.call_and_validate(headers=headers, excluded_checks=unsayable)
            tried += 1

        # What bytes are a .kshot file cannot be said in a schema: any other are refused, and rightly.
        check()
    assert tried > 80


def test_the_command_says_what_is_wrong(tmp_path: Path) -> None:
    bad = tmp_path / "bad.kshot"
    bad.write_bytes(b"nothing")
    for arguments, words in {
        ("--host", "0.0.0.0"): "give a token too",
        ("--port", "70000"): "0 to 65535",
        ("--token-from", "NOWHERE_SET"): "is empty",
        (str(bad),): "not a .kshot file",
        (str(tmp_path / "none.kshot"),): "none.kshot",
    }.items():
        done = subprocess.run(
            [sys.executable, "-m", "kshot", "serve", *arguments],
            capture_output=True,
            text=True,
            timeout=120,
            check=False,
        )
        assert done.returncode == 2, done.stderr
        assert words in done.stderr
        assert "Traceback" not in done.stderr


def test_the_command_serves_until_it_is_ended() -> None:
    process = subprocess.Popen(
        [sys.executable, "-m", "kshot", "serve", "--port", "0", "--no-page"], stdout=subprocess.PIPE, text=True
    )
    try:
        assert process.stdout is not None
        line = process.stdout.readline()
        address = re.search(r"http://127\.0\.0\.1:\d+", line)
        assert address is not None, line
        for _ in range(100):
            try:
                with urllib.request.urlopen(f"{address[0]}/v1/health", timeout=10) as answer:
                    assert json.load(answer)["status"] == "ok"
                break
            except OSError:
                time.sleep(0.1)
        else:
            pytest.fail("it does not answer")
    finally:
        process.send_signal(signal.SIGINT)
        assert process.wait(30) in (0, 130)
