"""A server that is asked by people who take their time: real sockets on this machine, bounded in count."""

from __future__ import annotations

import io
import json
import logging
import socket
import threading
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from typing import Any

import pytest

pytest.importorskip("fastapi")
pytest.importorskip("uvicorn")

from kshot.apps.classify.serve import Limits, bounded_log, create_app, server
from kshot.apps.classify.serve import http as serving

LIMITS = Limits(connections=12, header_seconds=1, body_seconds=1, stalled_seconds=1)
UNFINISHED = b"GET /v1/health HTTP/1.1\r\nHost: 127.0.0.1\r\nX-a: "
WAIT = 60  # seconds until a test gives up; none waits for so long


@contextmanager
def served(app: Any, limits: Limits = LIMITS) -> Iterator[int]:
    """The port of a server in a thread."""
    with socket.socket() as listening:
        listening.bind(("127.0.0.1", 0))
        running = server(app, limits=limits)
        thread = threading.Thread(target=running.run, args=([listening],), daemon=True)
        thread.start()
        while not running.started:
            time.sleep(0.01)
        yield listening.getsockname()[1]
        running.should_exit = True
        thread.join(WAIT)


@pytest.fixture(scope="module")
def app() -> Any:
    return create_app(page=False)


class Caller:
    """One connection."""

    def __init__(self, port: int, send: bytes = b"", room: int = 0):
        self.socket = socket.socket()
        self.socket.settimeout(WAIT)
        if room:  # bytes that the system takes for it before it reads them
            self.socket.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, room)
        self.socket.connect(("127.0.0.1", port))
        self.socket.sendall(send)

    def __enter__(self) -> Caller:
        return self

    def __exit__(self, *_: object) -> None:
        self.socket.close()

    def rest(self) -> bytes:
        """All that comes until the other side closes."""
        parts = []
        try:
            while part := self.socket.recv(1 << 16):
                parts.append(part)
        except ConnectionResetError:
            pass
        return b"".join(parts)


def health(port: int) -> int:
    """The status of a whole request; 0: none came."""
    with Caller(port, b"GET /v1/health HTTP/1.1\r\nHost: 127.0.0.1\r\nConnection: close\r\n\r\n") as caller:
        answer = caller.rest()
    return int(answer.split()[1]) if answer else 0


def test_unfinished_headers_neither_block_it_nor_fill_the_log(
    app: Any, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    patient = LIMITS._replace(header_seconds=WAIT)
    monkeypatch.setattr(serving, "PATIENCE", WAIT)
    with served(app, patient) as port, caplog.at_level(logging.WARNING), ExitStack() as held:
        callers = [held.enter_context(Caller(port, UNFINISHED)) for _ in range(60)]
        assert health(port) == 503  # full, and it says so
        monkeypatch.setattr(serving, "PATIENCE", 0)
        assert health(port) == 200  # the one that has waited longest gave way
        assert callers[0].rest() == b""
        refused = callers[-1].rest()  # closed without our doing
        assert b"503 Service Unavailable" in refused
        assert b"frame-ancestors 'none'" in refused
        for caller in callers:
            caller.socket.close()
        monkeypatch.setattr(serving, "PATIENCE", WAIT)
        end = time.monotonic() + WAIT
        while health(port) != 200:  # and when they are gone it is as before
            assert time.monotonic() < end
    assert [record.message for record in caplog.records] == []


def test_headers_and_bodies_that_trickle_are_ended(app: Any) -> None:
    """One byte now and then does not begin the time anew."""
    post = b"POST /v1/classifiers HTTP/1.1\r\nHost: 127.0.0.1\r\nContent-Type: application/json\r\n"
    post += b"Content-Length: 99\r\n\r\n"
    with served(app) as port, Caller(port, UNFINISHED) as head, Caller(port, post) as body, Caller(port) as silent:
        stop = threading.Event()

        def trickle() -> None:
            while not stop.wait(0.1):
                for caller in (head, body):
                    try:
                        caller.socket.sendall(b" ")
                    except OSError:
                        return

        thread = threading.Thread(target=trickle)
        thread.start()
        answers = [head.rest(), body.rest(), silent.rest()]
        stop.set()
        thread.join()
    assert b"the headers did not arrive in time" in answers[0]
    assert b"the body did not arrive in time" in answers[1]
    assert answers[2] == b""  # nothing was asked


def test_a_reader_that_stops_is_let_go() -> None:
    gone, size = threading.Event(), 4 << 20

    async def large(scope: Any, receive: Any, send: Any) -> None:
        if scope["type"] != "http":
            return
        await send({"type": "http.response.start", "status": 200, "headers": []})
        await send({"type": "http.response.body", "body": bytes(size), "more_body": True})
        await send({"type": "http.response.body", "body": b""})
        gone.set()

    ask = b"GET / HTTP/1.1\r\nHost: 127.0.0.1\r\nConnection: close\r\n\r\n"
    with served(large) as port:
        with Caller(port, ask, room=1 << 16) as caller:
            assert gone.wait(WAIT)  # it reads nothing
            assert len(caller.rest()) < size
        with Caller(port, ask, room=1 << 16) as slow:
            got = 0
            for _ in range(8):  # one that reads slowly gets all of it
                got += len(slow.socket.recv(1 << 16))
                time.sleep(0.2)
            assert got + len(slow.rest()) > size


def test_bodies_are_bounded_together_and_by_kind() -> None:
    limits = Limits(in_flight=150_000, request=100_000, words=5000, items=100, body_seconds=1)
    form = (
        b"POST /v1/classifiers/x/fit HTTP/1.1\r\nHost: 127.0.0.1\r\nContent-Type: multipart/form-data; boundary=x\r\n"
    )
    form += b"Content-Length: 90000\r\n\r\n--x\r\n"
    form += b'Content-Disposition: form-data; name="pictures"; filename="a"\r\n\r\n' + bytes(89_000)
    with served(create_app(page=False, limits=limits), limits) as port:

        def post(kind: bytes, body: bytes) -> bytes:
            head = (
                b"POST /v1/classifiers HTTP/1.1\r\nHost: 127.0.0.1\r\nConnection: close\r\nContent-Type: %s\r\n" % kind
            )
            with Caller(port, head + b"Content-Length: %d\r\n\r\n" % len(body) + body) as caller:
                return caller.rest()

        assert b" 413 " in post(b"application/json", b"[" * 6000)
        assert b"more than 100 values" in post(b"application/json", json.dumps([0] * 200).encode())
        assert b"more than 100 values" in post(b"application/x-www-form-urlencoded", b"a=1&" * 200)
        assert b" 201 " in post(b"application/json", b"{}")
        # Two that are not whole yet hold more than may be held: one of them is told so.
        with Caller(port, form) as one, Caller(port, form) as two:
            assert b" 503 " in one.socket.recv(1 << 16) + two.socket.recv(1 << 16)
        end = time.monotonic() + WAIT
        while b" 201 " not in post(b"application/json", b"{}"):
            assert time.monotonic() < end


def test_the_log_is_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    import sys

    out, now = io.StringIO(), [0.0]
    monkeypatch.setattr(sys, "stderr", out)
    monkeypatch.setattr(serving, "monotonic", lambda: now[0])
    with bounded_log():
        for _ in range(5000):
            print("line", file=sys.stderr)
        now[0] = 61.0
        print("later", file=sys.stderr)
    lines = out.getvalue().splitlines()
    assert lines[:200] == ["line"] * 200
    assert lines[200:] == [
        "kshot: 200 lines in a minute; what follows is counted and not shown",
        "kshot: 4800 lines were not shown",
        "later",
    ]
