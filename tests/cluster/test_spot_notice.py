"""The notice that a spot machine is taken back, from a stand-in of EC2's metadata service on loopback."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
import threading
from collections.abc import Iterator
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest

from nodes import second_node
from stoker.embedded import Instance
from stoker.embedded.processes import program, wait_until
from stoker.errors import ClusterError
from stoker.spot_notice import MetadataService, SpotNotice, watch

NOTICE = '{"action": "terminate", "time": "2026-11-26T08:22:00Z"}'
TOKEN = "AQAEAI-token"
_GOING = """
import ray
ray.init(address="auto", log_to_driver=False)
draining = ray._private.state.state.get_draining_nodes() or {}  # one that has no work ends by itself
print("going", [node["NodeID"] for node in ray.nodes() if node["NodeID"] in draining or not node["Alive"]])
"""


@dataclass
class StandIn:
    """The service as AWS documents it: a session token by PUT, and 404 until there is a notice."""

    url: str = ""
    answers: list[tuple[int, str]] = field(default_factory=list)
    """status and body of the next questions; the last one stays"""
    tokens: int = 0
    asked: int = 0


@pytest.fixture
def metadata() -> Iterator[StandIn]:
    found = StandIn()

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def do_PUT(self) -> None:
            is_asked_well = self.path == "/latest/api/token" and self.headers["X-aws-ec2-metadata-token-ttl-seconds"]
            found.tokens += 1
            self._say(200 if is_asked_well else 400, TOKEN)

        def do_GET(self) -> None:
            if self.headers["X-aws-ec2-metadata-token"] != TOKEN:
                return self._say(401, "")
            if self.path != "/latest/meta-data/spot/instance-action":
                return self._say(404, "")
            found.asked += 1
            return self._say(*(found.answers.pop(0) if len(found.answers) > 1 else found.answers[0]))

        def _say(self, status: int, text: str) -> None:
            self.send_response(status)
            self.send_header("Content-Length", str(len(text)))
            self.end_headers()
            self.wfile.write(text.encode())

        def log_message(self, *_: object) -> None:
            pass

    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        thread = threading.Thread(target=server.serve_forever, daemon=True)
        thread.start()
        found.url = f"http://127.0.0.1:{server.server_address[1]}"
        yield found
        server.shutdown()
        thread.join()


def test_the_notice_is_read_with_a_session_token_that_is_asked_for_once(metadata: StandIn) -> None:
    metadata.answers = [(404, ""), (404, ""), (200, NOTICE)]
    service = MetadataService(metadata.url)
    assert [service.notice() for _ in range(2)] == [None, None]
    assert service.notice() == SpotNotice("terminate", 1795681320.0)
    assert metadata.tokens == 1


def test_a_token_that_is_refused_is_asked_for_again(metadata: StandIn) -> None:
    metadata.answers = [(401, ""), (404, "")]
    service = MetadataService(metadata.url)
    with pytest.raises(ClusterError, match="answers 401"):
        service.notice()
    assert service.notice() is None
    assert metadata.tokens == 2


@pytest.mark.parametrize(
    "body", ["", "[]", "{}", '{"action": "stop", "time": "soon"}', '{"action": "stop"}', "x" * 10_000]
)
def test_an_answer_that_is_no_notice_is_no_crash(metadata: StandIn, body: str) -> None:
    metadata.answers = [(200, body)]
    with pytest.raises(ClusterError, match="cannot be read"):
        MetadataService(metadata.url).notice()


def test_watching_goes_on_through_failures_until_the_node_drains(
    metadata: StandIn, caplog: pytest.LogCaptureFixture
) -> None:
    metadata.answers = [(500, ""), (503, ""), (404, ""), (200, NOTICE)]
    drained: list[SpotNotice] = []

    def drain(notice: SpotNotice) -> None:
        drained.append(notice)
        if len(drained) < 3:
            raise ClusterError("Ray does not answer yet")

    with caplog.at_level("WARNING"):
        notice = watch(MetadataService(metadata.url), drain, every_s=0.001)
    assert drained == [notice] * 3
    assert len(caplog.messages) == 2, "each kind of trouble is warned about once"


def test_an_answer_that_is_no_http_is_no_crash() -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:

        def answer() -> None:
            connection, _ = server.accept()
            with connection:
                connection.recv(4096)
                connection.sendall(b"garbage\r\n\r\n")

        thread = threading.Thread(target=answer, daemon=True)
        thread.start()
        with pytest.raises(ClusterError, match="cannot be read"):
            MetadataService(f"http://127.0.0.1:{server.getsockname()[1]}").notice()
        thread.join()


def test_an_address_that_is_none_is_refused() -> None:
    with pytest.raises(ClusterError, match=r"AWS_EC2_METADATA_SERVICE_ENDPOINT is 'file:///etc'; write it as http://"):
        MetadataService("file:///etc")


def test_nobody_there_is_no_crash() -> None:
    with pytest.raises(ClusterError, match="cannot be read"):
        MetadataService("http://127.0.0.1:9").notice()


@pytest.mark.cluster
def test_the_node_drains_and_ends_at_the_notice(cluster: Instance, metadata: StandIn, tmp_path: Path) -> None:
    metadata.answers = [(404, "")]
    environment = {**os.environ, **cluster.cluster.environment(), "AWS_EC2_METADATA_SERVICE_ENDPOINT": metadata.url}
    log = tmp_path / "watch.log"
    with second_node(cluster.cluster) as node, log.open("wb") as file:
        watcher = subprocess.Popen(
            [program("stoker"), "watch-spot", "--every", "0.1"], env=environment, stdout=file, stderr=subprocess.STDOUT
        )
        try:
            wait_until(lambda: metadata.asked > 2, "questions", timeout_s=60, log=log)
            assert watcher.poll() is None
            metadata.answers = [(200, NOTICE)]
            assert watcher.wait(timeout=60) == 0, log.read_text()
            asked = [sys.executable, "-c", _GOING]
            told = subprocess.run(asked, env=environment, check=True, capture_output=True, text=True, timeout=60).stdout
        finally:
            watcher.kill()
            watcher.wait()
    assert "this machine is taken back (terminate); its Ray node drains" in log.read_text()
    assert node.id in told.splitlines()[-1]
    assert cluster.problem() is None, "the head must stay"
