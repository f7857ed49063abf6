"""When a failure is tried again, how long the pauses are, and what is said in the end."""

from __future__ import annotations

import errno
from collections.abc import Callable

import pytest
from botocore.exceptions import ClientError, NoCredentialsError, ReadTimeoutError

from stoker.errors import DatasetError, StorageError
from stoker.storage import retry
from stoker.storage.retry import BadBody, StoreAnswer, call_with_retries, failure_kind, is_final


class Clock:
    """Time that only sleeping takes; each pause is the longest that may be drawn."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.now, self.pauses, self.least = 0.0, list[float](), list[float]()
        monkeypatch.setattr(retry.time, "monotonic", lambda: self.now)
        monkeypatch.setattr(retry.time, "sleep", self._sleep)
        monkeypatch.setattr(retry.random, "uniform", self._draw)

    def _sleep(self, seconds: float) -> None:
        self.now += seconds
        self.pauses.append(seconds)

    def _draw(self, least: float, most: float) -> float:
        self.least.append(least)
        return most


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    return Clock(monkeypatch)


def failing(error: Exception, times: int = 10**6) -> Callable[[], int]:
    left = [times]

    def act() -> int:
        left[0] -= 1
        if left[0] < 0:
            return 7
        raise error

    return act


def final_text(error: Exception, url: str, timeout_s: float = 1.0) -> str:
    with pytest.raises(StorageError) as refused:
        call_with_retries(failing(error), what="read", url=url, timeout_s=timeout_s)
    assert refused.value.url == url
    assert refused.value.__cause__ is error
    return str(refused.value)


def aws(status: int, code: str = "") -> ClientError:
    return ClientError({"Error": {"Code": code}, "ResponseMetadata": {"HTTPStatusCode": status}}, "GetObject")  # type: ignore[typeddict-item]


def test_pauses_begin_at_a_twentieth_of_a_second_double_and_stay_at_five(clock: Clock) -> None:
    seen: list[tuple[BaseException, float]] = []
    error = ConnectionResetError("gone")
    found = call_with_retries(
        failing(error, 9), what="read", url="s3://b/k", timeout_s=60, on_retry=lambda e, pause: seen.append((e, pause))
    )
    assert found == 7
    assert clock.pauses == [0.05, 0.1, 0.2, 0.4, 0.8, 1.6, 3.2, 5.0, 5.0]
    assert set(clock.least) == {0}
    assert seen == [(error, pause) for pause in clock.pauses]


def test_the_timeout_ends_the_retries_before_a_pause_that_would_pass_it(clock: Clock) -> None:
    text = final_text(ConnectionResetError("gone"), "file:///a", timeout_s=0.36)
    assert clock.pauses == [0.05, 0.1, 0.2], "0.35 seconds in all"
    assert "cannot read file:///a: no valid response in 0.36 s and 4 attempts (gone)" in text
    assert "AWS_ENDPOINT_URL" not in text
    assert "AWS_ENDPOINT_URL" in final_text(ConnectionResetError("gone"), "s3://b/k")


def test_a_long_reason_is_cut_to_200_characters_in_one_line(clock: Clock) -> None:
    assert f"({'x' * 200})" in final_text(OSError("x" * 200), "s3://b/k")
    assert f"({'x' * 197}...)" in final_text(OSError("x" * 201), "s3://b/k")
    assert "(a b)" in final_text(OSError("a\n  b"), "s3://b/k")
    assert "(TimeoutError)" in final_text(TimeoutError(), "s3://b/k")


@pytest.mark.parametrize("error", [FileNotFoundError("a"), FileExistsError("a"), DatasetError("a")])
def test_absence_existence_and_our_own_errors_pass_as_they_are(clock: Clock, error: Exception) -> None:
    with pytest.raises(type(error)) as raised:
        call_with_retries(failing(error), what="read", url="s3://b/k", timeout_s=60)
    assert raised.value is error
    assert clock.pauses == []


FINAL = [
    PermissionError(), FileNotFoundError(), FileExistsError(), IsADirectoryError(), NotADirectoryError(), ValueError(),
    *(OSError(getattr(errno, name), "x") for name in ("ENOSPC", "EDQUOT", "EROFS", "EFBIG", "ENAMETOOLONG", "ELOOP")),
    *(StoreAnswer("", status) for status in (301, 400, 403, 404, 410, 412, 499)),
    *(StoreAnswer("", 400, code) for code in ("AccessDenied", "ExpiredToken", "InvalidAccessKeyId")),
    *(StoreAnswer("", 400, code) for code in ("InvalidBucketName", "SignatureDoesNotMatch")),
    *(aws(400, code) for code in ("403", "404", "NoSuchKey", "NoSuchBucket", "PreconditionFailed", "AccessDenied")),
    NoCredentialsError(), KeyError("a"), RuntimeError("b"),
]  # fmt: skip
PASSING = [
    (TimeoutError(), "deadlines"), (ReadTimeoutError(endpoint_url="x"), "deadlines"),
    (ConnectionResetError(), "resets"), (BrokenPipeError(), "resets"), (BadBody("x"), "bad_bodies"),
    (OSError(errno.EIO, "x"), "other_failures"),
    *((StoreAnswer("", status), "other_failures") for status in (408, 409, 425)), (StoreAnswer("", 429), "slow_downs"),
    *((StoreAnswer("", status), "server_errors") for status in (500, 502, 504)), (StoreAnswer("", 503), "slow_downs"),
    *((StoreAnswer("", 400, code), "other_failures") for code in ("InternalError", "RequestTimeout")),
    (StoreAnswer("", 400, "SlowDown"), "slow_downs"), (aws(503, "SlowDown"), "slow_downs"),
    (aws(500, "InternalError"), "server_errors"), (aws(200, "Throttling"), "slow_downs"),
    (aws(200, "TooManyRequests"), "slow_downs"), (aws(0, "Odd"), "other_failures"),
]  # fmt: skip


@pytest.mark.parametrize("error", FINAL, ids=repr)
def test_what_no_retry_mends_is_a_refusal(error: Exception) -> None:
    assert is_final(error)
    assert failure_kind(error) == "refusals"


@pytest.mark.parametrize(("error", "kind"), PASSING, ids=[repr(error) for error, _ in PASSING])
def test_what_may_pass_is_not_final_and_has_its_kind(error: Exception, kind: str) -> None:
    assert not is_final(error)
    assert failure_kind(error) == kind


@pytest.mark.parametrize("where", ["__cause__", "__context__"])
def test_a_failed_connection_is_known_by_what_caused_the_error(where: str) -> None:
    error = OSError("wrapped")
    setattr(error, where, ConnectionResetError())
    assert failure_kind(error) == "resets"


def test_an_answer_of_the_store_below_an_error_says_its_kind() -> None:
    error = OSError("wrapped")
    error.__cause__ = aws(503)
    assert failure_kind(error) == "slow_downs"


@pytest.mark.parametrize(
    ("error", "url", "text"),
    [
        (PermissionError("no"), "/disk/a", "not permitted to read /disk/a (no); check the permissions of this place"),
        (aws(403, "AccessDenied"), "s3://b/k", "; check AWS_ACCESS_KEY_ID, AWS_SECRET_ACCESS_KEY, AWS_PROFILE or"),
        (aws(403, "403"), "s3://b/k", "not permitted to read s3://b/k"),
        (NoCredentialsError(), "s3://b/k", "cannot read s3://b/k: no credentials found; set AWS_ACCESS_KEY_ID"),
        (OSError(errno.ENOSPC, "No space", "/d/f"), "/d/x", "cannot read /d/x (No space: /d/f); free space there, or"),
        (OSError(errno.EROFS, "Read-only"), "/d/x", "cannot read /d/x (Read-only); it is read-only, or choose another"),
        (ValueError("odd"), "odd:", "cannot read odd: (odd)"),
    ],
)
def test_a_refusal_says_why_and_what_to_do_at_once(clock: Clock, error: Exception, url: str, text: str) -> None:
    assert text in final_text(error, url, timeout_s=600)
    assert clock.pauses == []
