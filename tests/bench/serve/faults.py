"""Seconds until an endpoint has noticed: a key is revoked, HAProxy is killed, a replica is wanted."""

from __future__ import annotations

import contextlib
import os
import signal
import time
from collections.abc import Callable, Iterator
from dataclasses import replace

import psutil

from bench.serve.clusters import DIGITS, Stoker, configuration, post, wait_for_answer
from bench.serve.contenders import Row
from bench.serve.place import CaseFailed, bodies, python, run
from stoker.embedded.processes import Part

__all__ = ["haproxy_killed", "key_revoked", "replicas"]

_WATCH_S = 10.0
"""how long a revoked key is tried"""
_WAIT_S = 120.0
_POLL_S = 0.05


def key_revoked(place: Stoker) -> Iterator[Row]:
    """From the end of ``stoker keys revoke`` to the last request that its key opened, with two replicas."""
    raw, _ = bodies(place.folder)
    place.publish(DIGITS)
    place.deploy(configuration(replicas=(2, 2)))
    _wait_for(lambda: _running(place) == 2, "two replicas")
    keys = ("-m", "stoker", "keys")
    file = ("--file", str(place.instance.folder.api_key_file()))
    name = f"bench-{os.getpid()}-{time.monotonic_ns()}"
    added = run(python(*keys, "add", name, *file), place.environment)
    target = replace(place.target("digits", raw), key=added.split()[-1])
    _wait_for(lambda: all(post(target) == 200 for _ in range(8)), "an answer to the new key")
    run(python(*keys, "revoke", name, *file), place.environment)
    began, last, refused = time.monotonic(), 0.0, 0
    while time.monotonic() - began < _WATCH_S:
        if post(target) == 200:
            last = time.monotonic() - began
        else:
            refused += 1
        time.sleep(_POLL_S)
    if not refused:
        raise CaseFailed(f"the key is still accepted {_WATCH_S:g} s after it was revoked")
    yield "2 replicas", {"seconds": last, "load": os.getloadavg()[0]}


def haproxy_killed(place: Stoker) -> Iterator[Row]:
    """From SIGKILL of HAProxy to the first of three answers in a row; and to an application that is deployed then.

    An application that HAProxy never hears of counts as the two minutes or more in which it was waited for.
    """
    raw, _ = bodies(place.folder)
    place.publish(DIGITS)
    place.deploy(configuration())
    target = place.target("digits", raw)
    _wait_for(lambda: post(target) == 200, "an answer")
    killed = [process for process in _cluster_processes(place) if _is_haproxy(process)]
    if not killed:
        raise CaseFailed("no HAProxy runs; ray[serve] brings it on Linux")
    began = time.monotonic()
    for process in killed:
        process.send_signal(signal.SIGKILL)
    first, in_a_row = 0.0, 0
    while in_a_row < 3:
        now = time.monotonic() - began
        if now > _WAIT_S:
            raise CaseFailed(f"no answer {_WAIT_S:g} s after HAProxy was killed")
        if post(target, timeout_s=5) == 200:
            first, in_a_row = (first, in_a_row + 1) if in_a_row else (time.monotonic() - began, 1)
        else:
            in_a_row = 0
            time.sleep(_POLL_S)
    yield "SIGKILL", {"seconds": first, "load": os.getloadavg()[0]}
    began = time.monotonic()
    with contextlib.suppress(CaseFailed):
        place.deploy(configuration(empty="changed"), timeout_s=60)
        wait_for_answer(replace(target, url=f"{place.instance.serve_url}/changed"), _WAIT_S)
    yield "an application after it", {"seconds": time.monotonic() - began, "load": os.getloadavg()[0]}


def replicas(place: Stoker) -> Iterator[Row]:
    """From one replica to two, as Serve says, and from none to the first answer."""
    raw, _ = bodies(place.folder)
    place.publish(DIGITS)
    target = place.target("digits", raw)
    place.deploy(configuration())
    _wait_for(lambda: _running(place) == 1, "one replica")
    began = time.monotonic()
    place.deploy(configuration(replicas=(2, 2)))
    _wait_for(lambda: _running(place) == 2, "two replicas")
    yield "1 to 2", {"seconds": time.monotonic() - began, "load": os.getloadavg()[0]}
    place.deploy(configuration(replicas=(0, 1), downscale_s=1))
    _wait_for(lambda: not _states(place), "no replica")  # one that drains still answers
    began = time.monotonic()
    status = post(target, timeout_s=_WAIT_S)
    while status != 200:
        if time.monotonic() - began > _WAIT_S:
            raise CaseFailed(
                f"no answer {_WAIT_S:g} s after the first request, which found no replica; status {status}"
            )
        time.sleep(_POLL_S)
        status = post(target, timeout_s=_WAIT_S)
    yield "0 to 1", {"seconds": time.monotonic() - began, "load": os.getloadavg()[0]}


def _running(place: Stoker) -> int:
    return _states(place).count("RUNNING")


def _states(place: Stoker) -> list[str]:
    found = place.instance.cluster._ask("/api/serve/applications/")["applications"]
    return [row["state"] for row in found["digits"]["deployments"]["model"]["replicas"]]


def _cluster_processes(place: Stoker) -> list[psutil.Process]:
    return Part(place.instance.folder.instance, "cluster").processes()


def _is_haproxy(process: psutil.Process) -> bool:
    with contextlib.suppress(psutil.Error):
        return process.name() == "haproxy"
    return False


def _wait_for(is_so: Callable[[], bool], what: str) -> None:
    deadline = time.monotonic() + _WAIT_S
    while not is_so():
        if time.monotonic() > deadline:
            raise CaseFailed(f"waited {_WAIT_S:g} s for {what}")
        time.sleep(_POLL_S)
