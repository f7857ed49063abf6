"""Reports of a run reach the store without blocking the run, and stay small."""

from __future__ import annotations

import threading
from pathlib import Path

import pytest

from stoker.errors import StorageError
from stoker.storage import Location, locate
from stoker.training.telemetry import events as events_module
from stoker.training.telemetry import outbox as outbox_module
from stoker.training.telemetry.events import Events, read_events
from stoker.training.telemetry.outbox import Outbox


def test_events_come_back_in_their_order_from_segments_of_bounded_size(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(events_module, "_SEGMENT_BYTES", 400)
    folder = locate(tmp_path)
    events = Events(folder)
    for number in range(50):
        events.add("progress", number=number)
    events.close()
    assert [event["number"] for event in read_events(folder)] == list(range(50))
    assert len(folder.children()) > 5
    assert all(size <= 400 for _, size in folder.walk())


def test_attempts_never_overwrite_each_other_and_the_oldest_segments_are_pruned(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(events_module, "_SEGMENTS", 3)
    folder = locate(tmp_path)
    attempts = [Events(folder) for _ in range(5)]
    for number, events in enumerate(attempts):
        events.add("attempt", number=number)
        events.flush()
    attempts[-1].prune()
    attempts[0].add("progress", number=9)  # one that was presumed dead
    for events in attempts:
        events.close()
    kept = [event["number"] for event in read_events(folder)]
    assert kept == [0, 9, 2, 3, 4]
    assert [event["number"] for event in read_events(folder, newest=1)] == [4]


def test_a_damaged_segment_is_named(tmp_path: Path) -> None:
    (tmp_path / "0001.jsonl").write_bytes(b"{")
    with pytest.raises(StorageError, match=r"0001\.jsonl: damaged, not valid JSON; delete it"):
        list(read_events(locate(tmp_path)))


def test_while_the_store_is_unavailable_the_newest_content_waits_and_is_written_afterwards(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(outbox_module, "_RETRY_S", 0.01)
    write, is_down = Location.write, threading.Event()
    is_down.set()

    def unless_down(place: Location, data: bytes) -> None:
        if is_down.is_set():
            raise StorageError(f"cannot write {place}", url=place.url)
        write(place, data)

    monkeypatch.setattr(Location, "write", unless_down)
    place, outbox = locate(tmp_path / "object"), Outbox()
    for content in (b"1", b"2", b"3"):
        outbox.put(place, content)
        assert not outbox.flush(0.05)
    is_down.clear()
    outbox.close()
    assert place.read() == b"3"
    assert [record.levelname for record in caplog.records] == ["WARNING"]
