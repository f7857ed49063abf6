"""Copies of files that are in storage already."""

from __future__ import annotations

import hashlib
from pathlib import Path
from types import SimpleNamespace

import pytest

from stoker.errors import StorageError
from stoker.registry import StoredFile, copying
from stoker.storage import locate
from stoker.storage.uploads import Written

SHA256_OF_ABC = hashlib.sha256(b"abc").hexdigest()


def test_a_file_of_several_pieces_is_copied_whole(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(copying, "_PIECE_BYTES", 7)
    place, data = locate(tmp_path) / "source", bytes(range(50))
    place.write(data)
    copying.SourceFile(place, StoredFile(bytes=50, sha256=hashlib.sha256(data).hexdigest())).copy_to(
        locate(tmp_path) / "target"
    )
    assert (tmp_path / "target").read_bytes() == data


def test_a_file_is_read_by_16_mib_whatever_its_size() -> None:
    """What a copy holds in memory."""
    read: list[tuple[int, int]] = []
    place = SimpleNamespace(read_range=lambda start, stop: read.append((start, stop)))
    source = copying.SourceFile(place, StoredFile(bytes=40 << 20, sha256=""))  # type: ignore[arg-type]
    list(source._pieces())
    assert read == [(0, 16 << 20), (16 << 20, 32 << 20), (32 << 20, 40 << 20)]


def test_a_store_that_is_away_is_named_with_what_was_tried(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def away(*_: object) -> Written:
        raise ConnectionResetError("reset")

    monkeypatch.setattr(copying, "write_pieces", away)
    place = locate(tmp_path / "source", timeout_s=0.1)
    source = copying.SourceFile(place, StoredFile(bytes=1, sha256=""))
    with pytest.raises(StorageError, match=r"cannot copy .*source: no valid response"):
        source.copy_to(locate(tmp_path / "target"))


@pytest.mark.parametrize("stored", [StoredFile(bytes=3, sha256="0" * 64), StoredFile(bytes=2, sha256=SHA256_OF_ABC)])
def test_a_copy_with_another_length_or_checksum_is_damaged(tmp_path: Path, stored: StoredFile) -> None:
    place = locate(tmp_path / "source", timeout_s=0.1)
    place.write(b"abc")
    with pytest.raises(StorageError, match=r"source: damaged \(.*do not have the recorded sha256\); restore the file"):
        copying.SourceFile(place, stored).copy_to(locate(tmp_path / "target"))


def test_bytes_at_hand_are_stored_with_their_length_and_checksum(tmp_path: Path) -> None:
    place = locate(tmp_path / "target")
    assert copying.store_file(b"abc", place) == StoredFile(bytes=3, sha256=SHA256_OF_ABC)
    assert place.read() == b"abc"
