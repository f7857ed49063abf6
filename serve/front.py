"""The front: health, the list of models, metrics, and the description of the whole protocol (``/openapi.json``).

It is no part of a prediction's way, except where Serve's own proxy brings ``NAME@REF`` here. A route is one row of
``ROUTES``, a method of :class:`Front` that answers it, and the schema that it returns.
"""

from __future__ import annotations

import functools
import logging
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field
from typing import Annotated, Any

from fastapi import Depends, FastAPI, Request, Response
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse, PlainTextResponse
from fastapi.security import HTTPAuthorizationCredentials, HTTPBearer
from starlette.exceptions import HTTPException

from stoker.errors import StokerError

from .answers import PROBLEM, Problem
from .cors import cors_headers
from .description import IMAGES, KEYED, described, problems
from .directory import Directory, ServedModel
from .hop import Forwarded
from .keys import KeyRefusal, Keys
from .schemas import Health, Links, ModelEntry, ModelReady, Models, Predictions, Readiness
from .settings import FrontSettings

__all__ = ["ROUTES", "Front", "Hop", "Route", "make_front"]

logger = logging.getLogger(__name__)

Hop = Callable[[str, Forwarded], Awaitable[tuple[int, list[tuple[bytes, bytes]], bytes]]]
"""pass a request on to the model of that name"""

_MOST_BODY = 16_000_000
_bearer = HTTPBearer(auto_error=False, description="an API key")


class Front:
    """The handlers."""

    def __init__(self, directory: Directory, metrics: Callable[[], Awaitable[str]], hop: Hop | None) -> None:
        self._directory = directory
        self._metrics = metrics
        self._hop = hop

    async def index(self) -> Links:
        """Where everything is."""
        return Links(models="/v1/models", health="/healthz", readiness="/readyz", description="/openapi.json")

    async def healthz(self) -> Health:
        """Liveness: this process answers."""
        return Health(status="ok")

    async def readyz(self) -> Readiness:
        """Readiness: there is a model, and each has a replica, busy or not. Returns the versions."""
        models = (await self._models()).values()
        away = [model.name for model in models if not model.is_ready]
        if away or not models:
            detail = f"no replica of {', '.join(away)} is ready; try again" if away else "no model is deployed yet"
            raise Problem(503, "not_ready", detail, {"Retry-After": "1"})
        return Readiness(status="ready", models=[model.version for model in models])

    async def models(self) -> Models:
        """The models that are served."""
        entries = [await self._entry(model) for model in (await self._models()).values()]
        return Models(models=[ModelEntry.model_validate(entry) for entry in entries])

    async def metrics(self) -> Response:
        """Metrics of all replicas, in Prometheus' text format."""
        return PlainTextResponse(await self._metrics(), media_type="text/plain; version=0.0.4")

    async def model(self, request: Request, name: str) -> ModelEntry:
        """One model: its version, classes and image size. ``name`` may be followed by ``@`` and a version or alias."""
        raise await self._elsewhere(request, name)

    async def model_ready(self, request: Request, name: str) -> ModelReady:
        """Readiness of one model; needs no key."""
        raise await self._elsewhere(request, name)

    async def predict(self, request: Request, name: str) -> Predictions:
        """The most probable classes of one image (the body) or of several (the files of a form, base64 in JSON)."""
        raise await self._elsewhere(request, name)

    async def _models(self) -> dict[str, ServedModel]:
        try:
            return await self._directory.models()
        except TimeoutError:
            raise Problem(503, "not_ready", "Serve's controller does not answer yet", {"Retry-After": "1"}) from None

    async def _entry(self, model: ServedModel) -> dict[str, Any]:
        try:
            return await self._directory.entry(model)
        except StokerError as error:
            logger.warning("%s cannot be described: %s", model.version, error)
            detail = f"the registry of {model.version} does not answer; try again"
            raise Problem(503, "registry_unavailable", detail, {"Retry-After": "5"}) from None

    async def _elsewhere(self, request: Request, given: str) -> Exception:
        """A request that Serve did not route to its model: the model is unknown, or named with ``@`` (a hop)."""
        name, at, reference = given.partition("@")
        models = await self._models()
        if name not in models:
            known = ", ".join(models) or "none yet"
            return Problem(404, "unknown_model", f"unknown model {given[:100]!r}; served here: {known}")
        written = request.scope.get("raw_path") or request.url.path.encode()
        if not at and not f"{written.decode('latin-1')}/".startswith(f"/v1/models/{name}/"):
            return Problem(404, "not_found", f"write the path unescaped: /v1/models/{name}/…; see /openapi.json")
        if self._hop is None or not at:
            return Problem(503, "unavailable", f"no replica of {name} is available; try again", {"Retry-After": "1"})
        tail = request.url.path.rstrip("/").partition(given)[2]
        path = f"/v1/models/{name}/@{reference}{tail}"
        body = b"" if request.method in {"GET", "HEAD"} else await _body(request)
        forwarded = Forwarded(request.method, path, request.scope["query_string"], request.scope["headers"], body)
        status, headers, content = await self._hop(name, forwarded)
        return _Answered(status, headers, content)


class _WithoutSlash:
    """A slash at the end changes nothing."""

    def __init__(self, app: Any) -> None:
        self._app = app

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        if scope["type"] == "http" and len(scope["path"]) > 1 and scope["path"].endswith("/"):
            scope = {**scope, "path": scope["path"].rstrip("/") or "/"}
        await self._app(scope, receive, send)


class _Answered(Exception):
    """The answer of a model's replica, to be passed on."""

    def __init__(self, status: int, headers: list[tuple[bytes, bytes]], body: bytes) -> None:
        super().__init__(status)
        self.response = Response(body, status)
        self.response.raw_headers = list(headers)


@dataclass(frozen=True)
class Route:
    """One route: its handler, whether it needs an API key, the error statuses it returns, and its request body."""

    method: str
    path: str
    handler: Callable[..., Awaitable[Any]]
    """a method of :class:`Front`; its return annotation is the response's schema, its docstring the description"""
    needs_key: bool = True
    errors: tuple[int, ...] = ()
    body: dict[str, Any] = field(default_factory=dict)
    """OpenAPI's content of the request body by media type; empty for none"""


_PREDICTS = (*KEYED, 404, 413, 415, 422)

ROUTES = (
    Route("GET", "/", Front.index, needs_key=False),
    Route("GET", "/healthz", Front.healthz, needs_key=False),
    Route("GET", "/readyz", Front.readyz, needs_key=False, errors=(503,)),
    Route("GET", "/metrics", Front.metrics, errors=KEYED),
    Route("GET", "/v1/models", Front.models, errors=(*KEYED, 503)),
    Route("GET", "/v1/models/{name}", Front.model, errors=(*KEYED, 404, 503)),
    Route("GET", "/v1/models/{name}/readyz", Front.model_ready, needs_key=False, errors=(404, 503)),
    Route("POST", "/v1/models/{name}/predict", Front.predict, errors=_PREDICTS, body=IMAGES),
)


def make_front(settings: FrontSettings, front: Front, keys: Keys | None) -> FastAPI:
    """The application with every row of ``ROUTES``; ``keys`` None turns authentication off."""
    # FastAPI's own pages load scripts from elsewhere; its redirections of slashes would follow a client's Host.
    app = FastAPI(title="stoker", version="1", docs_url=None, redoc_url=None, redirect_slashes=False)
    app.add_middleware(_WithoutSlash)

    def authenticate(
        request: Request,
        _described: Annotated[HTTPAuthorizationCredentials | None, Depends(_bearer)],
    ) -> None:
        if keys is None:
            return
        model = (request.path_params.get("name") or "").partition("@")[0] or None
        admitted = keys.check(_authorization(request), model)
        if isinstance(admitted, KeyRefusal):
            raise Problem(admitted.status, admitted.code, admitted.detail, admitted.headers)

    for route in ROUTES:
        shared: dict[str, Any] = {"dependencies": [Depends(authenticate)] if route.needs_key else []}
        handler = getattr(front, route.handler.__name__)
        app.add_api_route(
            route.path,
            handler,
            methods=[route.method],
            responses=problems(route.errors),
            response_class=PlainTextResponse if route.handler is Front.metrics else JSONResponse,
            openapi_extra={"requestBody": {"required": True, "content": route.body}} if route.body else None,
            **shared,
        )
        if route.method == "GET":
            app.add_api_route(route.path, handler, methods=["HEAD"], include_in_schema=False, **shared)
    # FastAPI's way to describe more; once, because it needs no key and takes a while.
    app.openapi = functools.cache(functools.partial(described, app))  # type: ignore[method-assign]
    _add_error_handlers(app)
    if settings.origins:
        _add_origins(app, settings.origins)
    return app


def _authorization(request: Request) -> bytes | None:
    value = request.headers.get("authorization")
    return None if value is None else value.encode("latin-1", "replace")


async def _body(request: Request) -> bytes:
    received = bytearray()
    async for piece in request.stream():
        received += piece
        if len(received) > _MOST_BODY:
            raise Problem(413, "body_too_large", f"the body is longer than {_MOST_BODY:,} bytes; send less")
    return bytes(received)


def _add_origins(app: FastAPI, origins: list[str]) -> None:
    @app.middleware("http")
    async def allow(request: Request, answer: Callable[[Request], Awaitable[Response]]) -> Response:
        response = Response(status_code=204) if request.method == "OPTIONS" else await answer(request)
        response.raw_headers.extend(cors_headers(origins, dict(request.headers.raw)))
        return response


def _add_error_handlers(app: FastAPI) -> None:
    """Give every error a problem's body, those that the framework raises too."""

    @app.exception_handler(_Answered)
    async def answered(_: Request, passed: _Answered) -> Response:
        return passed.response

    @app.exception_handler(Problem)
    async def refused(_: Request, problem: Problem) -> Response:
        return _refused(problem)

    @app.exception_handler(HTTPException)
    async def raised_by_framework(request: Request, error: HTTPException) -> Response:
        code = {404: "not_found", 405: "method_not_allowed"}.get(error.status_code, "http_error")
        detail = f"{request.method} {request.url.path[:200]}: {error.detail}; see /openapi.json"
        return _refused(Problem(error.status_code, code, detail, dict(error.headers or {})))

    @app.exception_handler(RequestValidationError)
    async def invalid_parameter(_: Request, error: RequestValidationError) -> Response:
        first = error.errors()[0]
        detail = f"invalid parameter {first['loc'][-1]}: {first['msg']}; see /openapi.json"
        return _refused(Problem(400, "bad_parameter", detail))

    @app.exception_handler(Exception)
    async def internal_error(request: Request, error: Exception) -> Response:
        logger.error("%s %s failed", request.method, request.url.path, exc_info=error)
        return _refused(Problem(500, "internal", "internal error; see the endpoint's log"))


def _refused(problem: Problem) -> Response:
    return Response(problem.body(), problem.status, problem.headers, PROBLEM)
