"""The Ray cluster: its token, what its workers find, what it listens on, and what is left of it."""

from __future__ import annotations

import contextlib
import os
import shlex
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest
import yaml

from conftest import Store
from stoker.embedded import Instance, Settings
from stoker.embedded.ports import is_free
from stoker.embedded.processes import Part, program
from stoker.storage import locate

pytestmark = pytest.mark.cluster


def run(*arguments: str, **environment: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [program(arguments[0]), *arguments[1:]],
        env={**os.environ, **environment},
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )


def processes(instance: Instance) -> list[psutil.Process]:
    mark = instance.folder.instance
    return [process for name in ("store", "cluster") for process in Part(mark, name).processes()]


def listening(instance: Instance) -> set[tuple[str, int]]:
    found = set()
    for process in processes(instance):
        with contextlib.suppress(psutil.NoSuchProcess):
            for connection in process.net_connections("tcp"):
                if connection.status == psutil.CONN_LISTEN:
                    found.add((connection.laddr.ip.removeprefix("::ffff:"), connection.laddr.port))
    return found


def test_a_job_is_run_and_its_workers_reach_the_store(cluster: Instance, store: Store) -> None:
    place = store.fresh("job")
    work = (
        "import ray, sys; ray.init()\n"
        "@ray.remote\n"
        "def work(url):\n"
        "    from stoker.storage import locate\n"
        "    locate(url).write(b'from a worker')\n"
        "ray.get(work.remote(sys.argv[1]))"
    )
    done = run("ray", "job", "submit", "--", "python", "-c", work, f"{place}/a")
    assert done.returncode == 0, done.stdout + done.stderr
    assert locate(f"{place}/a").read() == b"from a worker"
    assert {address for address, _ in listening(cluster)} == {"127.0.0.1"}


def test_serve_and_status_work_with_the_token(cluster: Instance) -> None:
    assert cluster.is_healthy()
    for command in (("serve", "status"), ("ray", "status"), ("ray", "job", "list")):
        done = run(*command)
        assert done.returncode == 0, done.stderr


@pytest.mark.parametrize("command", [("serve", "status"), ("ray", "job", "list")])
def test_nothing_works_without_the_token(cluster: Instance, command: tuple[str, ...], tmp_path: Path) -> None:
    assert cluster.is_healthy()
    refused = run(*command, RAY_AUTH_MODE="disabled")
    assert refused.returncode != 0
    assert "Authentication required" in refused.stdout + refused.stderr
    (tmp_path / "wrong").write_text("0" * 64)
    refused = run(*command, RAY_AUTH_TOKEN_PATH=str(tmp_path / "wrong"))
    assert refused.returncode != 0
    assert "uthenticat" in refused.stdout + refused.stderr


@pytest.fixture
def own(tmp_path: Path, settings: Settings) -> Iterator[Instance]:
    instance = Instance(tmp_path / "state", settings)
    (tmp_path / "settings.yaml").write_text(yaml.safe_dump(settings.model_dump()))
    try:
        yield instance
    finally:
        instance.stop()


def command_line(instance: Instance, command: str) -> list[str]:
    folder = instance.folder.path
    options = ["--folder", str(folder), "--settings", str(folder.parent / "settings.yaml")]
    return [sys.executable, "-m", "stoker", command, *options]


def test_up_survives_a_killed_start_and_down_leaves_nothing(own: Instance) -> None:
    starter = subprocess.Popen(command_line(own, "up"), stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    deadline = time.monotonic() + 120
    while not Part(own.folder.instance, "cluster").processes():
        assert starter.poll() is None
        assert time.monotonic() < deadline
        time.sleep(0.1)
    starter.send_signal(signal.SIGKILL)
    starter.wait()

    up = subprocess.run(command_line(own, "up"), capture_output=True, text=True, timeout=300, check=False)
    assert up.returncode == 0, up.stderr
    assert own.dashboard_url in up.stdout
    assert own.store.endpoint in up.stdout
    assert own.folder.credentials().secret_key not in up.stdout + up.stderr
    status = subprocess.run(command_line(own, "status"), capture_output=True, text=True, timeout=120, check=False)
    assert status.returncode == 0, status.stdout
    exported = subprocess.run(
        ["bash", "-c", f'eval "$({shlex.join(command_line(own, "environment"))})"; env'],
        capture_output=True,
        text=True,
        timeout=120,
        check=True,
    )
    assert set(own.environment().items()) <= {tuple(line.split("=", 1)) for line in exported.stdout.splitlines()}

    own.start("quickstart")
    assert own.owner == "up"
    taken = listening(own)
    temporary = own.folder.temporary("r").parent
    (own.folder.path / "state.json").unlink()
    down = subprocess.run(command_line(own, "down"), capture_output=True, text=True, timeout=120, check=False)
    assert down.returncode == 0, down.stderr
    assert processes(own) == []
    assert all(is_free(port) for _, port in taken)
    assert not temporary.exists()
    assert not [path for _, port in taken for path in Path("/tmp").glob(f"seaweedfs-*-{port}.sock")]
    status = subprocess.run(command_line(own, "status"), capture_output=True, text=True, timeout=120, check=False)
    assert status.returncode == 1
    assert "the object store and the Ray cluster not answering" in status.stdout
    refused = subprocess.run(command_line(own, "environment"), capture_output=True, text=True, timeout=60, check=False)
    assert refused.returncode == 2
    assert refused.stderr.startswith("error: the object store and the Ray cluster not answering")


@pytest.mark.long
def test_a_killed_head_is_started_anew_on_the_same_store(own: Instance) -> None:
    with own.started("quickstart"):
        head, store = own.cluster.process(), own.store.process()
        assert head is not None
        psutil.Process(head.pid).kill()
        for process in Part(own.folder.instance, "cluster").processes():
            if process.name() in {"gcs_server", "raylet"}:
                process.kill()
        deadline = time.monotonic() + 60
        while own.cluster.is_healthy():
            assert time.monotonic() < deadline
            time.sleep(0.2)
        own.start("quickstart")
        assert own.is_healthy()
        assert own.cluster.process() != head
        assert own.store.process() == store
    assert processes(own) == []
    assert not own.is_healthy()
