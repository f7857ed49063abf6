"""Read samples and their labels from the members of WebDataset tars.

The rules are WebDataset's own: a member's key is its path up to the first dot of the file name, what follows is its
extension, and neighbours with the same key are one sample. Tars are indexed in place (``prepare.tars``); with
``copies`` their samples go through the ordinary preparation, into new shards.
"""

from __future__ import annotations

import itertools
import json
import re
import tarfile
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

from stoker.dataset.prepare.entries import Entries, Listing
from stoker.dataset.prepare.plan import Options
from stoker.dataset.prepare.sources.base import Source, split_name
from stoker.dataset.prepare.sources.files import FileStats, files_in
from stoker.dataset.prepare.sources.readers import ArchiveReader
from stoker.errors import DatasetError
from stoker.storage import Location, locate
from stoker.storage.range_file import RangeFile

__all__ = ["AUDIO", "BadSample", "Member", "holds_tars", "is_used", "open_webdataset", "pick", "samples_of"]

AUDIO = ("wav", "flac")
_PAYLOADS = ("jpg", "jpeg", "png", "webp", "gif", *AUDIO)
_LABELS = ("cls", "json", "txt")
_JSON_LABELS = ("label", "cls", "class")
_SPLITS = ("train", "validation", "test")
_OWN_FOLDERS = ("build", "index")
"""what stoker writes next to tars that it indexes in place"""
_MOST_CLASSES = 1_000_000
"""without class names; a larger label is a mistake rather than a class"""
_COMPRESSED = re.compile(r"\.(tar\.(gz|bz2|xz|zst|lz4)|tgz|tbz2?|txz)$", re.IGNORECASE)
_SCANNERS = 16
_HEADER_AHEAD = 2048
"""bytes that reading a header fetches: itself, a long name, and mostly the label behind it"""


class BadSample(Exception):
    """Members that are not a valid sample; the text is the reason."""


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
    return extension in _PAYLOADS or extension in _LABELS


def holds_tars(location: Location, files: FileStats, folders: list[str]) -> bool:
    """Whether the folder holds tars, by itself or in folders named after splits, and no other folder."""
    folders = [name for name in folders if name not in _OWN_FOLDERS]
    if any(split_name(name) is None for name in folders):
        return False
    if any(_is_tar(name) for name in files):
        return True
    inside = [files_in(location / name) for name in folders]
    return any(_is_tar(name) for found, _ in inside for name in found) and not any(below for _, below in inside)


def open_webdataset(location: Location, options: Options) -> Source:
    """List the tars below ``location``, or the samples in them if they are to be copied.

    A tar's split is that of its folder or else of a word in its name (``imagenet-val-0003.tar``), else train.

    Raises:
        DatasetError: no tars, a compressed one, or an option that needs ``copies``.
        StorageError: the place cannot be read.
    """
    tars = _tars(location)
    classes = _class_names(options.classes_file) if options.classes_file else ()
    if options.copies:
        return _samples(location, tars, classes)
    _refuse_changes(options)
    splits = {}
    for split in _SPLITS:
        listing = Listing()
        for path in sorted(path for path in tars if _split(path) == split):
            size, stamp = tars[path]
            listing.add(path, 0, size, stamp)
        if len(listing):
            splits[split] = listing.entries()
    return Source(location.url, classes, splits, ArchiveReader(location), is_indexed=True)


def samples_of(
    archive: tarfile.TarFile, where: Location, reads: Callable[[str], bool]
) -> Iterator[tuple[str, list[Member]]]:
    """(key, members) of each sample; the data of members whose extension ``reads`` accepts are read.

    Raises:
        DatasetError: the tar is damaged.
    """
    for key, group in itertools.groupby(_members(archive, where, reads), key=lambda pair: pair[0]):
        yield key, [member for _, member in group]


def pick(members: Iterable[Member], classes: tuple[str, ...]) -> tuple[Member, int]:
    """(the member with the image or sound, the label) of a sample.

    Raises:
        BadSample: either is missing, a member occurs twice, or the label is not a class.
    """
    by_extension: dict[str, Member] = {}
    for member in members:
        if member.extension in by_extension:
            raise BadSample(f"the tar holds two members {member.name} of one sample")
        by_extension[member.extension] = member
    payload = next((member for extension, member in by_extension.items() if extension in _PAYLOADS), None)
    if payload is None:
        raise BadSample(f"no image ({', '.join(_PAYLOADS)}) among its members {', '.join(by_extension)}")
    for extension in _LABELS:
        if extension in by_extension:
            return payload, _label(by_extension[extension], classes)
    raise BadSample(f"no label ({', '.join(_LABELS)}) among its members {', '.join(by_extension)}")


def _label(member: Member, classes: tuple[str, ...]) -> int:
    assert member.data is not None
    text: object = member.data.decode(errors="replace").strip()
    if member.extension == "json":
        try:
            content = json.loads(member.data)
        except ValueError:
            raise BadSample("its json member is no JSON") from None
        found = [content[name] for name in _JSON_LABELS if name in content] if isinstance(content, dict) else [content]
        if not found:
            raise BadSample(f"its json member says none of {', '.join(_JSON_LABELS)}")
        text = found[0]
    if isinstance(text, int) and not isinstance(text, bool):
        number = text
    elif isinstance(text, str) and re.fullmatch(r"\d{1,18}", text):
        number = int(text)
    elif isinstance(text, str) and text in classes:
        return classes.index(text)
    elif isinstance(text, str) and text and not classes:
        raise BadSample(f"its label is the name {text[:60]!r}; name the classes in a file, one a line, with --classes")
    else:
        raise BadSample(f"its label {str(text)[:60]!r} is neither a number nor a class")
    most = len(classes) or _MOST_CLASSES
    if not 0 <= number < most:
        raise BadSample(f"its label {number} is not below the {most:,} classes")
    return number


def _members(archive: tarfile.TarFile, where: Location, reads: Callable[[str], bool]) -> Iterator[tuple[str, Member]]:
    try:
        while (member := archive.next()) is not None:
            archive.members.clear()  # type: ignore[attr-defined]  # tarfile remembers all, 1 kB each
            key, name = _key(member.name), member.name
            if not member.isreg() or key is None or member.issparse():
                continue
            extension = name[len(key) + 1 :].lower()
            file = archive.extractfile(member) if reads(extension) else None
            data = None if file is None else file.read()
            yield key, Member(name, extension, member.offset_data, member.size, data)
    except (tarfile.TarError, EOFError) as error:
        raise DatasetError(
            f"{where}: not a complete tar ({error}); write it again, or move it out of the folder"
        ) from None


def _key(name: str) -> str | None:
    """The path up to the first dot of the file name; None for a file without one or that only describes the tar."""
    folder, _, file = name.rpartition("/")
    stem, dot, _ = file.partition(".")
    if not stem or not dot or (not folder and file.startswith("__") and file.endswith("__")):
        return None
    return f"{folder}/{stem}" if folder else stem


def _tars(location: Location) -> FileStats:
    files, folders = files_in(location)
    found = {name: stats for name, stats in files.items() if _is_tar(name)}
    for folder in folders:
        if split_name(folder):
            inside = files_in(location / folder)[0]
            found |= {f"{folder}/{name}": stats for name, stats in inside.items() if _is_tar(name)}
    if not found:
        raise DatasetError(f"no tars at {location}: neither there nor in folders train, validation or test of it")
    for path in sorted(found):
        if _COMPRESSED.search(path):
            raise DatasetError(
                f"{location / path} is compressed, so its samples cannot be read individually; decompress it first"
            )
    return found


def _is_tar(name: str) -> bool:
    return name.lower().endswith(".tar") or _COMPRESSED.search(name) is not None


def _split(path: str) -> str:
    folder, _, name = path.rpartition("/")
    words = [folder, *re.split(r"[^A-Za-z]+", name.lower().removesuffix(".tar"))]
    return next((split for word in words if (split := split_name(word))), "train")


def _refuse_changes(options: Options) -> None:
    asked = {
        "--validation-fraction": options.validation_fraction,
        "--limit": options.limit,
        "--deduplicate": options.deduplicates,
        "--longest-side": options.longest_side,
    }
    for option, value in asked.items():
        if value:
            raise DatasetError(f"{option}: tars that are indexed in place are not changed; omit it, or add --copy")


def _class_names(path: str) -> tuple[str, ...]:
    where = locate(path)
    try:
        names = tuple(line.strip() for line in where.read().decode().splitlines() if line.strip())
    except (FileNotFoundError, UnicodeDecodeError) as error:
        raise DatasetError(
            f"--classes {where} cannot be read as text ({error}); give a file with one class a line"
        ) from None
    if not names or len(set(names)) < len(names):
        raise DatasetError(f"--classes {where} names a class twice or none at all; list each once, one a line")
    return names


def _samples(location: Location, tars: FileStats, classes: tuple[str, ...]) -> Source:
    """Every sample of every tar, found by range reads of the headers and labels alone."""
    listings = {split: Listing() for split in _SPLITS}
    strays: list[tuple[str, str]] = []
    last = 0
    paths = sorted(tars)
    with ThreadPoolExecutor(_SCANNERS, thread_name_prefix="stoker-list") as pool:
        scans = pool.map(lambda path: _scan(location / path, tars[path][0], classes), paths)
        for path, scan in zip(paths, scans, strict=True):
            for payload, label in scan:
                if isinstance(label, str):
                    strays.append((f"{path}#{payload.name}", label))
                else:
                    last = max(last, label)
                    listings[_split(path)].add(
                        f"{path}#{payload.name}", label, payload.size, tars[path][1], payload.offset
                    )
    names = classes or tuple(str(number) for number in range(last + 1))
    splits: dict[str, Entries] = {split: listing.entries() for split, listing in listings.items() if len(listing)}
    return Source(location.url, names, splits, ArchiveReader(location), tuple(strays))


def _scan(where: Location, size: int, classes: tuple[str, ...]) -> list[tuple[Member, int | str]]:
    found: list[tuple[Member, int | str]] = []
    with tarfile.open(fileobj=RangeFile(where, size, ahead=_HEADER_AHEAD), mode="r:") as archive:
        for _, members in samples_of(archive, where, _LABELS.__contains__):
            try:
                payload, label = pick(members, classes)
                if payload.extension in AUDIO:
                    raise BadSample("a sound, which only tars that are indexed where they lie may hold")
                found.append((payload, label))
            except BadSample as error:
                found.append((members[0], str(error)))
    return found
