"""The file of API keys: one line a key, with the key's SHA-256 in the place of the key.

    # name      hash of the key          options
    camera-7    sha256:<64 hex digits>   models=digits,letters  expires=2027-01-31T12:00Z  rate=50

``models``: the models that the key may ask (default: all). ``expires``: when it stops being valid, a day (0:00 UTC) or
a time with its zone. ``rate``: requests a second, in each replica. ``#`` begins a comment.

A key is 256 random bits, so one SHA-256 protects it: stretching (bcrypt, scrypt) slows down the guessing of secrets
that people chose, and nobody guesses one of 2^256 (NIST SP 800-63B of 2017, section 5.1.2.2: look-up secrets of at
least 112 bits need an approved one-way hash, and only shorter ones a salt and a password hash). Whoever reads the file
cannot send requests. No message about the file quotes it: a key may be there by mistake.
"""

from __future__ import annotations

import datetime
import hashlib
import os
import re
import secrets
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from stoker.errors import StokerError, StorageError
from stoker.storage import Conflict, Location, locate
from stoker.storage.local import locked, write_file

__all__ = [
    "NAME",
    "Key",
    "add_key",
    "hash_of",
    "line_of",
    "models_of",
    "moment_of",
    "new_key",
    "parse",
    "rate_of",
    "read_keys",
    "renew_key",
    "revoke_key",
]

NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,63}")
_HASH = re.compile(r"sha256:([0-9a-f]{64})")
_HEADER = "# API keys of a stoker endpoint, by their hashes; stoker keys add NAME makes one.\n"
_OPTIONS = ("models", "expires", "rate")
_ATTEMPTS = 20
_PRIVATE = 0o600
_END_OF_TIME = datetime.datetime(9999, 1, 1, tzinfo=datetime.UTC).timestamp()
"""of what datetime can write in every zone"""
_SLOWEST, _FASTEST = 0.001, 1e6


@dataclass(frozen=True, slots=True)
class Key:
    """One API key, known by its SHA-256."""

    name: str
    digest: bytes
    """32 bytes"""
    models: frozenset[str] | None = None
    """names of the models that it may ask; None: all"""
    expires: float | None = None
    """UNIX time from which on it is refused; None: never"""
    rate: float | None = None
    """requests a second that a replica answers; None: any number"""


def new_key() -> str:
    """A new API key of 256 random bits; its prefix lets scanners of published code find it."""
    return f"stoker_{secrets.token_urlsafe(32)}"


def hash_of(key: str) -> bytes:
    """The SHA-256 of ``key``, 32 bytes."""
    return hashlib.sha256(key.encode()).digest()


def parse(data: bytes, where: str) -> tuple[Key, ...]:
    """The keys in ``data``, the content of the file ``where``; none if it has only comments.

    Raises:
        StokerError: a line is invalid; the message has its number and not its text.
    """
    try:
        text = data.decode("utf-8-sig")
    except UnicodeDecodeError:
        raise StokerError(
            f"{where} is not UTF-8 text; restore it, or make it anew with: stoker keys add NAME"
        ) from None
    keys: dict[str, int] = {}
    hashes: dict[bytes, int] = {}
    found = []
    for number, line in enumerate(text.splitlines(), 1):
        try:
            key = _key_of(line)
            if key is None:
                continue
            if first := keys.get(key.name):
                raise ValueError(f"line {first} has the same name; rename one of them")
            if first := hashes.get(key.digest):
                raise ValueError(f"line {first} has the same key; delete one of them, as revoking one would not do")
        except ValueError as error:
            raise StokerError(f"{where}: line {number}: {error}") from None
        keys[key.name] = hashes[key.digest] = number
        found.append(key)
    return tuple(found)


def line_of(key: Key) -> str:
    """The line of ``key`` in the file."""
    words = [key.name, f"sha256:{key.digest.hex()}"]
    if key.models is not None:
        words.append(f"models={','.join(sorted(key.models))}")
    if key.expires is not None:
        moment = datetime.datetime.fromtimestamp(key.expires, datetime.UTC)
        words.append(f"expires={moment:%Y-%m-%dT%H:%M:%SZ}")
    if key.rate is not None:
        words.append(f"rate={key.rate:.15g}")
    return "  ".join(words)


def read_keys(location: Location) -> tuple[Key, ...]:
    """The keys in the file at ``location``; none if there is no file.

    Raises:
        StokerError: it cannot be read, or a line is invalid.
    """
    try:
        return parse(location.read(), location.url)
    except FileNotFoundError:
        return ()


def add_key(location: Location, key: Key) -> None:
    """Add ``key`` to the file, which is created with mode 0600 if it does not exist.

    Raises:
        StokerError: a key has this name already, a line is invalid, or the file cannot be read or written.
    """

    def add(text: str) -> str:
        if any(other.name == key.name for other in parse(text.encode(), location.url)):
            raise StokerError(
                f"{location.url} has a key named {key.name} already; choose another name, or first: "
                f"stoker keys revoke {key.name}"
            )
        return _with_line(text, key)

    _change(location, add)


def revoke_key(location: Location, name: str) -> None:
    """Remove the key ``name`` from the file; endpoints refuse it within 5 s.

    Raises:
        StokerError: there is no such key, a line is invalid, or the file cannot be read or written.
    """

    def remove(text: str) -> str:
        names = [key.name for key in parse(text.encode(), location.url)]
        if name not in names:
            known = ", ".join(names) or "none"
            raise StokerError(f"{location.url} has no key named {name}; it has: {known}")
        kept = "".join(line for line in text.splitlines(keepends=True) if line.split()[:1] != [name])
        return kept or _HEADER  # an empty file is taken for one that an editor is writing

    _change(location, remove)


def renew_key(location: Location, key: Key) -> None:
    """See that the file has ``key``, in the place of one of the same name if there is one.

    Raises:
        StokerError: a line is invalid, or the file cannot be read or written.
    """
    if key in read_keys(location):
        return

    def renew(text: str) -> str:
        kept = [line for line in text.splitlines(keepends=True) if line.split()[:1] != [key.name]]
        parse("".join(kept).encode(), location.url)
        return _with_line("".join(kept), key)

    _change(location, renew)


def _with_line(text: str, key: Key) -> str:
    begun = text or _HEADER
    return f"{begun}{'' if begun.endswith(chr(10)) else chr(10)}{line_of(key)}\n"


def _change(location: Location, change: Callable[[str], str]) -> None:
    """Replace the file's text by ``change(text)`` so that of two changes at once none is lost.

    A local file that a link names is changed itself, and whoever could read it before, as the user of an endpoint, can.
    """
    if location.is_local:
        path = Path(os.path.realpath(location.path))
        try:
            path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
            with locked(path):
                write_file(path, change(_text(locate(path))).encode(), mode=_PRIVATE, keeps_access=True)
        except OSError as error:
            raise StorageError(
                f"cannot write {path} ({error.strerror}); choose another file with --file", url=location.url
            ) from None
        return
    for _ in range(_ATTEMPTS):
        found = location.version()
        try:
            text = found[0].decode("utf-8-sig") if found else ""
            location.swap(change(text).encode(), found[1] if found else None)
            return
        except Conflict:
            continue
        except UnicodeDecodeError:
            raise StokerError(f"{location.url} is not UTF-8 text; restore it, or name another with --file") from None
    raise Conflict(f"{location.url} is changed by other writers all the time; try again later", url=location.url)


def _text(location: Location) -> str:
    try:
        return location.read().decode("utf-8-sig")
    except FileNotFoundError:
        return ""
    except UnicodeDecodeError:
        raise StokerError(f"{location.url} is not UTF-8 text; restore it, or name another with --file") from None


def _key_of(line: str) -> Key | None:
    """The key in ``line``; None if it is empty. A ValueError says what is wrong without a word of the line."""
    words = line.split()
    comment = next((i for i, word in enumerate(words) if word.startswith("#")), len(words))
    words = words[:comment]
    if not words:
        return None
    name, *rest = words
    found = _HASH.fullmatch(rest[0]) if rest else None
    if found is None:
        raise ValueError(
            "no sha256:… with 64 hex digits after a name; if a key itself is there, delete the line and make another "
            "with: stoker keys add NAME"
        )
    if not NAME.fullmatch(name):
        raise ValueError("the name is not 1 to 64 of A-Z a-z 0-9 . _ - that begin with a letter or digit; rename it")
    options: dict[str, str] = {}
    for place, word in enumerate(rest[1:], 1):
        option, _, value = word.partition("=")
        if option not in _OPTIONS or option in options:
            raise ValueError(f"option {place} is unknown or given twice; options are models=, expires= and rate=")
        options[option] = value
    return Key(
        name=name,
        digest=bytes.fromhex(found[1]),
        models=models_of(options["models"]) if "models" in options else None,
        expires=moment_of(options["expires"]) if "expires" in options else None,
        rate=rate_of(options["rate"]) if "rate" in options else None,
    )


def models_of(text: str) -> frozenset[str]:
    """The models in ``digits,letters``; a ValueError says what is wrong."""
    names = frozenset(text.split(","))
    if not all(NAME.fullmatch(name) for name in names):
        raise ValueError("models is not names with commas between; write it as digits,letters")
    return names


def moment_of(text: str) -> float:
    """UNIX time of a day, or of a time with its zone; a ValueError says what is wrong."""
    try:
        moment = datetime.datetime.fromisoformat(text)
    except ValueError:
        moment = None
    if moment is not None and moment.tzinfo is None and len(text) <= len("2027-01-31"):
        moment = moment.replace(tzinfo=datetime.UTC)
    if moment is None or moment.tzinfo is None:
        raise ValueError("expires is no day or time with its zone; write it as 2027-01-31 or 2027-01-31T12:00Z")
    if not 0 <= (found := moment.timestamp()) < _END_OF_TIME:
        raise ValueError("expires is not in the years 1970 to 9998; without it a key never expires")
    return found


def rate_of(text: str) -> float:
    """Requests a second; a ValueError says what is wrong."""
    try:
        rate = float(text)
    except ValueError:
        rate = 0.0
    if not _SLOWEST <= rate <= _FASTEST:
        raise ValueError("rate is no number from 0.001 to 1e6; write it as 50, in requests a second")
    return rate
