"""Real pictures by kind, many of them transparent: the stamps of Tux Paint, out of Debian's tuxpaint-stamps-default.

They are under the GPL-2 and no part of this project: they are looked for where the package installs them, or unpacked
from it into a folder of the caller's. A picture is a PNG that is no cartoon (no part of its path says ``cartoon``): 796
PNG of version 2022.06.04-1 are 688 pictures in 16 folders, of which :data:`COUNTS` are those of 30 pictures or more.
``_mirror`` in a name is a picture of its own, such as a dreidel's other side, and counts; drawings in SVG do not.
"""

from __future__ import annotations

import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterable
from pathlib import Path

__all__ = ["COUNTS", "FEW", "StampsMissing", "find_stamps", "link_by_class", "pictures"]

COUNTS = {"animals": 128, "food": 50, "household": 32, "plants": 39, "seasonal": 63, "symbols": 247, "town": 31}
"""pictures of each class"""
FEW = ("animals", "food", "plants")
"""classes that a model of ImageNet has seen"""

_PACKAGE = "tuxpaint-stamps-default"
_FOLDER = Path("usr/share/tuxpaint/stamps")
_TIMEOUT_S = 300.0
"""for each of two commands; the package has 161 MB"""


class StampsMissing(Exception):
    """The pictures are not on this machine and cannot be had; the text says why."""


def find_stamps(cache: Path) -> Path:
    """The folder of all stamps: the installed one, or the package's contents below ``cache`` (220 MB, made once).

    Raises:
        StampsMissing: the package is not installed, and cannot be fetched or unpacked.
    """
    for root in (Path("/"), cache):
        if (root / _FOLDER).is_dir():
            return root / _FOLDER
    cache.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=cache) as made:
        _run(made, "apt-get", "download", "--quiet", _PACKAGE)
        packages = list(Path(made).glob(f"{_PACKAGE}_*.deb"))
        if len(packages) != 1:
            raise StampsMissing(f"apt-get download left {len(packages)} files of {_PACKAGE}, not one")
        _run(made, "dpkg-deb", "--extract", packages[0].name, "tree")
        shutil.move(Path(made) / "tree" / "usr", cache / "usr")
    return cache / _FOLDER


def pictures(stamps: Path, name: str) -> list[Path]:
    """The pictures of a class, sorted by path."""
    found = (stamps / name).rglob("*.png")
    return sorted(path for path in found if "cartoon" not in str(path.relative_to(stamps)).lower())


def link_by_class(stamps: Path, folder: Path, names: Iterable[str] = COUNTS) -> Path:
    """Make ``folder`` one of images that ``stoker prepare`` takes, with a link to each picture; returns it.

    A name holds the picture's folders: ``animals/birds-owl.png`` is ``animals/birds/owl.png`` of the stamps.
    """
    for name in names:
        (folder / name).mkdir(parents=True)
        for path in pictures(stamps, name):
            (folder / name / "-".join(path.relative_to(stamps / name).parts)).symlink_to(path)
    return folder


def _run(folder: str, *command: str) -> None:
    try:
        done = subprocess.run(command, cwd=folder, capture_output=True, text=True, check=False, timeout=_TIMEOUT_S)
    except (OSError, subprocess.TimeoutExpired) as error:
        raise StampsMissing(f"{_PACKAGE}: {command[0]} cannot be run: {error}") from None
    if done.returncode:
        said = " ".join(done.stderr.split())[:300]
        raise StampsMissing(f"{_PACKAGE} cannot be had; apt-get update may help ({' '.join(command)}: {said})")


def main(folder: str) -> None:
    """Unpack the package below ``folder``, and link its pictures by class in ``folder/pictures``."""
    stamps = find_stamps(Path(folder))
    linked = link_by_class(stamps, Path(folder) / "pictures")
    for name in sorted(COUNTS):
        print(f"{name:>12}  {len(list((linked / name).iterdir())):>5}")


if __name__ == "__main__":
    if len(sys.argv) != 2:
        raise SystemExit("usage: python tests/stamps.py FOLDER")
    try:
        main(sys.argv[1])
    except StampsMissing as error:
        raise SystemExit(f"error: {error}") from None
