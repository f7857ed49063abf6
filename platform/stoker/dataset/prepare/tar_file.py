"""Read the headers of a tar in order, and notice damage that :mod:`tarfile` takes for the end of the archive.

A damaged header after the first ends an archive for tarfile without a word, and what follows an end is never looked
at, so a torn tar and ``cat a.tar b.tar`` would lose samples. An archive ends with two blocks of zeros (POSIX.1-1988,
ustar), and only zeros may follow; GNU tar, too, warns of anything else.
"""

from __future__ import annotations

import tarfile
from collections.abc import Iterator
from typing import Any

__all__ = ["has_end", "headers", "open_tar"]

_NAMES = frozenset((b"L", b"K", b"x", b"g", b"X"))
"""types of the members that only describe the next one (GNU's long names, headers of pax)"""
_LONGEST_NAME = 1 << 20
_END_BYTES = 10_240
"""a record of tar: what mostly is left behind the end"""
_CHUNK_BYTES = 1 << 20


class _Header(tarfile.TarInfo):
    """A header of which every kind of damage is an error, wherever it is."""

    @classmethod
    def fromtarfile(cls, archive: Any) -> Any:
        at = archive.fileobj.tell()
        try:
            return super().fromtarfile(archive)
        except (tarfile.EOFHeaderError, tarfile.EmptyHeaderError):  # type: ignore[attr-defined]
            raise
        except tarfile.HeaderError as error:
            raise tarfile.ReadError(f"{error} at byte {at}") from None

    @classmethod
    def frombuf(cls, buf: Any, encoding: Any, errors: Any) -> Any:
        found = super().frombuf(buf, encoding, errors)
        if found.size < 0 or (found.type in _NAMES and found.size > _LONGEST_NAME):
            raise tarfile.ReadError(f"a header says {found.size} bytes")
        return found


def open_tar(file: Any, *, is_stream: bool = False, buffer_bytes: int = _CHUNK_BYTES) -> tarfile.TarFile:
    """Open an uncompressed tar; ``is_stream`` reads it once in order, ``buffer_bytes`` at a time.

    Raises:
        Exception: whatever tarfile raises; see :mod:`stoker.dataset.prepare.borders`.
    """
    if is_stream:
        return tarfile.open(fileobj=file, mode="r|", bufsize=buffer_bytes, tarinfo=_Header)
    return tarfile.open(fileobj=file, mode="r:", tarinfo=_Header)


def headers(archive: tarfile.TarFile, size: int) -> Iterator[tarfile.TarInfo]:
    """Each member's header in order, of a tar of ``size`` bytes; none is kept.

    Raises:
        Exception: whatever tarfile raises; ReadError for a header that is damaged, leads backwards or past the end (a
            stream of tarfile's goes there in steps: to 2^62 it had not come in ten minutes).
    """
    end = -1
    while (member := archive.next()) is not None:
        archive.members.clear()  # type: ignore[attr-defined]  # tarfile remembers all, 1 kB each
        if archive.offset <= end:
            raise tarfile.ReadError(f"the header at byte {member.offset} leads backwards")
        end = archive.offset
        if end > size:
            raise tarfile.ReadError(f"unexpected end of data in the member at byte {member.offset}")
        yield member


def has_end(archive: tarfile.TarFile) -> bool:
    """Whether the archive, all of whose headers were read, has an end: without one it may have been cut.

    Raises:
        Exception: whatever tarfile raises; ReadError where something other than zeros follows the end.
    """
    file: Any = archive.fileobj
    is_marked = file.tell() > archive.offset  # a block of zeros was read
    size = _END_BYTES
    while block := file.read(size):
        if block.count(0) < len(block):
            first = len(block) - len(block.lstrip(b"\0"))
            start = first - first % tarfile.BLOCKSIZE
            at = file.tell() - len(block)
            if _is_header(block[start : start + tarfile.BLOCKSIZE]):
                raise tarfile.ReadError(
                    f"another tar begins at byte {at + start}, after its end: tars are joined by tar --concatenate, "
                    "not by cat"
                )
            raise tarfile.ReadError(f"its end is at byte {archive.offset}, but data follow at byte {at + first}")
        size = _CHUNK_BYTES
    return bool(is_marked)


def _is_header(block: bytes) -> bool:
    try:
        tarfile.TarInfo.frombuf(block, "utf-8", "surrogateescape")
    except Exception:
        return False
    return True
