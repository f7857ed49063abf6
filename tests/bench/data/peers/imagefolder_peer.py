"""torchvision's ImageFolder: a file an image, two workers of a torch DataLoader."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from torch.utils.data import DataLoader
from torchvision.datasets import ImageFolder

from bench.data.peers.decoders import Decoder, collate
from bench.data.place import BATCH, WORKERS, Place

__all__ = ["load"]


def load(place: Place, decoder: str, source: str) -> Any:
    """Batches of one epoch."""
    decode = Decoder(decoder)
    images = ImageFolder(str(place.local("folder")), loader=lambda path: decode(Path(path).read_bytes()))
    return DataLoader(images, BATCH, shuffle=True, num_workers=WORKERS, collate_fn=collate, prefetch_factor=4)
