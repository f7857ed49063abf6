"""Check one image, and convert it to its stored form: a JPEG with restart markers, or the bytes as they are.

    bytes ─ header ─ decode whole ─┬─ JPEG ─▶ rewritten losslessly, with markers; the same pixels, or unchanged
                                   ├─ another kind ─▶ unchanged
                                   ├─ transparent ─▶ composited onto the background, if there is one, a PNG
                                   └─ larger than wanted ─▶ scaled down, a JPEG with markers

A pure function of the bytes and the options, except for the version of the program that rewrites (``markers``).
"""

from __future__ import annotations

import io
from collections.abc import Iterable
from dataclasses import dataclass, replace

import torch
from PIL import Image
from torch import Tensor

from stoker.dataset.decode import decode, decode_opacity, image_header
from stoker.dataset.format.exif import UPRIGHT
from stoker.dataset.format.image_header import ImageHeader
from stoker.dataset.format.index import IndexRow, payload_checksum
from stoker.dataset.format.jpeg import Marks, read_marks, with_table
from stoker.dataset.prepare.background import composite
from stoker.dataset.prepare.markers import choose_interval, program_version, rewrite
from stoker.dataset.prepare.plan import Options
from stoker.dataset.undecodable import UndecodableImage
from stoker.errors import DatasetError

__all__ = ["StoredImage", "check_tools", "store_image"]

_NO_JPEG = (".png", ".webp", ".gif")
_SUBSAMPLED = 16
"""pixels, wide and high, of an MCU of a 4:2:0 JPEG"""


@dataclass(frozen=True)
class StoredImage:
    """An image as it is stored in a shard.

    ``kind`` is its extension; ``width``, ``height`` in pixels before any rotation; ``orientation`` by EXIF, 1 to 8.
    """

    data: bytes
    kind: str
    width: int
    height: int
    orientation: int
    marks: Marks | None
    kept: str = ""
    """why a JPEG that was to be rewritten is stored unchanged; empty otherwise"""
    is_transparent: bool = False
    """whether pixels of its source are transparent, as far as it was decoded"""

    def row(self, key: str, label: int, offset: int) -> IndexRow:
        """Its row in the index, where its bytes begin at ``offset`` in the tar."""
        size, sum_ = (self.width, self.height), payload_checksum(self.data)
        return IndexRow(offset, len(self.data), label, *size, sum_, key, self.orientation, self.marks)


def check_tools(paths: Iterable[str], options: Options) -> None:
    """Check that the program that marks JPEGs is installed, unless no name in ``paths`` can be a JPEG's.

    Raises:
        DatasetError: it is not installed on this machine.
    """
    if options.jpeg == "marked":
        try:
            program_version()
        except DatasetError:
            if not all(path.lower().endswith(_NO_JPEG) for path in paths):
                raise


def store_image(data: bytes, options: Options) -> StoredImage:
    """Convert the image file ``data`` to its stored form.

    Raises:
        UndecodableImage: it is not a valid image, or damaged.
        DatasetError: the program that marks JPEGs is missing.
    """
    header = image_header(data)
    if header.kind != "jpg":
        return _other_kind(data, header, options)
    if options.longest_side and max(header.width, header.height) > options.longest_side:
        return _scaled(_checked_jpeg(data, options), options)
    if options.jpeg == "marked":
        return _rewritten(data, header, options)
    if options.checks:
        decode(data)
    return _as_it_is(data, header)


def _other_kind(data: bytes, header: ImageHeader, options: Options) -> StoredImage:
    if not (options.checks or options.longest_side or options.background):
        return _as_it_is(data, header)
    pixels, opacity, background = decode(data), _opacity(data, options), options.background
    shown = pixels if opacity is None or background is None else composite(pixels, opacity, background)
    if options.longest_side:
        stored = _scaled(shown, options)
    else:
        stored = _as_it_is(data, header) if shown is pixels else _as_png(shown)
    return replace(stored, is_transparent=opacity is not None)


def _opacity(data: bytes, options: Options) -> Tensor | None:
    try:
        return decode_opacity(data)
    except UndecodableImage:
        if options.background is not None:
            raise
        return None  # it is stored without its opacity in any case


def _as_it_is(data: bytes, header: ImageHeader, kept: str = "") -> StoredImage:
    size = header.width, header.height
    return StoredImage(data, header.kind, *size, header.orientation, read_marks(data), kept)


def _rewritten(data: bytes, header: ImageHeader, options: Options) -> StoredImage:
    pixels = _pixels(data, options)
    new = rewrite(data, _interval(header), keeps_metadata=options.metadata == "keep", orientation=header.orientation)
    if new.damage and options.checks:
        raise UndecodableImage(new.damage)
    rewritten = with_table(new.data) if new.data is not None else None
    kept = ""
    if pixels is None or new.damage:
        kept = "damaged"
    elif rewritten is None:
        kept = "of a kind that the program does not rewrite"
    elif not _same(rewritten, pixels):
        kept = "rewritten, it would have other pixels"
    stored = data if kept or rewritten is None else rewritten
    return _as_it_is(stored, header, kept)


def _pixels(data: bytes, options: Options) -> Tensor | None:
    try:
        return decode(data)
    except UndecodableImage:
        if options.checks:
            raise
        return None


def _same(data: bytes, pixels: Tensor) -> bool:
    try:
        return torch.equal(decode(data), pixels)
    except UndecodableImage:
        return False


def _interval(header: ImageHeader) -> int:
    wide, high = header.mcu
    return choose_interval(-(-header.width // wide), wide * high)


def _checked_jpeg(data: bytes, options: Options) -> Tensor:
    pixels = decode(data)
    if options.checks and options.jpeg == "marked":
        damage = rewrite(data, 1, keeps_metadata=False).damage
        if damage:
            raise UndecodableImage(damage)
    return pixels


def _as_png(pixels: Tensor) -> StoredImage:
    image, file = Image.fromarray(pixels.permute(1, 2, 0).numpy()), io.BytesIO()
    image.save(file, "PNG")
    return StoredImage(file.getvalue(), "png", *image.size, UPRIGHT, None)


def _scaled(pixels: Tensor, options: Options) -> StoredImage:
    """A JPEG of upright pixels (uint8 [3, H, W]), of ``longest_side`` at most."""
    image = Image.fromarray(pixels.permute(1, 2, 0).numpy())
    longest = options.longest_side or max(image.size)
    if max(image.size) > longest:
        scale = longest / max(image.size)
        wanted = (max(1, round(image.width * scale)), max(1, round(image.height * scale)))
        image = image.resize(wanted, Image.Resampling.LANCZOS)
    marked = {}
    if options.jpeg == "marked":
        columns = -(-image.width // _SUBSAMPLED)
        marked["restart_marker_blocks"] = choose_interval(columns, _SUBSAMPLED**2)
    file = io.BytesIO()
    image.save(file, "JPEG", quality=options.quality, subsampling="4:2:0", optimize=True, **marked)
    encoded = with_table(file.getvalue())
    return StoredImage(encoded, "jpg", *image.size, UPRIGHT, read_marks(encoded))
