"""Requests/s and latency by wrk: one thread, closed loop, for a bounded time."""

from __future__ import annotations

import json
import os
from dataclasses import dataclass
from pathlib import Path

from bench.report import Measures
from bench.serve.place import CaseFailed, program, run

__all__ = ["Target", "ask"]

_SCRIPT = Path(__file__).with_name("post.lua")
_MOST_BROKEN = 0.001


@dataclass(frozen=True)
class Target:
    """Where to post what: ``body`` is a file."""

    url: str
    body: Path
    media_type: str = "image/jpeg"
    key: str = ""


def ask(target: Target, connections: int, seconds: float) -> Measures:
    """Post on ``connections`` for ``seconds``, rounded to whole ones.

    Returns answered requests/s, p50 and p99 in ms, and which fraction was refused.

    Raises:
        CaseFailed: wrk is not here, nothing was answered, or connections broke.
    """
    variables = {"BENCH_BODY": str(target.body), "BENCH_TYPE": target.media_type, "BENCH_KEY": target.key}
    command = [program("wrk"), "-t1", f"-c{connections}", f"-d{max(1, round(seconds))}s", "--timeout", "10s"]
    output = run([*command, "-s", str(_SCRIPT), target.url], {**os.environ, **variables}, timeout_s=seconds + 30)
    found = json.loads(output.splitlines()[-1])
    answered = found["requests"] - found["refused"]
    if answered <= 0 or found["broken"] > _MOST_BROKEN * found["requests"]:
        raise CaseFailed(
            f"{target.url}: {found['requests']} answers to wrk, {found['refused']} of them no 2xx, "
            f"{found['broken']} connections broken or too late"
        )
    return {
        "requests_per_s": answered / found["seconds"],
        "p50_ms": found["p50_ms"],
        "p99_ms": found["p99_ms"],
        "refused": found["refused"] / found["requests"],
    }
