"""DALI on the CPU: its file reader, its decoder that decodes the crop only."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from nvidia.dali import fn, pipeline_def, types
from nvidia.dali.plugin.base_iterator import LastBatchPolicy
from nvidia.dali.plugin.pytorch import DALIGenericIterator

from bench.data.place import BATCH, SIDE, WORKERS, Place

__all__ = ["load", "pipeline"]


def load(place: Place, decoder: str, source: str) -> Any:
    """Batches of one epoch."""

    def read() -> Any:
        return fn.readers.file(
            file_root=str(place.local("folder")), random_shuffle=True, initial_fill=1000, name="reader"
        )

    return pipeline(read)


def pipeline(read: Callable[[], Any]) -> Any:
    """Batches of one epoch of what ``read`` reads: encoded images and labels."""

    @pipeline_def(batch_size=BATCH, num_threads=WORKERS, device_id=None, prefetch_queue_depth=2)
    def steps() -> Any:
        encoded, label = read()
        image = fn.decoders.image_random_crop(
            encoded,
            device="cpu",
            output_type=types.RGB,
            random_area=[0.08, 1.0],
            random_aspect_ratio=[3 / 4, 4 / 3],
        )
        image = fn.resize(image, size=SIDE, antialias=True, interp_type=types.INTERP_TRIANGULAR)
        return fn.flip(image, horizontal=fn.random.coin_flip()), label

    found = DALIGenericIterator(
        [steps()], ["pixels", "label"], reader_name="reader", last_batch_policy=LastBatchPolicy.PARTIAL
    )
    return ((batch[0]["pixels"], batch[0]["label"]) for batch in found)
