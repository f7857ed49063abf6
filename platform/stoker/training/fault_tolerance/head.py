"""Small values that are kept in Ray's head, by key: what a new controller or new workers have to know.

A head that does not answer is no failure of the run's: the value is then unknown.
"""

from __future__ import annotations

import contextlib
import json
import logging
from typing import Any

import ray
from ray.experimental.internal_kv import _internal_kv_del, _internal_kv_get, _internal_kv_put

__all__ = ["forget", "read", "write"]

logger = logging.getLogger(__name__)


def read(key: str) -> Any:
    """The value under ``key``, as JSON holds it; None if there is none, or it cannot be read."""
    try:
        stored = _internal_kv_get(_stored(key))
        return json.loads(stored) if stored else None
    except (ray.exceptions.RayError, ValueError) as error:
        logger.debug("what Ray's head has under %s is unknown: %s", key, error)
        return None


def write(key: str, value: Any) -> bool:
    """Keep ``value`` under ``key``; False if the head does not answer."""
    try:
        _internal_kv_put(_stored(key), json.dumps(value))
    except ray.exceptions.RayError as error:
        logger.debug("Ray's head does not keep what belongs under %s: %s", key, error)
        return False
    return True


def forget(key: str) -> None:
    """Delete what is under ``key``."""
    with contextlib.suppress(ray.exceptions.RayError):
        _internal_kv_del(_stored(key))


def _stored(key: str) -> bytes:
    return f"stoker/{key}".encode()
