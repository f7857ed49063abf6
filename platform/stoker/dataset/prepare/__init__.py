"""Prepare a data set in object storage from source images.

    source (entries by split) ─ select (hold out, limit) ─ plan (shuffle, cut) ─▶ tasks: tar + index ─▶ manifest

Only ``sources`` knows where the images come from; ``build`` is the sequence of steps, ``destination`` the place that
is written. Tasks run on threads or on Ray (``workers``). A source that is only cheap to read in its own order is sorted
by shard first (``spill``).

Names are imported when they are asked for: the help of a command does not wait for torch.
"""

from typing import TYPE_CHECKING

from stoker.lazy import lazy_names

if TYPE_CHECKING:
    from stoker.dataset.prepare.build import Prepared, prepare
    from stoker.dataset.prepare.entries import Entries, Entry
    from stoker.dataset.prepare.plan import Options
    from stoker.dataset.prepare.sources import Source, open_source
    from stoker.dataset.prepare.workers import Map, on_ray, on_threads

__all__ = ["Entries", "Entry", "Map", "Options", "Prepared", "Source", "on_ray", "on_threads", "open_source", "prepare"]

_HOMES = {
    "Entries": "entries",
    "Entry": "entries",
    "Map": "workers",
    "Options": "plan",
    "Prepared": "build",
    "Source": "sources",
    "on_ray": "workers",
    "on_threads": "workers",
    "open_source": "sources",
    "prepare": "build",
}

__getattr__ = lazy_names(__name__, _HOMES)
