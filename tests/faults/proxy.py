"""A real HTTP proxy between a client and the object store that injects the faults of networks and stores.

    proxy = FaultProxy(store.object_store.endpoint, seed=1)        the fixture ``proxy`` gives one, in the environment
    with proxy.faults(Fault("slow_down", times=3), Fault("flip", probability=0.01)):
        ...                                                        read through it
    proxy.done["flip"]                                             how many were done

The host that the client signed is passed on, so that signatures hold: ``AWS_ENDPOINT_URL`` may point at the proxy.
"""

from __future__ import annotations

import contextlib
import http.client
import random
import socket
import struct
import threading
import time
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any
from urllib.parse import urlsplit

KINDS = frozenset(
    {
        "error",  # 500 InternalError
        "slow_down",  # 503 SlowDown
        "answer",  # the status and code of the fault
        "refuse",  # the connection is reset before any response
        "reset",  # and in the middle of the body
        "cut",  # the connection is closed in an orderly way before the length that was declared
        "short",  # a shorter length is declared, and that many bytes are sent
        "stall_headers",  # nothing is sent for ``seconds``
        "stall",  # the body stalls for ``seconds``, then the connection is closed
        "flip",  # one bit of the body is wrong
        "slow",  # the body is sent at ``bytes_per_s``
    }
)
_PIECE = 64 * 1024


@dataclass(frozen=True)
class Fault:
    """A fault of responses to GETs whose path contains ``path``.

    It applies to the first ``times`` of them (None: to all), each with ``probability``. ``at`` is the fraction of the
    body that is sent before it. ``client`` is part of the client's User-Agent.
    """

    kind: str
    times: int | None = None
    probability: float = 1.0
    path: str = ""
    client: str = ""
    at: float = 0.5
    seconds: float = 60.0
    bytes_per_s: float = 1e6
    status: int = 400
    code: str = "BadRequest"

    def __post_init__(self) -> None:
        assert self.kind in KINDS, f"unknown fault {self.kind}; choose from {', '.join(sorted(KINDS))}"


class FaultProxy:
    """Listens on loopback until it is closed. ``done`` counts the faults by kind, ``requests`` the requests."""

    def __init__(self, upstream: str, seed: int = 0) -> None:
        parts = urlsplit(upstream)
        self.upstream = (str(parts.hostname), int(parts.port or 80))
        self.done: Counter[str] = Counter()
        self.requests = 0
        self._random = random.Random(seed)
        self._lock = threading.Lock()
        self._rules: list[list[Any]] = []
        self._released = threading.Event()
        self._server = _Server(("127.0.0.1", 0), _Handler)
        self._server.proxy = self
        self._thread = threading.Thread(target=self._server.serve_forever, args=(0.02,), daemon=True)
        self._thread.start()

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self._server.server_port}"

    @contextlib.contextmanager
    def faults(self, *faults: Fault) -> Iterator[FaultProxy]:
        """These faults and no others for a while, counted from nothing."""
        with self._lock:
            self._rules = [[fault, fault.times] for fault in faults]
            self.done.clear()
            self.requests = 0
            self._released = threading.Event()
        try:
            yield self
        finally:
            with self._lock:
                self._rules = []
                self._released.set()  # who stalls goes on

    def close(self) -> None:
        self._released.set()
        self._server.shutdown()
        self._server.server_close()
        self._thread.join()

    def choose(self, method: str, path: str, client: str) -> tuple[Fault | None, threading.Event]:
        """The fault for this request, if any; the first rule that applies."""
        with self._lock:
            self.requests += 1
            for rule in self._rules:
                fault, left = rule
                if method != "GET" or left == 0 or fault.path not in path or fault.client not in client:
                    continue
                if fault.probability < 1 and self._random.random() >= fault.probability:
                    continue
                if left is not None:
                    rule[1] = left - 1
                self.done[fault.kind] += 1
                return fault, self._released
        return None, self._released


class _Server(ThreadingHTTPServer):
    daemon_threads = True
    request_queue_size = 128
    proxy: FaultProxy

    def handle_error(self, request: Any, client_address: Any) -> None:
        """A client that went away is what these tests are about."""


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    disable_nagle_algorithm = True
    server: _Server

    def setup(self) -> None:
        super().setup()
        self._store = http.client.HTTPConnection(*self.server.proxy.upstream, timeout=60)

    def finish(self) -> None:
        self._store.close()
        with contextlib.suppress(OSError):
            super().finish()

    def log_message(self, format: str, *args: Any) -> None:  # noqa: A002 - the name of the method that this replaces
        """Nothing is printed."""

    def _serve(self) -> None:
        body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
        client = self.headers.get("User-Agent") or ""
        fault, released = self.server.proxy.choose(self.command, self.path, client)
        if fault is not None and fault.kind in {"error", "slow_down", "answer"}:
            answers = {"error": (500, "InternalError"), "slow_down": (503, "SlowDown")}
            self._refuse(*answers.get(fault.kind, (fault.status, fault.code)))
            return
        if fault is not None and fault.kind == "refuse":
            self._reset()
            return
        if fault is not None and fault.kind == "stall_headers":
            released.wait(fault.seconds)
            self._close()
            return
        self._send(self._ask(body), fault, released)

    do_GET = do_HEAD = do_PUT = do_POST = do_DELETE = _serve  # noqa: N815 - the names that http.server looks for

    def _ask(self, body: bytes) -> http.client.HTTPResponse:
        self._store.putrequest(self.command, self.path, skip_host=True, skip_accept_encoding=True)
        for name, value in self.headers.items():
            if name.lower() not in {"connection", "expect"}:
                self._store.putheader(name, value)
        self._store.endheaders(body or None)
        return self._store.getresponse()

    def _send(self, answer: http.client.HTTPResponse, fault: Fault | None, released: threading.Event) -> None:
        data = answer.read()
        kind = fault.kind if fault is not None and answer.status < 300 else ""
        stop = len(data)
        if fault is not None and kind in {"reset", "cut", "short", "stall"}:
            stop = int(len(data) * fault.at)
        if fault is not None and kind == "flip" and data:
            wrong = bytearray(data)
            wrong[min(len(data) - 1, int(len(data) * fault.at))] ^= 1
            data = bytes(wrong)
        self.send_response_only(answer.status, answer.reason)
        declared = stop if kind == "short" else len(data)
        for name, value in answer.getheaders():
            if name.lower() not in {"content-length", "transfer-encoding", "connection"}:
                self.send_header(name, value)
        if answer.status not in {204, 304}:
            length = answer.getheader("Content-Length") if self.command == "HEAD" else None
            self.send_header("Content-Length", length or str(declared))
        self.end_headers()
        pace = fault.bytes_per_s if fault is not None and kind == "slow" else None
        self._write(data[:stop], pace, released)
        if fault is not None and kind == "stall":
            released.wait(fault.seconds)
        if kind == "reset":
            self._reset()
        elif kind in {"cut", "short", "stall"}:
            self._close()

    def _write(self, data: bytes, bytes_per_s: float | None, released: threading.Event) -> None:
        if bytes_per_s is None:
            self.wfile.write(data)
            return
        began = time.monotonic()
        for start in range(0, len(data), _PIECE):
            self.wfile.write(data[start : start + _PIECE])
            if released.wait(max(0.0, began + start / bytes_per_s - time.monotonic())):
                bytes_per_s = 1e9

    def _refuse(self, status: int, code: str) -> None:
        text = f"<?xml version='1.0'?><Error><Code>{code}</Code><Message>made by a test</Message></Error>".encode()
        self.send_response_only(status, code)
        self.send_header("Content-Type", "application/xml")
        self.send_header("Content-Length", str(len(text)))
        self.end_headers()
        self.wfile.write(text)

    def _close(self) -> None:
        self.close_connection = True
        with contextlib.suppress(OSError):
            self.connection.shutdown(socket.SHUT_RDWR)

    def _reset(self) -> None:
        """With SO_LINGER of 0 seconds, closing sends RST."""
        self.close_connection = True
        self.wfile.flush()
        self.connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        self.connection.close()
