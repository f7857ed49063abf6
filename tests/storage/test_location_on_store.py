"""Locations on a real S3 store: one winner among racing writers, one clear line for what is refused or out of reach."""

from __future__ import annotations

import os
import subprocess
import sys
import threading
from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor

import pytest

from conftest import Store
from stoker.embedded.ports import free_ports
from stoker.storage import Conflict, Location, locate

pytestmark = pytest.mark.store


def race(attempt: Callable[[int], None]) -> list[int]:
    """The numbers of those of 8 threads, let go together, whose attempt raised no conflict."""
    together = threading.Barrier(8)

    def run(number: int) -> bool:
        together.wait()
        try:
            attempt(number)
        except Conflict:
            return False
        return True

    with ThreadPoolExecutor(8) as pool:
        return [number for number, won in enumerate(pool.map(run, range(8))) if won]


def read_elsewhere(url: str, environment: Mapping[str, str | None]) -> str:
    """What a program prints on standard error that reads ``url`` under another environment."""
    program = (
        "import sys; from stoker.command import run_command; from stoker.storage import locate\n"
        "run_command(lambda arguments: print(locate(arguments[0], timeout_s=2).read()))"
    )
    variables = {**os.environ, **environment}
    done = subprocess.run(
        [sys.executable, "-c", program, url],
        env={name: value for name, value in variables.items() if value is not None},
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert done.returncode == 2, done
    assert done.stdout == ""
    return done.stderr


@pytest.fixture
def place(store: Store) -> Location:
    return locate(store.fresh("location"))


def test_what_was_written_is_read_and_listed(place: Location) -> None:
    (place / "a" / "b.bin").write(b"0123456789")
    (place / "c").write(b"")
    assert (place / "a/b.bin").read() == b"0123456789"
    assert (place / "a/b.bin").read_range(2, 5) == b"234"
    assert place.children() == ["a", "c"]
    assert list(place.walk()) == [("a/b.bin", 10), ("c", 0)]
    assert not (place / "a").exists()


def test_a_large_object_comes_back_whole(place: Location) -> None:
    data = os.urandom(60_000_000)  # more than one part of a multipart upload
    (place / "large").write(data)
    assert (place / "large").read() == data
    assert (place / "large").read_range(49_999_990, 50_000_010) == data[49_999_990:50_000_010]


def test_deleting_takes_everything_below(place: Location) -> None:
    (place / "a" / "b").write(b"x")
    (place / "ab").write(b"x")
    (place / "a").delete()
    (place / "absent").delete()
    assert list(place.walk()) == [("ab", 1)]
    assert not (place / "a/b").exists()


def test_create_refuses_to_overwrite(place: Location) -> None:
    (place / "a").create(b"first")
    with pytest.raises(Conflict, match="exists already"):
        (place / "a").create(b"second")
    (place / "a").create(b"first")


def test_one_of_many_creators_wins(place: Location) -> None:
    for turn in range(5):
        target = place / f"created-{turn}"
        winners = race(lambda number, target=target: target.create(f"writer {number}".encode()))
        assert len(winners) == 1
        assert target.read() == f"writer {winners[0]}".encode()


def test_one_of_many_swappers_wins(place: Location) -> None:
    target = place / "swapped"
    target.write(b"before")
    for _ in range(5):
        found = target.version()
        assert found is not None
        winners = race(lambda number, seen=found[1]: target.swap(os.urandom(8) + bytes([number]), seen))
        assert len(winners) == 1
        assert target.read()[-1] == winners[0]


def test_an_absent_object_is_not_found(place: Location) -> None:
    with pytest.raises(FileNotFoundError):
        (place / "absent").read()
    assert (place / "absent").version() is None
    assert place.children() == []


def test_wrong_credentials_are_one_clear_line(place: Location) -> None:
    (place / "a").write(b"x")
    said = read_elsewhere(f"{place}/a", {"AWS_SECRET_ACCESS_KEY": "wrong"})
    assert said.startswith(f"error: not permitted to read {place}/a")
    assert "AWS_ACCESS_KEY_ID" in said
    assert said.count("\n") == 1


def test_an_unknown_key_is_one_clear_line(place: Location) -> None:
    said = read_elsewhere(f"{place}/a", {"AWS_ACCESS_KEY_ID": "NOBODY"})
    assert said.startswith(f"error: not permitted to read {place}/a")
    assert said.count("\n") == 1


def test_no_credentials_are_one_clear_line(place: Location) -> None:
    nothing = {
        "AWS_ACCESS_KEY_ID": None,
        "AWS_SECRET_ACCESS_KEY": None,
        "AWS_EC2_METADATA_DISABLED": "true",
        "AWS_SHARED_CREDENTIALS_FILE": "/nonexistent",
        "AWS_CONFIG_FILE": "/nonexistent",
    }
    said = read_elsewhere(f"{place}/a", nothing)
    assert said.startswith(f"error: cannot read {place}/a: no credentials found; set AWS_ACCESS_KEY_ID")
    assert said.count("\n") == 1


@pytest.mark.usefixtures("store")
def test_an_impossible_bucket_name_is_one_clear_line() -> None:
    said = read_elsewhere("s3://no spaces/a", {})
    assert said.startswith("error: cannot read s3://no spaces/a (")
    assert said.count("\n") == 1


@pytest.mark.usefixtures("store")
def test_a_bucket_that_is_not_there_is_not_found() -> None:
    with pytest.raises(FileNotFoundError):
        locate("s3://no-such-bucket-here/a").read()


@pytest.mark.usefixtures("store")
def test_a_store_out_of_reach_is_one_clear_line() -> None:
    said = read_elsewhere("s3://stoker/a", {"AWS_ENDPOINT_URL": f"http://127.0.0.1:{free_ports(1)[0]}"})
    assert said.startswith("error: cannot read s3://stoker/a: no valid response in 2 s")
    assert "AWS_ENDPOINT_URL" in said
    assert said.count("\n") == 1
