"""A guard beside HAProxy: if HAProxy is killed, a stand-in answers within a fraction of a second.

Without it nobody answers until Serve's controller has noticed (three checks, a second each), started another manager
and told it the routes: 8 s. The guard starts HAProxy again from the file that the dead one ran with. When the next
manager starts its own, that takes the listening sockets over (``-sf``, ``-x``), and goes on with the routes of before
until it is told the present ones.

Guard and stand-in end with the node: with the raylet that the manager is a child of.
"""

from __future__ import annotations

import contextlib
import ctypes
import os
import re
import select
import signal
import socket
import time
from pathlib import Path
from typing import NamedTuple

__all__ = ["die_with_parent", "guard", "has_routes", "last_routes", "stand_in_of", "taken_over"]

_SET_DEATH_SIGNAL = 1  # PR_SET_PDEATHSIG, prctl(2)
_SOCKET = re.compile(r"^\s*stats socket (\S+)", re.MULTILINE)
_ROUTE = re.compile(r"^\s*use_backend ", re.MULTILINE)
_PID_FILE, _STAND_IN_FILE, _ROUTES_FILE = "stand-in.pid", "stand-in.cfg", "last-routes.cfg"
_WITHOUT_MANAGER_S = 20.0
"""how long a stand-in answers after its manager has ended and before another takes over"""


def die_with_parent() -> None:
    """Have the kernel kill this process when its parent ends, also after an exec."""
    ctypes.CDLL(None).prctl(_SET_DEATH_SIGNAL, signal.SIGKILL)


def has_routes(configuration: str) -> bool:
    """Whether it sends requests anywhere."""
    return bool(_ROUTE.search(configuration))


def last_routes(path: Path) -> str | None:
    """The last configuration with routes that ran from ``path``."""
    try:
        return (path.parent / _ROUTES_FILE).read_text(encoding="utf-8")
    except OSError:
        return None


def stand_in_of(path: Path) -> int | None:
    """The process id of the stand-in that runs from ``path``."""
    try:
        pid = int((path.parent / _PID_FILE).read_text())
        own = str(path.with_name(_STAND_IN_FILE)).encode()
        return pid if own in Path(f"/proc/{pid}/cmdline").read_bytes().split(b"\0") else None
    except (OSError, ValueError):
        return None


def taken_over(configuration: str) -> list[str]:
    """HAProxy's arguments to take the listening sockets of a process that answers at the admin socket."""
    found = _SOCKET.search(configuration)
    return ["-x", found[1]] if found and _answers(found[1]) else []


class _Watched(NamedTuple):
    """A HAProxy that runs: process ids of itself, the actor that started it, and the raylet above that."""

    binary: str
    path: Path
    configuration: str
    admin: str
    proxy: int
    manager: int
    node: int


def guard(binary: str, path: Path, configuration: str, *, manager: int) -> None:
    """Start a guard of this process, which becomes HAProxy with ``configuration``, the content of ``path``.

    ``manager`` is the process id of the actor that started this one.
    """
    node, admin = _parent(manager), _SOCKET.search(configuration)
    if not has_routes(configuration) or not hasattr(os, "pidfd_open") or admin is None or node is None:
        return
    (path.parent / _ROUTES_FILE).write_text(configuration, encoding="utf-8")
    watched = _Watched(binary, path, configuration, admin[1], os.getpid(), manager, node)
    child = os.fork()
    if child:
        os.waitpid(child, 0)
        return
    with contextlib.suppress(BaseException):  # it must not return to where two processes would become HAProxy
        if os.fork() == 0:  # a grandchild, which HAProxy need not wait for
            os.setsid()
            _watch(watched)
    os._exit(0)


def _watch(watched: _Watched) -> None:
    path = watched.path
    proxy, above = os.pidfd_open(watched.proxy), os.pidfd_open(watched.node)
    _first_to_end(proxy, above)
    if _has_ended(above):
        return
    for _ in range(2):  # the successor of a reload answers already
        if _answers(watched.admin):
            return
        time.sleep(0.05)
    own = path.with_name(_STAND_IN_FILE)
    own.write_text(watched.configuration, encoding="utf-8")
    pid = os.fork()
    if pid == 0:
        die_with_parent()
        os.execv(watched.binary, [watched.binary, "-db", "-f", str(own), "-dR"])  # noqa: S606 - no shell, by intent
    (path.parent / _PID_FILE).write_text(str(pid))
    stand_in = os.pidfd_open(pid)
    until = None
    while not _has_ended(stand_in) and not _has_ended(above):
        if until is None and not _is_alive(watched.manager):
            until = time.monotonic() + _WITHOUT_MANAGER_S
        if until is not None and time.monotonic() > until:
            break
        _first_to_end(stand_in, above, timeout_s=0.5)
    with contextlib.suppress(OSError):
        os.kill(pid, signal.SIGKILL)
    (path.parent / _PID_FILE).unlink(missing_ok=True)


def _first_to_end(*processes: int, timeout_s: float | None = None) -> None:
    select.select(processes, [], [], timeout_s)


def _has_ended(process: int) -> bool:
    return bool(select.select([process], [], [], 0)[0])


def _is_alive(pid: int) -> bool:
    return Path(f"/proc/{pid}").exists()


def _parent(pid: int) -> int | None:
    try:
        return int(Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[1])
    except (OSError, ValueError, IndexError):
        return None


def _answers(admin: str) -> bool:
    """Whether a HAProxy answers at the unix socket ``admin``."""
    with socket.socket(socket.AF_UNIX) as connection:
        connection.settimeout(0.5)
        try:
            connection.connect(admin)
        except OSError:
            return False
        return True
