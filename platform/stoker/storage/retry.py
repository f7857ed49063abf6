"""Retry transient failures of storage; fail at once on permanent ones.

Exponential back-off with full jitter (Brooker, *Exponential Backoff And Jitter*, AWS Architecture Blog, 2015).
Missing objects (404, 410), refusals (other 4xx) and a full or read-only disk are final; everything else (5xx,
slow-down, reset, no connection, no name, timeout, a short or wrong body) is retried until the caller's timeout, in
seconds, has passed.
"""

from __future__ import annotations

import errno
import logging
import random
import time
from collections.abc import Callable
from typing import TypeVar

from stoker.errors import StokerError, StorageError

__all__ = ["BadBody", "StoreAnswer", "absence", "call_with_retries", "failure_kind", "is_final"]

T = TypeVar("T")
logger = logging.getLogger(__name__)

_FIRST_DELAY_S = 0.05
_LONGEST_DELAY_S = 5.0
_FINAL_CODES = frozenset(
    {"AccessDenied", "ExpiredToken", "InvalidAccessKeyId", "InvalidBucketName", "SignatureDoesNotMatch"}
)
_TRANSIENT_CODES = frozenset({"InternalError", "RequestTimeout", "SlowDown"})
# names of errors, and of their causes, when a connection failed or ended before the response did
_CONNECTION_ERRORS = (
    "Connection",
    "Disconnected",
    "IncompleteRead",
    "PayloadError",
    "Streaming",
    "BrokenPipe",
    "ClientOSError",
)
# botocore's and google's errors that no retry fixes, by name: their modules need not be installed
_FINAL_NAMES = frozenset(
    {
        "DefaultCredentialsError",
        "InvalidRegionError",
        "NoCredentialsError",
        "ParamValidationError",
        "PartialCredentialsError",
        "ProfileNotFound",
    }
)


_FINAL_ERRNOS = {
    errno.ENOSPC: "free space there",
    errno.EDQUOT: "free some of the quota there",
    errno.EROFS: "it is read-only",
    errno.EFBIG: "its filesystem or this process allows no file so large",
    errno.ENAMETOOLONG: "its filesystem allows no name so long",
    errno.ELOOP: "its links lead in a circle",
}
_GONE = frozenset({404, 410})
_RETRIED = frozenset({408, 409, 425, 429})
"""of the statuses below 500: those after which the same request may succeed"""


class BadBody(OSError):
    """A response body has the wrong length or checksum: a failed read, never data."""


class StoreAnswer(OSError):
    """The store responded with the HTTP status ``status`` and, if it sent one, the error code ``code``."""

    def __init__(self, message: str, status: int, code: str = "") -> None:
        super().__init__(message)
        self.status, self.code = status, code


def is_final(error: BaseException) -> bool:
    """Whether a retry cannot help: not found, not permitted, exists already, or not a response of the store at all."""
    if isinstance(error, (FileNotFoundError, FileExistsError, PermissionError, IsADirectoryError, NotADirectoryError)):
        return True
    if isinstance(error, ValueError) or (isinstance(error, OSError) and error.errno in _FINAL_ERRNOS):
        return True  # an impossible URL, for one
    code = _code(error)
    if (isinstance(error, StoreAnswer) or _http_status(error)) and code not in _FINAL_CODES | _TRANSIENT_CODES:
        return _status(error) < 500 and _status(error) not in _RETRIED
    if code in _FINAL_CODES or code in {"403", "404", "NoSuchKey", "NoSuchBucket", "PreconditionFailed"}:
        return True
    if any(kind.__name__ in _FINAL_NAMES for kind in type(error).__mro__):
        return True
    return not (isinstance(error, (OSError, TimeoutError)) or _is_transport(error))


def failure_kind(error: BaseException) -> str:
    """Classify the failure of one request, by the name that metrics use.

    One of bad_bodies, refusals, deadlines, slow_downs, server_errors, resets (the connection failed or ended early)
    and other_failures.
    """
    if isinstance(error, BadBody):
        return "bad_bodies"
    status, code = _status(error), _code(error)
    if is_final(error):
        return "refusals"
    if status in {429, 503} or code in {"SlowDown", "Throttling", "TooManyRequests"}:
        return "slow_downs"
    if status >= 500:
        return "server_errors"
    names = " ".join(kind.__name__ for kind in type(error).__mro__)
    if isinstance(error, TimeoutError) or "Timeout" in names:
        return "deadlines"
    causes = f"{names} {type(error.__cause__).__name__} {type(error.__context__).__name__}"
    return "resets" if any(word in causes for word in _CONNECTION_ERRORS) else "other_failures"


def absence(error: BaseException) -> BaseException:
    """What ``error`` is: a missing object is FileNotFoundError, and nothing else is.

    fsspec's HTTP filesystem raises FileNotFoundError for whatever went wrong, and another error for 410.
    """
    cause = error.__cause__
    if (
        isinstance(error, FileNotFoundError)
        and isinstance(cause, Exception)
        and not isinstance(cause, FileNotFoundError)
    ):
        is_of_http = bool(_http_status(cause)) or type(cause).__module__.partition(".")[0] == "aiohttp"
        is_other = is_of_http or isinstance(cause, (TimeoutError, ConnectionError))
        return cause if is_other and _http_status(cause) not in _GONE else error
    return FileNotFoundError(str(error)) if _http_status(error) in _GONE else error


def _http_status(error: BaseException) -> int:
    """The status of a response over plain HTTP, as aiohttp's errors have it; 0 for any other error."""
    status = getattr(error, "status", None)
    is_of_aiohttp = type(error).__module__.partition(".")[0] == "aiohttp"
    return status if is_of_aiohttp and isinstance(status, int) else 0


def _status(error: BaseException) -> int:
    if isinstance(error, StoreAnswer):
        return error.status
    if status := _http_status(error):
        return status
    for e in (error, error.__cause__, error.__context__):
        response = getattr(e, "response", None)
        if isinstance(response, dict):
            return int(response.get("ResponseMetadata", {}).get("HTTPStatusCode", 0) or 0)
    return 0


def _code(error: BaseException) -> str:
    if isinstance(error, StoreAnswer):
        return error.code
    response = getattr(error, "response", None)
    if isinstance(response, dict):
        return str(response.get("Error", {}).get("Code", ""))
    return ""


def _is_transport(error: BaseException) -> bool:
    root = type(error).__module__.partition(".")[0]
    return root in {"aiobotocore", "aiohttp", "botocore", "fsspec", "gcsfs", "google", "http", "s3fs", "ssl", "urllib3"}


def call_with_retries(
    action: Callable[[], T],
    *,
    what: str,
    url: str,
    timeout_s: float,
    on_retry: Callable[[BaseException, float], None] | None = None,
) -> T:
    """Call ``action`` until it succeeds, fails permanently, or ``timeout_s`` seconds have passed; returns its result.

    ``what`` is a verb for the message ("read", "write"); ``url`` names the place.
    ``on_retry`` is called with each failure that is retried and the pause before the retry in seconds.

    Raises:
        FileNotFoundError, FileExistsError: unchanged, for callers that expect absence; stoker's own errors too.
        StorageError: refused, or no valid response in time; names the URL and the last cause.
    """
    deadline = time.monotonic() + timeout_s
    delay = _FIRST_DELAY_S
    attempt = 0
    while True:
        attempt += 1
        try:
            return action()
        except (FileExistsError, StokerError):
            raise
        except Exception as raised:
            error = absence(raised)
            if isinstance(error, FileNotFoundError):
                raise error from (None if error is not raised else error.__cause__)
            if is_final(error):
                raise _refusal(error, what, url) from error
            pause = random.uniform(0, delay)
            if time.monotonic() + pause > deadline:
                raise StorageError(
                    f"cannot {what} {url}: no valid response in {timeout_s:g} s and {attempt} attempts "
                    f"({_cause(error)}); check that the store runs and that its address is right"
                    f"{_endpoint_hint(url)}",
                    url=url,
                ) from error
            logger.debug("%s %s failed (%s), attempt %d, retrying in %.2f s", what, url, _cause(error), attempt, pause)
            if on_retry is not None:
                on_retry(error, pause)
            time.sleep(pause)
            delay = min(2 * delay, _LONGEST_DELAY_S)


def _refusal(error: BaseException, what: str, url: str) -> StorageError:
    if isinstance(error, PermissionError) or _code(error) in _FINAL_CODES | {"403"}:
        advice = (
            "check AWS_ACCESS_KEY_ID, AWS_SECRET_ACCESS_KEY, AWS_PROFILE or the machine's role"
            if url.startswith("s3:")
            else "check the permissions of this place"
        )
        return StorageError(f"not permitted to {what} {url} ({_cause(error)}); {advice}", url=url)
    if "credentials" in type(error).__name__.lower():
        return StorageError(
            f"cannot {what} {url}: no credentials found; set AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY, "
            "AWS_PROFILE, or run where a role gives them",
            url=url,
        )
    if isinstance(error, OSError) and error.errno in _FINAL_ERRNOS:
        why = f"{error.strerror}: {error.filename}" if error.filename else error.strerror
        advice = f"{_FINAL_ERRNOS[error.errno]}, or choose another place"
        return StorageError(f"cannot {what} {url} ({why}); {advice}", url=url)
    return StorageError(f"cannot {what} {url} ({_cause(error)})", url=url)


def _cause(error: BaseException) -> str:
    text = " ".join(str(error).split()) or type(error).__name__
    return text if len(text) <= 200 else text[:197] + "..."


def _endpoint_hint(url: str) -> str:
    return " (AWS_ENDPOINT_URL for a store that is not AWS)" if url.startswith("s3:") else ""
