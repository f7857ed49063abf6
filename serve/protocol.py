"""The HTTP protocol: a FastAPI application in front of anything that predicts. It does not import Ray.

A route is one row of ``ROUTES``, a method of :class:`Endpoint` that answers it, and the schema that it returns.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass, field
from typing import Annotated, Any

from fastapi import Depends, FastAPI, Query, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse
from fastapi.security import HTTPAuthorizationCredentials, HTTPBearer
from starlette.exceptions import HTTPException

from .answers import Answer, Refusal, Served
from .images import IMAGE_TYPES, read_images
from .keys import Keys
from .schemas import ClassProbability, Error, ErrorDetail, Health, ModelEntry, Models, Predictions, Readiness
from .settings import Deployed, Settings

__all__ = ["ROUTES", "Endpoint", "Route", "make_app"]

logger = logging.getLogger(__name__)

_TIMEOUT_S = 10.0
"""how long readiness and the list of models wait for a replica"""
_ERRORS = {
    400: "empty body, malformed form, or invalid query parameter",
    401: "missing or unknown API key",
    404: "unknown model",
    413: "body, pixels or number of images over the limit",
    415: "not an image",
    422: "an image that cannot be decoded",
    503: "every replica is busy or none is ready; see Retry-After",
}
_bearer = HTTPBearer(auto_error=False, description="an API key")


class Endpoint:
    """The handlers: ``deployed`` says what is served, ``served`` answers for each model by its name."""

    def __init__(self, settings: Settings, deployed: list[Deployed], served: Mapping[str, Served]) -> None:
        self._settings = settings
        self._deployed = deployed
        self._served = served
        self._by_name = {name: model for model in deployed for name in model.names}

    async def healthz(self) -> Health:
        """Liveness: this process answers."""
        return Health(status="ok")

    async def readyz(self) -> Readiness:
        """Readiness: every model has a replica that answers, or is only busy. Returns the versions."""
        return Readiness(
            status="ready", models=list(await asyncio.gather(*(self._ready(model) for model in self._deployed)))
        )

    async def models(self) -> Models:
        """The models that are served."""
        return Models(models=list(await asyncio.gather(*(self._describe(model) for model in self._deployed))))

    async def predict(
        self,
        request: Request,
        name: str,
        top: Annotated[int | None, Query(ge=1, description="number of classes to return for each image")] = None,
    ) -> Predictions:
        """The most probable classes of one image (the body) or of several (the files of a form)."""
        model = self._by_name.get(name)
        if model is None:
            known = ", ".join(sorted(self._by_name))
            raise Refusal(404, "unknown_model", f"unknown model {name!r}; served here: {known}")
        images = await read_images(request, self._settings.limits)
        answer = await self._served[model.name].predict(images, top or self._settings.top)
        if isinstance(answer, Refusal):
            raise answer
        return _predictions(answer)

    async def _describe(self, model: Deployed) -> ModelEntry:
        try:
            description = await asyncio.wait_for(self._served[model.name].describe(), _TIMEOUT_S)
        except TimeoutError:
            raise Refusal(503, "not_ready", f"{model.version} is not ready; try again", {"Retry-After": "1"}) from None
        return ModelEntry(
            name=model.name,
            reference=model.reference,
            model=description.model,
            architecture=description.architecture,
            classes=list(description.classes),
            image_size=description.image_size,
            accuracy=description.accuracy,
            published=description.published,
        )

    async def _ready(self, model: Deployed) -> str:
        try:
            return (await self._describe(model)).model
        except Refusal as refusal:
            if refusal.code == "busy":  # otherwise a load balancer removes us just when there is work
                return model.version
            raise


@dataclass(frozen=True)
class Route:
    """One route: its handler, whether it needs an API key, the error statuses it returns, and its request body."""

    method: str
    path: str
    handler: Callable[..., Awaitable[Any]]
    """a method of :class:`Endpoint`; its return annotation is the response's schema, its docstring the description"""
    needs_key: bool = True
    errors: tuple[int, ...] = ()
    body: dict[str, Any] = field(default_factory=dict)
    """OpenAPI's content of the request body by media type; empty for none"""


_BINARY = {"schema": {"type": "string", "format": "binary"}}
_FILES = {"type": "array", "items": {"type": "string", "format": "binary"}}
_IMAGES = {
    **dict.fromkeys(IMAGE_TYPES, _BINARY),
    "multipart/form-data": {"schema": {"type": "object", "properties": {"images": _FILES}}},
}

ROUTES = (
    Route("GET", "/healthz", Endpoint.healthz, needs_key=False),
    Route("GET", "/readyz", Endpoint.readyz, needs_key=False, errors=(503,)),
    Route("GET", "/v1/models", Endpoint.models, errors=(401, 503)),
    Route("POST", "/v1/models/{name}/predict", Endpoint.predict, errors=tuple(_ERRORS), body=_IMAGES),
)


def make_app(settings: Settings, deployed: list[Deployed], served: Mapping[str, Served], keys: Keys | None) -> FastAPI:
    """The application with every row of ``ROUTES``; ``keys`` None turns authentication off."""
    app = FastAPI(title="stoker", version="1", docs_url=None, redoc_url=None)  # their pages load scripts from elsewhere
    endpoint = Endpoint(settings, deployed, served)

    def authenticate(given: Annotated[HTTPAuthorizationCredentials | None, Depends(_bearer)]) -> None:
        if keys is not None and (given is None or not keys.admit(given.credentials)):
            what = "missing API key" if given is None else "unknown API key"
            raise Refusal(
                401, "unauthorized", f"{what}; send Authorization: Bearer KEY", {"WWW-Authenticate": "Bearer"}
            )

    for route in ROUTES:
        app.add_api_route(
            route.path,
            getattr(endpoint, route.handler.__name__),
            methods=[route.method],
            dependencies=[Depends(authenticate)] if route.needs_key else [],
            responses={status: {"model": Error, "description": _ERRORS[status]} for status in route.errors},
            openapi_extra={"requestBody": {"required": True, "content": route.body}} if route.body else None,
        )
    _add_error_handlers(app)
    return app


def _predictions(answer: Answer) -> Predictions:
    rows = [[ClassProbability(label=label, probability=p) for label, p in row] for row in answer.rows]
    return Predictions(model=answer.model, predictions=rows)


def _add_error_handlers(app: FastAPI) -> None:
    """Give every error the body ``{"error": {"code", "message"}}``, those that the framework raises too."""

    @app.exception_handler(Refusal)
    async def refused(_: Request, refusal: Refusal) -> JSONResponse:
        return _error(refusal)

    @app.exception_handler(HTTPException)
    async def raised_by_framework(request: Request, error: HTTPException) -> JSONResponse:
        code = {404: "not_found", 405: "method_not_allowed"}.get(error.status_code, "http_error")
        message = f"{request.method} {request.url.path}: {error.detail}; see /openapi.json"
        return _error(Refusal(error.status_code, code, message, dict(error.headers or {})))

    @app.exception_handler(RequestValidationError)
    async def invalid_parameter(_: Request, error: RequestValidationError) -> JSONResponse:
        first = error.errors()[0]
        message = f"invalid query parameter {first['loc'][-1]}: {first['msg']}; see /openapi.json"
        return _error(Refusal(400, "bad_parameter", message))

    @app.exception_handler(Exception)
    async def internal_error(request: Request, error: Exception) -> JSONResponse:
        logger.error("%s %s failed", request.method, request.url.path, exc_info=error)
        return _error(Refusal(500, "internal", "internal error; see the endpoint's log"))


def _error(refusal: Refusal) -> JSONResponse:
    content = Error(error=ErrorDetail(code=refusal.code, message=refusal.message))
    return JSONResponse(content.model_dump(), refusal.status, refusal.headers)
