"""Free ports on loopback: the preferred one if it is free, else another, which is logged."""

from __future__ import annotations

import logging
import os
import random
import socket

from stoker.errors import ClusterError

__all__ = ["choose_port", "free_block", "free_ports", "is_free", "preferred_port"]

logger = logging.getLogger(__name__)

# Below Linux's range of ephemeral ports (32768 and up), so that no outgoing connection takes one in between.
_LOWEST, _HIGHEST = 20_000, 32_000
_LOWEST_BLOCK = 10_000
"""blocks of ports lie between this and the single ports"""


def is_free(port: int) -> bool:
    """Whether a server could listen on 127.0.0.1:``port`` now."""
    with socket.socket(socket.AF_INET, socket.SOCK_STREAM) as candidate:
        candidate.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            candidate.bind(("127.0.0.1", port))
        except OSError:
            return False
    return True


def free_ports(count: int) -> list[int]:
    """``count`` different ports that are free now.

    Raises:
        ClusterError: nearly all ports are taken.
    """
    found: list[int] = []
    for port in random.sample(range(_LOWEST, _HIGHEST), _HIGHEST - _LOWEST):
        if is_free(port):
            found.append(port)
            if len(found) == count:
                return found
    raise ClusterError(
        f"fewer than {count} free ports between {_LOWEST} and {_HIGHEST} on 127.0.0.1; stop what holds them"
    )


def free_block(count: int) -> range:
    """``count`` neighbouring ports that are free now, one of several such blocks, by chance.

    Raises:
        ClusterError: nearly all ports are taken.
    """
    firsts = range(_LOWEST_BLOCK, _LOWEST - count + 1, count)
    for first in random.sample(firsts, len(firsts)):
        block = range(first, first + count)
        if all(is_free(port) for port in block):
            return block
    raise ClusterError(
        f"no {count} neighbouring ports between {_LOWEST_BLOCK} and {_LOWEST} are free on 127.0.0.1; stop what holds "
        "them"
    )


def preferred_port(name: str, preferred: int) -> int:
    """The port that is asked for: ``STOKER_PORT_<NAME>``, else ``preferred``; 0 means any free one.

    Raises:
        ClusterError: the variable is not a port number.
    """
    given = os.environ.get(_variable(name))
    if not given:
        return preferred
    if not given.isascii() or not given.isdecimal() or int(given) > 65535:
        raise ClusterError(f"{_variable(name)}={given!r} is not a port; give a number from 0 (any free one) to 65535")
    return int(given)


def _variable(name: str) -> str:
    return f"STOKER_PORT_{name.upper()}"


def choose_port(name: str, preferred: int) -> int:
    """The port for ``name``: ``STOKER_PORT_<NAME>`` or ``preferred`` if it is free, else any free one.

    Taking another is logged in one line that says how to choose. 0 asks for any free port.

    Raises:
        ClusterError: the variable is not a port number.
    """
    wanted = preferred_port(name, preferred)
    if wanted and is_free(wanted):
        return wanted
    port = free_ports(1)[0]
    if wanted:
        logger.info(
            "port %d for %s is taken, using %d; choose with %s or ports.%s in cluster/local.yaml",
            wanted,
            name,
            port,
            _variable(name),
            name.lower(),
        )
    return port
