"""The encoded images in a request's body: the body itself, the files of a form, or base64 in JSON.

Everything here takes time linear in the body's length, and little of it: it runs where the replica answers HTTP.
"""

from __future__ import annotations

import binascii
import json
import re
from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

from stoker.dataset.format.image_header import MOST_PIXELS, MOST_SCANS, ImageHeader, image_kind, read_header

from .answers import Problem
from .settings import Limits

__all__ = ["ENCODED_TYPES", "IMAGE_TYPES", "Sent", "media_type", "read_headers", "sent_images", "top_from"]

IMAGE_TYPES = ("image/jpeg", "image/png", "image/webp")
ENCODED_TYPES = (*IMAGE_TYPES, "application/octet-stream", "multipart/form-data", "application/json")
_WHOLE_BODY = frozenset({*IMAGE_TYPES, "image/jpg", "application/octet-stream"})
_ACCEPTED = frozenset({*_WHOLE_BODY, *ENCODED_TYPES})
_KINDS = frozenset({"jpg", "png", "webp"})
_EXPECTED = f"send {', '.join(IMAGE_TYPES)}, application/octet-stream, multipart/form-data or application/json"

_BOUNDARY = re.compile(r'boundary\s*=\s*(?:"([^"\r\n]{1,70})"|([^\s;"]{1,70}))', re.IGNORECASE)
_NAME = re.compile(rb';\s*name\s*=\s*(?:"((?:[^"\\]|\\.)*)"|([^\s;"]+))', re.IGNORECASE)
_FILE = re.compile(rb";\s*filename\*?\s*=", re.IGNORECASE)
_MOST_PART_HEADER = 8192
_MOST_FIELDS = 64
_MOST_JSON_PARTS = 4096
"""commas, brackets and colons in a JSON body: base64 has none, and a parser takes time and memory for each"""
_DATA_URL = re.compile(r"data:[\w.+/;=-]{0,100},", re.ASCII)
_TOP_DIGITS = 9


class Sent(NamedTuple):
    """Encoded images in the order in which they were sent; ``top``: how many classes of each the body asks for."""

    images: list[bytes]
    top: int | None = None


def media_type(content_type: str) -> str:
    """The media type of a Content-Type header, in lower case.

    Raises:
        Problem: 415, it is none that is read here.
    """
    kind = content_type.partition(";")[0].strip().lower()
    if kind not in _ACCEPTED:
        raise Problem(415, "unsupported_media_type", f"Content-Type {kind[:100] or '(none)'} is not read; {_EXPECTED}")
    return kind


def sent_images(kind: str, content_type: str, body: bytes, limits: Limits) -> Sent:
    """The images in ``body``, which has the media type ``kind``.

    Raises:
        Problem: 400 for an empty or malformed body, 413 for more images than ``limits`` allow.
    """
    if not body:
        raise Problem(400, "empty_body", f"the body is empty; {_EXPECTED}")
    if kind in _WHOLE_BODY:
        return Sent([body])
    sent = _json(body, limits) if kind == "application/json" else _form(content_type, body, limits)
    if not sent.images:
        raise Problem(400, "empty_body", f"the body has no image; {_EXPECTED}")
    return sent


def read_headers(images: Sequence[bytes], limits: Limits) -> list[ImageHeader]:
    """What each image says about itself; the images that a replica need not decode are refused.

    Raises:
        Problem: 400 for an empty image, 413 for more pixels than ``limits`` allow, 415 for another kind, 422 for a
            header that cannot be read.
    """
    left = limits.pixels
    headers = []
    for number, data in enumerate(images, 1):
        where = f"image {number} of {len(images)}: " if len(images) > 1 else ""
        header = _header(data, where, limits.pixels)
        left -= header.held_pixels
        if left < 0:
            raise _too_many_pixels(where, limits.pixels)
        headers.append(header)
    return headers


def top_from(text: str | bytes, where: str) -> int:
    """The number of classes that ``text`` asks for.

    Raises:
        Problem: 400, it is not a whole number from 1 on.
    """
    value = text.decode("utf-8", "replace") if isinstance(text, bytes) else text
    if not value.isascii() or not value.isdigit() or len(value) > _TOP_DIGITS or int(value) < 1:
        raise Problem(400, "bad_parameter", f"{where}: {value[:40]!r} is not a whole number from 1 on; send top=5")
    return int(value)


def _header(data: bytes, where: str, limit: int) -> ImageHeader:
    if not data:
        raise Problem(400, "empty_body", f"{where}the image is empty (0 bytes); send the file's content")
    if image_kind(data) not in _KINDS:
        raise Problem(415, "not_an_image", f"{where}not a JPEG, PNG or WebP image; {_EXPECTED}")
    header = read_header(data)
    if header is None:
        raise Problem(422, "undecodable_image", f"{where}the image's header is damaged or truncated; send it again")
    if header.held_pixels > min(limit, MOST_PIXELS):
        raise _too_many_pixels(where, min(limit, MOST_PIXELS))
    if header.scans > MOST_SCANS:
        reason = f"the image has {header.scans} scans, more than the {MOST_SCANS} that are decoded; save it with fewer"
        raise Problem(422, "undecodable_image", f"{where}{reason}")
    return header


def _too_many_pixels(where: str, limit: int) -> Problem:
    return Problem(413, "too_many_pixels", f"{where}more than {limit:,} pixels in a request; scale the images down")


def _too_many_images(limit: int) -> Problem:
    return Problem(413, "too_many_images", f"more than {limit} images in a request; send at most {limit}")


# -- forms: RFC 7578, of multipart bodies by RFC 2046, section 5.1.1 ---------------------------------------------------


def _form(content_type: str, body: bytes, limits: Limits) -> Sent:
    found = _BOUNDARY.search(content_type)
    if found is None:
        raise _bad_form("its Content-Type has no boundary")
    images: list[bytes] = []
    top = None
    fields = 0
    for header, content in _parts(body, (found[1] or found[2]).encode("latin-1", "replace")):
        disposition = next(
            (line for line in header.split(b"\r\n") if line[:20].lower() == b"content-disposition:"), b""
        )
        name = _NAME.search(disposition)
        if name is None:
            raise _bad_form("a part has no name")
        if _FILE.search(disposition):
            if len(images) == limits.images:
                raise _too_many_images(limits.images)
            images.append(content)
            continue
        fields += 1
        if fields > _MOST_FIELDS:
            raise _bad_form(f"it has more than {_MOST_FIELDS} text fields")
        if (name[1] or name[2]) in {b"top", b"top_k"}:
            top = top_from(content.strip(), "form field top")
    return Sent(images, top)


def _parts(body: bytes, boundary: bytes) -> Iterator[tuple[bytes, bytes]]:
    """(header, content) of each part; what comes before the first and after the last delimiter is ignored."""
    delimiter = b"--" + boundary
    at = 0 if body.startswith(delimiter) else body.find(b"\r\n" + delimiter) + 2
    if at == 1:
        raise _bad_form("its boundary is nowhere in it")
    while True:
        at += len(delimiter)
        if body[at : at + 2] == b"--":
            return
        start = body.find(b"\r\n", at, at + 1024)  # behind the boundary there may be blanks
        if start < 0 or body[at:start].strip(b" \t"):
            raise _bad_form("a boundary is followed by something else")
        end = body.find(b"\r\n" + delimiter, start)  # an empty part's line break belongs to the next delimiter
        if end < 0:
            raise _bad_form("truncated: its last boundary is missing")
        header_end = body.find(b"\r\n\r\n", start, min(end + 2, start + _MOST_PART_HEADER))
        if header_end < 0:
            raise _bad_form("a part has no header, or a long one")
        yield body[start + 2 : header_end], body[header_end + 4 : end]
        at = end + 2


def _bad_form(reason: str) -> Problem:
    return Problem(400, "bad_form", f"the form cannot be read ({reason}); send images as files, field images")


# -- JSON --------------------------------------------------------------------------------------------------------------


def _json(body: bytes, limits: Limits) -> Sent:
    if sum(body.count(mark) for mark in (b",", b":", b"[", b"{")) > _MOST_JSON_PARTS:
        raise _bad_json(f"it has more than {_MOST_JSON_PARTS} parts")
    try:
        content: Any = json.loads(body)
    except (ValueError, RecursionError) as error:
        raise _bad_json(" ".join(str(error).split())[:100]) from None
    images = content.get("images") if isinstance(content, dict) else None
    if not isinstance(images, list) or not all(isinstance(image, str) for image in images):
        raise _bad_json("images is not a list of texts")
    if len(images) > limits.images:
        raise _too_many_images(limits.images)
    top = content.get("top", content.get("top_k"))
    if top is not None and (type(top) is not int or top < 1):
        raise Problem(400, "bad_parameter", f"top: {str(top)[:40]} is not a whole number from 1 on; send 5")
    return Sent([_decoded(image, number) for number, image in enumerate(images, 1)], top)


def _decoded(text: str, number: int) -> bytes:
    if text.startswith("data:") and (url := _DATA_URL.match(text, 0, 128)):
        text = text[url.end() :]
    try:
        return binascii.a2b_base64(text, strict_mode=True)
    except ValueError as error:  # binascii.Error, or letters beyond ASCII
        reason = f"image {number} is not base64 ({' '.join(str(error).split())[:100]})"
        raise _bad_json(reason) from None


def _bad_json(reason: str) -> Problem:
    return Problem(400, "bad_json", f'the JSON cannot be read ({reason}); send {{"images": ["<base64>"], "top": 5}}')
