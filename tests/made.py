"""Small data sets for tests, written byte by byte so that the tests do not rely on the code that prepares them."""

from __future__ import annotations

import io
import tarfile
from collections.abc import Sequence

import numpy as np
from PIL import Image

from stoker.dataset.format.index import IndexRow, ShardIndex, payload_checksum
from stoker.dataset.format.jpeg import read_marks
from stoker.dataset.format.manifest import Manifest, Shard, Split, checksum, write_manifest
from stoker.dataset.format.pages import pack_index
from stoker.storage import Location, locate

__all__ = ["write_dataset", "write_samples"]


def write_dataset(
    url: str,
    shards: dict[str, Sequence[int]],
    *,
    classes: int = 3,
    size: tuple[int, int] = (40, 36),
    broken: int = -1,
    labels: Sequence[int] = (),
) -> Location:
    """A data set at ``url`` with noise as images; ``shards`` are samples a shard by split.

    The label of sample n is n modulo ``classes``, or the one at n modulo the length of ``labels``. Sample ``broken`` of
    each split is not a valid image, but its checksum is correct.
    """
    root = locate(url)
    rng = np.random.default_rng(0)
    splits = {}
    for split, counts in shards.items():
        number, made = 0, []
        for n, count in enumerate(counts):
            tar, index = _shard(rng, range(number, number + count), labels or range(classes), classes, size, broken)
            path = f"{split}/{n:06d}"
            (root / f"{path}.tar").write(tar)
            (root / f"{path}.idx").write(index)
            shard = Shard(f"{path}.tar", len(tar), count, checksum(tar), f"{path}.idx", len(index), checksum(index))
            made.append(shard)
            number += count
        splits[split] = Split(number, tuple(made))
    write_manifest(root, Manifest(tuple(f"class{c}" for c in range(classes)), splits))
    return root


def write_samples(url: str, shards: Sequence[Sequence[tuple[str, bytes, int]]], *, classes: int = 3) -> Location:
    """A data set at ``url`` with one split, train, of samples of any kind: (extension, bytes, label) by shard."""
    root, number, made = locate(url), 0, []
    for n, samples in enumerate(shards):
        body, rows = io.BytesIO(), []
        with tarfile.open(fileobj=body, mode="w", format=tarfile.USTAR_FORMAT) as tar:
            for extension, data, label in samples:
                key, offset = f"{number:06d}", body.tell() + tarfile.BLOCKSIZE
                rows.append(IndexRow(offset, len(data), label, 0, 0, payload_checksum(data), key))
                for name, content in ((f"{key}.{extension}", data), (f"{key}.cls", str(label).encode())):
                    member = tarfile.TarInfo(name)
                    member.size = len(content)
                    tar.addfile(member, io.BytesIO(content))
                number += 1
        tarred, index, path = body.getvalue(), pack_index(ShardIndex.of(rows)), f"train/{n:06d}"
        (root / f"{path}.tar").write(tarred)
        (root / f"{path}.idx").write(index.data)
        sizes = index.index_bytes, index.index_checksum, index.page_bytes
        made.append(Shard(f"{path}.tar", len(tarred), len(rows), checksum(tarred), f"{path}.idx", *sizes))
    split = Split(number, tuple(made))
    write_manifest(root, Manifest(tuple(f"class{c}" for c in range(classes)), {"train": split}))
    return root


def _shard(
    rng: np.random.Generator, numbers: range, labels: Sequence[int], classes: int, size: tuple[int, int], broken: int
) -> tuple[bytes, bytes]:
    body = io.BytesIO()
    rows = []
    with tarfile.open(fileobj=body, mode="w", format=tarfile.USTAR_FORMAT) as tar:
        for number in numbers:
            key, label = f"{number:06d}", labels[number % len(labels)]
            image = b"this is no image" if number == broken else _jpeg(rng, size, label, classes)
            offset = body.tell() + tarfile.BLOCKSIZE
            sum_ = payload_checksum(image)
            rows.append(IndexRow(offset, len(image), label, *size, sum_, key, marks=read_marks(image)))
            for name, data in ((f"{key}.jpg", image), (f"{key}.cls", str(label).encode())):
                member = tarfile.TarInfo(name)
                member.size = len(data)
                tar.addfile(member, io.BytesIO(data))
    return body.getvalue(), ShardIndex.of(rows).to_bytes()


def _jpeg(rng: np.random.Generator, size: tuple[int, int], label: int, classes: int) -> bytes:
    """Noise around a brightness that depends on the class, so that a model can learn it."""
    level = 255 * (label + 1) // (classes + 1)
    noise = rng.integers(-30, 31, (8, 8, 3))
    picture = Image.fromarray(np.clip(level + noise, 0, 255).astype(np.uint8)).resize(size)
    data = io.BytesIO()
    picture.save(data, "JPEG", quality=90, restart_marker_blocks=1)
    return data.getvalue()
