"""Authentication by API keys: ``Authorization: Bearer KEY`` (RFC 6750, section 2.1).

A request costs one SHA-256 and one look-up. The look-up needs no constant time: what it compares are digests, and
whoever tries keys cannot choose a digest that begins as another one does.
"""

from __future__ import annotations

import logging
import math
import threading
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from hashlib import sha256
from typing import Literal

from stoker.api_keys import Key, hash_of, parse
from stoker.errors import StokerError
from stoker.storage import Location, locate

__all__ = ["KeyRefusal", "Keys"]

logger = logging.getLogger(__name__)

_LOAD_TIMEOUT_S = 10.0
_WATCH_TIMEOUT_S = 3.0
_CHALLENGE = 'Bearer realm="stoker"'  # RFC 6750, section 3: Bearer is followed by at least one parameter
_LONGEST_NAME = 100


@dataclass(frozen=True, slots=True)
class KeyRefusal:
    """Why a request may not pass: an HTTP status with its body and headers."""

    status: Literal[401, 403, 429]
    code: str
    """for programs: unauthorized, forbidden, rate_limited"""
    detail: str
    """one line for people; it never has the key"""
    headers: Mapping[str, str] = field(default_factory=dict)


_MISSING = KeyRefusal(
    401, "unauthorized", "missing API key; send Authorization: Bearer KEY", {"WWW-Authenticate": _CHALLENGE}
)
_UNKNOWN = KeyRefusal(
    401,
    "unauthorized",
    "unknown API key; send Authorization: Bearer KEY",
    {"WWW-Authenticate": f'{_CHALLENGE}, error="invalid_token", error_description="unknown"'},
)


class Keys:
    """The valid API keys; only their hashes are held in memory. Checked from one thread, changed by another."""

    def __init__(self, keys: Sequence[Key], *, always: Sequence[Key] = (), source: Location | None = None) -> None:
        """``keys`` are those of the file at ``source``, which :meth:`watch` rereads; ``always`` stay as they are."""
        self._always = tuple(always)
        self._source = source
        self._table: dict[bytes, Key] = {}
        self._buckets: dict[bytes, _Bucket] = {}
        self._content: bytes | None = None
        self._fault: tuple[str, bytes | None] | None = None
        self._closed = threading.Event()
        self._thread: threading.Thread | None = None
        self._take(keys)

    @classmethod
    def load(cls, environment: Mapping[str, str]) -> Keys:
        """Read the file that ``STOKER_API_KEY_FILE`` names, a path or URL, and the one key ``STOKER_API_KEY``.

        Raises:
            StokerError: no key is configured, the file cannot be read, or one of its lines is invalid.
        """
        plain = environment.get("STOKER_API_KEY", "").strip()
        always = [Key("STOKER_API_KEY", hash_of(plain))] if plain else []
        where = environment.get("STOKER_API_KEY_FILE", "").strip()
        if not where:
            if not always:
                raise StokerError(
                    "the endpoint has no API key: start the cluster with STOKER_API_KEY_FILE naming a file made by "
                    "stoker keys add, or set authentication: none under args in the YAML"
                )
            return cls((), always=always)
        try:
            source = locate(where, timeout_s=_LOAD_TIMEOUT_S)
            content = source.read()
        except (StokerError, OSError) as error:
            reason = "there is no such file" if isinstance(error, FileNotFoundError) else error
            raise StokerError(
                f"STOKER_API_KEY_FILE: cannot read {where} ({reason}); every node that serves must be able to"
            ) from None
        keys = parse(content, source.url)
        if not keys and not always:
            raise StokerError(f"{source.url} (STOKER_API_KEY_FILE) has no key; make one with: stoker keys add NAME")
        made = cls(keys, always=always, source=source)
        made._content = content
        return made

    def check(self, authorization: bytes | None, model: str | None, now: float | None = None) -> KeyRefusal | str:
        """The name of the key in the header ``authorization``, or why the request may not pass.

        ``model`` is what the request asks, by its name or reference (``digits@3``); None: no model in particular.
        ``now`` is UNIX time (default: the clock's). A request that is refused takes nothing from the key's rate.
        """
        if authorization is None:
            return _MISSING
        scheme, _, given = authorization.partition(b" ")
        given = given.strip()
        if not given or scheme.lower() != b"bearer":
            return _MISSING
        digest = sha256(given).digest()
        key = self._table.get(digest)
        if key is None:
            return _UNKNOWN
        moment = time.time() if now is None else now
        if key.expires is not None and moment >= key.expires:
            return _expired(key)
        if key.models is not None and model is not None and model.partition("@")[0] not in key.models:
            return _forbidden(key, model)
        refusal = None if key.rate is None else self._over_rate(key, key.rate, moment)
        return refusal or key.name

    def watch(self, every_s: float = 1.0) -> None:
        """Reread the file every ``every_s`` seconds, by a thread of its own; call it once in each process.

        A thread, so that a revoked key is refused in time also while the event loop is busy.
        """
        if self._source is not None and self._thread is None:
            self._thread = threading.Thread(target=self._watch, args=(every_s,), name="api-keys", daemon=True)
            self._thread.start()

    def close(self) -> None:
        """End the thread of :meth:`watch`; what was read last stays valid."""
        self._closed.set()
        if self._thread is not None:
            self._thread.join()

    def reload(self) -> None:
        """Read the file again and take what it has; if it cannot be read or is invalid, the keys stay as they are."""
        if self._source is None:
            return
        content: bytes | None = None
        try:
            content = self._source.with_timeout(_WATCH_TIMEOUT_S).read()
            if content == self._content:
                self._fault = None
                return
            if not content:  # an editor that truncates before it writes; stoker keys leaves a comment there
                raise StokerError(f"{self._source.url} is empty; to refuse every key leave a comment in it")
            self._take(parse(content, self._source.url))
        except Exception as error:  # whatever a filesystem raises: a thread that ended would leave revoked keys valid
            reason = "there is no such file" if isinstance(error, FileNotFoundError) else " ".join(str(error).split())
            if (reason, content) != self._fault:
                logger.error("API keys not reread, those read before stay valid: %s", reason)
            self._fault = (reason, content)
            return
        self._content, self._fault = content, None
        logger.info("API keys reread from %s: %d", self._source.url, len(self._table) - len(self._always))

    def _watch(self, every_s: float) -> None:
        while not self._closed.wait(every_s):
            self.reload()

    def _take(self, keys: Sequence[Key]) -> None:
        table = {key.digest: key for key in (*keys, *self._always)}
        self._table = table
        for digest in set(self._buckets) - table.keys():
            self._buckets.pop(digest, None)

    def _over_rate(self, key: Key, rate: float, now: float) -> KeyRefusal | None:
        """Take a token from the key's bucket; the refusal if it has none."""
        burst = max(1.0, rate)
        bucket = self._buckets.get(key.digest)
        if bucket is None:
            bucket = self._buckets[key.digest] = _Bucket(burst, now)
        bucket.tokens = min(burst, bucket.tokens + max(0.0, now - bucket.filled) * rate)
        bucket.filled = now
        if bucket.tokens >= 1:
            bucket.tokens -= 1
            return None
        wait_s = max(1, math.ceil((1 - bucket.tokens) / rate))
        return KeyRefusal(
            429,
            "rate_limited",
            f"API key {key.name} is limited to {rate:g} requests a second; try again in {wait_s} s",
            {"Retry-After": str(wait_s)},
        )


@dataclass(slots=True)
class _Bucket:
    """A token bucket: ``tokens`` at the UNIX time ``filled``."""

    tokens: float
    filled: float


def _forbidden(key: Key, model: str) -> KeyRefusal:
    allowed = ", ".join(sorted(key.models or ()))
    return KeyRefusal(
        403,
        "forbidden",
        f"API key {key.name} is not for model {model[:_LONGEST_NAME]!r}; it is for {allowed}",
        {"WWW-Authenticate": f'{_CHALLENGE}, error="insufficient_scope"'},
    )


def _expired(key: Key) -> KeyRefusal:
    day = time.strftime("%Y-%m-%d %H:%M UTC", time.gmtime(key.expires))
    return KeyRefusal(
        401,
        "unauthorized",
        f"API key {key.name} expired at {day}; ask for a new one",
        {"WWW-Authenticate": f'{_CHALLENGE}, error="invalid_token", error_description="expired"'},
    )
