"""From source files to a data set in object storage.

    source (entries by split) ─ plan (shuffle, cut) ─▶ a task a shard ─ threads or Ray ─▶ tar + index ─▶ manifest

A source is an object with ``url``, ``classes``, ``splits`` (name to entries, known before anything is written) and
``read(entry)``; ``ImageFolder`` is the first. What follows knows nothing of where the images came from.
"""

from stoker.dataset.prepare.build import Prepared, prepare
from stoker.dataset.prepare.folder import ImageFolder
from stoker.dataset.prepare.plan import Entry, Options
from stoker.dataset.prepare.workers import on_ray, on_threads

__all__ = ["Entry", "ImageFolder", "Options", "Prepared", "on_ray", "on_threads", "prepare"]
