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
_STAND_IN_SOCKET = "stand-in.sock"
_SOCKET = re.compile(r"^\s*stats socket (\S+)", re.MULTILINE)
_ROUTE = re.compile(r"^\s*use_backend ", re.MULTILINE)
_CURRENT_FILE = "current.pid"
_PID_FILE, _STAND_IN_FILE, _ROUTES_FILE = "stand-in.pid", "stand-in.cfg", "last-routes.cfg"
_WITHOUT_MANAGER_S = 60.0
"""how long a stand-in answers after its manager has ended: until another takes over, and then what it has in hand"""
_PLANNED_S = 2.0
"""a manager that ends so soon after its HAProxy shut it down itself, and nobody shall answer. One whose HAProxy was
killed is replaced by the controller, which takes longer"""


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
    pid, own = _number(path.parent / _PID_FILE), str(path.with_name(_STAND_IN_FILE)).encode()
    try:
        return pid if own in Path(f"/proc/{pid}/cmdline").read_bytes().split(b"\0") else None
    except OSError:
        return None


def taken_over(path: Path) -> list[str]:
    """HAProxy's arguments to take the listening sockets of the stand-in that runs from ``path``."""
    admin = str(path.with_name(_STAND_IN_SOCKET))
    return ["-x", admin] if _answers(admin) else []


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
    (path.parent / _CURRENT_FILE).write_text(str(os.getpid()))
    node, admin = _parent(manager), _SOCKET.search(configuration)
    if not has_routes(configuration) or not hasattr(os, "pidfd_open") or admin is None or node is None:
        return
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
    while not _answers(watched.admin) and not _has_ended(proxy):
        time.sleep(0.1)
    if not _has_ended(proxy):  # HAProxy has accepted them
        (path.parent / _ROUTES_FILE).write_text(watched.configuration, encoding="utf-8")
    _first_to_end(proxy, above)
    is_displaced = _number(path.parent / _CURRENT_FILE) != watched.proxy  # another was started since, by a reload
    if _has_ended(above) or is_displaced or not _is_alive(watched.manager):
        return
    ended = time.monotonic()
    own = path.with_name(_STAND_IN_FILE)
    # Not at the admin socket of the dead one: the manager asks there whether its own HAProxy lives.
    admin = str(path.with_name(_STAND_IN_SOCKET))
    own.write_text(watched.configuration.replace(watched.admin, admin), encoding="utf-8")
    pid = os.fork()
    if pid == 0:
        die_with_parent()
        os.execv(watched.binary, [watched.binary, "-db", "-f", str(own), "-dR"])  # noqa: S606 - no shell, by intent
    (path.parent / _PID_FILE).write_text(str(pid))
    stand_in = os.pidfd_open(pid)
    until = None
    while not _has_ended(stand_in) and not _has_ended(above):
        if until is None and not _is_alive(watched.manager):
            if time.monotonic() < ended + _PLANNED_S:
                break
            until = time.monotonic() + _WITHOUT_MANAGER_S
        if until is not None and time.monotonic() > until:
            break
        _first_to_end(stand_in, above, timeout_s=0.2)
    with contextlib.suppress(OSError):
        os.kill(pid, signal.SIGKILL)
    (path.parent / _PID_FILE).unlink(missing_ok=True)


def _first_to_end(*processes: int, timeout_s: float | None = None) -> None:
    select.select(processes, [], [], timeout_s)


def _has_ended(process: int) -> bool:
    return bool(select.select([process], [], [], 0)[0])


def _is_alive(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] not in {"Z", "X"}
    except (OSError, IndexError):
        return False


def _number(path: Path) -> int | None:
    try:
        return int(path.read_text())
    except (OSError, ValueError):
        return None


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
