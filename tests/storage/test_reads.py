"""The policy of range reads: what is counted, when a second request is sent, and that nothing secret is shown."""

from __future__ import annotations

import pickle
import threading
from collections.abc import Callable
from pathlib import Path

import pytest

from stoker.errors import StorageError
from stoker.storage import InFlight, Reads, locate
from stoker.storage.hedging import Hedging
from stoker.storage.retry import BadBody, StoreAnswer, failure_kind, is_final


def test_reads_of_a_file_are_counted(tmp_path: Path) -> None:
    place = locate(tmp_path / "a")
    place.write(b"0123456789")
    reads = Reads(in_flight=InFlight())
    assert place.read_range(2, 5, reads=reads) == b"234"
    assert place.read_range(5, 10, reads=reads) == b"56789"
    counted = reads.counters.snapshot()
    assert (counted["requests"], counted["bytes"], counted["retries"]) == (2, 8, 0)


def test_wrong_bytes_are_counted_and_read_again(tmp_path: Path) -> None:
    place = locate(tmp_path / "a")
    place.write(b"0123456789")
    reads, seen = Reads(), []

    def fail_twice(data: memoryview) -> None:
        seen.append(bytes(data))
        if len(seen) < 3:
            raise BadBody("checksum differs")

    assert place.read_range(2, 5, fail_twice, reads=reads) == b"234"
    assert reads.counters.bad_bodies == reads.counters.retries == 2


@pytest.mark.parametrize(
    ("error", "kind", "ends"),
    [
        (StoreAnswer("", 500, "InternalError"), "server_errors", False),
        (StoreAnswer("", 503, "SlowDown"), "slow_downs", False),
        (StoreAnswer("", 429), "slow_downs", False),
        (StoreAnswer("", 400, "RequestTimeout"), "other_failures", False),
        (StoreAnswer("", 400, "InvalidArgument"), "refusals", True),
        (StoreAnswer("", 400, "ExpiredToken"), "refusals", True),
        (PermissionError(), "refusals", True),
        (FileNotFoundError(), "refusals", True),
        (TimeoutError(), "deadlines", False),
        (ConnectionResetError(), "resets", False),
        (BadBody(), "bad_bodies", False),
    ],
)
def test_failures_have_a_kind_and_an_end(error: Exception, kind: str, ends: bool) -> None:
    assert failure_kind(error) == kind
    assert is_final(error) == ends


def hedging_that_saw(latency_s: float) -> Hedging:
    hedging = Hedging(95)
    for _ in range(100):
        hedging.observe(1000, latency_s)
    return hedging


def slow_once(release: threading.Event) -> tuple[Callable[[], int], list[int]]:
    """A request whose first call hangs until ``release``; each returns its number."""
    calls: list[int] = []
    lock = threading.Lock()

    def request() -> int:
        with lock:
            number = len(calls)
            calls.append(number)
        if number == 0:
            release.wait(30)
        return number

    return request, calls


def test_a_second_request_is_sent_beside_a_slow_one_and_wins() -> None:
    release, events = threading.Event(), []
    request, _ = slow_once(release)
    try:
        assert hedging_that_saw(0.01).run(request, 1000, events.append) == 1
    finally:
        release.set()
    assert events == [False, True]


def test_no_second_request_is_sent_before_latencies_of_that_size_are_known() -> None:
    hedging = hedging_that_saw(0.01)
    assert hedging.delay_s(1000) == 0.01
    assert hedging.delay_s(1_000_000) is None


def test_the_budget_bounds_second_requests() -> None:
    hedging = hedging_that_saw(0.01)
    assert sum(hedging.spend() for _ in range(100)) == 8
    for _ in range(100):  # 100 answers more allow 10 more, of which 8 are kept
        hedging.observe(1000, 0.01)
    assert sum(hedging.spend() for _ in range(100)) == 8


def test_if_both_requests_fail_the_first_failure_is_raised() -> None:
    release = threading.Event()
    lock, calls = threading.Lock(), []

    def request() -> int:
        with lock:
            calls.append(1)
            number = len(calls)
        if number == 1:
            release.wait(30)
            raise ConnectionResetError("first")
        release.set()
        raise ConnectionResetError("second")

    with pytest.raises(ConnectionResetError):
        hedging_that_saw(0.01).run(request, 1000, lambda _: None)
    assert len(calls) == 2


@pytest.mark.parametrize("policy", [{"deadline_s": 0}, {"hedge_percentile": 100}, {"hedge_percentile": 10}])
def test_impossible_policies_are_refused(policy: dict[str, float]) -> None:
    with pytest.raises(ValueError, match="give"):
        Reads(**policy)  # type: ignore[arg-type]


def test_an_unknown_client_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("STOKER_S3_CLIENT", "curl")
    with pytest.raises(StorageError, match="STOKER_S3_CLIENT is 'curl'; set it to s3fs or obstore"):
        locate("s3://bucket/a", timeout_s=1).read_range(0, 1)


def test_a_client_shows_no_secret_and_cannot_be_sent(monkeypatch: pytest.MonkeyPatch) -> None:
    from stoker.storage.obstore_client import obstore_client

    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "known")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "very-secret")
    monkeypatch.setenv("AWS_ENDPOINT_URL", "http://127.0.0.1:1")
    client = obstore_client("bucket", "key")
    assert client is not None
    assert "very-secret" not in repr(client)
    with pytest.raises(TypeError, match="send the Location instead"):
        pickle.dumps(client)
