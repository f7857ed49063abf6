"""One epoch of a peer's loader: images by the clock and by CPU time, and the time to the first batch."""

from __future__ import annotations

import importlib
import time
from typing import Any

import torch

from bench.data.place import Place
from bench.meter import Meter

__all__ = ["measure"]


def measure(place: Place, *, loader: str, decoder: str, source: str) -> dict[str, float]:
    """What one epoch of ``bench.data.peers.<loader>`` takes; imports are done before the clock starts.

    A peer whose module has ``prepare`` starts what it starts once a run (Ray's processes, FFCV's compiler) there, and
    gives back the seconds to its first batch: that is not counted in its epoch; ``finish`` ends it.
    """
    torch.set_num_threads(1)
    peer = importlib.import_module(f"bench.data.peers.{loader}")
    if decoder in {"torchvision", "pillow", "simplejpeg"}:
        from bench.data.peers.decoders import Decoder

        Decoder(decoder).warm()
    try:
        first_s = peer.prepare(place, decoder, source) if hasattr(peer, "prepare") else None
        return _epoch(peer, place, decoder, source, first_s)
    finally:
        if hasattr(peer, "finish"):
            peer.finish()


def _epoch(peer: Any, place: Place, decoder: str, source: str, first_s: float | None) -> dict[str, float]:
    meter = Meter(samples=getattr(peer, "LEAVES_PROCESSES", False))
    batches = peer.load(place, decoder, source)
    began = time.perf_counter()
    images, touched = 0, 0
    for pixels, labels, *_ in batches:
        if first_s is None:
            first_s = meter.wall_s
        images += len(labels)
        touched += int(pixels[0, 0, 0, 0])
    wall_s = time.perf_counter() - began
    _, cpu_s = meter.stop()
    if images != place.images:
        raise RuntimeError(f"{peer.__name__} gave {images} images, not {place.images}")
    assert first_s is not None
    return {"images_per_s": images / wall_s, "images_per_cpu_s": images / cpu_s, "first_batch_s": first_s}
