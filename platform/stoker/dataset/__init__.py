"""Data sets in object storage: prepare them once, then stream them deterministically into any training loop.

How samples reach a training step, from the store to a batch:

0. ``prepare``  writes source images to shards, indexes and a manifest, once; ``format`` describes these files
1. ``order``    (seed, epoch, step, slot) ─▶ sample number: a keyed permutation, no I/O, no torch
2. ``stream``   sample numbers ─▶ range reads of whole blocks, ahead of the loop and bounded in bytes; ``read_pool``
                runs the most urgent first, ``samples`` locates samples in shards and verifies checksums
3. ``decode``   encoded bytes ─▶ pixels: only the crop of a training image is decoded, on threads of ``decode.pool``
4. ``batch``    decoded samples ─▶ uint8 [m, 3, H, W] micro-batches; what happens to samples that cannot be decoded
5. ``loader``   ties 1 to 4 together and keeps the position; ``ahead`` keeps a few batches ready

Next to that path: ``iterable`` wraps a loader for PyTorch's DataLoader, ``cost`` estimates an epoch's requests,
``label_counts`` counts a split's samples by class.

Names are imported lazily: a program that only reads a manifest does not import torch.
"""

from typing import TYPE_CHECKING

from stoker.lazy import lazy_names

if TYPE_CHECKING:
    from stoker.dataset.batch import Batch
    from stoker.dataset.format.manifest import Manifest, read_manifest
    from stoker.dataset.iterable import LoaderDataset
    from stoker.dataset.loader import Loader
    from stoker.dataset.samples import Sample, SampleReader
    from stoker.dataset.undecodable import UndecodableImage

__all__ = [
    "Batch",
    "Loader",
    "LoaderDataset",
    "Manifest",
    "Sample",
    "SampleReader",
    "UndecodableImage",
    "read_manifest",
]

_HOMES = {
    "Batch": "batch",
    "Loader": "loader",
    "LoaderDataset": "iterable",
    "Manifest": "format.manifest",
    "Sample": "samples",
    "SampleReader": "samples",
    "UndecodableImage": "undecodable",
    "read_manifest": "format.manifest",
}

__getattr__ = lazy_names(__name__, _HOMES)
