import asyncio
import json
import math
import os
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from bench.serve.cases import cases, chosen
from bench.serve.figures import serve_figures
from bench.serve.load import summary
from bench.serve.place import CHECKOUT, CaseFailed, child_environment, process, python, run
from stoker.embedded.ports import free_ports


def _turns(requests_per_s: float, p99_ms: float) -> dict[str, float]:
    return {"requests_per_s": requests_per_s, "p99_ms": p99_ms}


def test_contenders_are_compared_within_a_round_so_that_a_slow_machine_slows_both() -> None:
    rows = {
        "stoker, 16": [_turns(400, 50), _turns(40, 500), _turns(240, 20)],
        "FastAPI, 16": [_turns(200, 100), _turns(20, 1000), _turns(48, 100)],
    }
    found = {figure.name: figure for figure in serve_figures({"digits": rows})}
    assert found["digits_vs_fastapi_16_times"].value == 2.0
    assert found["digits_vs_fastapi_16_p99"].value == 0.5
    assert not any(figure.is_missed for figure in found.values())


@pytest.mark.parametrize(
    ("other", "connections", "enough"),
    [("FastAPI", 1, 0.85), ("FastAPI", 16, 1.5), ("LitServe", 64, 3.0), ("default proxy", 16, 6.0)],
)
def test_a_ratio_below_its_bar_is_missed(other: str, connections: int, enough: float) -> None:
    def figure(ratio: float) -> Any:
        rows = {f"stoker, {connections}": [_turns(100 * ratio, 1)], f"{other}, {connections}": [_turns(100, 1)]}
        return serve_figures({"digits": rows})[0]

    assert figure(enough * 0.99).is_missed
    assert not figure(enough * 1.01).is_missed


def test_overload_is_held_against_the_unloaded_p99_and_against_answers_that_are_neither_200_nor_503() -> None:
    usual = {"accepted_p99_ms": 50.0, "accepted_requests_per_s": 400.0}
    much = {"accepted_p99_ms": 120.0, "accepted_requests_per_s": 300.0, "refused_p99_ms": 20.0, "refused": 0.8}
    rows = {"16 connections": [usual], "5 times the rate": [{**much, "otherwise": 0.001}]}
    found = {figure.name: figure for figure in serve_figures({"overload": rows})}
    assert found["overload_accepted_p99"].value == pytest.approx(2.4)
    assert {name for name, figure in found.items() if figure.is_missed} == {
        "overload_accepted_p99",
        "overload_otherwise",
    }


def test_nothing_refused_under_overload_is_missed_rather_than_passed_over() -> None:
    rows = {"16 connections": [{"accepted_p99_ms": 50.0}], "5 times the rate": [{"accepted_p99_ms": 60.0}]}
    found = {figure.name: figure for figure in serve_figures({"overload": rows})}
    assert math.isnan(found["overload_refused_p99_ms"].value)
    assert found["overload_refused_p99_ms"].is_missed


def test_starts_are_compared_with_the_shape_before_only_where_both_ran() -> None:
    now = {"up": [{"seconds": 20.0}], "deploy": [{"seconds": 6.0}]}
    before = {"deploy": [{"seconds": 12.0}]}
    found = {figure.name: figure.value for figure in serve_figures({"starts": now, "starts before": before})}
    assert found == {"up_s": 20.0, "deploy_s": 6.0, "deploy_vs_before": 0.5}


def test_faults_that_take_longer_than_promised_are_missed() -> None:
    slow = {"proxy killed": {"SIGKILL": [{"seconds": 4.5}]}, "key revoked": {"2 replicas": [{"seconds": 1.0}]}}
    assert [figure.name for figure in serve_figures(slow) if figure.is_missed] == ["proxy_killed_s"]


def test_a_choice_that_is_no_case_is_refused_with_all_names() -> None:
    with pytest.raises(ValueError, match="--only nothing: no such case; choose from: starts, starts before, digits"):
        chosen(cases(), ["nothing"])


def test_the_slow_comparison_with_an_older_commit_runs_only_when_it_is_named() -> None:
    assert "starts before" not in [case.name for case in chosen(cases(), [])]
    assert [case.name for case in chosen(cases(), ["starts before"])] == ["starts before"]


def test_latencies_are_told_apart_by_status() -> None:
    found = summary({200: [0.1, 0.2, 0.3], 503: [0.001]}, 2.0)
    assert found["200"]["count"] == 3
    assert found["200"]["p50_ms"] == pytest.approx(200)
    assert found["200"]["p99_ms"] == pytest.approx(298)
    assert found["503"] == {"count": 1, "requests_per_s": 0.5, "p50_ms": 1.0, "p99_ms": 1.0}


@pytest.fixture
def busy() -> Iterator[str]:
    """The URL of a server that answers one request at a time, after 20 ms, and refuses what comes meanwhile."""
    (port,) = free_ports(1)
    is_over, is_up = threading.Event(), threading.Event()

    async def answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        while head := await reader.readuntil(b"\r\n\r\n"):
            await reader.readexactly(int(head.lower().partition(b"content-length: ")[2].split()[0]))
            if lock.locked():
                writer.write(b"HTTP/1.1 503 Service Unavailable\r\nContent-Length: 2\r\n\r\nno")
                continue
            async with lock:
                await asyncio.sleep(0.02)
            writer.write(b"HTTP/1.1 200 OK\r\nContent-Length: 3\r\n\r\nyes")

    async def serve() -> None:
        async with await asyncio.start_server(answer, "127.0.0.1", port):
            is_up.set()
            await asyncio.to_thread(is_over.wait)

    lock = asyncio.Lock()
    thread = threading.Thread(target=lambda: asyncio.run(serve()))
    thread.start()
    assert is_up.wait(30)
    yield f"http://127.0.0.1:{port}/predict"
    is_over.set()
    thread.join()


@pytest.mark.parametrize("how", [{"rate": 200}, {"connections": 4}])
def test_the_client_asks_at_a_rate_or_on_connections_and_tells_what_was_refused(
    busy: str, how: dict[str, int], tmp_path: Path
) -> None:
    (tmp_path / "body").write_bytes(b"abc")
    given = {"url": busy, "body": str(tmp_path / "body"), "media_type": "image/jpeg", "key": "", "seconds": 1.0, **how}
    found = json.loads(run(python("-m", "bench.serve.load", json.dumps(given)), child_environment()))
    assert set(found) == {"200", "503"}
    assert 1 <= found["200"]["count"] <= 60
    assert found["200"]["p50_ms"] >= 20
    if "rate" in how:
        assert sum(one["count"] for one in found.values()) == pytest.approx(200, abs=2)


def test_a_program_that_fails_says_so_in_one_line() -> None:
    with pytest.raises(CaseFailed, match="ended with status 3: wrong"):
        run(python("-c", "import sys; print('wrong'); sys.exit(3)"), os.environ)


def test_a_server_is_ended_with_the_processes_that_it_started(tmp_path: Path) -> None:
    parent = (
        "import subprocess, sys, time;"
        "child = subprocess.Popen([sys.executable, '-c', 'import time; time.sleep(600)']);"
        "print(child.pid, flush=True); time.sleep(600)"
    )
    log = tmp_path / "log"
    with process(python("-c", parent), os.environ, log):
        deadline = time.monotonic() + 60
        while not log.read_text().strip():
            assert time.monotonic() < deadline
            time.sleep(0.05)
    child = int(log.read_text())
    deadline = time.monotonic() + 60
    while Path(f"/proc/{child}").exists() and Path(f"/proc/{child}/stat").read_text().split()[2] != "Z":
        assert time.monotonic() < deadline
        time.sleep(0.05)


@pytest.mark.long
@pytest.mark.cluster
@pytest.mark.timeout(900)
def test_a_tiny_run_ends_with_the_figures_of_its_cases(tmp_path: Path) -> None:
    wanted = ["--toy", "--only", "overload", "--only", "decoding", "--folder", str(tmp_path)]
    command = [sys.executable, "-m", "bench.serve", *wanted]
    done = subprocess.run(
        command, env=child_environment(), cwd=CHECKOUT, capture_output=True, text=True, check=False, timeout=800
    )
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-2000:]
    last = json.loads(done.stdout.splitlines()[-1])
    assert last["bench"] == "serve"
    assert {"overload_accepted_p99", "contained_percent_digit"} <= set(last["figures"])
