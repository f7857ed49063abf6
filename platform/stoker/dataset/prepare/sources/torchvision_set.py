"""Read any classification data set of torchvision that is on disk: ``torchvision://CIFAR10?root=/data``.

The query holds arguments of the data set's class. Of data sets that consist of image files the files' own bytes are
taken; others are stored as PNG, which is lossless. Nothing is ever downloaded.
"""

from __future__ import annotations

import contextlib
import functools
import inspect
import io
import os
import threading
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import parse_qsl

import numpy as np
from PIL import Image

from stoker.dataset.prepare.entries import Entries, Entry, Listing
from stoker.dataset.prepare.plan import Options, digest
from stoker.dataset.prepare.sources.base import Source, split_name
from stoker.errors import DatasetError
from stoker.storage import Location

__all__ = ["TorchvisionReader", "is_torchvision", "open_torchvision"]

_PROTOCOL = "torchvision://"
_MEASURED = 16
"""images that are encoded to estimate their size"""

Arguments = tuple[tuple[str, Any], ...]


@dataclass(frozen=True)
class TorchvisionReader:
    """Reads samples ``<split>/<number>``; ``splits`` holds the arguments of each split's data set."""

    name: str
    splits: tuple[tuple[str, Arguments], ...]

    def with_timeout(self, timeout_s: float) -> TorchvisionReader:
        del timeout_s  # reads of a local disk are not retried
        return self

    def read(self, entry: Entry) -> bytes:
        split = entry.path.partition("/")[0]
        return _Set.of(self.name, dict(self.splits)[split]).image(entry.offset)


def is_torchvision(url: str) -> bool:
    """Whether the URL names a data set of torchvision."""
    return url.startswith(_PROTOCOL)


def open_torchvision(location: Location, _: Options) -> Source:
    """Open each split that the data set has.

    Raises:
        DatasetError: torchvision does not know the data set, it is not on disk, or its targets are not classes.
    """
    name, query = location.url.removeprefix(_PROTOCOL).partition("?")[::2]
    kind = _class(name)
    parameters = inspect.signature(kind).parameters
    arguments = _arguments(name, query, parameters)
    if "split" not in arguments and "train" not in arguments and {"split", "train"} & set(parameters):
        opened = _all_splits(name, arguments, by="train" if "train" in parameters else "split")
    else:
        opened = {"train": tuple(arguments.items())}
    classes: tuple[str, ...] = ()
    splits: dict[str, Entries] = {}
    for split, made_by in opened.items():
        dataset = _Set.of(name, made_by)
        labels = dataset.labels()
        classes = classes or dataset.classes(labels)
        if labels and not 0 <= min(labels) <= max(labels) < len(classes):
            raise DatasetError(
                f"torchvision's {name}: its {split} targets are not the numbers of {len(classes)} classes"
            )
        splits[split] = dataset.entries(split, labels)
    return Source(f"{_PROTOCOL}{name}?{query}", classes, splits, TorchvisionReader(name, tuple(opened.items())))


def _class(name: str) -> Callable[..., Any]:
    from torchvision import datasets

    found = getattr(datasets, name, None)
    if not inspect.isclass(found):
        near = [known for known in datasets.__all__ if known.lower() == name.lower()]
        hint = f"did you mean {near[0]}?" if near else "its documentation lists them, such as CIFAR10"
        raise DatasetError(f"torchvision has no data set called {name!r}; {hint}")
    return found


def _arguments(name: str, query: str, parameters: Any) -> dict[str, Any]:
    arguments: dict[str, Any] = {}
    for key, text in parse_qsl(query, keep_blank_values=True):
        if key not in parameters or key in ("download", "transform", "target_transform", "transforms"):
            known = [p for p in parameters if p != "download" and not p.endswith(("transform", "transforms"))]
            why = "nothing is downloaded" if key == "download" else "it does not take this"
            raise DatasetError(f"torchvision's {name}: {key}={text}: {why}; it takes {', '.join(known)}")
        arguments[key] = _value(text)
    if "root" in parameters:
        if "root" not in arguments and parameters["root"].default in (inspect.Parameter.empty, None):
            raise DatasetError(f"torchvision's {name}: give its folder, as {_PROTOCOL}{name}?root=FOLDER")
        if "root" in arguments:
            arguments["root"] = os.path.abspath(os.path.expanduser(str(arguments["root"])))
    return arguments


def _value(text: str) -> bool | int | str | tuple[int, ...]:
    if text.lower() in ("true", "false"):
        return text.lower() == "true"
    if all(part.isdigit() for part in text.split(",")):
        numbers = tuple(map(int, text.split(",")))
        return numbers if len(numbers) > 1 else numbers[0]
    return text


def _all_splits(name: str, arguments: dict[str, Any], *, by: str) -> dict[str, Arguments]:
    words = {True: "train", False: "test"} if by == "train" else {w: w for w in ("train", "val", "valid", "test")}
    found: dict[str, Arguments] = {}
    for value, word in words.items():
        split = split_name(word) or word
        made_by = (*arguments.items(), (by, value))
        try:
            _Set.of(name, made_by)
        except _UnknownSplit:
            if split == "train":
                raise
        else:
            found.setdefault(split, made_by)
    return found


class _UnknownSplit(DatasetError):
    """The data set's class does not take an argument's value."""


class _Set:
    """A data set of torchvision, which must not be read by two threads at once."""

    def __init__(self, name: str, arguments: Arguments) -> None:
        self._name = name
        self._root = dict(arguments).get("root")
        try:
            self._set = _class(name)(**dict(arguments))
        except Exception as error:  # whatever the data set's class raises is about its arguments or files
            reason = " ".join(str(error).split()).replace(" You can use download=True to download it", "")
            raise (_UnknownSplit if isinstance(error, ValueError) else DatasetError)(
                f"torchvision's {name} cannot be opened ({reason[:200] or type(error).__name__}); check that it is "
                f"at root={self._root}: nothing is downloaded"
            ) from None
        self._lock = threading.Lock()
        self._files = self._image_files()

    @staticmethod
    @functools.lru_cache(8)
    def of(name: str, arguments: Arguments) -> _Set:
        """The instance of this process."""
        return _Set(name, arguments)

    def labels(self) -> list[int]:
        """The class of each sample.

        Raises:
            DatasetError: the targets are not integers.
        """
        found: Sequence[Any] | None = None
        for attribute in ("targets", "labels", "_labels"):
            values = getattr(self._set, attribute, None)
            if values is not None and len(values) == len(self._set):
                found = values
                break
        pairs = self._pairs()
        if found is None and pairs is not None:
            found = [label for _, label in pairs]
        if found is None:
            found = [self._sample(number)[1] for number in range(len(self._set))]
        try:
            labels = np.asarray(found)
            if labels.ndim != 1 or labels.dtype.kind not in "iu":
                raise ValueError
        except (ValueError, TypeError):
            raise DatasetError(
                f"torchvision's {self._name} has targets that are not classes; it cannot be prepared"
            ) from None
        return [int(label) for label in labels]

    def classes(self, labels: list[int]) -> tuple[str, ...]:
        names = getattr(self._set, "classes", None)
        if isinstance(names, (list, tuple)) and len(names) > max(labels):
            return tuple(str(name[0] if isinstance(name, tuple) else name) for name in names)
        return tuple(str(number) for number in range(max(labels) + 1))

    def entries(self, split: str, labels: list[int]) -> Entries:
        listing = Listing(key_start=len(split) + 1)
        if self._files is not None:
            for number, (label, file) in enumerate(zip(labels, self._files, strict=True)):
                info = file.stat()
                listing.add(f"{split}/{number:08d}", label, info.st_size, str(info.st_mtime_ns), number)
            return listing.entries()
        some = range(0, len(labels), max(1, len(labels) // _MEASURED))
        size = sum(len(self.image(number)) for number in some) // max(1, len(some))
        stamp = self._stamp()
        for number, label in enumerate(labels):
            listing.add(f"{split}/{number:08d}", label, size, stamp, number)
        return listing.entries()

    def image(self, number: int) -> bytes:
        """The file's bytes, or the picture as PNG."""
        if self._files is not None:
            return self._files[number].read_bytes()
        picture = self._sample(number)[0]
        if not isinstance(picture, Image.Image):
            raise DatasetError(
                f"torchvision's {self._name} yields {type(picture).__name__}, not images; it cannot be prepared"
            )
        encoded = io.BytesIO()
        picture.save(encoded, "PNG")
        return encoded.getvalue()

    def _sample(self, number: int) -> tuple[Any, Any]:
        with self._lock:
            try:
                picture, target = self._set[number]
            except Exception as error:  # as above
                reason = " ".join(str(error).split())[:200] or type(error).__name__
                raise DatasetError(f"torchvision's {self._name}: sample {number} cannot be read ({reason})") from None
        return picture, target

    def _pairs(self) -> list[tuple[Any, Any]] | None:
        for attribute in ("samples", "_samples", "imgs"):
            pairs = getattr(self._set, attribute, None)
            if isinstance(pairs, list) and len(pairs) == len(self._set):
                return pairs
        return None

    def _image_files(self) -> list[Path] | None:
        files: Any = getattr(self._set, "_image_files", None)
        if files is None and (pairs := self._pairs()) is not None:
            files = [pair[0] for pair in pairs]
        with contextlib.suppress(TypeError):
            paths = [Path(file) for file in files or ()]
            if len(paths) == len(self._set) and paths and paths[0].is_file():
                return paths
        return None

    def _stamp(self) -> str:
        """Names, sizes and times of the files at ``root``."""
        root = Path(self._root) if self._root else None
        if root is None or not root.is_dir():
            return ""
        files = sorted(path for path in root.rglob("*") if path.is_file())
        return digest([(str(f.relative_to(root)), f.stat().st_size, f.stat().st_mtime_ns) for f in files])
