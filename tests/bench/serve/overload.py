"""What an endpoint does with five times the requests that it can answer."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator

from bench.report import Measures
from bench.serve.clusters import DIGITS, Stoker, configuration
from bench.serve.contenders import Row
from bench.serve.place import CaseFailed, bodies, python, run
from bench.serve.wrk import Target

__all__ = ["overload"]

_CONNECTIONS = 16
_TIMES = 5


def overload(place: Stoker, *, seconds: float) -> Iterator[Row]:
    """First 16 connections as fast as they are answered, then five times that rate, whatever is answered."""
    raw, _ = bodies(place.folder)
    place.publish(DIGITS)
    place.deploy(configuration())
    target = place.target("digits", raw)
    asked(target, seconds=2, connections=_CONNECTIONS)
    usual = asked(target, seconds=max(3.0, seconds / 3), connections=_CONNECTIONS)
    if "200" not in usual:
        raise CaseFailed(f"{target.url} answered {usual}")
    capacity = usual["200"]["requests_per_s"]
    yield "16 connections", _row(usual)
    yield "5 times the rate", _row(asked(target, seconds=seconds, rate=_TIMES * capacity))


def asked(target: Target, *, seconds: float, **how: float) -> dict[str, Measures]:
    """What ``bench.serve.load`` measured, by status."""
    given = {"url": target.url, "body": str(target.body), "media_type": target.media_type, "key": target.key}
    command = python("-m", "bench.serve.load", json.dumps({**given, "seconds": seconds, **how}))
    found: dict[str, Measures] = json.loads(run(command, os.environ, timeout_s=seconds + 60))
    return found


def _row(found: dict[str, Measures]) -> Measures:
    everything = sum(one["count"] for one in found.values())
    accepted, refused = found.get("200", {}), found.get("503", {})
    row = {f"accepted_{name}": accepted[name] for name in ("requests_per_s", "p50_ms", "p99_ms") if name in accepted}
    row |= {f"refused_{name}": refused[name] for name in ("p50_ms", "p99_ms") if name in refused}
    others = everything - accepted.get("count", 0) - refused.get("count", 0)
    return {
        **row,
        "offered_per_s": sum(one["requests_per_s"] for one in found.values()),
        "refused": refused.get("count", 0) / everything,
        "otherwise": others / everything,
        "load": os.getloadavg()[0],
    }
