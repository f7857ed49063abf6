"""A store of its own, stopped, killed and started again."""

from __future__ import annotations

import json
import os
import tempfile
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest

from conftest import environment_with
from stoker.embedded import ObjectStore, Settings, StateFolder
from stoker.embedded.ports import is_free
from stoker.errors import ClusterError
from stoker.storage import locate

pytestmark = pytest.mark.store


@pytest.fixture
def own(tmp_path: Path, settings: Settings) -> Iterator[ObjectStore]:
    store = ObjectStore(StateFolder(tmp_path / "state"), settings)
    try:
        yield store
    finally:
        store.stop()


def listening(store: ObjectStore) -> set[tuple[str, int]]:
    process = store.process()
    assert process is not None
    connections = psutil.Process(process.pid).net_connections("tcp")
    return {(c.laddr.ip, c.laddr.port) for c in connections if c.status == psutil.CONN_LISTEN}


def ports(store: ObjectStore) -> list[int]:
    return list(json.loads((store.folder.path / "state.json").read_text())["store"]["ports"].values())


def test_data_survive_a_stop_and_a_kill_on_other_ports(own: ObjectStore) -> None:
    big = os.urandom(3_000_000)
    own.start()
    with environment_with(own.environment()):
        locate(f"{own.url}/kept/big").write(big)
        locate(f"{own.url}/kept/small").write(b"small")
    own.stop()
    own.start()
    with environment_with(own.environment()):
        assert locate(f"{own.url}/kept/big").read() == big
        locate(f"{own.url}/kept/late").write(b"late")
    process = own.process()
    assert process is not None
    psutil.Process(process.pid).kill()
    assert not own.is_healthy()
    own.start()
    with environment_with(own.environment()):
        assert locate(f"{own.url}/kept/big").read() == big
        assert list(locate(f"{own.url}/kept").walk()) == [("big", 3_000_000), ("late", 4), ("small", 5)]


def test_it_listens_on_loopback_only_and_leaves_nothing(own: ObjectStore) -> None:
    own.start()
    taken, process = ports(own), own.process()
    assert process is not None
    assert listening(own) == {("127.0.0.1", port) for port in taken}
    assert (own.folder.path / "s3.json").stat().st_mode & 0o777 == 0o600
    assert own.stop() == 1
    assert all(is_free(port) for port in taken)
    assert not process.is_alive()
    temporary = Path(tempfile.gettempdir())
    assert not (temporary / f"stoker-{own.folder.instance}").exists()
    assert not [path for port in taken for path in Path("/tmp").glob(f"seaweedfs-*{port}*")]
    assert not (own.folder.path / "state.json").exists()


def test_a_second_start_reuses_it_and_a_lost_or_wrong_note_does_not_matter(own: ObjectStore) -> None:
    own.start()
    first, endpoint = own.process(), own.endpoint
    own.start()
    assert own.process() == first
    assert own.endpoint == endpoint
    assert first is not None
    (own.folder.path / "state.json").write_text('{"store": {"ports": {"s3": 1}, "pid": 1, "sta')
    own.start()
    assert not first.is_alive()
    assert own.is_healthy()
    taken = ports(own)
    (own.folder.path / "state.json").unlink()
    assert own.stop() == 1
    assert not [path for port in taken for path in Path("/tmp").glob(f"seaweedfs-*{port}*")]


def test_a_store_that_does_not_run_says_how_to_start_it(tmp_path: Path) -> None:
    store = ObjectStore(StateFolder(tmp_path))
    assert not store.is_healthy()
    with pytest.raises(ClusterError, match=r"no object store runs in .*; start it with: stoker up"):
        store.environment()
