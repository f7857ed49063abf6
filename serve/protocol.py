"""The endpoint's protocol: a FastAPI application in front of anything that predicts; it knows no Ray."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Mapping
from typing import Annotated, Any

from fastapi import Depends, FastAPI, Query, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse
from fastapi.security import HTTPAuthorizationCredentials, HTTPBearer
from pydantic import BaseModel
from starlette.exceptions import HTTPException

from .answers import Answer, Refusal, Served
from .images import IMAGE_TYPES, read_images
from .keys import Keys
from .settings import Deployed, Settings

__all__ = ["make_app"]

logger = logging.getLogger(__name__)

_TIMEOUT_S = 10.0
"""how long readiness and the list of models wait for a replica"""
_BINARY = {"schema": {"type": "string", "format": "binary"}}
_FILES = {"type": "array", "items": {"type": "string", "format": "binary"}}
_BODY = {
    "required": True,
    "content": {
        **dict.fromkeys(IMAGE_TYPES, _BINARY),
        "multipart/form-data": {"schema": {"type": "object", "properties": {"images": _FILES}}},
    },
}
_bearer = HTTPBearer(auto_error=False, description="an API key")


class Row(BaseModel):
    label: str
    probability: float


class Predictions(BaseModel):
    """``predictions[i]`` are the classes of image i, the most probable first."""

    model: str
    predictions: list[list[Row]]


class ModelEntry(BaseModel):
    name: str
    reference: str
    model: str
    architecture: str
    classes: list[str]
    image_size: int
    accuracy: float
    published: str


class Models(BaseModel):
    models: list[ModelEntry]


class Health(BaseModel):
    status: str


class Readiness(BaseModel):
    status: str
    models: list[str]


class ErrorDetail(BaseModel):
    code: str
    message: str


class Error(BaseModel):
    error: ErrorDetail


_ERRORS: dict[int | str, dict[str, Any]] = {
    status: {"model": Error, "description": text}
    for status, text in {
        400: "an empty body, a broken form, or a parameter that is no such",
        401: "no API key, or a wrong one",
        404: "no such model",
        413: "body, pixels or number of images beyond the limit",
        415: "not an image",
        422: "an image that cannot be decoded",
        503: "every replica is busy, or none is ready; see Retry-After",
    }.items()
}


def make_app(settings: Settings, deployed: list[Deployed], served: Mapping[str, Served], keys: Keys | None) -> FastAPI:
    """The application that answers for ``deployed``; ``served`` is by model name. ``keys`` None admits anybody."""
    app = FastAPI(title="stoker", version="1", docs_url=None, redoc_url=None)  # their pages load scripts from elsewhere
    known = {name: model for model in deployed for name in model.names}
    _answer_errors_alike(app)

    def admit(given: Annotated[HTTPAuthorizationCredentials | None, Depends(_bearer)]) -> None:
        if keys is not None and (given is None or not keys.admit(given.credentials)):
            what = "no API key came" if given is None else "this API key is not known"
            raise Refusal(
                401, "unauthorized", f"{what}; send Authorization: Bearer KEY", {"WWW-Authenticate": "Bearer"}
            )

    async def described(model: Deployed) -> ModelEntry:
        try:
            found = await asyncio.wait_for(served[model.name].describe(), _TIMEOUT_S)
        except TimeoutError:
            raise Refusal(503, "not_ready", f"{model.version} is not ready yet", {"Retry-After": "1"}) from None
        return ModelEntry(
            name=model.name,
            reference=model.reference,
            model=found.model,
            architecture=found.architecture,
            classes=list(found.classes),
            image_size=found.image_size,
            accuracy=found.accuracy,
            published=found.published,
        )

    async def ready(model: Deployed) -> str:
        try:
            return (await described(model)).model
        except Refusal as refusal:
            if refusal.code == "busy":  # else a load balancer takes us away just when there is work
                return model.version
            raise

    @app.get("/healthz")
    async def healthz() -> Health:
        """Whether this process answers."""
        return Health(status="ok")

    @app.get("/readyz", responses={503: _ERRORS[503]})
    async def readyz() -> Readiness:
        """Whether every model has a replica that answers, or is too busy to; names the versions."""
        return Readiness(status="ready", models=list(await asyncio.gather(*(ready(model) for model in deployed))))

    @app.get("/v1/models", dependencies=[Depends(admit)], responses={s: _ERRORS[s] for s in (401, 503)})
    async def models() -> Models:
        """What is served here."""
        return Models(models=list(await asyncio.gather(*(described(model) for model in deployed))))

    @app.post(
        "/v1/models/{name}/predict",
        dependencies=[Depends(admit)],
        responses=_ERRORS,
        openapi_extra={"requestBody": _BODY},
    )
    async def predict(
        request: Request,
        name: str,
        top: Annotated[int | None, Query(ge=1, description="classes of the answer")] = None,
    ) -> Predictions:
        """The most probable classes of one image (the body) or of several (the files of a form)."""
        model = known.get(name)
        if model is None:
            there = ", ".join(sorted(known))
            raise Refusal(404, "unknown_model", f"no model {name!r} is served here; there are: {there}")
        images = await read_images(request, settings.limits)
        answer = await served[model.name].predict(images, top or settings.top)
        if isinstance(answer, Refusal):
            raise answer
        return _predictions(answer)

    return app


def _predictions(answer: Answer) -> Predictions:
    rows = [[Row(label=label, probability=p) for label, p in row] for row in answer.rows]
    return Predictions(model=answer.model, predictions=rows)


def _answer_errors_alike(app: FastAPI) -> None:
    """Every error is ``{"error": {"code", "message"}}``, also those that the framework finds."""

    @app.exception_handler(Refusal)
    async def refused(_: Request, refusal: Refusal) -> JSONResponse:
        return _error(refusal)

    @app.exception_handler(HTTPException)
    async def by_framework(request: Request, error: HTTPException) -> JSONResponse:
        code = {404: "not_found", 405: "method_not_allowed"}.get(error.status_code, "http_error")
        message = f"{request.method} {request.url.path}: {error.detail}; see /openapi.json"
        return _error(Refusal(error.status_code, code, message, dict(error.headers or {})))

    @app.exception_handler(RequestValidationError)
    async def bad_parameter(_: Request, error: RequestValidationError) -> JSONResponse:
        first = error.errors()[0]
        return _error(Refusal(400, "bad_parameter", f"{first['loc'][-1]}: {first['msg']}"))

    @app.exception_handler(Exception)
    async def defect(request: Request, error: Exception) -> JSONResponse:
        logger.error("%s %s failed", request.method, request.url.path, exc_info=error)
        return _error(Refusal(500, "internal", "the endpoint failed; its log says why"))


def _error(refusal: Refusal) -> JSONResponse:
    content = Error(error=ErrorDetail(code=refusal.code, message=refusal.message))
    return JSONResponse(content.model_dump(), refusal.status, refusal.headers)
