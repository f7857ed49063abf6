"""Write objects piece by piece, without holding them in memory, and abort uploads that were left unfinished.

On S3 an object above one part becomes a multipart upload: each part is retried by itself, so that an outage in the
middle costs the part and not the object, and nothing is visible before the completion. A writer that is killed leaves
an upload that no listing of objects shows and that is billed; :func:`abandon_uploads` finds and aborts those.
"""

from __future__ import annotations

import contextlib
import hashlib
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from stoker.errors import StorageError
from stoker.storage.local import publishing
from stoker.storage.location import Location
from stoker.storage.retry import call_with_retries, writing_to

__all__ = ["Written", "abandon_uploads", "abort_uploads", "unfinished_uploads", "write_pieces"]

Pieces = Callable[[], Iterable[bytes | memoryview]]  # called again when a write restarts

_PART_BYTES = 32 << 20


@dataclass(frozen=True)
class Written:
    """Length in bytes and sha256 in hexadecimal of a written object."""

    bytes: int
    sha256: str


def write_pieces(place: Location, pieces: Pieces, *, part_bytes: int = _PART_BYTES) -> Written:
    """Write the concatenation of ``pieces()`` at ``place``, replacing the previous content; visible whole or not at
    all.

    At most ``part_bytes`` (5 MiB at least, S3's smallest part) are held in addition to the pieces themselves.

    Raises:
        StorageError: refused, or no valid response for one part within the place's timeout.
    """
    if place.is_local:
        return call_with_retries(
            lambda: _write_local(Path(place.path), pieces), what="write", url=place.url, timeout_s=place.timeout_s
        )
    if hasattr(place.filesystem, "call_s3"):
        return _write_s3(place, _parts(pieces(), part_bytes))
    return call_with_retries(
        lambda: _write_other(place, pieces), what="write", url=place.url, timeout_s=place.timeout_s
    )


def abandon_uploads(place: Location) -> int:
    """Abort every unfinished multipart upload below ``place``; returns their number.

    Only for a prefix with one writer, and between its writes.

    Raises:
        StorageError: refused, or no valid response within the timeout.
    """
    uploads = unfinished_uploads(place)
    abort_uploads(place, uploads)
    return len(uploads)


def unfinished_uploads(place: Location) -> list[dict[str, Any]]:
    """Every unfinished multipart upload below ``place``, for :func:`abort_uploads`; none on other stores than S3.

    Raises:
        StorageError: refused, or no valid response within the timeout.
    """
    if not hasattr(place.filesystem, "call_s3"):
        return []
    bucket, key, _ = place.filesystem.split_path(place.path)
    return list(_unfinished(place, bucket, f"{key.rstrip('/')}/" if key else ""))


def abort_uploads(place: Location, uploads: Iterable[dict[str, Any]]) -> None:
    """Abort ``uploads``, which :func:`unfinished_uploads` found below ``place``.

    Raises:
        StorageError: refused, or no valid response within the timeout.
    """
    for upload in uploads:
        bucket, _, _ = place.filesystem.split_path(place.path)
        with contextlib.suppress(FileNotFoundError):  # it was aborted or completed in the meantime
            _call(place, "abort_multipart_upload", Bucket=bucket, Key=upload["Key"], UploadId=upload["UploadId"])


def _unfinished(place: Location, bucket: str, prefix: str) -> Iterator[dict[str, Any]]:
    marker: dict[str, str] = {}
    while True:
        page = _call(place, "list_multipart_uploads", Bucket=bucket, Prefix=prefix, **marker)
        yield from (upload for upload in page.get("Uploads") or [] if upload["Key"].startswith(prefix))
        if not page.get("IsTruncated"):
            return
        marker = {"KeyMarker": page["NextKeyMarker"], "UploadIdMarker": page["NextUploadIdMarker"]}


def _parts(pieces: Iterable[bytes | memoryview], part_bytes: int) -> Iterator[bytes]:
    """The same bytes in parts of exactly ``part_bytes``, the last one shorter; at least one part."""
    held = bytearray()
    for piece in pieces:
        view = memoryview(piece).cast("B")
        while view:
            taken = view[: part_bytes - len(held)]
            held += taken
            view = view[len(taken) :]
            if len(held) == part_bytes:
                yield bytes(held)
                held.clear()
    yield bytes(held)


def _write_s3(place: Location, parts: Iterator[bytes]) -> Written:
    digest, total = hashlib.sha256(), 0
    part = next(parts)
    following = next(parts, b"")
    if not following:
        place.write(part)
        return Written(len(part), hashlib.sha256(part).hexdigest())
    bucket, key, _ = place.filesystem.split_path(place.path)
    with writing_to(place.url):
        upload = _call(place, "create_multipart_upload", Bucket=bucket, Key=key)["UploadId"]
    done: list[dict[str, Any]] = []
    try:
        while part:
            digest.update(part)
            total += len(part)
            number = len(done) + 1
            answer = _call(place, "upload_part", Bucket=bucket, Key=key, UploadId=upload, PartNumber=number, Body=part)
            done.append({"PartNumber": number, "ETag": answer["ETag"]})
            part, following = following, next(parts, b"")
        _complete(place, {"Bucket": bucket, "Key": key, "UploadId": upload, "MultipartUpload": {"Parts": done}}, total)
    except BaseException:
        with contextlib.suppress(Exception):  # abandon_uploads finds what is left
            place.filesystem.call_s3("abort_multipart_upload", Bucket=bucket, Key=key, UploadId=upload)
        raise
    return Written(total, digest.hexdigest())


def _complete(place: Location, request: dict[str, Any], total: int) -> None:
    """Complete the upload, and verify it: a response may be lost, or be a 200 with an error inside."""
    with contextlib.suppress(
        FileNotFoundError
    ):  # the upload is gone: an attempt whose response was lost may have succeeded
        _call(place, "complete_multipart_upload", **request)
    try:
        found = place.size()
    except FileNotFoundError:
        found = -1
    if found != total:
        raise StorageError(
            f"cannot write {place}: the store completed the upload, but holds {found} bytes of {total}; try again",
            url=place.url,
        )


def _call(place: Location, method: str, **arguments: Any) -> dict[str, Any]:
    verb = method.replace("_", " ")
    return call_with_retries(
        lambda: dict(place.filesystem.call_s3(method, **arguments, **place.filesystem.req_kw)),
        what=f"{verb} at",
        url=place.url,
        timeout_s=place.timeout_s,
    )


def _write_local(path: Path, pieces: Pieces) -> Written:
    with publishing(path) as file:
        return _pour(pieces(), file)


def _write_other(place: Location, pieces: Pieces) -> Written:
    file = place.filesystem.open(place.path, "wb")
    try:
        written = _pour(pieces(), file)
    except BaseException:
        if hasattr(file, "discard"):
            file.discard()
        raise
    file.close()
    return written


def _pour(pieces: Iterable[bytes | memoryview], file: Any) -> Written:
    digest, total = hashlib.sha256(), 0
    for piece in pieces:
        digest.update(piece)
        total += len(piece)
        file.write(piece)
    return Written(total, digest.hexdigest())
