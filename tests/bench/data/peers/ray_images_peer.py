"""Ray Data: an image folder through its read_images, which decodes with Pillow."""

from __future__ import annotations

from typing import Any

import ray.data

from bench.data.peers import ray_start
from bench.data.place import SIDE, Place

__all__ = ["LEAVES_PROCESSES", "finish", "load", "prepare"]

LEAVES_PROCESSES = True
finish = ray_start.stop


def prepare(place: Place, decoder: str, source: str) -> float:
    """Start Ray; seconds to a first batch after that."""
    ray_start.start()
    return ray_start.first_batch_s(_data(place, source))


def load(place: Place, decoder: str, source: str) -> Any:
    """Batches of one epoch."""
    return ray_start.batches(_data(place, source))


def _data(place: Place, source: str) -> Any:
    def cropped(row: dict[str, Any]) -> dict[str, Any]:
        from torchvision.transforms import v2

        crop = v2.Compose([v2.ToImage(), v2.RandomResizedCrop(SIDE, antialias=True), v2.RandomHorizontalFlip()])
        return {"pixels": crop(row["image"]).numpy(), "label": int(row["path"].split("/")[-2].removeprefix("class"))}

    where = ray_start.where(place, "folder", source)
    data = ray.data.read_images(
        where, mode="RGB", shuffle="files", include_paths=True, **ray_start.read_options(source)
    )
    return data.map(cropped)
