"""Copies of files that are in storage already."""

from __future__ import annotations

import hashlib
from pathlib import Path

import pytest

from stoker.registry import StoredFile, copying
from stoker.storage import locate


def test_a_file_of_several_pieces_is_copied_whole(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(copying, "_PIECE_BYTES", 7)
    place, data = locate(tmp_path) / "source", bytes(range(50))
    place.write(data)
    copying.SourceFile(place, StoredFile(bytes=50, sha256=hashlib.sha256(data).hexdigest())).copy_to(
        locate(tmp_path) / "target"
    )
    assert (tmp_path / "target").read_bytes() == data
