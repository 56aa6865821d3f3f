"""What stands before the application: it refuses what nobody should ask, before anything of a body is read, bounds what
is held in memory at once, and gives every answer the headers that keep other sites out.
"""

from __future__ import annotations

import json
import secrets
from typing import Any
from urllib.parse import urlsplit

from starlette.requests import ClientDisconnect

from kshot.apps.classify.serve.session import Limits

__all__ = ["HEADERS", "Guard"]

HEADERS = [
    (b"content-security-policy", b"frame-ancestors 'none'"),  # no other page shows this one inside of it
    (b"x-frame-options", b"DENY"),  # the same, for browsers of before
    (b"x-content-type-options", b"nosniff"),
    (b"referrer-policy", b"same-origin"),  # "no-referrer" would hide the origin from us too
]
"""Of every answer."""
POSTS = ("/v1/", "/login", "/gradio_api/queue/join", "/gradio_api/cancel", "/gradio_api/reset")
"""Where something may be sent to: gradio has uploads, recordings and editors, which the page does not need."""
STREAMS = ("/gradio_api/queue/data", "/gradio_api/heartbeat/")
"""What stays open as long as a page is."""

PART = 1 << 18  # bytes


class Guard:
    """An ASGI application around another one.

    It refuses: requests that are too large, by their length or by what arrives; those without the token; those that
    another site's page sends (a browser names its origin); names of this machine that are not its own (DNS rebinding);
    uploads to gradio; more streams, or more bytes at once, than the limits allow (503); and WebSockets.

    Args:
        app: the application.
        limits: of a request, and of all of them together.
        token: that requests under /v1 need.
        hosts: names under which it may be asked; none: any.
    """

    def __init__(self, app: Any, limits: Limits, token: str | None, hosts: tuple[str, ...]):
        self.app, self.limits, self.token, self.hosts = app, limits, token, hosts
        self.held = 0  # bytes of bodies that were read and of answers on their way
        self.streams = 0

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        if scope["type"] == "websocket":
            return await send({"type": "websocket.close", "code": 1008})
        if scope["type"] != "http":
            return await self.app(scope, receive, send)
        if (wrong := self._wrong(scope)) is not None:
            return await self._refuse(send, *wrong)
        stream = scope["path"].startswith(STREAMS)
        self.streams += stream
        try:
            await self._served(scope, receive, send)
        finally:
            self.streams -= stream

    def _wrong(self, scope: Any) -> tuple[int, str] | None:
        """Why this is refused, by its headers alone."""
        headers = {name: value.decode("latin-1") for name, value in scope["headers"]}
        host, origin, path = headers.get(b"host", ""), headers.get(b"origin"), scope["path"]
        if self.hosts and _hostname(host) not in self.hosts:
            return 403, f"the name {host[:100]!r} is not this machine's"
        if origin is not None and _netloc(origin) != host:
            return 403, "another site's page may not ask here"
        if scope["method"] not in ("GET", "HEAD", "OPTIONS") and not path.startswith(POSTS):
            return 404, "no files are taken here"
        if self.token is not None and path.startswith("/v1/") and path != "/v1/health":
            scheme, _, given = headers.get(b"authorization", "").partition(" ")
            if scheme.lower() != "bearer" or not secrets.compare_digest(given.encode(), self.token.encode()):
                return 401, "this needs the token: Authorization: Bearer TOKEN"
        length, (most, _) = headers.get(b"content-length", "0"), self._bounds(scope)
        if length.isdigit() and int(length) > most:
            return 413, _too_large(most)
        if path.startswith(STREAMS) and self.streams >= max(1, self.limits.connections // 2):
            return 503, "too many pages are open: try again later"
        if self.held > self.limits.in_flight and path != "/v1/health":
            return 503, "too much is being sent at once: try again later"
        return None

    def _bounds(self, scope: Any) -> tuple[int, bool]:
        """How many bytes the body may have, and whether it is JSON."""
        kind = next((value for name, value in scope["headers"] if name == b"content-type"), b"").lower()
        large = kind.startswith(b"multipart/form-data") or scope["path"].startswith("/gradio_api/")
        return self.limits.request if large else self.limits.words, not kind.startswith(b"multipart/form-data")

    async def _served(self, scope: Any, receive: Any, send: Any) -> None:
        most, plain = self._bounds(scope)
        seen, items, began = 0, 0, False
        over: list[tuple[int, str]] = []  # why it was stopped

        async def counted() -> Any:
            nonlocal seen, items
            if over:
                return {"type": "http.disconnect"}
            message = await receive()
            chunk = message.get("body", b"")
            seen += len(chunk)
            self.held += len(chunk)
            if plain:
                items += chunk.count(b",") + chunk.count(b"[") + chunk.count(b"{") + chunk.count(b"&")
            if seen > most:
                over.append((413, _too_large(most)))
            elif items > self.limits.items:
                over.append((413, f"the body has more than {self.limits.items} values"))
            elif chunk and self.held > self.limits.in_flight:
                over.append((503, "too much is being sent at once: try again later"))
            return {"type": "http.disconnect"} if over else message  # whoever reads stops here

        async def watched(message: Any) -> None:
            nonlocal began
            if over and not began:
                return
            began = True
            if message["type"] == "http.response.start":
                message = {**message, "headers": [*message.get("headers", ()), *HEADERS]}
            body, more = message.get("body", b""), message.get("more_body", False)
            self.held += len(body)
            try:
                # A server waits for a slow reader before it takes the next part, so a large answer goes in parts.
                for start in range(0, max(1, len(body)), PART):
                    part = body[start : start + PART]
                    rest = more or start + PART < len(body)
                    await send({**message, "body": part, "more_body": rest} if "body" in message else message)
            finally:
                self.held -= len(body)

        try:
            await self.app(scope, counted, watched)
        except ClientDisconnect:  # who asked is gone, or was sent away: nobody reads an answer
            pass
        finally:
            self.held -= seen
        if over and not began:
            await self._refuse(send, *over[0])

    async def _refuse(self, send: Any, status: int, why: str) -> None:
        body = json.dumps({"detail": why}).encode()
        # The connection stays: closed in the midst of a body it would be reset, and the answer lost.
        headers = [(b"content-type", b"application/json"), (b"content-length", str(len(body)).encode()), *HEADERS]
        headers += [(b"www-authenticate", b"Bearer")] if status == 401 else []
        headers += [(b"retry-after", b"1")] if status == 503 else []
        await send({"type": "http.response.start", "status": status, "headers": headers})
        await send({"type": "http.response.body", "body": body})


def _too_large(most: int) -> str:
    return f"the request is larger than {most >> 20} MiB" if most >> 20 else f"the request is larger than {most} bytes"


def _netloc(url: str) -> str:
    try:
        return urlsplit(url).netloc
    except ValueError:  # "http://[": no address at all
        return ""


def _hostname(host: str) -> str | None:
    try:
        return urlsplit(f"//{host}").hostname
    except ValueError:
        return None
