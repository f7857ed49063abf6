"""Range reads through a proxy that injects faults: the right bytes or one clear error, and counters that say why."""

from __future__ import annotations

import os
import subprocess
import sys
import time
import zlib
from collections.abc import Callable

import pytest

from conftest import Store, environment_with
from faults.proxy import Fault, FaultProxy
from stoker.errors import StorageError
from stoker.storage import Location, Reads, locate
from stoker.storage.retry import BadBody

pytestmark = pytest.mark.store

DATA = os.urandom(600_000)
START, STOP = 1_000, 501_000
# (fault, the counter that it goes to)
PASSING = [
    ("error", "server_errors"),
    ("slow_down", "slow_downs"),
    ("refuse", "resets"),
    ("reset", "resets"),
    ("cut", "resets"),
    ("short", "bad_bodies"),
    ("stall_headers", "deadlines"),
    ("stall", "deadlines"),
    ("flip", "bad_bodies"),
]


@pytest.fixture(scope="module")
def written(store: Store) -> str:
    place = locate(store.fresh("faults")) / "data"
    place.write(DATA)
    return place.url


@pytest.fixture
def place(written: str, proxy: FaultProxy) -> Location:
    return locate(written, timeout_s=30)


def must_be(expected: bytes) -> Callable[[memoryview], None]:
    """A check that knows the bytes by their checksum alone, as readers do."""
    wanted = zlib.crc32(expected)

    def check(data: memoryview) -> None:
        if zlib.crc32(data) != wanted:
            raise BadBody("wrong checksum")

    return check


def read(place: Location, reads: Reads, start: int = START, stop: int = STOP) -> memoryview:
    return place.read_range(start, stop, must_be(DATA[start:stop]), reads=reads)


@pytest.mark.parametrize(("kind", "counter"), PASSING)
def test_a_fault_that_passes_is_read_again_and_counted(
    kind: str, counter: str, place: Location, proxy: FaultProxy, client: str
) -> None:
    reads = Reads(deadline_s=0.7 if kind.startswith("stall") else 20.0)
    read(place, reads, 0, 10)
    with proxy.faults(Fault(kind, times=2)):
        assert read(place, reads) == DATA[START:STOP]
        assert proxy.done[kind] == 2
    counted = reads.counters.snapshot()
    # aiohttp sends a request once more on its own when a kept connection is closed before an answer
    unseen = 1 if (client, kind) == ("s3fs", "refuse") else 0
    assert counted[counter] >= 2 - unseen
    assert counted["retries"] == counted["requests"] - 2
    assert counted["bytes"] == 10 + STOP - START
    assert counted["backoff_s"] > 0


@pytest.mark.usefixtures("client")
@pytest.mark.parametrize(("kind", "counter"), PASSING)
def test_a_fault_that_stays_is_one_clear_error_within_the_timeout(
    kind: str, counter: str, place: Location, proxy: FaultProxy
) -> None:
    reads = Reads(deadline_s=20.0)
    read(place, reads, 0, 10)
    with proxy.faults(Fault(kind)):
        began = time.monotonic()
        with pytest.raises(StorageError) as raised:
            read(place.with_timeout(0.6), reads)
        assert time.monotonic() - began < 10  # not the deadline, not the stall
    assert f"cannot read {place.url}: no valid response in 0.6 s" in str(raised.value)
    assert "\n" not in str(raised.value)
    assert reads.counters.snapshot()[counter] >= 1


@pytest.mark.usefixtures("client")
def test_many_reads_under_many_faults_are_all_exact(place: Location, proxy: FaultProxy) -> None:
    reads = Reads(deadline_s=20.0)
    kinds = [kind for kind, _ in PASSING if not kind.startswith("stall")]
    with proxy.faults(*(Fault(kind, probability=0.05) for kind in kinds)):
        for start in range(0, 500_000, 25_000):
            assert read(place, reads, start, start + 100_000) == DATA[start : start + 100_000]
        done = proxy.done.total()
    counted = reads.counters.snapshot()
    assert 0 < counted["retries"] <= done  # aiohttp hides some of the connections that are reset
    assert counted["bytes"] == 20 * 100_000


@pytest.mark.usefixtures("client")
def test_a_slow_link_is_no_fault(place: Location, proxy: FaultProxy) -> None:
    reads = Reads(deadline_s=20.0)
    with proxy.faults(Fault("slow", bytes_per_s=2_000_000)):
        assert read(place, reads) == DATA[START:STOP]
    assert reads.counters.retries == 0


@pytest.mark.usefixtures("client")
def test_what_is_refused_is_refused_at_once(place: Location, proxy: FaultProxy) -> None:
    reads = Reads()
    with proxy.faults(Fault("answer", status=403, code="AccessDenied")):
        with pytest.raises(StorageError, match=r"not permitted to read s3://.*AWS_ACCESS_KEY_ID"):
            read(place, reads)
        assert proxy.requests == 1
    assert reads.counters.refusals == 1


@pytest.mark.usefixtures("client", "proxy")
def test_an_absent_object_is_not_found(store: Store) -> None:
    with pytest.raises(FileNotFoundError):
        locate(store.fresh("absent")).read_range(0, 10)


@pytest.mark.usefixtures("client")
def test_a_second_request_wins_over_one_that_hangs(place: Location, proxy: FaultProxy) -> None:
    reads = Reads(deadline_s=20.0, hedge_percentile=90)
    for _ in range(40):
        read(place, reads, 0, 1000)
    for _ in range(20):  # the stall may meet the second request instead
        with proxy.faults(Fault("stall", times=1)):
            assert read(place, reads, 0, 1000) == DATA[:1000]
        if reads.counters.hedges_won:
            break
    counted = reads.counters.snapshot()
    assert 1 <= counted["hedges_won"] <= counted["hedges"]
    assert counted["deadlines"] == counted["retries"] == 0


def test_obstore_is_used_unless_told_otherwise(place: Location, proxy: FaultProxy) -> None:
    with proxy.faults(Fault("error", times=1, client="object_store")):
        assert read(place, Reads()) == DATA[START:STOP]
        assert proxy.done["error"] == 1


def test_s3fs_takes_over_where_obstore_misunderstands_the_store(
    place: Location, proxy: FaultProxy, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("AWS_SDK_UA_APP_ID", "misunderstood")  # another environment, another client
    reads = Reads()
    with proxy.faults(Fault("answer", status=400, code="AuthorizationHeaderMalformed", client="object_store")):
        for _ in range(3):
            assert read(place, reads) == DATA[START:STOP]
        assert proxy.done["answer"] == 1
    assert reads.counters.retries == 0


FORK = """
import os, sys
from stoker.storage import locate
place = locate(sys.argv[1], timeout_s=20)
assert len(place.read_range(0, 1000)) == 1000
child = os.fork()
if child == 0:
    os._exit(0 if len(place.read_range(0, 1000)) == 1000 else 1)
sys.exit(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]))
"""


@pytest.mark.usefixtures("store")
def test_a_forked_process_reads_too(written: str) -> None:
    done = subprocess.run([sys.executable, "-c", FORK, written], timeout=120, check=False)
    assert done.returncode == 0


def test_the_clients_see_the_credentials_of_a_profile(
    store: Store, place: Location, client: str, tmp_path: os.PathLike[str]
) -> None:
    known = store.environment()
    file = os.path.join(tmp_path, "credentials")
    with open(file, "w") as out:
        out.write(
            f"[somebody]\naws_access_key_id = {known['AWS_ACCESS_KEY_ID']}\n"
            f"aws_secret_access_key = {known['AWS_SECRET_ACCESS_KEY']}\n"
        )
    without_keys = pytest.MonkeyPatch()
    without_keys.delenv("AWS_ACCESS_KEY_ID")
    without_keys.delenv("AWS_SECRET_ACCESS_KEY")
    try:
        with environment_with({"AWS_SHARED_CREDENTIALS_FILE": file, "AWS_PROFILE": "somebody"}):
            assert read(place, Reads()) == DATA[START:STOP]
    finally:
        without_keys.undo()


@pytest.mark.usefixtures("client")
def test_wrong_credentials_are_one_clear_line_without_the_secret(place: Location) -> None:
    refused = pytest.raises(StorageError, match="not permitted to read")
    with environment_with({"AWS_SECRET_ACCESS_KEY": "not-the-secret"}), refused as raised:
        read(place, Reads())
    assert "not-the-secret" not in str(raised.value)


@pytest.mark.usefixtures("client")
@pytest.mark.parametrize("name", ["with space", "per%20cent", "plus+é", "a=b&c", "tilde~(1)"])
def test_unusual_keys_are_read(name: str, store: Store) -> None:
    place = locate(store.fresh("keys")) / name
    place.write(b"0123456789")
    assert place.read_range(2, 5) == b"234"


def test_a_key_that_obstore_would_change_is_read_by_s3fs(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    place = Location(f"{store.fresh('keys')}/deep//er", 20)
    place.write(b"0123456789")
    assert place.read_range(2, 5) == b"234"
    monkeypatch.setenv("STOKER_S3_CLIENT", "obstore")
    with pytest.raises(StorageError, match=r"it cannot read the key .*deep//er.*unset it to use s3fs"):
        place.read_range(2, 5)
