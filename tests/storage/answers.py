"""A real HTTP server that answers by the list of answers that a test gives it."""

from __future__ import annotations

import threading
import time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer


class Answers(ThreadingHTTPServer):
    """Answers each request by the next of ``statuses``, the last one for ever; keeps what was asked.

    A status is a number, a number with one of S3's error codes, or 0: what is not HTTP.
    """

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        self.statuses: list[int | tuple[int, str]] = [200]
        self.asked: list[tuple[str, str, dict[str, str]]] = []
        self.stalls = False
        """whether an answer waits until it is False"""
        self._thread = threading.Thread(target=self.serve_forever, args=(0.01,))
        self._thread.start()

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_port}"

    def handle_error(self, *_: object) -> None:
        """A client that went away is what some tests are about."""

    def close(self) -> None:
        self.stalls = False
        self.shutdown()
        self._thread.join()
        self.server_close()


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    server: Answers

    def _answer(self) -> None:
        self.rfile.read(int(self.headers.get("Content-Length") or 0))
        headers = {name.lower(): value for name, value in self.headers.items()}
        self.server.asked.append((self.command, self.path, headers))
        while self.server.stalls:
            time.sleep(0.01)
        found = self.server.statuses.pop(0) if len(self.server.statuses) > 1 else self.server.statuses[0]
        status, code = found if isinstance(found, tuple) else (found, "")
        if status == 0:
            self.wfile.write(b"\x16\x03\x01\x02\x00 no HTTP\r\n\r\n")
            self.close_connection = True
            return
        body = b"data" if status == 200 and self.command in {"GET", "HEAD"} else b""
        is_range = bool(body) and "range" in headers
        if code:
            body = f"<?xml version='1.0'?><Error><Code>{code}</Code><Message>by a test</Message></Error>".encode()
        self.send_response(206 if is_range else status)
        if is_range:
            self.send_header("Content-Range", f"bytes 0-{len(body) - 1}/{len(body)}")
        self.send_header("ETag", '"1"')
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body)

    do_GET = do_HEAD = do_PUT = do_POST = do_DELETE = _answer  # noqa: N815 - the names that http.server looks for

    def log_message(self, *_: object) -> None:
        pass
