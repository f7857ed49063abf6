"""Store the files of a version: bytes at hand, or a checked copy of a file that is in storage already."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from dataclasses import dataclass

from stoker.errors import ModelError, StorageError
from stoker.registry.card import StoredFile
from stoker.storage import Location
from stoker.storage.retry import BadBody, call_with_retries
from stoker.storage.uploads import write_pieces

__all__ = ["SourceFile", "store_file"]

_PIECE_BYTES = 16 << 20


@dataclass(frozen=True)
class SourceFile:
    """The file at ``place``, whose writer recorded ``stored``."""

    place: Location
    stored: StoredFile

    def copy_to(self, target: Location) -> None:
        """Copy the bytes to ``target``, one piece in memory at a time; a copy with another checksum is made again.

        Raises:
            ModelError: the file does not exist.
            StorageError: it cannot be read or written, or is not what its writer recorded.
        """

        def once() -> None:
            written = write_pieces(target, self._pieces)
            if (written.bytes, written.sha256) != (self.stored.bytes, self.stored.sha256):
                raise BadBody(f"{written.bytes} bytes were read that do not have the recorded sha256")

        try:
            call_with_retries(once, what="copy", url=self.place.url, timeout_s=self.place.timeout_s)
        except FileNotFoundError:
            raise ModelError(f"{self.place}: missing, although it was recorded; train the run again") from None
        except StorageError as error:
            if isinstance(error.__cause__, BadBody):
                raise StorageError(
                    f"{self.place}: damaged ({error.__cause__}); restore the file, or train the run again",
                    url=self.place.url,
                ) from error
            raise

    def _pieces(self) -> Iterator[memoryview]:
        for start in range(0, self.stored.bytes, _PIECE_BYTES):
            yield self.place.read_range(start, min(start + _PIECE_BYTES, self.stored.bytes))


def store_file(content: bytes | SourceFile, place: Location) -> StoredFile:
    """Write ``content`` to ``place`` and return its size and checksum.

    Raises:
        ModelError, StorageError: see :meth:`SourceFile.copy_to`.
    """
    if isinstance(content, SourceFile):
        content.copy_to(place)
        return content.stored
    place.write(content)
    return StoredFile(bytes=len(content), sha256=hashlib.sha256(content).hexdigest())
