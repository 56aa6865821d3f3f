"""The HTTP server: uvicorn with bounds on how many connections there are and how long each may take its time.

    server(app).run()

A connection that does not send its headers, or its body, in time is closed, and so is one that does not read its
answer. There are at most `Limits.connections`. Above that the one that has waited longest for its headers gives
way to a new one; where none has waited for a second the new one is answered 503, without a line in the log.
"""

from __future__ import annotations

import asyncio
import json
import socket
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from time import monotonic
from typing import Any, ClassVar, TextIO

import h11
import uvicorn
from uvicorn.protocols.http.h11_impl import H11Protocol

from kshot.apps.classify.serve.guard import HEADERS
from kshot.apps.classify.serve.session import LIMITS, Limits

__all__ = ["bounded_log", "server"]

PATIENCE = 1.0  # seconds that a connection may wait for its headers before it has to give way
PARTING = 2.0  # seconds in which a refused one may read why
UNREAD = 1 << 17  # bytes of an answer that the system takes before they are read
QUEUE = 1024  # connections that wait to be accepted: above it they are tried again after a second
LINES, MINUTE = 200, 60.0  # of the log


def server(app: Any, host: str = "127.0.0.1", port: int = 7860, limits: Limits = LIMITS) -> uvicorn.Server:
    """A server of an ASGI application.

    Args:
        app: what `kshot.apps.classify.serve.create_app` made.
        host, port: where it listens.
        limits: `connections` and the three times.
    """
    most = _room(limits.connections)

    class Own(_Patient):
        own = limits._replace(connections=most)

    return _Server(
        uvicorn.Config(
            app, host=host, port=port, log_level="warning", http=Own, ws="none", server_header=False,
            timeout_graceful_shutdown=3,  # a page that is open does not keep it from ending
            backlog=max(1, most // 4),  # asyncio accepts so many in one go, before it looks at any of them
        )
    )  # fmt: skip


class _Server(uvicorn.Server):
    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        sockets = sockets or [self.config.bind_socket()]
        await super().startup(sockets)
        for listening in sockets:
            listening.listen(QUEUE)  # the system's queue may be longer than what is accepted in one go


def _room(most: int) -> int:
    """How many connections there may be, by how many files the process may open: those that are being accepted or
    refused take as many again, and 100 are for everything else.
    """
    try:
        import resource
    except ImportError:  # Windows has no such limit
        return most
    files, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
    return most if files == resource.RLIM_INFINITY else max(4, min(most, (files - 100) // 2))


class _Patient(H11Protocol):
    """One connection, whose patience has an end."""

    own = LIMITS
    refused: ClassVar[dict[_Parting, None]] = {}  # those that read why, in all of the process, the oldest first
    phase = ""  # what is waited for: "headers", "body", or "": nothing, it is our turn
    since = 0.0  # from when on, by the loop's clock
    late: asyncio.TimerHandle | None = None
    stalled: asyncio.TimerHandle | None = None

    def connection_made(self, transport: asyncio.Transport) -> None:  # pyright: ignore[reportIncompatibleMethodOverride]
        if len(self.connections) >= self.own.connections and not self._room_made():
            return self._refused(transport)
        # A small queue in the system: of a large one a slow reader takes much before it can be seen that it reads.
        transport.get_extra_info("socket").setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, UNREAD)
        super().connection_made(transport)
        self._watch()

    def _room_made(self) -> bool:
        """Whether one that has waited long for its headers gave way."""
        waiting = [c for c in self.connections if isinstance(c, _Patient) and c.phase == "headers"]
        longest = min(waiting, key=lambda c: c.since, default=None)
        if longest is None or self.loop.time() - longest.since < PATIENCE:
            return False
        longest.transport.abort()
        self.connections.discard(longest)
        return True

    def _refused(self, transport: asyncio.Transport) -> None:
        """Say so and leave: closed at once, the answer would be lost where something was sent already."""
        if len(self.refused) >= max(1, self.own.connections // 4):
            next(iter(self.refused)).leave()
        parting = _Parting(transport, self.refused)
        transport.set_protocol(parting)
        transport.write(_raw(503, "Service Unavailable", "too many connections: try again later", retry=True))
        if transport.can_write_eof():
            transport.write_eof()
        self.loop.call_later(PARTING, parting.leave)

    def data_received(self, data: bytes) -> None:
        super().data_received(data)
        self._watch()

    def on_response_complete(self) -> None:
        super().on_response_complete()
        self._watch()

    def _watch(self) -> None:
        """Start the clock of what is waited for now."""
        theirs = self.conn.their_state
        phase = {h11.IDLE: "headers", h11.SEND_BODY: "body"}.get(theirs, "")
        if phase == self.phase or self.transport.is_closing():
            return
        self.phase, self.since = phase, self.loop.time()
        self._stop()
        if phase:
            seconds = self.own.header_seconds if phase == "headers" else self.own.body_seconds
            self.late = self.loop.call_later(seconds, self._too_late)

    def _too_late(self) -> None:
        if self.transport.is_closing():
            return
        if self.phase == "headers" and not self.conn.trailing_data[0]:
            self.transport.close()  # nothing was asked
        elif self.phase == "body" and self.cycle.response_started:
            self.transport.abort()
        else:
            self.transport.write(_raw(408, "Request Timeout", f"the {self.phase} did not arrive in time"))
            self.transport.close()

    def pause_writing(self) -> None:
        super().pause_writing()
        left = self.transport.get_write_buffer_size()
        self.stalled = self.loop.call_later(self.own.stalled_seconds, self._moved, left)

    def _moved(self, before: int) -> None:
        """Whether the reader took something since."""
        left = self.transport.get_write_buffer_size()
        if left >= before:
            self.transport.abort()
        else:
            self.stalled = self.loop.call_later(self.own.stalled_seconds, self._moved, left)

    def resume_writing(self) -> None:
        super().resume_writing()
        if self.stalled is not None:
            self.stalled.cancel()

    def connection_lost(self, exc: Exception | None) -> None:
        self._stop()
        if self.stalled is not None:
            self.stalled.cancel()
        super().connection_lost(exc)

    def _stop(self) -> None:
        if self.late is not None:
            self.late.cancel()
            self.late = None

    def _unsupported_upgrade_warning(self) -> None:
        """A WebSocket is answered as any request; whoever asks for one writes nothing into the log."""


class _Parting(asyncio.Protocol):
    """A connection that was refused; what it sends is read and forgotten until it goes."""

    def __init__(self, transport: asyncio.Transport, among: dict[_Parting, None]):
        self.transport, self.among = transport, among
        among[self] = None

    def leave(self) -> None:
        self.among.pop(self, None)
        self.transport.abort()

    def eof_received(self) -> bool:
        return False  # closes it

    def connection_lost(self, exc: Exception | None) -> None:
        self.among.pop(self, None)


def _raw(status: int, phrase: str, why: str, retry: bool = False) -> bytes:
    """An answer outside of any request."""
    body = json.dumps({"detail": why}).encode()
    headers = [(b"content-type", b"application/json"), (b"content-length", b"%d" % len(body)),
               (b"connection", b"close"), *HEADERS]  # fmt: skip
    headers += [(b"retry-after", b"1")] if retry else []
    head = b"".join(b"%s: %s\r\n" % header for header in headers)
    return b"HTTP/1.1 %d %s\r\n%s\r\n%s" % (status, phrase.encode(), head, body)


class _Few:
    """A stream that takes so many lines a minute, and says how many it left out."""

    def __init__(self, stream: TextIO):
        self.stream, self.began, self.lines, self.left_out = stream, monotonic(), 0, 0

    def write(self, text: str) -> int:
        now = monotonic()
        if now - self.began > MINUTE:
            self.close()
            self.began, self.lines = now, 0
        if self.lines >= LINES:
            self.left_out += text.count("\n")
            return len(text)
        self.stream.write(text)
        self.lines += text.count("\n")
        if self.lines >= LINES:
            self.stream.write(f"kshot: {LINES} lines in a minute; what follows is counted and not shown\n")
        return len(text)

    def close(self) -> None:
        """Say what was left out."""
        if self.left_out:
            self.stream.write(f"kshot: {self.left_out} lines were not shown\n")
            self.left_out = 0

    def __getattr__(self, name: str) -> Any:
        return getattr(self.stream, name)


@contextmanager
def bounded_log() -> Iterator[None]:
    """Within it whatever writes to standard error (uvicorn, asyncio, gradio, warnings) is bounded in lines a minute, so
    that nobody who asks can fill a disk.
    """
    few, real = _Few(sys.stderr), sys.stderr
    sys.stderr = few  # pyright: ignore[reportAttributeAccessIssue]
    try:
        yield
    finally:
        sys.stderr = real
        few.close()
