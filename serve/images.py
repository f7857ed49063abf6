"""From a request's body to encoded images that are worth a replica's time.

Everything that can be told without decoding is told here, at the door: too long, too many pixels, no image at all.
Pixels are read from the header, so that a small file that unfolds to gigabytes is refused before it does.
"""

from __future__ import annotations

import io
import struct
import warnings
from collections.abc import AsyncGenerator

from PIL import Image
from starlette.datastructures import UploadFile
from starlette.formparsers import MultiPartException, MultiPartParser
from starlette.requests import Request

from .answers import Refusal
from .settings import Limits

__all__ = ["IMAGE_TYPES", "read_images"]

IMAGE_TYPES = ("image/jpeg", "image/png", "image/webp")
_ACCEPTED = frozenset({*IMAGE_TYPES, "image/jpg"})
_FORMATS = ("JPEG", "PNG", "WEBP")
_TELL = f"send {', '.join(IMAGE_TYPES)}, or multipart/form-data with several files"
_DRAINED_BODIES = 4


async def read_images(request: Request, limits: Limits) -> list[bytes]:
    """The encoded images of ``request``, in its order: its body, or the files of a form.

    Raises:
        Refusal: 400 an empty body or a broken form, 413 beyond ``limits``, 415 neither an image type nor an image's
            bytes, 422 an image whose header cannot be read.
    """
    kind = request.headers.get("content-type", "").partition(";")[0].strip().lower()
    if kind not in _ACCEPTED and kind != "multipart/form-data":
        raise Refusal(415, "unsupported_media_type", f"Content-Type {kind or '(none)'} is not an image's; {_TELL}")
    body = await _body(request, limits.body_bytes)
    if not body:
        raise Refusal(400, "empty_body", f"the body is empty; {_TELL}")
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
    refusal = Refusal(413, "body_too_large", f"the body is longer than {limit:,} bytes; send a smaller image, or fewer")
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
    # A client in the middle of sending sees a closed connection, not the answer: what is a little too long is read
    # to its end and dropped.
    if length > limit:
        raise refusal
    return bytes(received)


async def _files(request: Request, body: bytes, limits: Limits) -> list[bytes]:
    async def once() -> AsyncGenerator[bytes, None]:
        yield body

    if not body.rstrip(b"\r\n").endswith(b"--"):
        raise Refusal(400, "bad_form", "the form is cut off: its last boundary is missing")
    try:
        form = await MultiPartParser(request.headers, once()).parse()
    except (MultiPartException, KeyError, ValueError) as error:
        reason = getattr(error, "message", "") or str(error)
        raise Refusal(400, "bad_form", f"the form cannot be read ({reason}); {_TELL}") from None
    try:
        fields = form.multi_items()
        if len(fields) > limits.images:
            raise Refusal(413, "too_many_images", f"{len(fields)} images in a request; at most {limits.images}")
        images = []
        for name, value in fields:
            if not isinstance(value, UploadFile):
                raise Refusal(400, "bad_form", f"field {name!r} is no file; {_TELL}")
            images.append(await value.read())
    finally:
        await form.close()
    if not images:
        raise Refusal(400, "empty_body", f"the form has no file; {_TELL}")
    return images


def _pixels(data: bytes, where: str, limit: int) -> int:
    if not data:
        raise Refusal(400, "empty_body", f"{where}the image is empty (0 bytes)")
    if not _begins_as_image(data):
        raise Refusal(415, "not_an_image", f"{where}the bytes are not those of a JPEG, PNG or WebP image")
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", Image.DecompressionBombWarning)
            with Image.open(io.BytesIO(data), formats=_FORMATS) as image:
                return image.width * image.height
    except Image.DecompressionBombError:
        raise _too_many_pixels(where, limit) from None
    except (OSError, ValueError, SyntaxError, EOFError, struct.error):
        raise Refusal(422, "undecodable_image", f"{where}the image's header is damaged or truncated") from None


def _begins_as_image(data: bytes) -> bool:
    return data.startswith((b"\xff\xd8\xff", b"\x89PNG\r\n\x1a\n")) or (data[:4] == b"RIFF" and data[8:12] == b"WEBP")


def _too_many_pixels(where: str, limit: int) -> Refusal:
    return Refusal(413, "too_many_pixels", f"{where}more than {limit:,} pixels in a request; scale the images down")
