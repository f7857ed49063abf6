"""Read samples and their labels from the members of WebDataset tars.

Tars are indexed in place (``prepare.tars``); with ``copies`` their samples go through the ordinary preparation, into
new shards. How members become samples is in ``tar_samples``.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor

from stoker.dataset.prepare.borders import parsing
from stoker.dataset.prepare.entries import Entries, Listing
from stoker.dataset.prepare.plan import Options
from stoker.dataset.prepare.sources.base import Source, split_name
from stoker.dataset.prepare.sources.columns import MOST_CLASSES
from stoker.dataset.prepare.sources.files import FileStats, files_in
from stoker.dataset.prepare.sources.readers import ArchiveReader
from stoker.dataset.prepare.sources.tar_samples import AUDIO, LABELS, PAYLOADS, Member, cut_of, reading, samples_of
from stoker.dataset.prepare.tar_file import open_tar
from stoker.errors import DatasetError
from stoker.storage import Location, locate
from stoker.storage.range_file import RangeFile

__all__ = ["BadSample", "holds_tars", "open_webdataset", "pick"]

_JSON_LABELS = ("label", "cls", "class")
_SPLITS = ("train", "validation", "test")
_OWN_FOLDERS = ("build", "index")
"""what stoker writes next to tars that it indexes in place"""
_MOST_NAMED = 30
_COMPRESSED = re.compile(r"\.(tar\.(gz|bz2|xz|zst|lz4)|tgz|tbz2?|txz)$", re.IGNORECASE)
_SCANNERS = 16
_HEADER_AHEAD = 2048
"""bytes that reading a header fetches: itself, a long name, and mostly the label behind it"""


class BadSample(Exception):
    """Members that are not a valid sample; the text is the reason."""


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
    payload = next((member for extension, member in by_extension.items() if extension in PAYLOADS), None)
    if payload is None:
        raise BadSample(f"no image ({', '.join(PAYLOADS)}) among its members {_some(by_extension)}")
    for extension in LABELS:
        if extension in by_extension:
            return payload, _label(by_extension[extension], classes)
    raise BadSample(f"no label ({', '.join(LABELS)}) among its members {_some(by_extension)}")


def _some(extensions: Iterable[str]) -> str:
    found = list(extensions)
    return ", ".join(found[:_MOST_NAMED]) + (
        f" and {len(found) - _MOST_NAMED} more" if len(found) > _MOST_NAMED else ""
    )


def _label(member: Member, classes: tuple[str, ...]) -> int:
    if member.data is None:
        raise BadSample(f"its {member.extension} member has {member.size:,} bytes, more than a label has")
    text: object = member.data.decode(errors="replace").strip()
    if member.extension == "json":
        try:
            content = json.loads(member.data)
        except Exception:
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
    most = len(classes) or MOST_CLASSES
    if not 0 <= number < most:
        raise BadSample(f"its label {number} is not below the {most:,} classes")
    return number


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
        "--background": options.background,
    }
    for option, value in asked.items():
        if value:
            raise DatasetError(f"{option}: tars that are indexed in place are not changed; omit it, or add --copy")


def _class_names(path: str) -> tuple[str, ...]:
    where = locate(path)
    with parsing(f"--classes {where}", "cannot be read as text", "give a file with one class a line"):
        names = tuple(line.strip() for line in where.read().decode().splitlines() if line.strip())
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
            found, cut = scan
            strays += [(path, cut)] if cut else []
            for payload, label in found:
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


def _scan(where: Location, size: int, classes: tuple[str, ...]) -> tuple[list[tuple[Member, int | str]], str]:
    """(each sample's image with its label, or a member of it with why it is invalid; why the tar may have been cut)."""
    found: list[tuple[Member, int | str]] = []
    with reading(where):
        archive = open_tar(RangeFile(where, size, ahead=_HEADER_AHEAD))
    with archive:
        for _, members in samples_of(archive, where, size, LABELS.__contains__):
            try:
                payload, label = pick(members, classes)
                if payload.extension in AUDIO:
                    raise BadSample("a sound, which only tars that are indexed where they lie may hold")
                found.append((payload, label))
            except BadSample as error:
                found.append((members[0], str(error)))
        return found, cut_of(archive, where)
