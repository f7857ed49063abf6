"""The address and token of a dashboard: what is refused, and that no secret is quoted."""

from __future__ import annotations

import os
import threading
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path

import pytest

from stoker.dashboard import checked_address, ray_token
from stoker.errors import ClusterError
from stoker_serve.deploy import _client, remove

SECRET = "s3cret-token"


@pytest.mark.parametrize(
    "address", ["http://127.0.0.1:8265", "https://ray.example.org", "http://[::1]:8265", "http://a/b"]
)
def test_a_dashboards_address_is_accepted(address: str) -> None:
    assert checked_address(address) == checked_address(address + "/") == address


@pytest.mark.parametrize(
    "address",
    ["", "auto", "127.0.0.1:6379", "ray://a:10001", "http://", "http://[::1", "http://a:b", "http://a:0", "http://a b"],
)
def test_another_address_is_refused_in_one_line(address: str) -> None:
    with pytest.raises(ClusterError, match=r"is not a dashboard URL; write it as http://127.0.0.1:8265$"):
        checked_address(address)
    with pytest.raises(ClusterError, match="is not a dashboard URL"):
        remove(address)


@pytest.mark.parametrize("address", [f"http://me:{SECRET}@host:8265", f"http://me:{SECRET}@[host", f"me:{SECRET}@host"])
def test_a_password_in_an_address_is_not_quoted(address: str) -> None:
    with pytest.raises(ClusterError) as refused:
        checked_address(address)
    assert SECRET not in str(refused.value)
    assert "host" in str(refused.value)


@pytest.mark.parametrize("text", [SECRET, f"{SECRET}\n", f" {SECRET}\r\n"])
def test_a_token_is_stripped(text: str, tmp_path: Path) -> None:
    (tmp_path / "token").write_text(text)
    assert ray_token({"RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN": text}) == SECRET
    assert ray_token({"RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN_PATH": str(tmp_path / "token")}) == SECRET
    assert ray_token({"RAY_AUTH_TOKEN": text}) is None


@pytest.mark.parametrize("text", [f"{SECRET}\nmore", f"{SECRET} more", f"{SECRET}\x00", f"{SECRET}é"])
def test_a_token_that_cannot_be_sent_is_not_quoted(text: str, tmp_path: Path) -> None:
    (tmp_path / "token").write_text(text, encoding="utf-8")
    for place in ({"RAY_AUTH_TOKEN": text}, {"RAY_AUTH_TOKEN_PATH": str(tmp_path / "token")}):
        with pytest.raises(ClusterError, match=r"the token in .* a header cannot carry") as refused:
            ray_token({"RAY_AUTH_MODE": "token", **place})
        assert SECRET not in str(refused.value)


def test_a_token_file_that_is_no_text_is_refused(tmp_path: Path) -> None:
    (tmp_path / "token").write_bytes(b"\xff\xfe")
    with pytest.raises(ClusterError, match="is not a token file"):
        ray_token({"RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN_PATH": str(tmp_path / "token")})


def test_the_client_of_deploy_gets_the_stripped_token(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RAY_AUTH_MODE", "token")
    monkeypatch.setenv("RAY_AUTH_TOKEN", f"{SECRET}\n")
    with pytest.raises(ConnectionError):
        _client("http://127.0.0.1:1")
    assert os.environ["RAY_AUTH_TOKEN"] == SECRET
    with pytest.raises(ClusterError, match=r"no Ray cluster answers at http://127.0.0.1:1; start one"):
        remove("http://127.0.0.1:1")


@pytest.mark.parametrize("content", [b"[]", b"{}"])
def test_deploy_names_a_server_that_is_no_dashboard(content: bytes) -> None:
    class Answer(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self.send_response(200)
            self.send_header("Content-Length", str(len(content)))
            self.end_headers()
            self.wfile.write(content)

        def log_message(self, *arguments: object) -> None:
            pass

    with HTTPServer(("127.0.0.1", 0), Answer) as server:
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.05})
        thread.start()
        try:
            with pytest.raises(ClusterError, match=r"^no Ray cluster answers at .* \(what answers there is not"):
                remove(f"http://127.0.0.1:{server.server_port}")
        finally:
            server.shutdown()
            thread.join()
