"""Decode images from anybody, in processes that may die without the one that serves.

How an image is decoded:

1. ``decoders``   gives each image a lane by its cost: the cheap ones go in groups, the others one by one, so that none
                  of those keeps a cheap one waiting
2. ``template``   a process that has imported what decoding needs, and that forks a child in milliseconds
3. ``child``      sends a group to a child and takes its answers; kills a child that is late, or whose answer is not one
4. ``process``    the program of the template; ``limits`` is what the kernel refuses to a child, ``answers`` what that
                  does

The bytes between them are described in ``frames``. Nothing here knows HTTP or Ray. Linux only.
"""

from typing import TYPE_CHECKING

from stoker.lazy import lazy_names

if TYPE_CHECKING:
    from stoker.predict.contained.decoders import Decoders

__all__ = ["Decoders"]

_HOMES = {"Decoders": "decoders"}

__getattr__ = lazy_names(__name__, _HOMES)
