"""The manifest ``dataset.json``: the single source of truth about a data set, written last.

The manifest is O(shards); the samples of a shard are in its index (``stoker.dataset.format.index``). The fingerprint, a
hash over everything in the manifest that determines the samples and their order, identifies the exact data that a
model was trained on.
"""

from __future__ import annotations

import hashlib
import json
from dataclasses import asdict, dataclass, fields
from typing import Any

import xxhash

from stoker.errors import DatasetError
from stoker.storage import Location, locate
from stoker.storage.retry import BadBody

__all__ = [
    "FORMAT_VERSION",
    "MANIFEST",
    "PAGE_ROWS",
    "Manifest",
    "Shard",
    "Split",
    "checksum",
    "read_manifest",
    "write_manifest",
]

MANIFEST = "dataset.json"
FORMAT = "stoker-dataset"
FORMAT_VERSION = (1, 2)
"""(major, minor): a reader refuses a newer major version and reads any minor one."""
PAGE_ROWS = 32
"""rows of a page of an index (``stoker.dataset.format.pages``)"""


def checksum(data: bytes | memoryview) -> str:
    """The checksum of a whole object as manifests hold it: ``xxh3_128:`` and 32 hexadecimal digits."""
    return "xxh3_128:" + xxhash.xxh3_128_hexdigest(data)


@dataclass(frozen=True)
class Shard:
    """One tar file and its index; sizes in bytes. Paths are relative to the data set, or absolute for tars
    that were indexed in place. ``page_bytes`` is the size of a page of the index, 0 if it has none; the fingerprint
    does not cover it, because the rows are the same."""

    path: str
    bytes: int
    samples: int
    checksum: str
    index_path: str
    index_bytes: int
    index_checksum: str
    page_bytes: int = 0

    @property
    def index_object_bytes(self) -> int:
        """Size of the index's object: the index and its pages."""
        return self.index_bytes + -(-self.samples // PAGE_ROWS) * self.page_bytes

    def tar(self, root: Location) -> Location:
        """The location of this shard's tar, for the data set at ``root``."""
        is_absolute = "://" in self.path or self.path.startswith("/")
        return locate(self.path, timeout_s=root.timeout_s) if is_absolute else root / self.path


_SHARD_FIELDS = {field.name: field.type for field in fields(Shard)}


@dataclass(frozen=True)
class Split:
    """The shards of one split, in the order in which their samples are numbered."""

    samples: int
    shards: tuple[Shard, ...]


@dataclass(frozen=True)
class Manifest:
    """A data set: class names (a label is an index into them) and splits by name."""

    classes: tuple[str, ...]
    splits: dict[str, Split]

    @property
    def fingerprint(self) -> str:
        """``sha256:`` and 64 hexadecimal digits over classes, splits, and each shard's samples and checksum."""
        identity = {
            "classes": self.classes,
            "splits": {
                name: [[s.samples, s.checksum, s.index_checksum] for s in split.shards]
                for name, split in sorted(self.splits.items())
            },
        }
        return "sha256:" + hashlib.sha256(json.dumps(identity, separators=(",", ":")).encode()).hexdigest()

    def split(self, name: str) -> Split:
        """The split called ``name``.

        Raises:
            DatasetError: not found; the message lists the splits that exist.
        """
        try:
            return self.splits[name]
        except KeyError:
            raise DatasetError(f"the data set has no split {name!r}; it has {', '.join(sorted(self.splits))}") from None


def write_manifest(root: Location, manifest: Manifest) -> None:
    """Publish the data set at ``root``: until this returns, readers find no data set."""
    has_pages = any(shard.page_bytes for split in manifest.splits.values() for shard in split.shards)
    content = {
        "format": FORMAT,
        "version": list(FORMAT_VERSION if has_pages else (1, 1)),
        "fingerprint": manifest.fingerprint,
        "classes": list(manifest.classes),
        "splits": {
            name: {"samples": split.samples, "shards": [_fields(shard) for shard in split.shards]}
            for name, split in manifest.splits.items()
        },
    }
    (root / MANIFEST).write(json.dumps(content, indent=1).encode())


def _fields(shard: Shard) -> dict[str, str | int]:
    return {name: value for name, value in asdict(shard).items() if name != "page_bytes" or value}


def read_manifest(root: Location) -> Manifest:
    """The manifest of the data set at ``root``.

    Raises:
        DatasetError: not found, damaged, or of a newer format than this version of stoker reads.
        StorageError: the place cannot be read.
    """
    where = root / MANIFEST
    try:
        content = json.loads(where.read())
    except FileNotFoundError:
        raise DatasetError(
            f"no data set at {root}: {MANIFEST} not found; check the URL, or make one with stoker prepare"
        ) from None
    except (ValueError, RecursionError) as error:
        raise DatasetError(f"{where}: damaged, not JSON ({error}); prepare the data set again") from None
    try:
        return _parse(where, content)
    except (KeyError, TypeError, AttributeError, ValueError) as error:
        raise DatasetError(f"{where}: damaged, invalid field: {error!r}; prepare the data set again") from None


def _parse(where: Location, content: dict[str, Any]) -> Manifest:
    if content.get("format") != FORMAT:
        raise DatasetError(f"{where}: not a stoker data set (format is {content.get('format')!r}, not {FORMAT!r})")
    major, minor = (_number("version", part) for part in content["version"])
    if major > FORMAT_VERSION[0]:
        raise DatasetError(
            f"{where}: format version {major}.{minor} is newer than this stoker reads "
            f"({FORMAT_VERSION[0]}.{FORMAT_VERSION[1]}); upgrade stoker"
        )
    splits = {
        name: Split(samples=_number("samples", split["samples"]), shards=tuple(_shard(one) for one in split["shards"]))
        for name, split in content["splits"].items()
    }
    if not all(isinstance(name, str) for name in content["classes"]):
        raise TypeError("classes are not names")
    manifest = Manifest(tuple(content["classes"]), splits)
    if manifest.fingerprint != content["fingerprint"]:
        raise DatasetError(
            f"{where}: damaged, its fingerprint is {manifest.fingerprint[:23]}..., "
            f"but it says {str(content['fingerprint'])[:23]}...; prepare the data set again"
        )
    for name, split in splits.items():
        if split.samples != (found := sum(shard.samples for shard in split.shards)):
            raise DatasetError(
                f"{where}: damaged, split {name!r} has {split.samples} samples and its shards {found}; prepare the "
                "data set again"
            )
    return manifest


def _shard(content: dict[str, Any]) -> Shard:
    found = {name: content[name] for name in _SHARD_FIELDS if name in content}
    for name, value in found.items():
        if _SHARD_FIELDS[name] == "int":
            _number(name, value)
        elif not isinstance(value, str):
            raise TypeError(f"{name} is {value!r}")
    return Shard(**found)


def _number(name: str, value: Any) -> int:
    if isinstance(value, bool) or not isinstance(value, int) or value < 0:
        raise TypeError(f"{name} is {value!r}")
    return value


def expect(data: bytes | memoryview, size: int, sum_: str) -> None:
    """Check a whole object against its manifest entry; raises :class:`BadBody`, so that the read is retried."""
    if len(data) != size:
        raise BadBody(f"{len(data)} bytes received instead of {size}")
    if checksum(data) != sum_:
        raise BadBody(f"checksum is {checksum(data)}, not {sum_}")
