"""Authentication by API keys: ``Authorization: Bearer KEY`` (RFC 6750, section 2.1)."""

from __future__ import annotations

import hashlib
import hmac
import os
from pathlib import Path

from stoker.errors import StokerError

__all__ = ["Keys"]


class Keys:
    """The valid API keys; only their hashes are held in memory."""

    def __init__(self, keys: list[str]) -> None:
        self._hashes = [_hash(key) for key in keys]

    @classmethod
    def from_environment(cls) -> Keys:
        """Read the keys from ``STOKER_API_KEY`` and from the file ``STOKER_API_KEY_FILE`` (one per line, # comments).

        Raises:
            StokerError: no key is configured, or the file cannot be read.
        """
        keys = [os.environ.get("STOKER_API_KEY", "").strip()]
        path = os.environ.get("STOKER_API_KEY_FILE", "")
        if path:
            try:
                keys += [line.strip() for line in Path(path).read_text(encoding="utf-8").splitlines()]
            except (OSError, UnicodeDecodeError) as error:
                raise StokerError(
                    f"STOKER_API_KEY_FILE: cannot read {path} ({error}); put the file on every node that serves"
                ) from None
        keys = [key for key in keys if key and not key.startswith("#")]
        if not keys:
            raise StokerError(
                "the endpoint has no API key: start the cluster with STOKER_API_KEY_FILE naming a file with one key "
                "per line, or set authentication: none under args in the YAML"
            )
        return cls(keys)

    def admit(self, key: str) -> bool:
        """Whether ``key`` is valid, in constant time."""
        given = _hash(key)
        matches = [hmac.compare_digest(given, known) for known in self._hashes]
        return any(matches)


def _hash(key: str) -> bytes:
    return hashlib.sha256(key.encode()).digest()
