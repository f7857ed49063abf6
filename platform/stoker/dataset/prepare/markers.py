"""Add restart markers to a JPEG, losslessly: libjpeg-turbo's program ``jpegtran`` rewrites its coefficients.

Its output is baseline with optimised Huffman tables and a marker every k MCUs, so that a loader can decode only a
crop (``stoker.dataset.format.jpeg``). The program also reports what decoders ignore silently: data that are
damaged in the middle.
"""

from __future__ import annotations

import functools
import re
import shutil
import socket
import subprocess
from dataclasses import dataclass

from PIL import Image

from stoker.errors import DatasetError

__all__ = ["Rewritten", "choose_interval", "program_version", "rewrite"]

_PROGRAM = "jpegtran"
_INSTALL = "apt install libjpeg-turbo-progs, or store the bytes as they are with --jpeg original"
_TIMEOUT_S = 300.0
_CROP_FRACTION = 0.7
"""mean width of a training crop in widths of its image, at an area of 8 % to 100 %"""
_INTERVAL_PIXELS = 36
"""pixels that take as long to decode as the overhead of an interval"""
_MOST_PADDING = 16
"""bytes after an image's last MCU that are not a sign of damage: encoders pad"""
_ORIENTATION = 0x0112
_DAMAGE = re.compile(
    r"premature end|bad huffman code|bad arithmetic code|found marker 0x\w+ instead|inconsistent progression", re.I
)
_LEFT_OVER = re.compile(r"(\d+) extraneous bytes before marker 0xd9")


@dataclass(frozen=True)
class Rewritten:
    """``data``: the new bytes, None if the program refused. ``damage``: what is wrong with the old ones, or empty."""

    data: bytes | None
    damage: str


def choose_interval(columns: int, mcu_pixels: int) -> int:
    """Choose the MCUs of a restart interval: a divisor of ``columns``, a row's MCUs, of ``mcu_pixels`` pixels each.

    A crop of w of a row's MCUs takes n = (w - 1) / k + 1 intervals of k MCUs on average. Short intervals decode few
    MCUs outside the crop; but each one costs the decoder its last MCU twice (libjpeg-turbo's fast path stops at a
    marker), and 5 bytes of the file. The choice is the cheapest n * (k + d), where d is an interval's own cost in
    MCUs. By least squares over all divisors d is 0.05 to 0.08 for the decoder alone; reading the bytes doubles it.

    Measured on ImageNet-like images, cutting and decoding random crops with torchvision, milliseconds (file in kB):

    ============  ==========  ==========  ==========  ==========  ==========  ==========
    MCUs a row    k = 1       2 or 3      4 or 7      8 or 9      16 or 21    whole row
    ============  ==========  ==========  ==========  ==========  ==========  ==========
    32 of 16x16   0.90 (105)  0.91 (104)  0.98 (103)  1.10 (103)  1.31 (103)  1.48 (103)
    24 of 16x16   1.05 (117)  1.04 (116)  1.07 (115)  1.10 (115)  1.15 (115)  1.14 (115)
    63 of 8x8     1.16 (125)  1.16 (118)  1.22 (116)  1.24 (116)  1.44 (115)  1.65 (115)
    47 of 8x8     1.53 (129)                                                  1.55 (119)
    ============  ==========  ==========  ==========  ==========  ==========  ==========
    """
    covered, own = max(1.0, _CROP_FRACTION * columns), _INTERVAL_PIXELS / mcu_pixels

    def cost(k: int) -> float:
        return min(columns / k, (covered - 1) / k + 1) * (k + own)

    return min((k for k in range(1, columns + 1) if columns % k == 0), key=cost)


def program_version() -> str:
    """The program's version, such as ``libjpeg-turbo version 3.1.2``; read once a process.

    Raises:
        DatasetError: ``jpegtran`` of libjpeg-turbo is not installed; names the machine and what to install.
    """
    found = shutil.which(_PROGRAM)
    if found is None:
        raise DatasetError(f"{_PROGRAM} not found on {socket.gethostname()}, which marks JPEGs; {_INSTALL}")
    return _version(found)


@functools.cache
def _version(path: str) -> str:
    ran = subprocess.run([path, "-version"], capture_output=True, text=True, check=False, timeout=_TIMEOUT_S)
    version = (ran.stderr + ran.stdout).partition("\n")[0].partition("(")[0].strip()
    if not version.startswith("libjpeg-turbo"):  # mozjpeg's makes progressive files
        called = f"calls itself {version!r}" if version else "does not say its version"
        raise DatasetError(f"{path} on {socket.gethostname()} {called}, but must be libjpeg-turbo's; {_INSTALL}")
    return version


def rewrite(data: bytes, interval: int, *, keeps_metadata: bool, orientation: int = 1) -> Rewritten:
    """Rewrite the JPEG in ``data`` with restart markers every ``interval`` MCUs and the same coefficients.

    Without its metadata it keeps ``orientation``, if that is not 1, and what defines the colour space. The caller must
    compare the pixels.

    Raises:
        DatasetError: the program is not installed, or it does not finish.
    """
    program_version()
    command = [_PROGRAM, "-optimize", "-restart", f"{interval}B", "-copy", "all" if keeps_metadata else "none"]
    ran = _run(command, data)
    warned = ran.stderr.decode(errors="replace").strip()
    if warned:  # it prints the first warning only; each further -verbose prints more
        warned = _run([*command, "-verbose", "-verbose", "-verbose"], data).stderr.decode(errors="replace")
    # 2 is its status after warnings, with which it has written a whole file all the same
    written = ran.stdout if ran.returncode in {0, 2} and ran.stdout else None
    if written is not None and not keeps_metadata and orientation != 1:
        written = written[:2] + _orientation_segment(orientation) + written[2:]
    return Rewritten(written, _damage(data, warned))


def _run(command: list[str], data: bytes) -> subprocess.CompletedProcess[bytes]:
    try:
        return subprocess.run(command, input=data, capture_output=True, check=False, timeout=_TIMEOUT_S)
    except subprocess.TimeoutExpired:
        where = f"{_PROGRAM} on {socket.gethostname()}"
        raise DatasetError(
            f"{where} did not finish in {_TIMEOUT_S:.0f} s; is the machine overloaded? run it again"
        ) from None


def _damage(data: bytes, warned: str) -> str:
    """Describe the damage to the image by the program's warnings; empty if they are harmless.

    A damaged byte often lets the decoder find its way back, with the last MCU's end before the data's: what is left
    over then is as varied as image data are, and padding is not.
    """
    found = _DAMAGE.search(warned)
    if found:
        return f"the jpg image is damaged ({found.group().lower()})"
    left = _LEFT_OVER.search(warned)
    if left and int(left.group(1)) > _MOST_PADDING:
        end = data.rfind(b"\xff\xd9")
        if len(set(data[end - int(left.group(1)) : end])) > _MOST_PADDING // 4:
            return f"the jpg image is damaged (its pixels end {left.group(1)} bytes before its data)"
    return ""


def _orientation_segment(orientation: int) -> bytes:
    exif = Image.Exif()
    exif[_ORIENTATION] = orientation
    content = exif.tobytes()
    content = content if content.startswith(b"Exif\0\0") else b"Exif\0\0" + content
    return b"\xff\xe1" + (len(content) + 2).to_bytes(2, "big") + content
