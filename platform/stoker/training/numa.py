"""Bind a rank to the processors that are near its GPU: those of the GPU's NUMA node.

A copy from memory of another node crosses the link between the processors. Threads inherit the binding of the thread
that starts them, so a rank binds itself before its loader starts any; its memory is then taken on that node too.
"""

from __future__ import annotations

import logging
import os
from pathlib import Path
from typing import Any

import torch

__all__ = ["bind_to_device", "near_processors"]

logger = logging.getLogger(__name__)

_SYS = Path("/sys")


def bind_to_device(device: torch.device, processors: int) -> None:
    """Bind this thread, and those that it starts, to the NUMA node of ``device``.

    Does nothing on a CPU, on a machine of one node or that does not say which it is, and where fewer of the node's
    processors than ``processors`` are allowed to this process.
    """
    if device.type != "cuda" or not hasattr(os, "sched_setaffinity"):
        return
    found: Any = torch.cuda.get_device_properties(device)
    address = f"{found.pci_domain_id:04x}:{found.pci_bus_id:02x}:{found.pci_device_id:02x}.0"
    near = near_processors(address, os.sched_getaffinity(0), processors)
    if near is not None:
        os.sched_setaffinity(0, near)
        logger.info("bound to the %d processors of the NUMA node of GPU %s", len(near), address)


def near_processors(address: str, allowed: set[int], least: int, sys: Path = _SYS) -> set[int] | None:
    """Of the ``allowed`` processors those on the NUMA node of the PCI device ``address`` (``0000:3b:00.0``).

    None where the machine has one node or does not say which the device is on, and where they are fewer than ``least``.
    ``sys`` is where sysfs is mounted.
    """
    nodes = sys / "devices/system/node"
    try:
        node = int((sys / "bus/pci/devices" / address / "numa_node").read_text())
        if node < 0 or len(list(nodes.glob("node[0-9]*"))) < 2:
            return None
        near = allowed & _listed((nodes / f"node{node}" / "cpulist").read_text())
    except (OSError, ValueError):
        return None
    return near if len(near) >= max(1, least) else None


def _listed(text: str) -> set[int]:
    """The numbers of a list as the kernel writes it, ``0-3,8,10-11``.

    Raises:
        ValueError: it is none.
    """
    found: set[int] = set()
    for part in filter(None, text.strip().split(",")):
        first, _, last = part.partition("-")
        found |= set(range(int(first), int(last or first) + 1))
    return found
