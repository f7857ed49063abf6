"""Large objects in parts, on the real store: whole or not at all, and nothing left behind."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator

import pytest

from conftest import Store
from stoker.errors import StorageError
from stoker.storage import locate
from stoker.storage.uploads import abandon_uploads, write_pieces

PART = 5 << 20  # S3's smallest


def pieces(count: int) -> list[bytes]:
    return [bytes([n % 251]) * (1 << 20) for n in range(count)]


@pytest.mark.store
@pytest.mark.parametrize("count", [0, 3, 5, 12])
def test_pieces_become_one_object_with_the_checksum_that_is_told(store: Store, count: int) -> None:
    place = locate(store.fresh("uploads")) / "object"
    written = write_pieces(place, lambda: pieces(count), part_bytes=PART)
    found = place.read()
    assert found == b"".join(pieces(count))
    assert (written.bytes, written.sha256) == (len(found), hashlib.sha256(found).hexdigest())


@pytest.mark.store
def test_a_write_that_fails_in_the_middle_shows_nothing_and_leaves_nothing(store: Store) -> None:
    folder = locate(store.fresh("uploads"))

    def broken() -> Iterator[bytes]:
        yield from pieces(12)
        raise RuntimeError("the tensors went away")

    with pytest.raises(RuntimeError, match="went away"):
        write_pieces(folder / "object", broken, part_bytes=PART)
    assert not (folder / "object").exists()
    assert abandon_uploads(folder) == 0


@pytest.mark.store
def test_uploads_of_a_killed_writer_are_found_below_their_prefix_only_and_ended(store: Store) -> None:
    folder = locate(store.fresh("uploads"))
    for name in ("run/checkpoints/1/model", "run/checkpoints/2/model", "run/checkpoints-of-another/model"):
        bucket, key, _ = folder.filesystem.split_path((folder / name).path)
        upload = folder.filesystem.call_s3("create_multipart_upload", Bucket=bucket, Key=key)["UploadId"]
        folder.filesystem.call_s3(
            "upload_part", Bucket=bucket, Key=key, UploadId=upload, PartNumber=1, Body=bytes(PART)
        )
    assert abandon_uploads(folder / "run" / "checkpoints") == 2
    assert abandon_uploads(folder / "run" / "checkpoints") == 0
    assert abandon_uploads(folder) == 1


def test_a_local_file_is_written_whole_or_not_at_all(tmp_path: object) -> None:
    place = locate(f"{tmp_path}/below/object")
    assert write_pieces(place, lambda: [b"ab", b"c"]).bytes == 3
    assert place.read() == b"abc"
    with pytest.raises(StorageError):
        write_pieces(place, lambda: [b"ab", "no bytes"])  # type: ignore[list-item]
    assert place.read() == b"abc"
    assert abandon_uploads(place) == 0
