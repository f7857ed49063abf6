"""The address of a Ray cluster's dashboard and the token that it asks for, checked before they are sent or shown."""

from __future__ import annotations

import re
import urllib.parse
from collections.abc import Mapping
from pathlib import Path

from stoker.errors import ClusterError

__all__ = ["checked_address", "ray_token"]

_TOKEN = re.compile(r"[\x21-\x7e]+")
"""what an HTTP header can carry without a space"""


def checked_address(address: str) -> str:
    """``address`` without a slash at its end.

    Raises:
        ClusterError: it is not an http or https URL with a host, or holds a user or password, which is not quoted.
    """
    wrong = "is not a dashboard URL; write it as http://127.0.0.1:8265"
    if "@" in address:
        raise ClusterError(
            f"the address …@{address.rpartition('@')[2]} holds a user or password, which are not sent; give it without "
            "them, and the cluster's token with RAY_AUTH_MODE=token and RAY_AUTH_TOKEN_PATH"
        )
    try:
        parts = urllib.parse.urlsplit(address)
        is_valid = parts.scheme in {"http", "https"} and bool(parts.hostname) and parts.port != 0
    except ValueError:
        is_valid = False
    if not is_valid or not _TOKEN.fullmatch(address):
        raise ClusterError(f"{' '.join(address.split())} {wrong}")
    return address.rstrip("/")


def ray_token(environment: Mapping[str, str]) -> str | None:
    """The token as Ray's clients find it: RAY_AUTH_TOKEN, RAY_AUTH_TOKEN_PATH, ~/.ray/auth_token; stripped.

    Raises:
        ClusterError: its file cannot be read, or it cannot be sent; the message does not quote it.
    """
    if environment.get("RAY_AUTH_MODE") != "token":
        return None
    if token := environment.get("RAY_AUTH_TOKEN", "").strip():
        return _sendable(token, "RAY_AUTH_TOKEN")
    path = Path(environment.get("RAY_AUTH_TOKEN_PATH") or "~/.ray/auth_token").expanduser()
    try:
        token = path.read_text(encoding="utf-8").strip()
    except OSError:
        raise ClusterError(f"cannot read Ray's token {path}; set RAY_AUTH_TOKEN_PATH") from None
    except UnicodeDecodeError:
        raise ClusterError(f"{path} is not a token file (not UTF-8); set RAY_AUTH_TOKEN_PATH to Ray's") from None
    return _sendable(token, str(path)) if token else None


def _sendable(token: str, source: str) -> str:
    if not _TOKEN.fullmatch(token):
        raise ClusterError(
            f"the token in {source} holds spaces, line breaks or other characters that a header cannot carry; copy the "
            "cluster's token again"
        )
    return token
