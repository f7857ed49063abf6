"""Sources of images: each kind lists its samples, ``readers`` read them, ``detect`` has the table of kinds."""

from stoker.dataset.prepare.sources.base import Reader, RunReader, Source
from stoker.dataset.prepare.sources.detect import KINDS, SourceKind, open_source

__all__ = ["KINDS", "Reader", "RunReader", "Source", "SourceKind", "open_source"]
