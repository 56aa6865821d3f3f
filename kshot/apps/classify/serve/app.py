"""The REST interface, and the page beside it. OpenAPI at `/openapi.json`, shown at `/docs`.

    POST   /v1/classifiers                  a new classifier: {"model": "auto", "open_set": true}
    POST   /v1/classifiers/load             the one of a .kshot file
    GET    /v1/classifiers/{id}             its classes, and how good it is on its own images
    POST   /v1/classifiers/{id}/fit         teach images of one class (multipart: label, images)
    POST   /v1/classifiers/{id}/predict     classify images (multipart: images)
    GET    /v1/classifiers/{id}/file        the .kshot file
    DELETE /v1/classifiers/{id}

Classifiers live in memory under names that cannot be guessed, and go when they are unused for an hour. With a token,
every request under /v1 but `/v1/health` needs `Authorization: Bearer TOKEN`, and the page asks for it.
"""

# Annotations are read by FastAPI inside a function, so they are not put off (no `from __future__ import annotations`).

import json
from typing import TYPE_CHECKING, Annotated, Any, Literal, Self

from fastapi import APIRouter, Depends, FastAPI, File, Form, HTTPException, Path, Request, Response, UploadFile
from fastapi.security import HTTPBearer
from pydantic import BaseModel, ConfigDict, Field
from starlette.formparsers import MultiPartParser

from kshot import __version__
from kshot.apps import Answer, FewShotClassifier
from kshot.apps.classify import models
from kshot.apps.classify.serve.guard import Guard
from kshot.apps.classify.serve.session import LIMITS, Limits, Refused, Session, Store

__all__ = ["create_app"]


if TYPE_CHECKING:
    _Bodies = str
else:
    _Bodies = Literal["auto", *models.shipped()]  # no word of a request is taken for a path


class New(BaseModel):
    """Settings of a new classifier."""

    model_config = ConfigDict(extra="forbid")
    model: _Bodies = Field("auto", description='A shipped backbone, or "auto".')
    open_set: bool = Field(True, description='Whether it may answer "none of these".', strict=True)


class About(BaseModel):
    """A classifier.

    Attributes:
        id: its name; keep it secret.
        model: the backbone; "auto" before the first image.
        classes: name -> images.
        left_out_accuracy: leave-one-out accuracy: share of its images that the others classify correctly; None where it
            cannot be estimated.
        interval95: its 95 % interval.
    """

    id: str
    model: str
    classes: dict[str, int]
    left_out_accuracy: float | None = None
    interval95: list[float] | None = Field(None, min_length=2, max_length=2)

    @classmethod
    def of(cls, name: str, session: Session, **more: Any) -> Self:
        found = session.left_out()
        own = session.classifier.model_.name if session.classifier is not None else session.model
        accuracy = {"left_out_accuracy": found[0], "interval95": list(found[1])} if found else {}
        return cls(id=name, model=own, classes=session.classes, **accuracy, **more)


class Taught(About):
    """A classifier after images were taught.

    Attributes:
        refused: what is wrong with each image that was skipped, by its number in the request.
    """

    refused: dict[int, str]


class Said(BaseModel):
    """The answer for one image.

    Attributes:
        name: of the file, as it was sent.
        label: as the classifier says it: a class, or its word for none of them where `none` is true; None where the
            image cannot be read.
        none: whether the answer is that it is of none of the classes.
        probability: the largest of `probabilities`.
        probabilities: of each class, given that it is of one of them: they sum to 1 without `p_none`.
        p_none: probability that it is of none of the classes; 0 where the classifier has no threshold for that.
        p_classes: probability of each class, (1 - p_none) times that of `probabilities`: they and `p_none` sum to 1.
        nearest: the classes of the support images most similar to it.
        error: why it cannot be read; "" where it can.
    """

    name: str
    label: str | None
    none: bool
    probability: float | None
    probabilities: dict[str, float]
    p_none: float | None
    p_classes: dict[str, float]
    nearest: list[str]
    error: str

    @classmethod
    def of(cls, name: str, answer: Answer, classifier: FewShotClassifier) -> Self:
        names, labels = map(str, classifier.classes_), classifier.labels_
        chance = {} if answer.error else dict(zip(names, map(float, answer.probabilities), strict=True))
        return cls(
            name=name,
            label=None if answer.error else str(answer.label),
            none=answer.none,
            probability=max(chance.values()) if chance else None,
            probabilities=chance,
            p_none=None if answer.error else answer.p_none,
            p_classes={name: (1 - answer.p_none) * p for name, p in chance.items()},
            nearest=[str(labels[row]) for row in answer.nearest],
            error=answer.error,
        )


class Answers(BaseModel):
    """The answers for the images of a request, in their order."""

    answers: list[Said]


class Problem(BaseModel):
    """What went wrong, and how to fix it."""

    detail: str


_Pictures = Annotated[list[UploadFile], File(min_length=1, description="JPEG, PNG or WebP.")]
_BYTES = "application/octet-stream"
_ABSENT: Any = {404: {"model": Problem, "description": "No such classifier."}}
_REFUSED: Any = {409: {"model": Problem, "description": "It cannot be done now; the detail says why."}}
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
        description="Classifiers from a few images of each class.",
        responses={
            413: {"model": Problem, "description": "Larger than the limits."},
            503: {"model": Problem, "description": "Too much at once: try again."},
        },
    )
    app.add_middleware(Guard, limits=limits, token=token, hosts=hosts)
    MultiPartParser.spool_max_size = limits.request + 1  # uploads stay in memory

    @app.exception_handler(Refused)
    def _(_: Request, error: Refused) -> Response:
        return Response(json.dumps({"detail": str(error)}), 409, media_type="application/json")

    @app.get("/v1/health")
    async def health() -> dict[str, str]:
        """Whether it is up, and its version. Waits for no other request."""
        return {"status": "ok", "version": __version__}

    guard: dict[str, Any] = {}  # for OpenAPI; `Guard` looks at it
    if token is not None:
        problem = {401: {"model": Problem, "description": "Without the token."}}
        guard = {"dependencies": [Depends(_BEARER)], "responses": problem}
    store = Store[Session](limits)
    app.include_router(_new(store, limits), prefix="/v1", **guard)
    app.include_router(_known(store, limits), prefix="/v1/classifiers/{name}", **guard)
    if page:
        from kshot.apps.classify.serve.page import mounted

        return mounted(app, limits, token, begin)
    return app


def _new(store: Store[Session], limits: Limits) -> APIRouter:
    """What there may be: backbones, and new classifiers."""
    router = APIRouter()

    @router.get("/models")
    def bodies() -> dict[str, str]:
        """The available backbones, each in a line."""
        return {name: models.summary(name) for name in models.shipped()}

    @router.post("/classifiers", status_code=201)
    def create(new: New) -> About:
        """A new classifier, without classes."""
        session = Session(new.model, limits, new.open_set)
        return About.of(store.put(store.name(), session), session)

    @router.post("/classifiers/load", status_code=201, responses=_REFUSED)
    def load(file: Annotated[UploadFile, File(description="A .kshot file.")]) -> About:
        """The classifier of a file that was saved."""
        session = Session(limits=limits)
        session.load(file.file.read())
        return About.of(store.put(store.name(), session), session)

    return router


def _known(store: Store[Session], limits: Limits) -> APIRouter:
    """What may be done with one of the classifiers."""
    router = APIRouter(responses=_ABSENT)
    words = Form(
        min_length=1,
        max_length=limits.name,
        pattern=r"[^\s\x00-\x20\x7f-\xa0]",
        description="The class of all images of this request; it may be new.",
    )

    def find(name: str) -> Session:
        found = store.get(name)
        if found is None:
            raise HTTPException(404, "there is no such classifier; one that is unused for long is forgotten")
        return found

    @router.get("")
    def describe(name: _Name) -> About:
        """Its classes, and how good it is on its own images."""
        session = find(name)
        with session.lock:
            return About.of(name, session)

    @router.delete("", status_code=204)
    def delete(name: _Name) -> None:
        """Forget it."""
        if not store.remove(name):
            find(name)

    @router.post("/fit", responses=_REFUSED)
    def fit(name: _Name, label: Annotated[str, words], pictures: _Pictures) -> Taught:
        """Teach images of one class. Those that cannot be read are listed and skipped."""
        session = find(name)
        wrong = session.add(label, _bytes_of(pictures, limits))
        with session.lock:
            return Taught.of(name, session, refused={i: text for i, text in enumerate(wrong) if text})

    @router.post("/predict", responses=_REFUSED)
    def predict(name: _Name, pictures: _Pictures) -> Answers:
        """Classify images."""
        answers, _, own = find(name).judge(_bytes_of(pictures, limits))
        pairs = zip(pictures, answers, strict=True)
        return Answers(answers=[Said.of(picture.filename or "", answer, own) for picture, answer in pairs])

    @router.get("/file", response_class=Response, responses={**_REFUSED, 200: {"content": {_BYTES: {}}}})
    def file(name: _Name) -> Response:
        """The `.kshot` file, for `kshot predict` and for `load`."""
        headers = {"Content-Disposition": 'attachment; filename="classifier.kshot"'}
        return Response(find(name).save(), media_type=_BYTES, headers=headers)

    return router


def _bytes_of(pictures: list[UploadFile], limits: Limits) -> list[bytes]:
    if long := [p.filename for p in pictures if p.filename and len(p.filename) > limits.file_name]:
        raise Refused(f"a file's name of {len(long[0])} characters ({long[0][:40]!r}...): at most {limits.file_name}")
    return [picture.file.read() for picture in pictures]
