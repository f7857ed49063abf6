"""The border to the image decoders: whatever they raise of an image's bytes makes that image invalid, and nothing else.

Pillow, torchvision and jpegtran meet every file that people have; an exception of any kind from them is about the
image.
"""

from __future__ import annotations

from stoker.dataset.prepare.borders import one_line
from stoker.dataset.prepare.images import StoredImage, store_image
from stoker.dataset.prepare.plan import Options
from stoker.dataset.undecodable import UndecodableImage
from stoker.errors import StokerError

__all__ = ["checked_image"]


def checked_image(data: bytes, options: Options) -> StoredImage:
    """Convert an image file to its stored form (:func:`stoker.dataset.prepare.images.store_image`).

    Raises:
        UndecodableImage: it is not a valid image, or a decoder failed at it in any way.
        DatasetError: the program that marks JPEGs is missing, or does not finish.
    """
    try:
        return store_image(data, options)
    except (StokerError, UndecodableImage):
        raise
    except Exception as error:
        named = f"{type(error).__name__}: {one_line(error)}" if str(error).strip() else type(error).__name__
        raise UndecodableImage(f"the image cannot be processed ({named})") from None
