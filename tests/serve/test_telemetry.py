"""The access log and the metrics: each request is there once, neither ever waits, and no key or image is in them."""

from __future__ import annotations

import json
import logging
import re
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from stoker.embedded import Instance
from stoker_serve.telemetry import AccessLog, Metrics, request_id

NEVER_S = 3_600.0
FIELDS = [
    *("time", "request_id", "key", "model", "status", "bytes_in", "images"),
    *("queue_ms", "decode_ms", "model_ms", "total_ms", "client_gone"),
]


def lines_of(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text().splitlines()]


def wait_for(condition: Callable[[], bool], timeout_s: float = 60.0) -> None:
    deadline = time.monotonic() + timeout_s
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.01)


def write(log: AccessLog, number: int) -> None:
    log.write(f"r{number}", key="lab", model="digits@3", status=200, total_ms=1.0)


def test_a_request_is_one_line_of_json_with_every_field(tmp_path: Path) -> None:
    path = tmp_path / "logs" / "access.log"
    log = AccessLog(path)
    log.write(
        "id-1",
        key="camera-7",
        model="digits@3",
        status=200,
        bytes_in=1_024,
        images=2,
        queue_ms=0.12345,
        decode_ms=3.0,
        model_ms=7.5,
        total_ms=11.25,
    )
    log.write("id-2", key=None, model=None, status=401, total_ms=0.1, client_gone=True)
    wait_for(lambda: len(path.read_text().splitlines()) == 2)
    log.close()
    first, second = lines_of(path)
    assert list(first) == list(second) == FIELDS
    assert re.fullmatch(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{3}Z", first.pop("time"))
    assert first == {
        **{"request_id": "id-1", "key": "camera-7", "model": "digits@3", "status": 200, "bytes_in": 1_024, "images": 2},
        **{"queue_ms": 0.123, "decode_ms": 3.0, "model_ms": 7.5, "total_ms": 11.25, "client_gone": False},
    }
    assert (second["key"], second["status"], second["client_gone"], second["queue_ms"]) == (None, 401, True, None)


def test_a_name_that_a_client_chose_can_neither_forge_a_line_nor_fill_the_disk(tmp_path: Path) -> None:
    log = AccessLog(tmp_path / "access.log", every_s=NEVER_S)
    log.write("id", key=None, model='x\n{"status": 200}' + "y" * 9_000, status=404, total_ms=1.0)
    log.close()
    (line,) = lines_of(tmp_path / "access.log")
    assert line["model"].startswith('x\n{"status": 200}y')
    assert len(line["model"]) == 128


def test_lines_of_several_threads_are_all_there_whole(tmp_path: Path) -> None:
    path = tmp_path / "access.log"
    log = AccessLog(path, every_s=0.001)

    def write_many(first: int) -> None:
        for number in range(first, first + 500):
            write(log, number)

    threads = [threading.Thread(target=write_many, args=(1_000 * n,)) for n in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    log.close()
    assert {line["request_id"] for line in lines_of(path)} == {
        f"r{1_000 * n + i}" for n in range(4) for i in range(500)
    }


def test_lines_beyond_the_bound_are_dropped_counted_and_told(tmp_path: Path) -> None:
    path = tmp_path / "access.log"
    log = AccessLog(path, every_s=NEVER_S, most_lines=10)
    for number in range(25):
        write(log, number)
    log.close()
    *lines, last = lines_of(path)
    assert [line["request_id"] for line in lines] == [f"r{number}" for number in range(10)]
    assert last["dropped_lines"] == log.dropped == 15


def test_the_file_is_rotated_and_old_ones_are_removed(tmp_path: Path) -> None:
    log = AccessLog(tmp_path / "access.log", every_s=0.001, file_bytes=1_000, files=2)
    for number in range(200):
        write(log, number)
        if number % 5 == 0:
            wait_for(lambda last=f'"r{number}"': last in (tmp_path / "access.log").read_text())  # type: ignore[misc]
    log.close()
    assert sorted(path.name for path in tmp_path.iterdir()) == ["access.log", "access.log.1", "access.log.2"]
    assert all(path.stat().st_size < 4_000 for path in tmp_path.iterdir())
    assert '"r199"' in (tmp_path / "access.log").read_text()


def test_a_full_disk_costs_lines_and_no_request(caplog: pytest.LogCaptureFixture) -> None:
    log = AccessLog(Path("/dev/full"), every_s=0.001)
    for number in range(3):
        write(log, number)
        wait_for(lambda expected=number + 1: log.dropped == expected)  # type: ignore[misc]
    assert [record.levelno for record in caplog.records] == [logging.ERROR]
    assert "/dev/full cannot be written (No space left on device)" in caplog.text


@pytest.mark.parametrize("given", [b"a", b"0-9.A_z", b"x" * 128])
def test_a_proper_request_id_is_the_clients(given: bytes) -> None:
    assert request_id(given) == given.decode()


@pytest.mark.parametrize("given", [None, b"", b"x" * 129, b"a b", b"a\n", "é".encode(), b"\xff", b'a"'])
def test_any_other_is_replaced_by_a_new_one(given: bytes | None) -> None:
    made = {request_id(given) for _ in range(100)}
    assert len(made) == 100
    assert all(re.fullmatch("[0-9a-f]{32}", each) for each in made)


def test_metrics_without_ray_export_nothing_and_hold_little() -> None:
    program = (
        "import sys\nfrom stoker_serve.telemetry import Metrics\nmetrics = Metrics('digits', '3', every_s=3600)\n"
        "for _ in range(300_000): metrics.observe(200, 0.01, 0.001); metrics.observe_batch(8, 0.01)\n"
        "metrics.queue(3)\nassert len(metrics._requests) == len(metrics._batches) == 100_000\nmetrics.close()\n"
        "assert not metrics._requests and not metrics._batches and 'ray' not in sys.modules\nprint('ended')"
    )
    done = subprocess.run([sys.executable, "-c", program], check=False, text=True, capture_output=True, timeout=120)
    assert (done.stdout, done.returncode) == ("ended\n", 0), done.stderr


def test_a_process_that_ends_writes_what_waited(tmp_path: Path) -> None:
    program = (
        "from pathlib import Path\nfrom stoker_serve.telemetry import AccessLog\n"
        "log = AccessLog(Path('access.log'), every_s=3600)\n"
        "log.write('last', key=None, model=None, status=200, total_ms=1.0)"
    )
    subprocess.run([sys.executable, "-c", program], check=True, cwd=tmp_path, timeout=120)
    assert [line["request_id"] for line in lines_of(tmp_path / "access.log")] == ["last"]


def test_a_queue_that_is_written_to_never_waits_for_the_writer() -> None:
    metrics = Metrics("digits", "3", every_s=0.001)
    for _ in range(10_000):
        metrics.observe(200, 0.01)
    metrics.close()
    assert not metrics._requests


def test_a_disk_that_fills_up_leaves_whole_lines_and_their_loss_is_told_when_there_is_space(tmp_path: Path) -> None:
    program = (
        "import resource, time\nfrom pathlib import Path\nfrom stoker_serve.telemetry import AccessLog\n"
        "log = AccessLog(Path('access.log'), every_s=0.001)\n"
        "def limit(size): resource.setrlimit(resource.RLIMIT_FSIZE, (size, resource.RLIM_INFINITY))\n"
        "def write(many):\n"
        "    for i in range(many): log.write(f'{i}', key=None, model=None, status=200, total_ms=1.0)\n"
        "limit(1_000)\n"
        "while not log.dropped: write(1); time.sleep(0.01)\n"
        "time.sleep(0.1)\nlimit(resource.RLIM_INFINITY)\nwrite(1)\nlog.close()\nprint(log.dropped)"
    )
    done = subprocess.run(
        [sys.executable, "-c", program], check=True, cwd=tmp_path, text=True, capture_output=True, timeout=120
    )
    lines = lines_of(tmp_path / "access.log")
    assert sum("request_id" in line for line in lines) > 2
    assert sum(line.get("dropped_lines", 0) for line in lines) == int(done.stdout) > 0
    assert done.stderr.count("access.log cannot be written") == 1


PROGRAM = """
import json, time, urllib.request
import ray
from ray import serve

@serve.deployment(name="digits", ray_actor_options={"num_cpus": 0})
class Replica:
    def __init__(self):
        from stoker_serve.telemetry import AccessLog, Metrics, access_log_path
        self.log, self.metrics = AccessLog(access_log_path()), Metrics("digits", "3")

    def answer(self):
        from stoker_serve.telemetry import access_log_path
        for status, seconds in ((200, 0.03), (200, 0.04), (503, 0.0001)):
            self.metrics.observe(status, seconds, 0.003 if status == 200 else None)
            self.log.write("id", key="lab", model="digits@3", status=status, total_ms=1000 * seconds)
        self.metrics.observe_batch(3, 0.02)
        self.metrics.queue(7)
        return str(access_log_path()), ray.get_runtime_context().get_node_id()

ray.init(log_to_driver=False)
serve.start(proxy_location="Disabled")
try:
    handle = serve.run(Replica.bind(), name="telemetry", route_prefix=None)
    log, where = handle.answer.remote().result(timeout_s=60)
    (node,) = [node for node in ray.nodes() if node["NodeID"] == where]
    address = f"http://{node['NodeManagerAddress']}:{node['MetricsExportPort']}/metrics"
    until = time.monotonic() + 120
    lines = []
    while time.monotonic() < until and not any("queue_images" in line for line in lines):  # which is recorded last
        text = urllib.request.urlopen(address, timeout=10).read().decode()
        lines = [line for line in text.splitlines() if line.startswith("ray_stoker_serve_")]
        time.sleep(0.5)
    print("FOUND", json.dumps({"log": log, "metrics": lines}))
finally:
    serve.shutdown()
"""


@pytest.mark.store
@pytest.mark.cluster
def test_a_replica_logs_beside_its_own_log_and_the_nodes_agent_serves_its_metrics(cluster: Instance) -> None:
    done = subprocess.run([sys.executable, "-c", PROGRAM], check=False, text=True, capture_output=True, timeout=400)
    assert done.returncode == 0, done.stderr[-3000:]
    (line,) = [line for line in done.stdout.splitlines() if line.startswith("FOUND ")]  # the raylet prints there too
    found = json.loads(line.removeprefix("FOUND "))
    log = Path(found["log"])
    assert (log.parent.name, log.parent.parent.name) == ("serve", "logs")
    assert [line["status"] for line in lines_of(log)] == [200, 200, 503]

    def value(name: str, *labels: str) -> float:
        lines = [line for line in found["metrics"] if line.startswith(f"ray_stoker_serve_{name}{{")]
        (line,) = [
            line for line in lines if all(f'{label}"' in line for label in ('model="digits', 'version="3', *labels))
        ]
        return float(line.split()[-1])

    assert [value("requests_total", f'status="{status}') for status in (200, 503)] == [2, 1]
    assert [value("request_seconds_bucket", f'le="{le}') for le in ("0.02", "0.05", "+Inf")] == [1, 3, 3]
    assert [value("decode_seconds_bucket", f'le="{le}') for le in ("0.002", "0.005")] == [0, 2]
    assert [value("forward_seconds_bucket", f'le="{le}') for le in ("0.01", "0.02")] == [0, 1]
    assert [value("batch_images_bucket", f'le="{le}') for le in ("2.0", "4.0")] == [0, 1]
    assert value("queue_images") == 7
