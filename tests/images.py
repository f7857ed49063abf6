"""Small image files and folders of them, and the prepare job run as a user runs it."""

from __future__ import annotations

import hashlib
import io
import os
import runpy
import struct
import subprocess
import sys
import zlib
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from stoker.dataset import SampleReader
from stoker.dataset.prepare import Map, Options, Prepared, open_source, prepare
from stoker.storage import locate

__all__ = ["JOB", "encoded", "make", "make_folder", "objects", "raw_png", "run_here", "run_job", "samples"]

JOB = Path(__file__).parents[1] / "jobs" / "prepare.py"


def encoded(number: int, kind: str = "JPEG", mode: str = "RGB", **options: object) -> bytes:
    """An image of 48 by 36 pixels, a different one for each number."""
    pixels = np.random.default_rng(number).integers(0, 255, (6, 8, 3), dtype=np.uint8)
    file = io.BytesIO()
    Image.fromarray(pixels).resize((48, 36)).convert(mode).save(file, kind, **options)
    return file.getvalue()


def raw_png(depth: int, colours: int, samples: list[int], *, width: int = 4, names: bytes = b"") -> bytes:
    """A PNG of one row of ``samples``, ``depth`` bits each; ``colours`` is its kind of them, ``names`` its tRNS."""
    bits = "".join(f"{sample:0{depth}b}" for sample in samples)
    length = -(-len(bits) // 8)
    row = b"\0" + int(bits.ljust(8 * length, "0"), 2).to_bytes(length, "big")
    parts = [(b"IHDR", struct.pack(">IIBBBBB", width, 1, depth, colours, 0, 0, 0))]
    parts += [(b"PLTE", bytes(range(12)))] if colours == 3 else []
    parts += [(b"tRNS", names)] if names else []
    parts += [(b"IDAT", zlib.compress(row)), (b"IEND", b"")]
    chunks = (struct.pack(">I", len(c)) + k + c + struct.pack(">I", zlib.crc32(k + c)) for k, c in parts)
    return b"\x89PNG\r\n\x1a\n" + b"".join(chunks)


def make_folder(root: Path, per_class: dict[str, int], *, first: int = 0) -> Path:
    for name, count in per_class.items():
        (root / name).mkdir(parents=True)
        for number in range(count):
            (root / name / f"{number:03d}.jpg").write_bytes(encoded(first))
            first += 1
    return root


def make(
    source: Path | str,
    destination: Path | str,
    options: Options | None = None,
    *,
    kind: str | None = None,
    map_: Map | None = None,
    replaces: bool = False,
) -> Prepared:
    """Prepare in this process; images keep their bytes and shards are small unless ``options`` say otherwise."""
    options = options or Options(shard_samples=7, jpeg="original")
    opened = open_source(str(source), options, kind=kind)
    return prepare(opened, locate(destination), options, map=map_, replaces=replaces)


def samples(made: Prepared) -> dict[str, list[tuple[str, str, bytes]]]:
    """(key, class, bytes) of each sample by split, in the order of the data set."""
    found = {}
    for split in made.manifest.splits:
        reader = SampleReader(made.root, split)
        read = reader.read(range(len(reader)))
        found[split] = [(s.key, made.manifest.classes[s.label], bytes(s.data)) for s in read]
    return found


def objects(root: Path) -> dict[str, str]:
    """sha256 of each file below; hidden files, which a killed write leaves, are ignored."""
    files = (path for path in root.rglob("*") if path.is_file() and not path.name.startswith("."))
    return {str(p.relative_to(root)): hashlib.sha256(p.read_bytes()).hexdigest() for p in files}


def run_job(*arguments: str | Path, **environment: str) -> subprocess.CompletedProcess[str]:
    """The job in a process of its own, without a store's or a cluster's address unless ``environment`` has one."""
    inherited = {key: value for key, value in os.environ.items() if not key.startswith(("AWS_", "RAY_"))}
    return subprocess.run(
        [sys.executable, str(JOB), *map(str, arguments)],
        capture_output=True,
        text=True,
        check=False,
        env=inherited | environment,
        timeout=120,
    )


def run_here(
    monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str], *arguments: str | Path
) -> tuple[int, str, str]:
    """The job's own file run in this process, as starting one takes seconds: (exit status, output, errors)."""
    monkeypatch.setattr(sys, "argv", [str(JOB), *map(str, arguments)])
    capfd.readouterr()
    code = 0
    try:
        runpy.run_path(str(JOB), run_name="__main__")
    except SystemExit as ended:
        code = int(ended.code or 0)
    captured = capfd.readouterr()
    return code, captured.out, captured.err


def door_pixels(data: bytes, limit: int) -> int:
    """The pixels of an image that the endpoint's door lets through."""
    from stoker_serve.bodies import read_headers
    from stoker_serve.settings import Limits

    return read_headers([data], Limits(pixels=limit))[0].held_pixels
