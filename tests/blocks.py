"""Blocks of a cache on the node's disk, for the tests of storage."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

from stoker.storage import BlockCache

__all__ = ["BLOCK", "HEADER", "block", "fill", "run_python", "stored_files"]

BLOCK = 10_000
HEADER = 64


def block(number: int) -> bytes:
    return bytes([number % 256]) * BLOCK


def stored_files(folder: Path, ending: str = ".block") -> list[Path]:
    return sorted((folder / "stoker-blocks").glob(f"*{ending}"))


def fill(folder: Path, numbers: range, bound: int = 2**30) -> None:
    """What an earlier run left: blocks that count as used an hour ago."""
    with BlockCache(folder, bound) as cache:
        for number in numbers:
            cache.put(f"{number}", block(number))
    for path in stored_files(folder):
        os.utime(path, (0, path.stat().st_mtime - 3600))


def run_python(program: str, *arguments: object) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "-c", program, *map(str, arguments)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
