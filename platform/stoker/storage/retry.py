"""Retry transient failures of storage; fail at once on permanent ones.

Exponential back-off with full jitter (Brooker, *Exponential Backoff And Jitter*, AWS Architecture Blog, 2015).
Missing objects (404, 410), refusals (other 4xx, 501) and a full or read-only disk are final; everything else (5xx,
slow-down, reset, no connection, no name, timeout, a short or wrong body) is retried until the caller's timeout, in
seconds, has passed. Which of S3's codes are which: AWS, *SDKs and Tools Reference Guide*, "Retry behavior".
"""

from __future__ import annotations

import contextlib
import errno
import logging
import random
import time
from collections.abc import Callable, Iterator
from typing import TypeVar

from stoker.errors import StokerError, StorageError, StorageTimeout

__all__ = [
    "BadBody",
    "StoreAnswer",
    "absence",
    "call_with_retries",
    "failure_kind",
    "is_final",
    "status_of",
    "writing_to",
]

T = TypeVar("T")
logger = logging.getLogger(__name__)

_FIRST_DELAY_S = 0.05
_LONGEST_DELAY_S = 5.0
_DENIED_CODES = frozenset({"AccessDenied", "ExpiredToken", "InvalidAccessKeyId", "SignatureDoesNotMatch"})
_THROTTLING_CODES = frozenset(
    {
        "BandwidthLimitExceeded",
        "RequestLimitExceeded",
        "RequestThrottled",
        "SlowDown",
        "Throttling",
        "ThrottlingException",
        "TooManyRequests",
        "TooManyRequestsException",
    }
)
_TRANSIENT_CODES = _THROTTLING_CODES | {
    "BadDigest",  # this and the two below: the request's body was damaged or cut on its way
    "IncompleteBody",
    "XAmzContentSHA256Mismatch",
    "InternalError",
    "RequestTimeout",
    "RequestTimeoutException",
    "ServiceUnavailable",
}
"""what their statuses, some of which are 400, do not say"""
_STATUS_OF_CODE = {"NoSuchBucket": 404, "NoSuchKey": 404, "PreconditionFailed": 412, "ConditionalRequestConflict": 409}
"""where the client gives no status"""
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


_FINAL_ERRORS = (
    FileExistsError,
    FileNotFoundError,
    IsADirectoryError,
    NotADirectoryError,
    PermissionError,
    ValueError,  # an impossible URL, for one
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
_REFUSED = frozenset({501, 505, 507})
"""of those from 500: those after which it cannot"""


class BadBody(OSError):
    """A response body has the wrong length or checksum: a failed read, never data."""


class StoreAnswer(OSError):
    """The store responded with the HTTP status ``status`` and, if it sent one, the error code ``code``."""

    def __init__(self, message: str, status: int, code: str = "") -> None:
        super().__init__(message)
        self.status, self.code = status, code


def is_final(error: BaseException) -> bool:
    """Whether a retry cannot help: not found, not permitted, exists already, or not a response of the store at all."""
    if isinstance(error, _FINAL_ERRORS) or (isinstance(error, OSError) and error.errno in _FINAL_ERRNOS):
        return True
    status, code = _answer(error)
    if code in _TRANSIENT_CODES:
        return False
    if status:
        return status in _REFUSED or (status < 500 and status not in _RETRIED)
    if code in _DENIED_CODES or any(kind.__name__ in _FINAL_NAMES for kind in type(error).__mro__):
        return True
    return not (isinstance(error, (OSError, TimeoutError)) or _is_transport(error))


def failure_kind(error: BaseException) -> str:
    """Classify the failure of one request, by the name that metrics use.

    One of bad_bodies, refusals, deadlines, slow_downs, server_errors, resets (the connection failed or ended early)
    and other_failures.
    """
    error = absence(error)
    if isinstance(error, BadBody):
        return "bad_bodies"
    status, code = _answer(error)
    if is_final(error):
        return "refusals"
    if status in {429, 503} or code in _THROTTLING_CODES:
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
    return FileNotFoundError(str(error)) if status_of(error) in _GONE else error


def status_of(error: BaseException) -> int:
    """The HTTP status of the store's answer that ``error`` is about; 0 if it is about none."""
    return _answer(error)[0]


def _answer(error: BaseException) -> tuple[int, str]:
    """The store's HTTP status and error code, 0 and "" where it sent none, as each client's errors have them.

    s3fs raises errors of Python whose cause is botocore's; the cause is not looked for any deeper.
    """
    if isinstance(error, StoreAnswer):
        return error.status, error.code
    for one in (error, error.__cause__):
        response = getattr(one, "response", None)
        if isinstance(response, dict):
            code = str(response.get("Error", {}).get("Code", ""))
            status = int(response.get("ResponseMetadata", {}).get("HTTPStatusCode", 0) or 0)
            return status or (int(code) if code.isdecimal() else _STATUS_OF_CODE.get(code, 0)), code
    return _http_status(error), ""


def _http_status(error: BaseException) -> int:
    """The status of a response over plain HTTP, as the errors of aiohttp and gcsfs have it; 0 for any other error."""
    library = type(error).__module__.partition(".")[0]
    if library == "aiohttp":
        if type(error.__cause__).__module__ == "aiohttp.http_exceptions":
            return 0  # what came was no HTTP: aiohttp calls that a 400
        status = getattr(error, "status", None)
    elif library == "gcsfs":
        status = getattr(error, "code", None)
    elif isinstance(error, OSError) and error.errno is None and str(error).startswith("Forbidden: "):
        status = 403  # of gcsfs
    else:
        return 0
    return int(str(status)) if str(status).isdecimal() else 0


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
        StorageError: refused, or (:class:`StorageTimeout`) no valid response in time; names the URL and the last cause.
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
                kind = StorageError if isinstance(error, BadBody) else StorageTimeout
                raise kind(
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


@contextlib.contextmanager
def writing_to(url: str) -> Iterator[None]:
    """Around a write to ``url``: what is absent there is its bucket, or the folder that it is in.

    Raises:
        StorageError: it is.
    """
    try:
        yield
    except FileNotFoundError as error:
        raise StorageError(
            f"cannot write {url}: its bucket or parent does not exist ({_cause(error)}); create it first", url=url
        ) from None


def _refusal(error: BaseException, what: str, url: str) -> StorageError:
    status, code = _answer(error)
    if (isinstance(error, PermissionError) and not status) or status in {401, 403} or code in _DENIED_CODES:
        advice = (
            "check AWS_ACCESS_KEY_ID, AWS_SECRET_ACCESS_KEY, AWS_PROFILE or the machine's role, and set "
            "AWS_REQUEST_PAYER=requester if the bucket's readers pay"
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
