"""Read the samples of a WebDataset tar: its members, grouped by key, and what is wrong with how it was written.

A member's key is its path up to the first dot of the file name, what follows is its extension, and neighbours with
the same key are one sample (the rules of WebDataset's own reader, ``webdataset/tariterators.py``).
"""

from __future__ import annotations

import contextlib
import itertools
import tarfile
from collections.abc import Callable, Collection, Iterator
from dataclasses import dataclass

from stoker.dataset.prepare.borders import parsing
from stoker.dataset.prepare.entries import shown
from stoker.dataset.prepare.sources.readers import missing
from stoker.dataset.prepare.tar_file import has_end, headers
from stoker.errors import DatasetError
from stoker.storage import Location

__all__ = ["AUDIO", "LABELS", "PAYLOADS", "Member", "cut_of", "is_used", "reading", "samples_of"]

AUDIO = ("wav", "flac")
PAYLOADS = ("jpg", "jpeg", "png", "webp", "gif", *AUDIO)
LABELS = ("cls", "json", "txt")
_MOST_LABEL_BYTES = 1 << 24
_MOST_PAYLOAD_BYTES = 1 << 30
_REMEMBERED = 10_000
"""incomplete samples of a tar whose other half is looked for"""


@dataclass(frozen=True)
class Member:
    """One file of a sample: its extension in lower case, and the place of its bytes in the tar; ``data`` if read."""

    name: str
    extension: str
    offset: int
    size: int
    data: bytes | None


def is_used(extension: str) -> bool:
    """Whether a member with this extension is used: an image, audio or a label."""
    return extension in PAYLOADS or extension in LABELS


@contextlib.contextmanager
def reading(where: Location) -> Iterator[None]:
    """Around everything that reads the tar at ``where``.

    Raises:
        DatasetError: the tar is damaged, or no longer there.
    """
    with parsing(where, "not a valid, complete tar", "write it again, or move it out of the folder"):
        try:
            yield
        except FileNotFoundError:
            raise missing(where, "the tars") from None


def samples_of(
    archive: tarfile.TarFile, where: Location, size: int, reads: Callable[[str], bool]
) -> Iterator[tuple[str, list[Member]]]:
    """(key, members) of each sample of a tar of ``size`` bytes, with the data of those that ``reads`` takes.

    A name that is not UTF-8 has those bytes written out (``Mu\\xf1oz``).

    Raises:
        DatasetError: the tar is damaged, or written such that its samples are not whole.
    """
    order = _Order(where)
    for key, group in itertools.groupby(_members(archive, where, size, reads), key=lambda pair: pair[0]):
        members = [member for _, member in group]
        order.add(key, members)
        yield key, members
    order.check()


def cut_of(archive: tarfile.TarFile, where: Location) -> str:
    """Why the tar, all of whose samples were read, may not be whole; empty if it is.

    Raises:
        DatasetError: something other than zeros follows its end.
    """
    with reading(where):
        is_whole = has_end(archive)
    return "" if is_whole else "the tar ends without the blocks of zeros that close one, so it may have been cut"


class _Order:
    """Notices a tar that was written in an order, or with names, in which few of its samples are whole."""

    def __init__(self, where: Location) -> None:
        self._where = where
        self._whole = self._apart = self._dotted = 0
        self._has_payload: dict[str, bool] = {}
        self._example_apart = self._example_dotted = ""

    def add(self, key: str, members: Collection[Member]) -> None:
        has_payload = any(member.extension in PAYLOADS for member in members)
        has_label = any(member.extension in LABELS for member in members)
        if has_payload and has_label:
            self._whole += 1
            return
        if not has_payload and any(member.extension.rpartition(".")[2] in LABELS for member in members):
            dotted = [member.name for member in members if member.extension.rpartition(".")[2] in PAYLOADS]
            self._dotted += len(dotted)
            self._example_dotted = self._example_dotted or next(iter(dotted), "")
        if has_payload == has_label:
            return
        if self._has_payload.get(key, has_payload) != has_payload:
            self._apart += 1
            self._example_apart = self._example_apart or key
        elif len(self._has_payload) < _REMEMBERED:
            self._has_payload[key] = has_payload

    def check(self) -> None:
        if self._dotted > self._whole:
            raise DatasetError(
                f"{self._where}: the key of a sample ends at the first dot of the file name, so {self._example_dotted} "
                "is no image of a sample of its own; write the tar again with names whose only dot is before the "
                "extension"
            )
        if self._apart > self._whole:
            raise DatasetError(
                f"{self._where}: the members of a sample must be neighbours, but the image and the label of "
                f"{self._example_apart} are apart; write the tar again, sorted by name (tar --sort=name)"
            )


def _members(
    archive: tarfile.TarFile, where: Location, size: int, reads: Callable[[str], bool]
) -> Iterator[tuple[str, Member]]:
    with reading(where):
        for header in headers(archive, size):
            name = shown(header.name)
            key = _key(name)
            if not header.isreg() or key is None or header.issparse():
                continue
            extension = name[len(key) + 1 :].lower()
            most = _MOST_LABEL_BYTES if extension in LABELS else _MOST_PAYLOAD_BYTES
            file = archive.extractfile(header) if reads(extension) and header.size <= most else None
            data = None if file is None else file.read()
            yield key, Member(name, extension, header.offset_data, header.size, data)


def _key(name: str) -> str | None:
    """The path up to the first dot of the file name; None for a file without one or that only describes the tar."""
    folder, _, file = name.rpartition("/")
    stem, dot, _ = file.partition(".")
    if not stem or not dot or (not folder and file.startswith("__") and file.endswith("__")):
        return None
    return f"{folder}/{stem}" if folder else stem
