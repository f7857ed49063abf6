"""stoker submit: where the job goes, what is sent, and what its exit status is."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import socket
import socketserver
import subprocess
import sys
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import ClassVar

import psutil
import pytest

from stoker.cli import main, submit
from stoker.cli._ray_jobs import Jobs, JobStatus
from stoker.cli.submit import EXCLUDES, _entrypoint
from stoker.embedded import Instance
from stoker.errors import ClusterError

TOKEN = "t0ken"


class Dashboard(BaseHTTPRequestHandler):
    """A job API with one finished job and one that fails after two answers."""

    asked: ClassVar[dict[str, int]] = {}

    def do_GET(self) -> None:
        self.asked[self.path] = self.asked.get(self.path, 0) + 1
        answers = {
            "/api/version": {"version": "4"},
            "/api/jobs/": [],
            "/api/jobs/done": {"status": "SUCCEEDED", "driver_exit_code": 0},
            "/api/jobs/slow": {
                "status": "RUNNING" if self.asked[self.path] < 3 else "FAILED",
                "driver_exit_code": None if self.asked[self.path] < 3 else 7,
            },
        }
        if self.headers.get("Authorization") != f"Bearer {TOKEN}":
            self.send_error(401)
        elif self.path not in answers:
            self.send_error(404)
        else:
            body = json.dumps(answers[self.path]).encode()
            self.send_response(200)
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

    def log_message(self, *arguments: object) -> None:
        pass


@pytest.fixture
def address() -> Iterator[str]:
    Dashboard.asked = {}
    server = ThreadingHTTPServer(("127.0.0.1", 0), Dashboard)
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_port}"
    finally:
        server.shutdown()
        thread.join()
        server.server_close()


def test_a_job_is_waited_for_and_its_exit_status_is_its_own(address: str) -> None:
    jobs = Jobs(address, {"RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN": TOKEN})
    jobs.check()
    assert jobs.wait("slow", timeout_s=5, poll_s=0.01) == JobStatus("FAILED", 7)
    assert Dashboard.asked["/api/jobs/slow"] == 3
    assert jobs.wait("done", timeout_s=5, poll_s=0.01) == JobStatus("SUCCEEDED", 0)
    assert jobs.wait("unknown", timeout_s=5, poll_s=0.01) is None


@pytest.mark.parametrize(
    ("status", "code"),
    [
        (JobStatus("SUCCEEDED", 0), 0),
        (JobStatus("SUCCEEDED", None), 0),
        (JobStatus("FAILED", 2), 2),
        (JobStatus("FAILED", None), 1),
        (JobStatus("FAILED", 0), 1),
        (JobStatus("FAILED", -9), 1),
        (JobStatus("STOPPED", None), 1),
    ],
)
def test_only_a_job_that_succeeded_exits_with_0(status: JobStatus, code: int) -> None:
    assert status.exit_code == code


def test_a_token_is_read_where_ray_reads_it_and_a_wrong_one_is_explained(address: str, tmp_path: Path) -> None:
    (tmp_path / "token").write_text(TOKEN + "\n")
    Jobs(address, {"RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN_PATH": str(tmp_path / "token")}).check()
    with pytest.raises(ClusterError, match="does not accept our token; set RAY_AUTH_MODE=token"):
        Jobs(address, {"RAY_AUTH_TOKEN": TOKEN}).check()
    with pytest.raises(ClusterError, match=r"cannot read Ray's token .*absent"):
        Jobs(address, {"RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN_PATH": str(tmp_path / "absent")})


def test_a_script_of_the_working_directory_goes_before_the_installed_command(tmp_path: Path) -> None:
    assert _entrypoint("train", tmp_path) == ["-m", "stoker", "train"]
    (tmp_path / "jobs").mkdir()
    (tmp_path / "jobs" / "train.py").touch()
    assert _entrypoint("train", tmp_path) == ["jobs/train.py"]


def test_help_states_what_is_not_copied() -> None:
    assert all(f" {pattern} " in str(submit.__doc__).replace("\n", " ") + " " for pattern in EXCLUDES)


def submitted(folder: Path, *arguments: str, **environment: str) -> subprocess.CompletedProcess[str]:
    variables = {name: value for name, value in os.environ.items() if not name.startswith("RAY_")}
    return subprocess.run(
        [sys.executable, "-m", "stoker", "submit", *arguments],
        cwd=folder,
        env=variables | environment,
        check=False,
        text=True,
        capture_output=True,
        timeout=300,
    )


def test_without_a_cluster_or_recipe_one_line_says_what_to_do(tmp_path: Path) -> None:
    done = submitted(tmp_path, "prepare", "a", "b")
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr.startswith(f"error: no cluster given, and none runs in {tmp_path}/.stoker; give --address")
    done = submitted(tmp_path, "train", "recipe.yaml")
    assert done.stderr.startswith("error: recipe.yaml: recipe not found in the working directory")
    with socket.socket() as unused:
        unused.bind(("127.0.0.1", 0))
        address = f"http://127.0.0.1:{unused.getsockname()[1]}"
        done = submitted(tmp_path, "--address", address, "prepare", "a", "b")
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr.startswith(f"error: no Ray cluster answers at {address} (")


@pytest.mark.cluster
def test_a_job_of_the_embedded_cluster_is_followed_and_keeps_its_exit_status(cluster: Instance, tmp_path: Path) -> None:
    state = cluster.folder.path
    (tmp_path / "recipe.yaml").write_text("name: [")
    (tmp_path / "mine.txt").touch()
    done = submitted(tmp_path, "--folder", str(state), "--submission-id", "broken", "train", "recipe.yaml")
    assert done.returncode == 2, done.stdout + done.stderr
    command, *rest = done.stdout.splitlines()
    assert command.startswith(
        f"$ ray job submit --address {cluster.dashboard_url} --submission-id broken --working-dir ."
    )
    assert cluster.folder.ray_token() not in done.stdout + done.stderr
    assert [line for line in rest if "not valid YAML" in line] == rest
    log = state / "logs" / "jobs" / "broken.log"
    assert done.stderr == f"error: job broken failed with exit status 2; log: {log}\n"
    assert "submitted successfully" in log.read_text()


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_stops_following_and_says_how_to_follow_and_stop_the_job(
    number: signal.Signals, tmp_path: Path
) -> None:
    accepted = "2026-11-26 02:29:33,054\tSUCC cli.py:67 -- Job 'mine' submitted successfully"
    client = f"import os, time; print({accepted!r}); print('pid', os.getpid(), flush=True); time.sleep(600)"
    program = (
        "import os, sys; from pathlib import Path\n"
        "from stoker.cli import submit\n"
        "submit.program = lambda name: sys.executable\n"
        f"submit._follow(['ray', '-c', {client!r}], dict(os.environ), Path('logs/job.log'), 'http://host:1', 'mine')"
    )
    following = subprocess.Popen(
        [sys.executable, "-c", program], cwd=tmp_path, text=True, stdout=subprocess.PIPE, stderr=subprocess.PIPE
    )
    assert following.stdout is not None
    pid = int(following.stdout.readline().split()[1])
    following.send_signal(number)
    _, said = following.communicate(timeout=60)
    assert following.returncode == 130
    assert said == (
        "\nno longer following mine; follow it: ray job logs --follow --address http://host:1 mine   "
        "stop it: ray job stop --address http://host:1 mine\n"
    )
    assert not psutil.pid_exists(pid)
    assert (tmp_path / "logs" / "job.log").read_text() == f"{accepted}\npid {pid}\n"


def followed(client: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> str:
    """What is printed of a ``ray job submit`` whose program is ``client``."""
    monkeypatch.setattr(submit, "program", lambda name: sys.executable)
    submit._follow(["ray", "-c", client], dict(os.environ), None, "http://host:1", "mine")
    return capsys.readouterr().out


ACCEPTED = "2026-11-26 02:29:33,054\tSUCC cli.py:67 -- \x1b[32mJob 'mine' submitted successfully\x1b[39m"
FAILED = "2026-11-26 02:29:34,054\tERR cli.py:74 -- \x1b[31mJob 'mine' failed\x1b[39m"


def test_a_client_that_fails_before_the_job_is_accepted_is_one_line(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    with pytest.raises(ClusterError, match=r"^the job was not submitted: RuntimeError: no; the command above"):
        followed("print('Traceback'); print('RuntimeError: no'); raise SystemExit(1)", capsys, monkeypatch)
    assert capsys.readouterr().out == ""
    with pytest.raises(ClusterError, match="printed nothing, exit status 3"):
        followed("raise SystemExit(3)", capsys, monkeypatch)


def test_a_client_that_fails_after_the_job_was_accepted_leaves_the_verdict_to_the_job(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    lines = ["a warning", ACCEPTED, "one", "Job 'mine' failed at shard 7", "two", FAILED, "two"]
    client = f"print(*{lines!r}, sep=chr(10)); raise SystemExit(1)"
    assert followed(client, capsys, monkeypatch).splitlines() == [
        *("a warning", "one", "Job 'mine' failed at shard 7", "two")
    ]
    assert followed("print('unknown words')", capsys, monkeypatch) == "unknown words\n"


def test_a_submission_id_that_is_taken_is_refused_before_anything_is_sent(address: str, tmp_path: Path) -> None:
    token = {"RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN": f"{TOKEN}\n"}
    done = submitted(tmp_path, "--address", address, "--submission-id", "done", "prepare", "a", "b", **token)
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr == "error: --submission-id done: the cluster has a job of this name already; choose another\n"


@pytest.mark.parametrize("name", ["a b", "", "../a", "-a", "a/b", "a" * 101, "ä"])
def test_a_submission_id_is_a_name(name: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as stopped:
        main(["submit", f"--submission-id={name}", "prepare", "a", "b"])
    assert stopped.value.code == 2
    assert capsys.readouterr().err.startswith(f"error: --submission-id {name!r} is not a valid name; ")


@contextlib.contextmanager
def answering(content: bytes) -> Iterator[str]:
    """A server that answers everything with ``content``."""

    class Answer(socketserver.BaseRequestHandler):
        def handle(self) -> None:
            self.request.recv(65536)
            self.request.sendall(content)

    with socketserver.ThreadingTCPServer(("127.0.0.1", 0), Answer) as server:
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.05})
        thread.start()
        try:
            yield f"http://127.0.0.1:{server.server_address[1]}"
        finally:
            server.shutdown()
            thread.join()


@pytest.mark.parametrize(
    "content",
    [
        b"SSH-2.0-OpenSSH_9.2\r\n",
        b"",
        b"HTTP/1.1 404 Not Found\r\nContent-Length: 0\r\n\r\n",
        b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\n[]",
        b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\n\xff\xff",
        b"HTTP/1.1 200 OK\r\nContent-Length: 9\r\n\r\n{}",
    ],
)
def test_a_server_that_is_no_dashboard_is_named_in_one_line(content: bytes) -> None:
    with answering(content) as address, pytest.raises(ClusterError, match=f"^no Ray cluster answers at {address} "):
        Jobs(address, {}).check()


@pytest.mark.parametrize("answer", ["[]", "{}", '{"status": null}'])
def test_a_status_that_is_none_is_named(answer: str) -> None:
    head = f"HTTP/1.1 200 OK\r\nContent-Length: {len(answer)}\r\n\r\n"
    with answering(f"{head}{answer}".encode()) as address, pytest.raises(ClusterError, match="not a job's status"):
        Jobs(address, {}).status("a")
