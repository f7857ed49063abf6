"""What a store's answer means: only 404 and 410 are absence; the rest is refused, or retried, with its reason."""

from __future__ import annotations

import socket

import pytest

from stoker.embedded.ports import free_ports
from stoker.errors import StorageError
from stoker.storage import locate
from stoker.storage.retry import absence, call_with_retries
from storage.answers import Answers


@pytest.mark.parametrize("status", [404, 410])
def test_not_found_and_gone_are_absence(server: Answers, status: int) -> None:
    server.statuses = [status]
    place = locate(f"{server.url}/cat.jpg", timeout_s=600)
    with pytest.raises(FileNotFoundError):
        place.read()
    with pytest.raises(FileNotFoundError):
        place.size()
    assert not place.exists()


@pytest.mark.parametrize("status", [400, 401, 403, 451])
def test_a_refusal_is_final_and_no_absence(server: Answers, status: int) -> None:
    server.statuses = [status]
    place = locate(f"{server.url}/cat.jpg", timeout_s=600)
    for ask in (place.read, place.size, place.exists):
        with pytest.raises(StorageError, match=str(status)):
            ask()


@pytest.mark.parametrize("status", [408, 429, 500, 503])
def test_what_may_pass_is_tried_again(server: Answers, status: int) -> None:
    server.statuses = [status, status, status, status, 200]
    place = locate(f"{server.url}/cat.jpg", timeout_s=600)
    assert place.size() == 4
    server.statuses = [status, 200]
    assert place.read() == b"data"


def test_what_does_not_pass_is_said_with_its_reason(server: Answers) -> None:
    server.statuses = [503]
    with pytest.raises(StorageError, match=r"cannot look at http://\S+/cat\.jpg: no valid response in 0\.2 s .*503"):
        locate(f"{server.url}/cat.jpg", timeout_s=0.2).size()


def test_a_server_that_is_not_there_is_no_absence() -> None:
    place = locate(f"http://127.0.0.1:{free_ports(1)[0]}/cat.jpg", timeout_s=0.2)
    with pytest.raises(StorageError, match="no valid response"):
        place.size()


def test_a_name_that_is_not_known_is_no_absence(monkeypatch: pytest.MonkeyPatch) -> None:
    def unknown(*_: object, **__: object) -> None:
        raise socket.gaierror(socket.EAI_NONAME, "Name or service not known")

    monkeypatch.setattr(socket, "getaddrinfo", unknown)
    with pytest.raises(StorageError, match="no valid response"):
        locate("http://no-such-host.test/cat.jpg", timeout_s=0.2).size()


def test_a_conflict_of_two_writers_is_tried_again_and_a_failed_condition_is_not() -> None:
    codes = ["ConditionalRequestConflict", "PreconditionFailed"]
    tries: list[str] = []

    def act() -> None:
        from botocore.exceptions import ClientError

        tries.append(codes[min(len(tries), 1)])
        raise ClientError({"Error": {"Code": tries[-1]}}, "PutObject")

    with pytest.raises(StorageError):
        call_with_retries(act, what="create", url="s3://bucket/key", timeout_s=600)
    assert tries == codes


def test_an_error_that_is_not_of_the_network_keeps_its_kind() -> None:
    missing = FileNotFoundError("a")
    assert absence(missing) is missing
    missing.__cause__ = KeyError("b")
    assert absence(missing) is missing
    missing.__cause__ = TimeoutError("c")
    assert isinstance(absence(missing), TimeoutError)


@pytest.mark.parametrize("client", ["s3fs", "obstore"])
@pytest.mark.parametrize(
    ("environment", "region", "payer"),
    [
        ({"AWS_REGION": "eu-north-1"}, "eu-north-1", None),
        ({"AWS_REGION": "eu-north-1", "AWS_DEFAULT_REGION": "us-west-2"}, "eu-north-1", None),
        ({"AWS_DEFAULT_REGION": "us-west-2"}, "us-west-2", None),
        ({"AWS_CONFIG_FILE": "profile"}, "ap-south-1", None),
        ({}, "us-east-1", None),
        ({"AWS_REQUEST_PAYER": "requester"}, "us-east-1", "requester"),
    ],
)
def test_both_clients_sign_for_the_region_of_the_environment_and_pay_where_it_says_so(
    s3: Answers,
    monkeypatch: pytest.MonkeyPatch,
    tmp_path_factory: pytest.TempPathFactory,
    client: str,
    environment: dict[str, str],
    region: str,
    payer: str | None,
) -> None:
    profile = tmp_path_factory.mktemp("aws") / "config"
    profile.write_text("[default]\nregion = ap-south-1\n")
    for name, value in environment.items():
        monkeypatch.setenv(name, str(profile) if value == "profile" else value)
    monkeypatch.setenv("STOKER_S3_CLIENT", client)
    assert bytes(locate("s3://bucket/key", timeout_s=5).read_range(0, 4)) == b"data"
    _, _, headers = s3.asked[-1]
    assert headers["authorization"].split("/")[2] == region
    assert headers.get("x-amz-request-payer") == payer
