"""The REST interface, and the page beside it. OpenAPI at `/openapi.json`, shown at `/docs`.

    POST   /v1/classifiers                  a new classifier: {"model": "auto", "open_set": true}
    POST   /v1/classifiers/load             the one of a .kshot file
    GET    /v1/classifiers/{id}             its classes, and how good it is on its own pictures
    POST   /v1/classifiers/{id}/fit         teach pictures of one class (multipart: label, pictures)
    POST   /v1/classifiers/{id}/predict     classify pictures (multipart: pictures)
    GET    /v1/classifiers/{id}/file        the .kshot file
    DELETE /v1/classifiers/{id}

Classifiers live in memory under names that cannot be guessed, and go when they are unused for an hour. With a token,
every request under /v1 but `/v1/health` needs `Authorization: Bearer TOKEN`, and the page asks for it.
"""

# Annotations are read by FastAPI inside a function, so they are not put off (no `from __future__ import annotations`).

import json
import secrets
import threading
import time
from collections import OrderedDict
from typing import TYPE_CHECKING, Annotated, Any, Literal
from urllib.parse import urlsplit

from fastapi import Depends, FastAPI, File, Form, HTTPException, Path, Request, Response, UploadFile
from fastapi.security import HTTPBearer
from pydantic import BaseModel, ConfigDict, Field
from starlette.formparsers import MultiPartParser
from starlette.requests import ClientDisconnect

from kshot import __version__, models
from kshot.serve.session import LIMITS, Limits, Refused, Session

__all__ = ["create_app"]


if TYPE_CHECKING:
    _Bodies = str
else:
    _Bodies = Literal["auto", *models.shipped()]  # no word of a request is taken for a path


class New(BaseModel):
    """A classifier that is wished for."""

    model_config = ConfigDict(extra="forbid")
    model: _Bodies = Field("auto", description='A shipped body, or "auto".')
    open_set: bool = Field(True, description='Whether it may answer "none of these".', strict=True)


class About(BaseModel):
    """A classifier.

    Attributes:
        id: its name; keep it secret.
        model: the body; "auto" before the first picture.
        classes: name -> pictures.
        left_out_accuracy: share of its pictures that the others classify right; None where that says nothing.
        interval95: its 95 % interval.
    """

    id: str
    model: str
    classes: dict[str, int]
    left_out_accuracy: float | None = None
    interval95: list[float] | None = Field(None, min_length=2, max_length=2)


class Taught(About):
    """A classifier after pictures were taught.

    Attributes:
        refused: what is wrong with each picture that was left out, by its number in the request.
    """

    refused: dict[int, str]


class Said(BaseModel):
    """What is said of one picture.

    Attributes:
        name: of the file, as it was sent.
        label: "none of these" where `none` is true; None where the picture cannot be read.
        probabilities: of each class; "none of these" has no share in them.
        nearest: the classes of the support pictures nearest to it.
        error: why it cannot be read; "" where it can.
    """

    name: str
    label: str | None
    none: bool
    probability: float | None
    probabilities: dict[str, float]
    nearest: list[str]
    error: str


class Answers(BaseModel):
    """What is said of the pictures of a request, in their order."""

    answers: list[Said]


class Problem(BaseModel):
    """What went wrong, and how to mend it."""

    detail: str


class _Sessions:
    """The classifiers that there are; the one that was longest unused goes first."""

    def __init__(self, limits: Limits):
        self.limits, self.kept = limits, OrderedDict[str, tuple[float, Session]]()
        self.lock = threading.Lock()

    def new(self, session: Session) -> str:
        name = secrets.token_urlsafe(16)
        with self.lock:
            self._forget()
            while len(self.kept) >= self.limits.sessions:
                self.kept.popitem(last=False)
            self.kept[name] = time.monotonic(), session
        return name

    def get(self, name: str) -> Session:
        with self.lock:
            self._forget()
            if name not in self.kept:
                raise HTTPException(404, "there is no such classifier; one that is unused for long is forgotten")
            _, session = self.kept.pop(name)
            self.kept[name] = time.monotonic(), session
            return session

    def remove(self, name: str) -> None:
        self.get(name)
        with self.lock:
            self.kept.pop(name, None)

    def _forget(self) -> None:
        now = time.monotonic()
        for name in [name for name, (used, _) in self.kept.items() if now - used > self.limits.seconds]:
            del self.kept[name]


class _Guard:
    """Refuses, before anything of a body is read: requests that are too large, told or not; those without the token;
    those that another site's page sends (a browser tells its origin); names of this machine that are not its own (DNS
    rebinding); and gradio's upload of files, which the page does not need.
    """

    def __init__(self, app: Any, most: int, token: str | None, hosts: tuple[str, ...]):
        self.app, self.most, self.token, self.hosts = app, most, token, hosts

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        if scope["type"] != "http":
            return await self.app(scope, receive, send)
        headers = {name: value.decode("latin-1") for name, value in scope["headers"]}
        host, origin, path = headers.get(b"host", ""), headers.get(b"origin"), scope["path"]
        if self.hosts and urlsplit(f"//{host}").hostname not in self.hosts:
            return await self._refuse(send, 403, f"the name {host[:100]!r} is not this machine's")
        if origin is not None and urlsplit(origin).netloc != host:
            return await self._refuse(send, 403, "another site's page may not ask here")
        if path.startswith("/gradio_api/upload"):
            return await self._refuse(send, 404, "no files are taken here")
        if self.token is not None and path.startswith("/v1/") and path != "/v1/health":
            scheme, _, given = headers.get(b"authorization", "").partition(" ")
            if scheme.lower() != "bearer" or not secrets.compare_digest(given.encode(), self.token.encode()):
                return await self._refuse(send, 401, "this needs the token: Authorization: Bearer TOKEN")
        told, large = headers.get(b"content-length", "0"), f"the request is larger than {self.most >> 20} MiB"
        if told.isdigit() and int(told) > self.most:
            return await self._refuse(send, 413, large)
        seen, began = 0, False

        async def counted() -> Any:
            nonlocal seen
            message = await receive()
            seen += len(message.get("body", b""))
            if seen > self.most:  # whoever reads stops here
                return {"type": "http.disconnect"}
            return message

        async def watched(message: Any) -> None:
            nonlocal began
            if seen <= self.most or began:
                began = True
                await send(message)

        try:
            await self.app(scope, counted, watched)
        except ClientDisconnect:
            if seen <= self.most:
                raise
        if seen > self.most and not began:
            await self._refuse(send, 413, large)

    async def _refuse(self, send: Any, status: int, why: str) -> None:
        body = json.dumps({"detail": why}).encode()
        headers = [(b"content-type", b"application/json"), (b"content-length", str(len(body)).encode()),
                   (b"connection", b"close")]  # fmt: skip
        headers += [(b"www-authenticate", b"Bearer")] if status == 401 else []
        await send({"type": "http.response.start", "status": status, "headers": headers})
        await send({"type": "http.response.body", "body": body})


_Pictures = Annotated[list[UploadFile], File(min_length=1, description="JPEG, PNG or WebP.")]
_BEARER = HTTPBearer(auto_error=False)
_Name = Annotated[str, Path(min_length=1, max_length=64, description="What POST /v1/classifiers gave.")]


def create_app(
    page: bool = True,
    token: str | None = None,
    limits: Limits = LIMITS,
    begin: bytes | None = None,
    hosts: tuple[str, ...] = (),
) -> FastAPI:
    """The service as an ASGI application.

    Args:
        page: with the page at `/` (needs gradio).
        token: that requests under /v1 need, and the password of the page (any user name).
        limits: of a request, of a classifier, and of how many there are.
        begin: a `.kshot` file that every visit of the page begins with.
        hosts: names under which it may be asked ("127.0.0.1"); none: any.

    Raises:
        Refused: `begin` is damaged.
    """
    app = FastAPI(
        title="kshot",
        version=__version__,
        description="Classifiers from a few pictures of each class.",
        responses={413: {"model": Problem, "description": "Larger than the limits."}},
    )
    app.add_middleware(_Guard, most=limits.request, token=token, hosts=hosts)
    MultiPartParser.spool_max_size = limits.request + 1  # uploads stay in memory
    sessions = _Sessions(limits)

    problems: Any = {401: {"model": Problem, "description": "Without the token."}} if token is not None else {}
    there: Any = {**problems, 404: {"model": Problem, "description": "No such classifier."}}
    refused: Any = {409: {"model": Problem, "description": "It cannot be done now; the detail says why."}}
    guard = [Depends(_BEARER)] if token is not None else []  # for OpenAPI; `_Guard` looks at it

    @app.exception_handler(Refused)
    def _(_: Request, error: Refused) -> Response:
        return Response(json.dumps({"detail": str(error)}), 409, media_type="application/json")

    @app.get("/v1/health")
    def health() -> dict[str, str]:
        """Whether it is up, and its version."""
        return {"status": "ok", "version": __version__}

    @app.get("/v1/models", dependencies=guard, responses=problems)
    def bodies() -> dict[str, str]:
        """The bodies that there are, each in a line."""
        return {name: models.told(name) for name in models.shipped()}

    def about(name: str, session: Session) -> dict[str, Any]:
        found = session.left_out()
        own = session.classifier.model_.name if session.classifier is not None else session.model
        told = {"id": name, "model": own, "classes": session.classes}
        return {**told, "left_out_accuracy": found[0], "interval95": list(found[1])} if found else told

    @app.post("/v1/classifiers", status_code=201, dependencies=guard, responses=problems)
    def create(new: New) -> About:
        """A new classifier, without classes."""
        session = Session(new.model, limits, new.open_set)
        return About(**about(sessions.new(session), session))

    @app.post("/v1/classifiers/load", status_code=201, dependencies=guard, responses={**problems, **refused})
    def load(file: Annotated[UploadFile, File(description="A .kshot file.")]) -> About:
        """The classifier of a file that was saved."""
        session = Session(limits=limits)
        session.load(file.file.read())
        return About(**about(sessions.new(session), session))

    @app.get("/v1/classifiers/{name}", dependencies=guard, responses=there)
    def told(name: _Name) -> About:
        """Its classes, and how good it is on its own pictures."""
        session = sessions.get(name)
        with session.lock:
            return About(**about(name, session))

    @app.delete("/v1/classifiers/{name}", status_code=204, dependencies=guard, responses=there)
    def delete(name: _Name) -> None:
        """Forget it."""
        sessions.remove(name)

    @app.post("/v1/classifiers/{name}/fit", dependencies=guard, responses={**there, **refused})
    def fit(
        name: _Name,
        label: Annotated[
            str,
            Form(
                min_length=1,
                max_length=limits.name,
                pattern=r"[^\s\x00-\x20\x7f-\xa0]",
                description="The class of all pictures of this request; it may be new.",
            ),
        ],
        pictures: _Pictures,
    ) -> Taught:
        """Teach pictures of one class. Those that cannot be read are told and left out."""
        session = sessions.get(name)
        wrong = session.add(label, [picture.file.read() for picture in pictures])
        with session.lock:
            return Taught(**about(name, session), refused={i: text for i, text in enumerate(wrong) if text})

    @app.post("/v1/classifiers/{name}/predict", dependencies=guard, responses={**there, **refused})
    def predict(name: _Name, pictures: _Pictures) -> Answers:
        """Classify pictures."""
        session = sessions.get(name)
        answers, _, own = session.judge([picture.file.read() for picture in pictures])
        names, labels = [str(c) for c in own.classes_], [str(label) for label in own.labels_]
        said = []
        for picture, answer in zip(pictures, answers, strict=True):
            chance = {} if answer.error else dict(zip(names, map(float, answer.probabilities), strict=True))
            said.append(
                Said(
                    name=picture.filename or "",
                    label=None if answer.error else str(answer.label),
                    none=answer.none,
                    probability=max(chance.values()) if chance else None,
                    probabilities=chance,
                    nearest=[labels[row] for row in answer.nearest],
                    error=answer.error,
                )
            )
        return Answers(answers=said)

    @app.get(
        "/v1/classifiers/{name}/file",
        dependencies=guard,
        response_class=Response,
        responses={**there, **refused, 200: {"content": {"application/octet-stream": {}}}},
    )
    def file(name: _Name) -> Response:
        """The `.kshot` file, for `kshot predict` and for `load`."""
        session = sessions.get(name)
        content = session.save()
        headers = {"Content-Disposition": 'attachment; filename="classifier.kshot"'}
        return Response(content, media_type="application/octet-stream", headers=headers)

    if page:
        from kshot.serve.page import mounted

        return mounted(app, limits, token, begin)
    return app
