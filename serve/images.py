"""Read the encoded images from a request's body, and refuse those that a replica need not see.

All checks that need no decoding are made here: length, number of pixels, type. The number of pixels is read from the
header, so that a small file that decodes to gigabytes (a decompression bomb) is refused before it is decoded.
"""

from __future__ import annotations

from collections.abc import AsyncGenerator

from starlette.datastructures import UploadFile
from starlette.formparsers import MultiPartException, MultiPartParser
from starlette.requests import Request

from stoker.dataset.format.image_header import MOST_PIXELS, MOST_SCANS, image_kind, read_header

from .answers import Refusal
from .settings import Limits

__all__ = ["IMAGE_TYPES", "read_images"]

IMAGE_TYPES = ("image/jpeg", "image/png", "image/webp")
_ACCEPTED = frozenset({*IMAGE_TYPES, "image/jpg"})
_KINDS = frozenset({"jpg", "png", "webp"})
_EXPECTED = f"send {', '.join(IMAGE_TYPES)}, or multipart/form-data with several files"
_DRAINED_BODIES = 4


async def read_images(request: Request, limits: Limits) -> list[bytes]:
    """Read the encoded images of ``request``, in order: its body, or the files of a form.

    Raises:
        Refusal: 400 for an empty body or a malformed form, 413 beyond ``limits``, 415 for a type or bytes that are
            not an image's, 422 for an image whose header cannot be read.
    """
    kind = request.headers.get("content-type", "").partition(";")[0].strip().lower()
    if kind not in _ACCEPTED and kind != "multipart/form-data":
        raise Refusal(
            415, "unsupported_media_type", f"Content-Type {kind or '(none)'} is not an image type; {_EXPECTED}"
        )
    body = await _body(request, limits.body_bytes)
    if not body:
        raise Refusal(400, "empty_body", f"the body is empty; {_EXPECTED}")
    images = await _files(request, body, limits) if kind == "multipart/form-data" else [body]
    left = limits.pixels
    for number, data in enumerate(images, 1):
        where = f"image {number} of {len(images)}: " if len(images) > 1 else ""
        left -= _pixels(data, where, limits.pixels)
        if left < 0:
            raise _too_many_pixels(where, limits.pixels)
    return images


async def _body(request: Request, limit: int) -> bytes:
    declared = request.headers.get("content-length", "")
    refusal = Refusal(413, "body_too_large", f"the body is longer than {limit:,} bytes; send smaller or fewer images")
    received = bytearray()
    length = 0
    if declared.isdigit() and int(declared) > _DRAINED_BODIES * limit:
        raise refusal
    async for chunk in request.stream():
        length += len(chunk)
        if length <= limit:
            received += chunk
        elif length > _DRAINED_BODIES * limit:
            break
    # A client that is still sending would see a closed connection, not the response: a body that is a little too long
    # is read to its end and dropped.
    if length > limit:
        raise refusal
    return bytes(received)


async def _files(request: Request, body: bytes, limits: Limits) -> list[bytes]:
    async def once() -> AsyncGenerator[bytes, None]:
        yield body

    if not body.rstrip(b"\r\n").endswith(b"--"):
        raise Refusal(400, "bad_form", "the form is truncated: its last boundary is missing; send it again")
    try:
        form = await MultiPartParser(request.headers, once()).parse()
    except (MultiPartException, KeyError, ValueError) as error:
        reason = getattr(error, "message", "") or str(error)
        raise Refusal(400, "bad_form", f"the form cannot be read ({reason}); {_EXPECTED}") from None
    try:
        fields = form.multi_items()
        if len(fields) > limits.images:
            raise Refusal(413, "too_many_images", f"{len(fields)} images in a request; send at most {limits.images}")
        images = []
        for name, value in fields:
            if not isinstance(value, UploadFile):
                raise Refusal(400, "bad_form", f"field {name!r} is not a file; {_EXPECTED}")
            images.append(await value.read())
    finally:
        await form.close()
    if not images:
        raise Refusal(400, "empty_body", f"the form has no file; {_EXPECTED}")
    return images


def _pixels(data: bytes, where: str, limit: int) -> int:
    if not data:
        raise Refusal(400, "empty_body", f"{where}the image is empty (0 bytes); send the file's content")
    if image_kind(data) not in _KINDS:
        raise Refusal(415, "not_an_image", f"{where}not a JPEG, PNG or WebP image; {_EXPECTED}")
    header = read_header(data)
    if header is None:
        raise Refusal(422, "undecodable_image", f"{where}the image's header is damaged or truncated; send it again")
    pixels = header.held_pixels
    if pixels > min(limit, MOST_PIXELS):
        raise _too_many_pixels(where, min(limit, MOST_PIXELS))
    if header.scans > MOST_SCANS:
        reason = f"the image has {header.scans} scans, more than the {MOST_SCANS} that are decoded; save it with fewer"
        raise Refusal(422, "undecodable_image", f"{where}{reason}")
    return pixels


def _too_many_pixels(where: str, limit: int) -> Refusal:
    return Refusal(413, "too_many_pixels", f"{where}more than {limit:,} pixels in a request; scale the images down")
