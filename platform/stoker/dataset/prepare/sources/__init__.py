"""Where images come from: each kind lists its samples and reads them; ``open_source`` finds out which kind it is."""

from stoker.dataset.prepare.sources.detect import KINDS, open_source
from stoker.dataset.prepare.sources.source import Reader, RunReader, Source

__all__ = ["KINDS", "Reader", "RunReader", "Source", "open_source"]
