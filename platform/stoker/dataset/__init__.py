"""Data sets in object storage: prepare them once, stream them exactly, in any training loop."""

from stoker.dataset.batch import Batch
from stoker.dataset.decode import UndecodableImage
from stoker.dataset.iterable import LoaderDataset
from stoker.dataset.loader import Loader
from stoker.dataset.manifest import Manifest, read_manifest
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
