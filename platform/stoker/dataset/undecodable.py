"""What decoders raise; here, so that programs that only catch it need not import a decoder, which takes seconds."""

from __future__ import annotations

from stoker.errors import DatasetError

__all__ = ["UndecodableImage", "UndecodableSample"]


class UndecodableSample(DatasetError):
    """The bytes are not a sample that can be decoded: empty, truncated, damaged, or of another kind."""


class UndecodableImage(UndecodableSample):
    """The bytes are not an image that can be decoded: empty, truncated, or of another kind."""
