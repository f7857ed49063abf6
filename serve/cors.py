"""Cross-origin requests of browsers (CORS, Fetch Standard, section 3.2): off unless an application names origins."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

__all__ = ["cors_headers"]

_METHODS = b"GET, HEAD, POST, OPTIONS"
_ALLOWED = b"Authorization, Content-Type, X-Request-Id"
_EXPOSED = b"Retry-After, Server-Timing, X-Request-Id"
_SECONDS = b"600"


def cors_headers(origins: Sequence[str], headers: Mapping[bytes, bytes]) -> list[tuple[bytes, bytes]]:
    """Headers that let the page at the request's Origin read the answer; none for an origin that is not allowed."""
    origin = headers.get(b"origin", b"")
    if not origin:
        return [(b"vary", b"Origin")]
    if "*" not in origins and origin.decode("latin-1") not in origins:
        return [(b"vary", b"Origin")]
    allowed = [
        (b"access-control-allow-origin", origin),
        (b"access-control-expose-headers", _EXPOSED),
        (b"vary", b"Origin"),
    ]
    if b"access-control-request-method" in headers:
        allowed += [
            (b"access-control-allow-methods", _METHODS),
            (b"access-control-allow-headers", _ALLOWED),
            (b"access-control-max-age", _SECONDS),
        ]
    return allowed
