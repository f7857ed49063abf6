"""Data sets in object storage: prepare them once, stream them exactly, in any training loop.

Names are imported when they are asked for: a program that only looks at a manifest does not wait for torch.
"""

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from stoker.dataset.batch import Batch
    from stoker.dataset.decode import UndecodableImage
    from stoker.dataset.format.manifest import Manifest, read_manifest
    from stoker.dataset.iterable import LoaderDataset
    from stoker.dataset.loader import Loader
    from stoker.dataset.samples import Sample, SampleReader

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
    "UndecodableImage": "decode",
    "read_manifest": "format.manifest",
}


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    found = getattr(importlib.import_module(f"{__name__}.{_HOMES[name]}"), name)
    globals()[name] = found
    return found
