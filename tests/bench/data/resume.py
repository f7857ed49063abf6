"""A loader that stops halfway through an epoch and resumes in another process, as after a crash.

The first process gives out half of the batches, writes its state and what it gave, and ends; the second has its
imports done, makes the loader anew on a cold cache, loads the state, and takes the rest.
"""

from __future__ import annotations

import importlib
import json
import pickle
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

from bench.data.place import BATCH, Place

__all__ = ["measure"]

_DECODER = "torchvision"


def measure(place: Place, *, loader: str) -> dict[str, float]:
    """Seconds to the first batch from a cold start and after the resume; samples lost and repeated over both."""
    importlib.import_module(f"bench.data.peers.{loader}")  # raises if the peer is not installed
    first, second = (_stage(place, loader, stage) for stage in ("first", "second"))
    before, after = first["seen"], second["seen"]
    seen = set(before) | set(after)
    return {
        "first_batch_s": first["first_batch_s"],
        "resume_s": second["first_batch_s"],
        "lost": place.images - len(seen),
        "repeated": len(before) + len(after) - len(seen),
    }


def _stage(place: Place, loader: str, stage: str) -> Any:
    command = [sys.executable, "-m", "bench.data.resume", place.to_json(), loader, stage]
    subprocess.run(command, check=True)
    return json.loads(_file(place, stage).read_text())


def _file(place: Place, name: str) -> Path:
    return Path(place.scratch) / f"resume-{name}"


def _run(place: Place, loader: str, stage: str) -> None:
    from bench.data.peers.decoders import Decoder

    Decoder(_DECODER).warm()
    peer = importlib.import_module(f"bench.data.peers.{loader}")
    began = time.perf_counter()
    made = peer.load(place, _DECODER, "s3", identifies=True)
    if stage == "second":
        made.load_state_dict(pickle.loads(_file(place, "state").read_bytes()))
    first_s, seen = 0.0, []
    batches = iter(made)
    for batch in batches:
        first_s = first_s or time.perf_counter() - began
        seen += batch[1].tolist()
        if stage == "first" and len(seen) >= place.images // 2 // BATCH * BATCH:
            break
    if stage == "first":
        _file(place, "state").write_bytes(pickle.dumps(made.state_dict()))
    _file(place, stage).write_text(json.dumps({"first_batch_s": first_s, "seen": seen}))


if __name__ == "__main__":
    _run(Place.from_json(sys.argv[1]), *sys.argv[2:])
    sys.stdout.flush()
    import os

    os._exit(0)
