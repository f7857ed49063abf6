"""An endpoint listens on loopback, and with its cluster all of its processes end: HAProxy, its guard, the decoders."""

from __future__ import annotations

import os
import re
import signal
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import psutil
import pytest

from conftest import Store, environment_with
from faults.endpoint import Endpoint, deploy, request
from stoker.embedded import Instance, Settings

pytestmark = [pytest.mark.store, pytest.mark.cluster, pytest.mark.timeout(900)]

DOCS = Path(__file__).parents[2] / "docs" / "how-to" / "clusters.md"
WORDS = ("bin/haproxy", "stoker-haproxy", "contained.process", "ServeReplica:digits")
_END_S = 120.0


@pytest.fixture
def endpoint(settings: Settings, tmp_path: Path) -> Iterator[Endpoint]:
    """A store, a cluster and an endpoint of their own."""
    instance = Instance(tmp_path / "state", settings)
    try:
        instance.start("up")
        with environment_with(instance.environment()):
            yield deploy(instance, Store(instance, instance.url), tmp_path)
    finally:
        instance.stop()


def processes_of(instance: Instance) -> dict[int, str]:
    """Command lines of all processes that name the instance, in their environment or arguments."""
    found = {}
    for process in psutil.process_iter():
        try:
            line = " ".join(process.cmdline())
            is_ours = instance.folder.instance in f"{line} {process.environ()}"
            if is_ours and process.pid != os.getpid() and process.status() != psutil.STATUS_ZOMBIE:
                found[process.pid] = line
        except (psutil.Error, OSError):
            continue
    return found


def pid_of(instance: Instance, word: str) -> int:
    return next(pid for pid, line in processes_of(instance).items() if word in line)


def answers(endpoint: Endpoint) -> bool:
    try:
        return endpoint.ask(request(endpoint)).status == 200
    except OSError:
        return False


def wait_for(is_so: Callable[[], bool]) -> None:
    deadline = time.monotonic() + _END_S
    while not is_so():
        assert time.monotonic() < deadline
        time.sleep(0.1)


def test_only_replicas_listen_beyond_loopback_and_down_leaves_no_process(endpoint: Endpoint) -> None:
    instance = endpoint.instance
    assert endpoint.ask(request(endpoint)).status == 200
    ours = processes_of(instance)
    assert all(any(word in line for line in ours.values()) for word in WORDS), ours

    beyond = {
        (ours[row.pid], row.laddr.ip)
        for row in psutil.net_connections("inet")
        if row.pid in ours
        and row.status == psutil.CONN_LISTEN
        and not re.fullmatch(r"(::ffff:)?127\.\S+|::1", row.laddr.ip)
    }
    assert {line.split(":")[2] for line, _ in beyond} <= {"ServeReplica"}, beyond  # by gRPC, with the cluster's token
    assert "the port by which Serve's replicas talk" in " ".join(DOCS.read_text().split())

    os.kill(pid_of(instance, "bin/haproxy"), signal.SIGKILL)  # so that there is a stand-in too
    wait_for(lambda: answers(endpoint))
    instance.stop()
    assert processes_of(instance) == {}


@pytest.mark.long
def test_nothing_is_left_after_the_raylet_was_killed(endpoint: Endpoint) -> None:
    instance = endpoint.instance
    os.kill(pid_of(instance, "raylet/raylet "), signal.SIGKILL)
    wait_for(lambda: not any(word in line for line in processes_of(instance).values() for word in WORDS))
    instance.stop()
    assert processes_of(instance) == {}
