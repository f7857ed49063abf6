"""A range read: what is counted, how long a request may take, which client sends it, and what a check decides."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest

from stoker.errors import StorageError
from stoker.storage import InFlight, Location, Reads, locate, ranges
from stoker.storage.retry import BadBody, StoreAnswer
from storage.answers import Answers

SHORTEST_S = 0.05


@pytest.fixture
def place(tmp_path: Path) -> Location:
    (tmp_path / "data").write_bytes(b"0123456789")
    return locate(tmp_path / "data", timeout_s=20)


def test_the_time_of_requests_is_counted_whether_they_succeed_or_not(
    place: Location, monkeypatch: pytest.MonkeyPatch
) -> None:
    now = [100.0]
    monkeypatch.setattr(ranges.time, "monotonic", lambda: now[0])
    answers = [ConnectionResetError(), b"012", b"01"]

    def read(*_: object) -> bytes:
        now[0] += 2.0
        answer = answers.pop(0)
        if isinstance(answer, BaseException):
            raise answer
        return answer

    monkeypatch.setattr(ranges, "read_file_range", read)
    reads = Reads()
    assert place.with_timeout(1000).read_range(0, 2, reads=reads) == b"01"
    counted = reads.counters.snapshot()
    assert counted["request_s"] == 6.0
    assert (counted["requests"], counted["retries"], counted["bytes"]) == (3, 2, 2)
    assert (counted["resets"], counted["bad_bodies"]) == (1, 1)
    assert counted["backoff_s"] > 0


def test_a_body_of_another_length_is_no_body(place: Location) -> None:
    with pytest.raises(StorageError, match=r"asked for bytes 8 to 12, got 2 of them"):
        place.with_timeout(0.1).read_range(8, 12)


def test_a_check_sees_the_bytes_and_decides(place: Location) -> None:
    seen: list[bytes] = []

    def check(data: memoryview) -> None:
        seen.append(bytes(data))
        if len(seen) == 1:
            raise BadBody("not these")

    assert place.read_range(1, 3, check) == b"12"
    assert seen == [b"12", b"12"]


def test_no_more_requests_run_than_the_slots_allow(place: Location, monkeypatch: pytest.MonkeyPatch) -> None:
    in_flight = InFlight(1, 1, 1)
    running: list[int] = []
    read = ranges.read_file_range

    def look(*arguments: Any) -> bytes:
        running.append(in_flight._running)
        return read(*arguments)

    monkeypatch.setattr(ranges, "read_file_range", look)
    place.read_range(0, 1, reads=Reads(in_flight=in_flight))
    assert (running, in_flight._running) == ([1], 0)


@pytest.mark.parametrize(
    ("deadline_s", "left_s", "expected"),
    [
        (30.0, 60.0, 30.0),
        (30.0, 30.0, 30.0),
        (30.0, 29.9, 2**4.75),
        (30.0, 16.0, 16.0),
        (30.0, 15.99, 2**3.75),
        (30.0, 1.0, 1.0),
        (30.0, 0.99, 2**-0.25),
        (30.0, 0.0, 2**-4.5),
        (30.0, -5.0, 2**-4.5),
    ],
)
def test_a_request_may_take_its_deadline_or_the_rest_of_the_timeout_in_few_steps(
    deadline_s: float, left_s: float, expected: float
) -> None:
    found = ranges._timeout_s(deadline_s, left_s)
    assert found == expected
    assert found <= max(SHORTEST_S, left_s) or found == deadline_s


def test_a_hedging_policy_learns_from_each_read(place: Location) -> None:
    reads = Reads(hedge_percentile=95)
    assert reads.hedging is not None
    assert reads.hedging.delay_s(3) is None
    for _ in range(100):
        place.read_range(0, 3, reads=reads)
    assert reads.hedging.delay_s(3) is not None
    assert reads.counters.requests >= 100


class TestOnS3:
    """Which client sends a range's request: s3fs knows how to follow a store, obstore is the faster one."""

    @pytest.fixture
    def asked(self, s3: Answers) -> Answers:
        s3.asked.clear()
        return s3

    @staticmethod
    def agents(server: Answers) -> list[str]:
        return ["s3fs" if "oto" in headers["user-agent"] else "obstore" for _, _, headers in server.asked]

    def test_a_range_is_read_by_obstore(self, asked: Answers) -> None:
        assert locate("s3://bucket/key", timeout_s=20).read_range(0, 4) == b"data"
        assert self.agents(asked) == ["obstore"]
        assert asked.asked[0][2]["range"] == "bytes=0-3"

    @pytest.mark.parametrize("url", ["s3://bucket/folder//key", "s3://bucket/./key"])
    def test_a_key_that_obstore_cannot_read_is_read_by_s3fs(self, asked: Answers, url: str) -> None:
        assert locate(url, timeout_s=20).read_range(0, 4) == b"data"
        assert self.agents(asked) == ["s3fs"]

    @pytest.mark.parametrize("status", [301, 307, 400])
    def test_a_store_that_obstore_is_not_configured_for_is_read_by_s3fs_from_then_on(
        self, asked: Answers, status: int, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setenv("AWS_ACCESS_KEY_ID", f"another {status}")  # the client is kept for each environment
        asked.statuses = [status, 200]
        place = locate("s3://bucket/key", timeout_s=20)
        assert place.read_range(0, 4) == b"data"
        assert place.read_range(0, 4) == b"data"
        assert self.agents(asked) == ["obstore", "s3fs", "s3fs"]

    @pytest.mark.parametrize("status", [403, 416, 503, (400, "RequestTimeout"), (400, "Throttling")])
    def test_any_other_answer_is_obstores_own(self, asked: Answers, status: int | tuple[int, str]) -> None:
        asked.statuses = [status]
        with pytest.raises(StorageError):
            locate("s3://bucket/key", timeout_s=0.2).read_range(0, 4)
        assert set(self.agents(asked)) == {"obstore"}

    def test_a_client_that_the_user_chose_is_not_left(self, asked: Answers, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setenv("STOKER_S3_CLIENT", "obstore")
        asked.statuses = [400, 200]
        with pytest.raises(StorageError) as ended:
            locate("s3://bucket/key", timeout_s=20).read_range(0, 4)
        assert isinstance(ended.value.__cause__, StoreAnswer)
        assert self.agents(asked) == ["obstore"]

    def test_each_request_has_what_is_left_of_the_time(self, asked: Answers, monkeypatch: pytest.MonkeyPatch) -> None:
        given: list[float] = []
        request = ranges._request

        def look(location: Any, start: int, stop: int, timeout_s: float) -> memoryview:
            given.append(timeout_s)
            return request(location, start, stop, timeout_s)

        monkeypatch.setattr(ranges, "_request", look)
        locate("s3://bucket/key", timeout_s=600).read_range(0, 4, reads=Reads(deadline_s=7))
        locate("s3://bucket/key", timeout_s=5).read_range(0, 4, reads=Reads(deadline_s=7))
        assert given[0] == 7
        assert given[1] == 2**2.25  # below 5, in quarters of an octave

    def test_a_server_that_stalls_is_left_after_the_deadline(
        self, asked: Answers, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setenv("STOKER_S3_CLIENT", "s3fs")
        asked.stalls = True
        with pytest.raises(StorageError, match=re.compile("no valid response in 0.3 s", re.DOTALL)):
            locate("s3://bucket/key", timeout_s=0.3).read_range(0, 4, reads=Reads(deadline_s=0.1))
        asked.stalls = False
