"""The description of the protocol (``/openapi.json``), of the front and of what HAProxy and the replicas answer.

FastAPI describes the front's own routes; here it learns what it cannot see: other statuses, other methods, bodies.
"""

from __future__ import annotations

from typing import Any

from fastapi import FastAPI
from fastapi.openapi.utils import get_openapi

from .answers import PROBLEM
from .bodies import ENCODED_TYPES
from .schemas import ProblemDetails

__all__ = ["IMAGES", "KEYED", "ROUTED", "TOP", "described", "problems"]

_WHEN = {
    400: "empty body, malformed form or JSON, a bad parameter, or too many or too long headers",
    401: "missing, unknown or expired API key",
    403: "the API key is not for this model",
    404: "unknown model, version or alias; the detail names those that exist",
    405: "another method; see Allow",
    408: "the request or its body did not arrive in time",
    413: "body, pixels or number of images over the limit",
    414: "path and query are longer than 8,192 bytes",
    415: "not an image, or a content type or encoding that is not read",
    422: "an image that cannot be decoded",
    429: "the API key's rate is used up; see Retry-After",
    500: "a defect; see the endpoint's log",
    502: "the replica ended before it answered; see Retry-After",
    503: "every replica is busy or none is ready; see Retry-After",
    504: "no answer in time; see Retry-After",
}
KEYED = (401, 403, 429)
_ALWAYS = (400, 405, 408, 414, 500, 502, 503, 504)
"""of every route: by HAProxy, or because something is broken"""
ROUTED = "/v1/models/{name}"
"""routes below it are a model's: its replicas answer them, OPTIONS too"""

_BINARY = {"schema": {"type": "string", "format": "binary"}}
_FILES = {"type": "array", "items": {"type": "string", "format": "binary"}, "minItems": 1}
_TEXTS = {"type": "array", "items": {"type": "string", "contentEncoding": "base64"}, "minItems": 1}
_CLASSES = {"type": "integer", "minimum": 1, "maximum": 999_999_999}
_FORM = {"type": "object", "properties": {"images": _FILES, "top": _CLASSES}, "required": ["images"]}
_JSON = {"type": "object", "properties": {"images": _TEXTS, "top": _CLASSES}, "required": ["images"]}
IMAGES = {
    **dict.fromkeys(ENCODED_TYPES, _BINARY),
    "multipart/form-data": {"schema": _FORM, "encoding": {"images": {"contentType": "image/*"}}},
    "application/json": {"schema": _JSON},
}
"""OpenAPI's content of a request for predictions, by media type"""
TOP = {
    "name": "top",
    "in": "query",
    "description": "classes to return for each image; it goes before top in the body, and the last of several counts",
    "schema": _CLASSES,
}

_REQUEST_ID = {
    "name": "X-Request-Id",
    "in": "header",
    "description": "returned and logged if it is 1 to 128 of A-Z a-z 0-9 . _ -, else another is made",
    "schema": {"type": "string"},
}
_TEXT = {"schema": {"type": "string"}}
_HEADERS = {
    "Retry-After": {"description": "seconds after which to try again", **_TEXT},
    "Allow": {"description": "the methods that are answered here", **_TEXT},
    "WWW-Authenticate": {"description": "how to authenticate (RFC 6750)", **_TEXT},
    "Server-Timing": {"description": "milliseconds in the queue, for decoding and for the model", **_TEXT},
}
_HEADERS_OF = {
    200: ("Server-Timing",),
    401: ("WWW-Authenticate",),
    403: ("WWW-Authenticate",),
    405: ("Allow",),
    **dict.fromkeys((429, 502, 503, 504), ("Retry-After",)),
}


def problems(statuses: tuple[int, ...]) -> dict[int | str, dict[str, Any]]:
    """OpenAPI's responses for these error statuses and those that every route may answer."""
    content = {PROBLEM: {"schema": {"$ref": f"#/components/schemas/{ProblemDetails.__name__}"}}}
    responses: dict[int | str, dict[str, Any]] = {}
    for status in sorted({*statuses, *_ALWAYS}):
        responses[status] = {"description": _WHEN[status], "content": content}
        if names := _HEADERS_OF.get(status):
            responses[status]["headers"] = {name: _HEADERS[name] for name in names}
    # What is no HTTP is refused by HAProxy in its own words.
    responses[400] = {**responses[400], "content": {**content, "text/html": _TEXT}}
    return responses


def described(app: FastAPI) -> dict[str, Any]:
    """The whole description, of OpenAPI 3.1."""
    found: dict[str, Any] = get_openapi(
        title=app.title, version=app.version, openapi_version=app.openapi_version, routes=app.routes
    )
    schemas = found["components"]["schemas"]
    for name in ("HTTPValidationError", "ValidationError"):  # FastAPI's own; bad parameters are 400 here
        schemas.pop(name, None)
    schemas[ProblemDetails.__name__] = ProblemDetails.model_json_schema()
    for path, operations in found["paths"].items():
        for operation in operations.values():
            _correct(operation)
        if "get" in operations:
            operations["head"] = _head(operations["get"])
        if path.startswith(ROUTED):
            operations["options"] = _options(operations)
    return found


def _correct(operation: dict[str, Any]) -> None:
    content = operation["responses"].get("422", {}).get("content", {})
    if content and PROBLEM not in content:
        del operation["responses"]["422"]
    for parameter in operation.get("parameters", []):
        if parameter["in"] == "path":
            parameter["schema"] = {"type": "string"}
            parameter["description"] = "a model, which @ and a version or alias may follow: digits, digits@3"
    operation["parameters"] = [*operation.get("parameters", []), _REQUEST_ID]
    if "requestBody" in operation:
        operation["parameters"].insert(1, TOP)
        operation["responses"]["200"]["headers"] = {"Server-Timing": _HEADERS["Server-Timing"]}


def _head(get: dict[str, Any]) -> dict[str, Any]:
    """As GET, without a body."""
    responses = {
        status: {key: value for key, value in response.items() if key != "content"}
        for status, response in get["responses"].items()
    }
    return {**get, "operationId": f"{get['operationId']}_head", "responses": responses}


def _options(operations: dict[str, Any]) -> dict[str, Any]:
    like = next(iter(operations.values()))
    allowed = {"Allow": _HEADERS["Allow"]}
    responses = {str(status): response for status, response in problems((404,)).items()}
    return {
        "summary": "Options",
        "description": "The methods that are answered here; needs no key.",
        "operationId": f"{like['operationId']}_options",
        "parameters": [parameter for parameter in like["parameters"] if parameter["in"] != "query"],
        "responses": {"204": {"description": "see Allow", "headers": allowed}, **responses},
    }
