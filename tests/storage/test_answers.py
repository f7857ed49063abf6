"""What each client makes of each answer of a store: the same, whatever the client and whatever is asked."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from stoker.errors import StorageError
from stoker.storage import Conflict, Location, Reads, locate
from stoker.storage.retry import failure_kind, is_final, status_of
from stoker.storage.uploads import write_pieces
from storage.answers import Answers

REFUSED = [
    (301, "PermanentRedirect"),
    (400, "InvalidArgument"),
    (400, "ExpiredToken"),
    (400, "AuthorizationHeaderMalformed"),
    (401, ""),
    (403, "AccessDenied"),
    (403, "RequestTimeTooSkewed"),
    (405, "MethodNotAllowed"),
    (416, "InvalidRange"),
    (501, "NotImplemented"),
    (507, ""),
]
RETRIED = [
    (400, "BadDigest"),
    (400, "IncompleteBody"),
    (400, "RequestTimeout"),
    (400, "Throttling"),
    (400, "XAmzContentSHA256Mismatch"),
    (409, "OperationAborted"),
    (429, ""),
    (500, "InternalError"),
    (502, ""),
    (503, "SlowDown"),
    (503, "RequestLimitExceeded"),
    (0, ""),
]
ABSENT = [(404, "NoSuchKey"), (404, "NoSuchBucket"), (404, ""), (410, "")]
ASKS: dict[str, Callable[[Location], object]] = {
    "read": Location.read,
    "read_range": lambda place: place.read_range(0, 4),
    "write": lambda place: place.write(b"data"),
    "size": Location.size,
    "children": Location.children,
    "walk": lambda place: list(place.walk()),
}


@pytest.fixture(params=["s3fs", "obstore"])
def client(request: pytest.FixtureRequest, s3: Answers, monkeypatch: pytest.MonkeyPatch) -> str:
    monkeypatch.setenv("STOKER_S3_CLIENT", request.param)
    return str(request.param)


def asks(client: str) -> list[str]:
    """obstore reads ranges alone."""
    return ["read_range"] if client == "obstore" else list(ASKS)


@pytest.mark.parametrize("answer", REFUSED, ids=str)
def test_a_refusal_is_final_whatever_is_asked(s3: Answers, client: str, answer: tuple[int, str]) -> None:
    for ask in asks(client):
        s3.statuses = [answer]
        with pytest.raises(StorageError):
            ASKS[ask](locate("s3://bucket/key", timeout_s=20))


@pytest.mark.parametrize("answer", RETRIED, ids=str)
def test_what_may_pass_is_asked_again(s3: Answers, client: str, answer: tuple[int, str]) -> None:
    for ask in {"read_range", "write"} & set(asks(client)):
        s3.asked.clear()
        s3.statuses = [answer, answer, 200]
        ASKS[ask](locate("s3://bucket/key", timeout_s=20))
        assert len(s3.asked) == 3


@pytest.mark.parametrize("answer", ABSENT, ids=str)
def test_an_absence_is_one_whatever_asks(s3: Answers, client: str, answer: tuple[int, str]) -> None:
    s3.statuses = [answer]
    for ask in {"read", "read_range"} & set(asks(client)):
        with pytest.raises(FileNotFoundError):
            ASKS[ask](locate("s3://bucket/key", timeout_s=20))


@pytest.mark.parametrize("answer", [(403, "AccessDenied"), (401, ""), (400, "ExpiredToken")], ids=str)
def test_who_is_not_permitted_hears_what_to_check(s3: Answers, client: str, answer: tuple[int, str]) -> None:
    s3.statuses = [answer]
    with pytest.raises(StorageError, match=r"not permitted to read s3://bucket/key .*AWS_REQUEST_PAYER=requester"):
        locate("s3://bucket/key", timeout_s=20).read_range(0, 4)


def test_throttling_counts_as_such_by_both_clients(s3: Answers, client: str) -> None:
    s3.statuses = [(400, "Throttling"), (503, "SlowDown"), (503, ""), (429, ""), 200]
    reads = Reads()
    locate("s3://bucket/key", timeout_s=20).read_range(0, 4, reads=reads)
    assert reads.counters.snapshot()["slow_downs"] == 4


@pytest.mark.parametrize("how", ["create", "swap"])
@pytest.mark.parametrize("conflict", ["ConditionalRequestConflict", ""])
def test_a_conflict_of_two_writers_is_tried_again_and_a_failed_condition_is_one(
    s3: Answers, how: str, conflict: str
) -> None:
    place = locate("s3://bucket/key", timeout_s=20)
    version = place.version()
    assert version is not None
    before = [200, 200, 200] if how == "swap" else []  # HEAD for the ETag, and what a read asks

    def act() -> None:
        if how == "swap":
            place.swap(b"new", version[1])
        else:
            place.create(b"new")

    s3.statuses = [*before, (409, conflict), *before, 200]
    act()
    s3.statuses = [*before, (412, "PreconditionFailed"), 200]
    with pytest.raises(Conflict):
        act()


def test_a_web_server_that_does_not_speak_http_is_asked_again(server: Answers) -> None:
    server.statuses = [0, 0, 200]
    assert locate(f"{server.url}/cat.jpg", timeout_s=20).read() == b"data"


def _of_gcsfs(code: int) -> Exception:
    """As gcsfs's HttpError is made: the package is not among ours."""
    kind = type("HttpError", (Exception,), {"__module__": "gcsfs.retry", "code": code})
    return kind(f"an answer, {code}")


@pytest.mark.parametrize(
    ("error", "kind", "ends"),
    [
        (_of_gcsfs(400), "refusals", True),
        (_of_gcsfs(404), "refusals", True),
        (_of_gcsfs(408), "other_failures", False),
        (_of_gcsfs(429), "slow_downs", False),
        (_of_gcsfs(500), "server_errors", False),
        (OSError("Forbidden: https://storage.example/b/o\nno access"), "refusals", True),
    ],
)
def test_the_errors_of_gcsfs_mean_what_their_status_says(error: Exception, kind: str, ends: bool) -> None:
    assert (failure_kind(error), is_final(error) or status_of(error) == 404) == (kind, ends)


@pytest.mark.parametrize("value", ["Requestor", "yes"])
def test_an_unknown_payer_is_refused(s3: Answers, monkeypatch: pytest.MonkeyPatch, value: str) -> None:
    monkeypatch.setenv("AWS_REQUEST_PAYER", value)
    with pytest.raises(StorageError, match=f"AWS_REQUEST_PAYER is '{value.lower()}'; set it to requester"):
        locate("s3://bucket/key")


@pytest.mark.parametrize("status", [403, 503])
def test_a_listing_that_fails_is_never_a_shorter_one(server: Answers, status: int) -> None:
    server.statuses = [status]
    with pytest.raises(StorageError, match=str(status)):
        list(locate(f"{server.url}/folder", timeout_s=0.2).walk())


@pytest.mark.parametrize("how", ["write", "create", "write_pieces"])
def test_a_bucket_that_does_not_exist_is_said_where_something_is_written(s3: Answers, how: str) -> None:
    s3.statuses = [(404, "NoSuchBucket")]
    place = locate("s3://no-such-bucket/key", timeout_s=20)
    ways: dict[str, Callable[[], object]] = {
        "write": lambda: place.write(b"data"),
        "create": lambda: place.create(b"data"),
        "write_pieces": lambda: write_pieces(place, lambda: [b"data" * 2**20] * 5, part_bytes=5 * 2**20),
    }
    with pytest.raises(StorageError, match="cannot write s3://no-such-bucket/key: its bucket or parent does not exist"):
        ways[how]()


def test_a_swap_of_what_was_deleted_is_a_conflict(s3: Answers, tmp_path: Path) -> None:
    s3.statuses = [(404, "NoSuchKey")]
    for place in (
        locate("s3://bucket/key", timeout_s=20),
        locate(tmp_path / "gone"),
        locate(tmp_path / "no" / "folder"),
        locate("memory://gone/key"),
    ):
        with pytest.raises(Conflict, match="was changed by another writer"):
            place.swap(b"new", "the version from before")


def test_what_a_store_does_not_allow_is_no_question_of_keys(s3: Answers) -> None:
    s3.statuses = [(405, "MethodNotAllowed")]
    with pytest.raises(StorageError, match=r"^cannot write s3://bucket/key"):
        locate("s3://bucket/key", timeout_s=20).write(b"data")
