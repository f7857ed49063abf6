"""One JPEG set in a peer's own format, bytes unchanged: python -m bench.data.formats KIND IMAGES DESTINATION."""

from __future__ import annotations

import io
import sys
import tarfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from bench.data.images import image_paths

__all__ = ["KINDS"]

Entries = list[tuple[Path, int]]

_SHARD_BYTES = 64 * 10**6
_LEAST_SHARDS = 4  # also of a small trial: two workers share whole shards


def _shard_bytes(entries: Entries) -> int:
    total = sum(path.stat().st_size for path, _ in entries)
    return min(_SHARD_BYTES, total // _LEAST_SHARDS + 1)


def _shards(entries: Entries) -> Iterator[list[tuple[bytes, int]]]:
    most, shard, size = _shard_bytes(entries), [], 0
    for path, label in entries:
        data = path.read_bytes()
        if shard and size + len(data) > most:
            yield shard
            shard, size = [], 0
        shard.append((data, label))
        size += len(data)
    yield shard


def _webdataset(entries: Entries, folder: Path) -> None:
    number = 0
    for n, shard in enumerate(_shards(entries)):
        with tarfile.open(folder / f"{n:06d}.tar", "w", format=tarfile.USTAR_FORMAT) as tar:
            for data, label in shard:
                for name, body in ((f"{number:06d}.jpg", data), (f"{number:06d}.cls", str(label).encode())):
                    member = tarfile.TarInfo(name)
                    member.size = len(body)
                    tar.addfile(member, io.BytesIO(body))
                number += 1


def _lit_row(entry: tuple[str, int]) -> dict[str, Any]:
    return {"image": Path(entry[0]).read_bytes(), "label": entry[1]}


def _litdata(entries: Entries, folder: Path) -> None:
    import litdata

    litdata.optimize(
        fn=_lit_row,
        inputs=[(str(path), label) for path, label in entries],
        output_dir=str(folder),
        chunk_bytes=_shard_bytes(entries),
        num_workers=1,
        reorder_files=False,
    )


def _mds(entries: Entries, folder: Path) -> None:
    from streaming import MDSWriter

    columns = {"image": "bytes", "label": "int"}
    with MDSWriter(columns=columns, out=str(folder), size_limit=_shard_bytes(entries), exist_ok=True) as writer:
        for path, label in entries:
            writer.write({"image": path.read_bytes(), "label": label})


def _parquet(entries: Entries, folder: Path) -> None:
    import pyarrow as pa
    import pyarrow.parquet as pq

    for n, shard in enumerate(_shards(entries)):
        images, labels = zip(*shard, strict=True)
        rows = pa.table({"image": pa.array(images, pa.large_binary()), "label": pa.array(labels, pa.int64())})
        pq.write_table(rows, folder / f"{n:06d}.parquet", compression="none", row_group_size=64, use_dictionary=False)


class _Decoded:
    """What FFCV's writer takes, which decodes and encodes anew; ``encoded`` lets its encoder give our bytes back."""

    def __init__(self, entries: Entries) -> None:
        self._entries = entries
        self.encoded = b""

    def __len__(self) -> int:
        return len(self._entries)

    def __getitem__(self, number: int) -> tuple[Any, int]:
        from PIL import Image

        path, label = self._entries[number]
        self.encoded = path.read_bytes()
        return Image.open(io.BytesIO(self.encoded)).convert("RGB"), label


def _ffcv(entries: Entries, folder: Path) -> None:
    import numpy as np
    from ffcv.fields import IntField, RGBImageField, rgb_image
    from ffcv.writer import DatasetWriter

    images = _Decoded(entries)
    rgb_image.encode_jpeg = lambda pixels, quality: np.frombuffer(images.encoded, np.uint8)
    fields = {"image": RGBImageField(write_mode="jpg"), "label": IntField()}
    writer = DatasetWriter(str(folder / "train.beton"), fields, num_workers=1)  # forks: one sees its own `encoded`
    writer.from_indexed_dataset(images, chunksize=64)


KINDS = {"webdataset": _webdataset, "litdata": _litdata, "mds": _mds, "parquet": _parquet, "ffcv": _ffcv}


def main(kind: str, images: str, destination: str) -> None:
    """Write the set of ``images`` as ``kind``."""
    folder = Path(destination)
    folder.mkdir(parents=True)
    KINDS[kind](image_paths(Path(images)), folder)


if __name__ == "__main__":
    main(*sys.argv[1:])
