"""FFCV: its beton with our JPEG bytes, through its compiled pipeline, two threads."""

from __future__ import annotations

import functools
import time
from typing import Any

from ffcv.fields.decoders import IntDecoder, RandomResizedCropRGBImageDecoder
from ffcv.loader import Loader, OrderOption
from ffcv.transforms import RandomHorizontalFlip, ToTensor, ToTorchImage

from bench.data.place import BATCH, SIDE, WORKERS, Place

__all__ = ["load", "prepare"]


def prepare(place: Place, decoder: str, source: str) -> float:
    """Let it compile; seconds to a first batch after that."""
    for _ in load(place, decoder, source):
        break
    began = time.perf_counter()
    for _ in load(place, decoder, source):
        break
    return time.perf_counter() - began


@functools.cache  # each loader compiles anew
def load(place: Place, decoder: str, source: str) -> Any:
    """Batches of one epoch, and of another when iterated again."""
    return Loader(
        str(place.local("ffcv") / "train.beton"),
        batch_size=BATCH,
        num_workers=WORKERS,
        order=OrderOption.RANDOM,
        os_cache=True,
        drop_last=False,
        pipelines={
            "image": [
                RandomResizedCropRGBImageDecoder((SIDE, SIDE)),
                RandomHorizontalFlip(),
                ToTensor(),
                ToTorchImage(),
            ],
            "label": [IntDecoder(), ToTensor()],
        },
    )
