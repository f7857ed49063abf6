"""The handwritten digits that scikit-learn ships, as image files: python -m stoker.embedded.digits FOLDER

1,797 real scans of 8 by 8 pixels in 17 grey levels (E. Alpaydin and C. Kaynak, *Optical Recognition of Handwritten
Digits*, UCI Machine Learning Repository, 1998), scaled to 32 by 32 and stored as grey JPEGs in
``FOLDER/{train,validation}/<digit>/<nnnn>.jpg``, where nnnn is the scan's number in ``load_digits()``. A fifth of each
digit's scans is held out; scans that are equal in every pixel are always in the same split.
"""

from __future__ import annotations

import argparse
import hashlib
import io
import os
import shutil
import sys
import tempfile
from pathlib import Path

import numpy as np
from PIL import Image

from stoker.command import run_command
from stoker.errors import DatasetError

__all__ = ["digit_files", "write_digits"]

_SIDE = 32
_QUALITY = 95
_HELD_OUT = 0.2
_SEED = 0
_WHITE = 16
"""the brightest level of a scan"""


def digit_files() -> dict[str, bytes]:
    """Every image file: path relative to the folder to its bytes.

    Raises:
        DatasetError: scikit-learn is not installed.
    """
    try:
        from sklearn.datasets import load_digits
    except ImportError:
        raise DatasetError("the digits come with scikit-learn, which is not here; pip install scikit-learn") from None
    found = load_digits()
    scans, digits = found.images.astype(np.uint8), found.target.tolist()
    validation: set[tuple[int, bytes]] = set()
    for digit in range(10):
        distinct = {scan.tobytes() for scan, label in zip(scans, digits, strict=True) if label == digit}
        drawn = sorted(distinct, key=lambda pixels: hashlib.sha256(f"{_SEED}:".encode() + pixels).digest())
        validation |= {(digit, pixels) for pixels in drawn[: round(_HELD_OUT * len(drawn))]}
    files = {}
    for number, (scan, digit) in enumerate(zip(scans, digits, strict=True)):
        split = "validation" if (digit, scan.tobytes()) in validation else "train"
        grey = Image.fromarray(np.round(scan * (255 / _WHITE)).astype(np.uint8))
        encoded = io.BytesIO()
        grey.resize((_SIDE, _SIDE), Image.Resampling.BICUBIC).save(encoded, "JPEG", quality=_QUALITY)
        files[f"{split}/{digit}/{number:04d}.jpg"] = encoded.getvalue()
    return files


def write_digits(folder: Path) -> bool:
    """Write the files under ``folder``, all or none; False if they are there already.

    Raises:
        DatasetError: the folder holds other files.
    """
    files = digit_files()
    there = {str(p.relative_to(folder)): p.read_bytes() for p in folder.rglob("*") if p.is_file()}
    if there == files:
        return False
    strange = sorted(set(there) - set(files))
    if strange:
        raise DatasetError(f"{folder} holds files that are not of the digits ({strange[0]}); choose another folder")
    folder.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=folder.parent, prefix=f".{folder.name}.") as temporary:
        made = Path(temporary) / "digits"
        for path, data in files.items():
            (made / path).parent.mkdir(parents=True, exist_ok=True)
            (made / path).write_bytes(data)
        shutil.rmtree(folder, ignore_errors=True)
        os.replace(made, folder)
    return True


def _main(arguments: list[str]) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", metavar="FOLDER", type=Path)
    folder = parser.parse_args(arguments).folder
    is_new = write_digits(folder)
    sys.stdout.write(f"{'wrote' if is_new else 'found'} 1,797 images of handwritten digits at {folder}\n")


if __name__ == "__main__":
    run_command(_main)
