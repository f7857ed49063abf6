"""Create fsspec filesystems per process and environment, with the libraries' own retries off: ours act and count."""

from __future__ import annotations

import functools
import os
from typing import Any

import fsspec

from stoker.errors import StorageError

__all__ = ["environment_of", "filesystem_of", "is_s3"]

_S3 = frozenset({"s3", "s3a"})
_PAYERS = {"requester": True, "true": True, "1": True, "": False, "bucketowner": False, "false": False, "0": False}


def filesystem_of(protocol: str) -> Any:
    """The filesystem for ``protocol`` under the current environment.

    Raises:
        StorageError: the protocol is unknown or its package is not installed.
    """
    return _filesystem(protocol, os.getpid(), environment_of(protocol))


def is_s3(url: str) -> bool:
    """Whether ``url`` is of S3 or a store with its API."""
    return url.partition("://")[0] in _S3


def environment_of(protocol: str) -> tuple[tuple[bytes, bytes], ...]:
    """The environment variables that a filesystem depends on: credentials, endpoint, region."""
    if protocol not in _S3:
        return ()
    # environb, as this runs at each request and os.environ decodes every variable: 60 us against 10
    names = sorted(name for name in os.environb if name.startswith(b"AWS_"))
    return tuple((name, os.environb.get(name, b"")) for name in names)


@functools.lru_cache(maxsize=32)
def _filesystem(protocol: str, process: int, environment: tuple[tuple[bytes, bytes], ...]) -> Any:
    """The filesystem for ``protocol`` of this process (a fork gets its own, as connections cannot be shared).

    Retries are ours, so the libraries' own are off.
    """
    options: dict[str, Any] = {}
    if protocol in _S3:
        options = {
            "skip_instance_cache": True,  # fsspec's cache does not see the environment
            "use_listings_cache": False,
            "config_kwargs": {
                "connect_timeout": 5,
                "read_timeout": 30,
                "max_pool_connections": 64,
                "retries": {"total_max_attempts": 1, "mode": "standard"},
            },
        }
        if region := _region():
            options["client_kwargs"] = {"region_name": region}
        options["requester_pays"] = _pays()
    try:
        filesystem = fsspec.filesystem(protocol, **options)
    except ValueError:
        known = "s3://, gs://, file:// or a path"
        raise StorageError(f"cannot read {protocol}:// URLs: unknown protocol; use {known}") from None
    except ImportError as error:
        raise StorageError(f"cannot read {protocol}:// URLs: {error}") from None
    if hasattr(filesystem, "retries"):
        filesystem.retries = 1
    return filesystem


def _pays() -> bool:
    value = os.environ.get("AWS_REQUEST_PAYER", "").lower()
    if value not in _PAYERS:
        raise StorageError(f"AWS_REQUEST_PAYER is {value!r}; set it to requester, or unset it")
    return _PAYERS[value]


def _region() -> str | None:
    """The region as AWS's SDKs choose it: AWS_REGION, AWS_DEFAULT_REGION, the profile's; botocore ignores the first.

    A store that is not AWS has none, and takes whatever the requests are signed for.
    """
    named = os.environ.get("AWS_REGION") or os.environ.get("AWS_DEFAULT_REGION")
    if named or not os.environ.get("AWS_ENDPOINT_URL"):
        return named
    from botocore.session import Session  # type: ignore[import-untyped]

    return Session().get_config_variable("region") or "us-east-1"
