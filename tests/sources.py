"""Small sources of every kind, in the layout of real ones."""

from __future__ import annotations

import gzip
import io
import json
import struct
import tarfile
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import scipy.io

from images import encoded

__all__ = ["NAMES", "VALIDATION", "WNIDS", "archives", "hub_schema", "synsets", "tar_of", "write_hub", "write_mnist"]

WNIDS = ("n02119789", "n01440764", "n09999999")
"""in the order of ILSVRC2012_ID, which is not that of their names"""
VALIDATION = (3, 1, 2, 2, 1)
"""the ILSVRC2012_ID of each validation image"""


def tar_of(members: Mapping[str, bytes], mode: str = "w") -> bytes:
    body = io.BytesIO()
    with tarfile.open(fileobj=body, mode=mode) as tar:  # type: ignore[call-overload]
        for name, data in members.items():
            member = tarfile.TarInfo(name)
            member.size = len(data)
            tar.addfile(member, io.BytesIO(data))
    return body.getvalue()


def meta() -> bytes:
    """As the devkit's: the classes, then inner nodes of WordNet, in a MATLAB struct array."""
    rows = [(n, wnid, f"word {n}", 0, np.zeros(0)) for n, wnid in enumerate(WNIDS, start=1)]
    rows.append((4, "n00001740", "entity", 3, np.array([1, 2, 3])))
    kinds = [(name, object) for name in ("ILSVRC2012_ID", "WNID", "words", "num_children", "children")]
    file = io.BytesIO()
    scipy.io.savemat(file, {"synsets": np.array(rows, dtype=kinds).reshape(-1, 1)})
    return file.getvalue()


def synsets() -> dict[str, dict[str, bytes]]:
    return {wnid: {f"{wnid}_{10 * k + n}.JPEG": encoded(100 * k + n) for n in range(4)} for k, wnid in enumerate(WNIDS)}


def archives() -> dict[str, bytes]:
    truth = "".join(f"{number}\n" for number in VALIDATION).encode()
    kit = {"ILSVRC2012_devkit_t12/data/ILSVRC2012_validation_ground_truth.txt": truth}
    kit["ILSVRC2012_devkit_t12/data/meta.mat"] = meta()
    pictures = {f"ILSVRC2012_val_{n + 1:08d}.JPEG": encoded(1000 + n) for n in range(len(VALIDATION))}
    return {
        "ILSVRC2012_img_train.tar": tar_of({f"{wnid}.tar": tar_of(files) for wnid, files in synsets().items()}),
        "ILSVRC2012_img_val.tar": tar_of(pictures),
        "ILSVRC2012_devkit_t12.tar.gz": tar_of(kit, "w:gz"),
    }


NAMES = ("cat", "dog", "emu")


def hub_schema(names: Sequence[str] = NAMES) -> pa.Schema:
    features = {"image": {"_type": "Image"}, "label": {"names": list(names), "_type": "ClassLabel"}}
    metadata = {"huggingface": json.dumps({"info": {"features": features}})}
    image = pa.struct([("bytes", pa.binary()), ("path", pa.string())])
    return pa.schema([("image", image), ("label", pa.int64())], metadata=metadata)


def write_hub(file: Path, numbers: Iterable[int], labels: Sequence[int | None] | None = None, group: int = 5) -> Path:
    """Pictures of these numbers; the class of number n is n modulo 3 unless ``labels`` say otherwise."""
    file.parent.mkdir(parents=True, exist_ok=True)
    numbers = list(numbers)
    rows = {
        "image": [{"bytes": encoded(n), "path": f"{n}.jpg"} for n in numbers],
        "label": [n % 3 for n in numbers] if labels is None else list(labels),
    }
    pq.write_table(pa.table(rows, schema=hub_schema()), file, row_group_size=group)
    return file


def write_mnist(root: Path, train: int = 40, test: int = 20) -> None:
    """As the IDX files of MNIST's site, gzipped ones unpacked."""
    folder = root / "MNIST" / "raw"
    folder.mkdir(parents=True)
    rng = np.random.default_rng(0)
    for name, count in (("train", train), ("t10k", test)):
        pixels = rng.integers(0, 255, (count, 28, 28), dtype=np.uint8)
        images = struct.pack(">IIII", 0x803, count, 28, 28) + pixels.tobytes()
        labels = struct.pack(">II", 0x801, count) + bytes(n % 10 for n in range(count))
        for kind, data in (("images-idx3", images), ("labels-idx1", labels)):
            (folder / f"{name}-{kind}-ubyte").write_bytes(data)
            (folder / f"{name}-{kind}-ubyte.gz").write_bytes(gzip.compress(data))
