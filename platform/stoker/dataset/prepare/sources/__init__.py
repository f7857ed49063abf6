"""Where images come from: each kind lists its samples and reads them; ``open_source`` finds out which kind it is."""

from stoker.dataset.prepare.sources.base import Reader, RunReader, Source
from stoker.dataset.prepare.sources.detect import KINDS, SourceKind, open_source

__all__ = ["KINDS", "Reader", "RunReader", "Source", "SourceKind", "open_source"]
