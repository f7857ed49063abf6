"""List ImageNet's archives as ILSVRC2012 ships them, without unpacking them.

A folder with ``ILSVRC2012_img_train.tar`` (a tar of one tar a class, named by its WNID), and, if there is a validation
split, ``ILSVRC2012_img_val.tar`` and its labels. Listing reads headers only; an image is one range read.
"""

from __future__ import annotations

import csv
import io
import re
import tarfile
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor

from stoker.dataset.prepare.borders import one_line, parsing
from stoker.dataset.prepare.entries import Entries, Listing, shown
from stoker.dataset.prepare.plan import Options
from stoker.dataset.prepare.sources.base import Source
from stoker.dataset.prepare.sources.files import FileStats, files_in
from stoker.dataset.prepare.sources.readers import ArchiveReader, missing
from stoker.dataset.prepare.tar_file import has_end, headers, open_tar
from stoker.errors import DatasetError, StokerError
from stoker.storage import Location
from stoker.storage.range_file import RangeFile

__all__ = ["holds_imagenet", "open_imagenet"]

_TRAIN_TAR, _VALIDATION_TAR = "ILSVRC2012_img_train.tar", "ILSVRC2012_img_val.tar"
_DEVKIT = "ILSVRC2012_devkit_t12.tar.gz"
_TRUTH, _META, _MAP = "ILSVRC2012_validation_ground_truth.txt", "meta.mat", "map_clsloc.txt"
_WNIDS, _SOLUTION = "imagenet_2012_validation_synset_labels.txt", "LOC_val_solution.csv"
_SCANNERS = 32
_HEADER_AHEAD = 2048
"""bytes that a look at a header fetches: the byte before it that tarfile needs, itself, and a long name"""
_MOST_BYTES = 1 << 26
"""read of a file in the devkit"""
_LONGEST_NUMBER = 18


def holds_imagenet(_: Location, files: FileStats, __: list[str]) -> bool:
    """Whether the folder holds ImageNet's training archive."""
    return _TRAIN_TAR in files


def open_imagenet(location: Location, _: Options) -> Source:
    """List the archives.

    Raises:
        DatasetError: an archive or the validation set's truth is missing or damaged.
        StorageError: the place cannot be read.
    """
    files = files_in(location)[0]
    if _TRAIN_TAR not in files:
        raise DatasetError(f"{location} holds no {_TRAIN_TAR}; put ImageNet's archives there as they were downloaded")
    classes, train = _train(location, files)
    splits = {"train": train}
    if _VALIDATION_TAR in files:
        splits["validation"] = _validation(location, files, classes)
    return Source(location.url, classes, splits, ArchiveReader(location))


def _train(location: Location, files: FileStats) -> tuple[tuple[str, ...], Entries]:
    where, (size, stamp) = location / _TRAIN_TAR, files[_TRAIN_TAR]
    synsets = {name.removesuffix(".tar"): span for name, *span in _members(where, 0, size) if name.endswith(".tar")}
    if not synsets:
        raise DatasetError(f"{where} holds no tar of a class; it must be ImageNet's archive as it was downloaded")
    classes = tuple(sorted(synsets))
    listing = Listing(key_start=len(_TRAIN_TAR) + 1)
    with ThreadPoolExecutor(_SCANNERS, thread_name_prefix="stoker-list") as pool:
        scans = pool.map(lambda name: list(_members(where, *synsets[name])), classes)
        for label, (name, members) in enumerate(zip(classes, scans, strict=True)):
            if not members:
                raise DatasetError(f"{where}: {name}.tar is empty; get the archive again")
            for member, start, length in sorted(members):
                listing.add(f"{_TRAIN_TAR}#{name}/{member}", label, length, stamp, start)
    return classes, listing.entries()


def _validation(location: Location, files: FileStats, classes: tuple[str, ...]) -> Entries:
    where, (size, stamp) = location / _VALIDATION_TAR, files[_VALIDATION_TAR]
    truth, origin = _truth(location, files)
    labels = {name: label for label, name in enumerate(classes)}
    listing = Listing(key_start=len(_VALIDATION_TAR) + 1)
    for member, start, length in sorted(_members(where, 0, size)):
        found = re.search(r"(\d+)\.jpe?g$", member, re.IGNORECASE)
        number = int(found.group(1)) if found else 0
        wnid = truth.get(number)
        if wnid not in labels:
            what = f"image {number} is missing" if wnid is None else f"{wnid} is not a class of {_TRAIN_TAR}"
            raise DatasetError(f"{where}: no class for {member}: by {origin} {what}; are both of the same download?")
        listing.add(f"{_VALIDATION_TAR}#{member}", labels[wnid], length, stamp, start)
    if not len(listing):
        raise DatasetError(f"{where} is empty; get the archive again")
    return listing.entries()


def _truth(location: Location, files: FileStats) -> tuple[dict[int, str], str]:
    """(number of each validation image to its WNID, the file that says so)."""
    if _WNIDS in files:
        return dict(enumerate(_words(location, _WNIDS, (location / _WNIDS).read()), start=1)), _WNIDS
    if _SOLUTION in files:
        with parsing(location / _SOLUTION, "not as Kaggle ships it", "get it again"):
            rows = csv.DictReader(io.StringIO((location / _SOLUTION).read().decode()))
            return {int(r["ImageId"].rpartition("_")[2]): r["PredictionString"].split()[0] for r in rows}, _SOLUTION
    given = {name: (location / name).read() for name in (_TRUTH, _META, _MAP) if name in files}
    if _DEVKIT in files:
        given = _devkit(location / _DEVKIT) | given
    if _TRUTH not in given or not (_META in given or _MAP in given):
        raise DatasetError(
            f"{location} holds {_VALIDATION_TAR} but not its labels; put {_DEVKIT}, {_WNIDS} or {_SOLUTION} next to "
            f"it, or {_TRUTH} with {_META} or {_MAP}"
        )
    wnids = _numbers_by_map(given[_MAP], location) if _MAP in given else _numbers_by_meta(given[_META], location)
    truth = {}
    for line, word in enumerate(_words(location, _TRUTH, given[_TRUTH]), start=1):
        if not word.isdecimal() or int(word[:_LONGEST_NUMBER]) not in wnids:
            raise DatasetError(
                f"{location}: line {line} of {_TRUTH} is {word!r}, which is not a class number; get it again"
            )
        truth[line] = wnids[int(word)]
    return truth, _TRUTH


def _devkit(where: Location) -> dict[str, bytes]:
    found = {}
    packed = io.BytesIO(where.read())
    with (
        parsing(where, "not a valid gzipped tar", "get the devkit again"),
        tarfile.open(fileobj=packed, mode="r:gz") as archive,
    ):
        for member in archive:
            name = member.name.rpartition("/")[2]
            if name in (_TRUTH, _META, _MAP) and (file := archive.extractfile(member)) is not None:
                found[name] = file.read(_MOST_BYTES)
    return found


def _numbers_by_map(text: bytes, location: Location) -> dict[int, str]:
    with parsing(location / _MAP, "not as the devkit has it", "get it again"):
        lines = (line.split() for line in text.decode().splitlines())
        return {int(words[1]): words[0] for words in lines if len(words) > 1 and words[1].isdecimal()}


def _numbers_by_meta(data: bytes, location: Location) -> dict[int, str]:
    """ILSVRC2012_ID to WNID of the synsets without children (the 1,000 classes), from the devkit's MATLAB file."""
    try:
        from scipy.io import loadmat
    except ImportError:
        raise DatasetError(
            f"{location}: reading the devkit's {_META} needs scipy; pip install scipy, or put {_WNIDS} next to it"
        ) from None
    with parsing(location, f"{_META} of the devkit cannot be read", "get the devkit again"):
        synsets = loadmat(io.BytesIO(data), squeeze_me=True)["synsets"]
        rows = zip(synsets["ILSVRC2012_ID"], synsets["WNID"], synsets["num_children"], strict=True)
        return {int(number): str(wnid) for number, wnid, children in rows if int(children) == 0}


def _words(location: Location, name: str, data: bytes) -> list[str]:
    with parsing(location / name, "not text", "get it again"):
        return data.decode().split()


def _members(where: Location, start: int, size: int) -> Iterator[tuple[str, int, int]]:
    """(name, offset in the object, bytes) of the files in the tar at ``[start, start + size)``."""
    file = RangeFile(where, size, start=start, ahead=_HEADER_AHEAD)
    try:
        with open_tar(file) as archive:
            for member in headers(archive, size):
                if member.isfile() and not member.name.rpartition("/")[2].startswith("."):
                    yield shown(member.name).removeprefix("./"), start + member.offset_data, member.size
            has_end(archive)
    except StokerError:
        raise
    except FileNotFoundError:
        raise missing(where, "the archives") from None
    except Exception as error:
        raise DatasetError(
            f"{where}: damaged at or after byte {start + file.tell()} ({one_line(error)}); get it again"
        ) from None
