"""The protocol of one model, as an ASGI application written by hand: what a request passes through is all here.

The front describes it (``/openapi.json``), and a test holds the description against this.
"""

from __future__ import annotations

import asyncio
import json
import logging
import time
from collections.abc import Awaitable, Callable, MutableMapping
from typing import Any, NamedTuple, Protocol
from urllib.parse import parse_qsl

from .answers import PROBLEM, Problem, predictions_json, quoted
from .bodies import Sent, media_type, read_headers, sent_images, top_from
from .cors import cors_headers
from .keys import KeyRefusal, Keys
from .pipeline import Answered, Pipeline
from .reading import Bodies, ClientGone, Receive, drain
from .recording import CLIENT_GONE, Recorder
from .settings import ModelSettings
from .telemetry import request_id

__all__ = ["Described", "ModelApp"]

logger = logging.getLogger(__name__)

Scope = MutableMapping[str, Any]
Send = Callable[[MutableMapping[str, Any]], Awaitable[None]]

_METHODS = {"predict": ("POST", "OPTIONS"), "describe": ("GET", "HEAD", "OPTIONS"), "ready": ("GET", "HEAD", "OPTIONS")}
_ROUTES = {(): "describe", ("predict",): "predict", ("readyz",): "ready"}
_MOST_QUERY = 4096


class Described(Protocol):
    """The version that is served."""

    reference: str
    classes: tuple[str, ...]

    def describe(self) -> dict[str, Any]: ...


class _Response(NamedTuple):
    status: int
    headers: list[tuple[bytes, bytes]]
    body: bytes = b""


class _Seen:
    """What the access log and the metrics say of a request."""

    __slots__ = ("answered", "bytes_in", "images", "key")

    def __init__(self) -> None:
        self.key: str | None = None
        self.bytes_in = 0
        self.images = 0
        self.answered: Answered | None = None


class ModelApp:
    """Answer ``<prefix>/predict``, ``<prefix>`` and ``<prefix>/readyz``, also with ``@version`` or ``@alias``.

    ``<prefix>`` is ``/v1/models/NAME``. Behind HAProxy ``NAME@REF/…`` arrives as ``NAME/@REF/…``, because Serve's
    routes end at a slash.
    """

    def __init__(
        self,
        settings: ModelSettings,
        version: Described,
        pipeline: Pipeline,
        keys: Keys | None,
        recorder: Recorder,
        *,
        tells_request_id: bool = True,
    ) -> None:
        """``tells_request_id``: whether an answer gets ``X-Request-Id`` here; Serve's own server adds it by itself."""
        self._settings = settings
        self._version = version
        self._pipeline = pipeline
        self._keys = keys
        self._recorder = recorder
        self._tells_request_id = tells_request_id
        self._bodies = Bodies(settings.limits)
        self._labels = quoted(version.classes)
        self._reference = json.dumps(version.reference).encode()
        self._requests = 0

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            return
        began = time.monotonic()
        headers = dict(scope["headers"])
        identity = request_id(headers.get(b"x-request-id"))
        seen = _Seen()
        try:
            response = await self._answer(scope, headers, receive, seen)
        except Problem as problem:
            response = _refused(problem)
        except (ClientGone, asyncio.CancelledError) as gone:
            self._record(CLIENT_GONE, identity, seen, began)
            if isinstance(gone, asyncio.CancelledError):
                raise
            return
        except Exception:
            logger.exception("%s %s failed (request %s)", scope["method"], scope["path"], identity)
            response = _refused(Problem(500, "internal", f"internal error; see the log, request {identity}"))
        if self._tells_request_id:
            response.headers.append((b"x-request-id", identity.encode()))
        if self._settings.origins:
            response.headers.extend(cors_headers(self._settings.origins, headers))
        status = response.status
        try:
            await send({"type": "http.response.start", "status": status, "headers": response.headers})
            await send({"type": "http.response.body", "body": b"" if scope["method"] == "HEAD" else response.body})
        except OSError:
            status = CLIENT_GONE
        self._record(status, identity, seen, began)

    # -- routes ----------------------------------------------------------------------------------------------------

    async def _answer(self, scope: Scope, headers: dict[bytes, bytes], receive: Receive, seen: _Seen) -> _Response:
        try:
            name = self._route(scope["path"])
            method = scope["method"]
            if method not in _METHODS[name]:
                detail = f"{method} is not answered at this path; send {_METHODS[name][0]}"
                raise Problem(405, "method_not_allowed", detail, {"Allow": ", ".join(_METHODS[name])})
            if method == "OPTIONS":
                return _Response(204, [(b"allow", ", ".join(_METHODS[name]).encode())])
            if name == "ready":
                return _json_response({"status": "ready", "model": self._version.reference})
            if self._keys is not None:
                admitted = self._keys.check(headers.get(b"authorization"), self._settings.name)
                if isinstance(admitted, KeyRefusal):
                    raise Problem(admitted.status, admitted.code, admitted.detail, admitted.headers)
                seen.key = admitted
            if name == "describe":
                return _json_response(self._version.describe())
            content_type, kind, top = self._check_predict(scope, headers)
        except Problem:
            await drain(receive, headers)
            raise
        self._requests += 1
        try:
            body = await self._bodies.read(headers, receive)
            try:
                seen.bytes_in = len(body)
                sent = sent_images(kind, content_type, body, self._settings.limits)
                seen.images = len(sent.images)
                answered = await self._predicted(sent, top, receive)
            finally:
                self._bodies.give_back(body)
        finally:
            self._requests -= 1
        seen.answered = answered
        timing = (
            f"queue;dur={answered.queue_s * 1000:.1f}, decode;dur={answered.decode_s * 1000:.1f}, "
            f"model;dur={answered.model_s * 1000:.1f}"
        )
        response = _response(200, b"application/json", predictions_json(self._reference, self._labels, answered.rows))
        response.headers.append((b"server-timing", timing.encode()))
        return response

    def _route(self, path: str) -> str:
        prefix = self._settings.route_prefix
        if path.startswith(prefix) and path[len(prefix) : len(prefix) + 1] not in {"", "/", "@"}:
            raise Problem(404, "not_found", f"nothing is at {path[:200]}; see /openapi.json")
        steps = [step for step in path[len(prefix) if path.startswith(prefix) else 0 :].split("/") if step]
        if steps and steps[0].startswith("@"):
            reference = steps.pop(0)[1:]
            if reference not in self._settings.references:
                served = ", ".join(f"{self._settings.name}@{known}" for known in self._settings.references)
                detail = f"{self._settings.name}@{reference[:100]} is not served here; served: {served}"
                raise Problem(404, "unknown_version", detail)
        if (route := _ROUTES.get(tuple(steps))) is None:
            raise Problem(404, "not_found", f"nothing is at {path[:200]}; see /openapi.json")
        return route

    def _check_predict(self, scope: Scope, headers: dict[bytes, bytes]) -> tuple[str, str, int]:
        """(Content-Type, media type, classes asked for in the query or 0) of a request that may be read."""
        encoding = headers.get(b"content-encoding", b"identity").decode("latin-1").strip().lower()
        if encoding not in {"identity", ""}:
            detail = f"Content-Encoding {encoding[:40]} is not read; send the body as it is"
            raise Problem(415, "unsupported_encoding", detail, {"Accept-Encoding": "identity"})
        content_type = headers.get(b"content-type", b"").decode("latin-1")
        kind = media_type(content_type)
        top = _top(scope["query_string"])
        self._pipeline.check_room()
        if self._requests >= self._settings.limits.requests:
            raise Problem(503, "busy", f"{self._requests} requests are in hand; try again", {"Retry-After": "1"})
        return content_type, kind, top

    async def _predicted(self, sent: Sent, top: int, receive: Receive) -> Answered:
        image_headers = read_headers(sent.images, self._settings.limits)
        wanted = top or sent.top or self._settings.top
        return await _unless_gone(
            asyncio.ensure_future(self._pipeline.predict(sent.images, image_headers, wanted)), receive
        )

    def _record(self, status: int, identity: str, seen: _Seen, began: float) -> None:
        self._recorder.request(
            identity,
            status,
            time.monotonic() - began,
            key=seen.key,
            bytes_in=seen.bytes_in,
            images=seen.images,
            answered=seen.answered,
        )


async def _unless_gone(predicting: asyncio.Future[Answered], receive: Receive) -> Answered:
    """What ``predicting`` returns; it is cancelled when the client goes away first.

    Raises:
        ClientGone: the client went away.
    """

    async def watch() -> None:
        while (await receive())["type"] != "http.disconnect":
            pass
        predicting.cancel()

    watching = asyncio.ensure_future(watch())
    try:
        return await predicting
    except asyncio.CancelledError:
        if watching.done():
            raise ClientGone from None
        raise
    finally:
        predicting.cancel()
        watching.cancel()


def _top(query: bytes) -> int:
    if not query:
        return 0
    if len(query) > _MOST_QUERY:
        raise Problem(400, "bad_parameter", f"the query is longer than {_MOST_QUERY} bytes; send top=5")
    found = 0
    for name, value in parse_qsl(query.decode("latin-1"), keep_blank_values=True):
        if name in {"top", "top_k"}:
            found = top_from(value, f"query parameter {name}")
    return found


def _refused(problem: Problem) -> _Response:
    response = _response(problem.status, PROBLEM.encode(), problem.body())
    response.headers.extend(
        (name.lower().encode(), value.encode("latin-1", "replace")) for name, value in problem.headers.items()
    )
    return response


def _json_response(content: dict[str, Any]) -> _Response:
    return _response(200, b"application/json", json.dumps(content).encode())


def _response(status: int, kind: bytes, body: bytes) -> _Response:
    return _Response(status, [(b"content-type", kind), (b"content-length", str(len(body)).encode())], body)
