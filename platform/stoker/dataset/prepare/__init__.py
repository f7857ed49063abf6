"""Prepare a data set in object storage from source images.

    source (entries by split) ─ select (hold out, limit) ─ plan (shuffle, cut) ─▶ tasks: tar + index ─▶ manifest

Only ``sources`` knows where the images come from; ``build`` is the sequence of steps, ``destination`` the place that
is written. Tasks run on threads or on Ray (``workers``). A source that is only cheap to read in its own order is sorted
by shard first (``spill``).

Names are imported when they are asked for: the help of a command does not wait for torch.
"""

import importlib
from typing import TYPE_CHECKING, Any

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


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    found = getattr(importlib.import_module(f"{__name__}.{_HOMES[name]}"), name)
    globals()[name] = found
    return found
