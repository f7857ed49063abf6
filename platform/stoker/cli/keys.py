"""Make, list and revoke API keys of an endpoint. The file of keys holds only their hashes.

stoker keys                                   the keys: names, models, expiry, rate (or: stoker keys list)
stoker keys add camera-7 --expires 90d        make a key and print it, this one time
stoker keys add lab --models digits --rate 50   for one model, at 50 requests a second in each replica
stoker keys revoke camera-7                   running endpoints refuse it within 5 seconds

The file is --file, a path or a URL such as s3://bucket/keys, or what STOKER_API_KEY_FILE names, or else that of the
instance in .stoker/ here.
"""

from __future__ import annotations

import argparse
import datetime
import json
import logging
import os
import re
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

from stoker.api_keys import (
    NAME,
    Key,
    add_key,
    hash_of,
    models_of,
    moment_of,
    new_key,
    rate_of,
    read_keys,
    revoke_key,
)
from stoker.errors import StokerError
from stoker.storage import Location, locate

__all__ = ["add_arguments", "run"]

T = TypeVar("T")
logger = logging.getLogger(__name__)

_UNITS_S = {"d": 86_400, "h": 3_600}
_TIMEOUT_S = 10.0


def add_arguments(parser: argparse.ArgumentParser) -> None:
    _add_options(parser, file=None, is_json=False)
    actions = parser.add_subparsers(dest="action", metavar="ACTION", help="list (the default), add, revoke")
    listing = actions.add_parser("list", help="names, models, expiry and rate of the keys")
    add = actions.add_parser("add", help="make a key and print it")
    add.add_argument("name", metavar="NAME", type=_checked(_name), help="what the access log calls it")
    add.add_argument("--models", type=_checked(models_of), metavar="A,B", help="models it may ask (default: all)")
    add.add_argument(
        "--expires", type=_checked(_expiry), metavar="30d|DATE", help="days (d) or hours (h) from now, or a date"
    )
    add.add_argument("--rate", type=_checked(rate_of), metavar="N", help="requests a second in each replica")
    revoke = actions.add_parser("revoke", help="remove a key; endpoints refuse it within 5 seconds")
    revoke.add_argument("name", metavar="NAME")
    for action in (listing, add, revoke):
        _add_options(action, file=argparse.SUPPRESS, is_json=argparse.SUPPRESS)


def run(given: argparse.Namespace) -> None:
    location = _file_of(given.file)
    action = {"add": _add, "revoke": _revoke}.get(given.action, _list)
    content, text = action(location, given)
    print(json.dumps(content) if given.json else text, flush=True)


def _add_options(parser: argparse.ArgumentParser, *, file: str | None, is_json: bool | str) -> None:
    parser.add_argument("--file", default=file, metavar="FILE", help="path or URL; default: STOKER_API_KEY_FILE")
    parser.add_argument("--json", action="store_true", default=is_json, help="print JSON, for programs")


def _file_of(given: str | None) -> Location:
    where = given or os.environ.get("STOKER_API_KEY_FILE", "").strip()
    if not where:
        folder = Path(".stoker")
        if not folder.is_dir():
            raise StokerError(
                "no file of API keys: STOKER_API_KEY_FILE is not set and there is no .stoker/ here; give --file"
            )
        where = str(folder / "api-keys")
    return locate(where, timeout_s=_TIMEOUT_S)


def _list(location: Location, _: argparse.Namespace) -> tuple[Any, str]:
    keys = read_keys(location)
    if not keys:
        return [], f"no keys in {location.url}; stoker keys add NAME makes one"
    width = max(len(key.name) for key in keys)
    return [_row(key) for key in keys], "\n".join(f"{key.name:{width}}  {_shown(key)}" for key in keys)


def _add(location: Location, given: argparse.Namespace) -> tuple[Any, str]:
    if given.expires is not None and given.expires <= time.time():
        raise StokerError(f"stoker keys add: --expires {_shown_time(given.expires)} has passed; give a later time")
    made = new_key()
    key = Key(given.name, hash_of(made), given.models, given.expires, given.rate)
    add_key(location, key)
    logger.info("%s is in %s by its hash; the key itself is printed this one time", key.name, location.url)
    return {**_row(key), "key": made}, made


def _revoke(location: Location, given: argparse.Namespace) -> tuple[Any, str]:
    revoke_key(location, given.name)
    return {"revoked": given.name}, f"revoked {given.name}; running endpoints refuse it within 5 seconds"


def _row(key: Key) -> dict[str, Any]:
    return {
        "name": key.name,
        "models": None if key.models is None else sorted(key.models),
        "expires": None if key.expires is None else _shown_time(key.expires),
        "rate": key.rate,
    }


def _shown(key: Key) -> str:
    parts = ["all models" if key.models is None else f"models {', '.join(sorted(key.models))}"]
    if key.expires is not None:
        verb = "expired" if key.expires <= time.time() else "expires"
        parts.append(f"{verb} {_shown_time(key.expires)}")
    if key.rate is not None:
        parts.append(f"{key.rate:g} requests a second")
    return "; ".join(parts)


def _shown_time(moment: float) -> str:
    return f"{datetime.datetime.fromtimestamp(moment, datetime.UTC):%Y-%m-%dT%H:%M:%SZ}"


def _name(text: str) -> str:
    if not NAME.fullmatch(text):
        raise ValueError("the name is not 1 to 64 of A-Z a-z 0-9 . _ - that begin with a letter or digit")
    return text


def _expiry(text: str) -> float:
    if found := re.fullmatch(r"(\d{1,5})([dh])", text):
        return time.time() + int(found[1]) * _UNITS_S[found[2]]
    return moment_of(text)


def _checked(read: Callable[[str], T]) -> Callable[[str], T]:
    """``read`` as the type of an argument: what it says of a wrong one becomes the usage error."""

    def checked(text: str) -> T:
        try:
            return read(text)
        except ValueError as error:
            raise argparse.ArgumentTypeError(str(error)) from None

    return checked
