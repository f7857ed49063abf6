"""Which nodes count, which are left out, and which comes nearest to a worker, from what Ray's head says of them."""

from __future__ import annotations

import socket
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from ray.core.generated import autoscaler_pb2

from made import write_dataset
from stoker import storage
from stoker.storage import locate
from stoker.training.fault_tolerance import capacity
from stoker.training.fault_tolerance.capacity import (
    Capacity,
    can_grow,
    capacity_for,
    nearest_node,
    nodes_and_types,
    silent_nodes,
    usable_nodes,
    workers_that_fit,
)
from stoker.training.fault_tolerance.left_out import LeftOutNodes, StoreProbe, forget_left_out, left_out_nodes, run_key
from training.fault_tolerance.test_policy_bounds import Head

ONE = {"CPU": 2.0}


class Cluster:
    """What the head says: nodes with their resources, those that drain, what is free, and node types."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, port: int) -> None:
        self.nodes: list[dict[str, Any]] = []
        self.draining: dict[str, int] = {}
        self.free: dict[str, dict[str, float]] = {}
        self.groups: dict[str, dict[str, Any]] = {}
        self.config: Any = None
        self._port = port
        state = capacity.ray._private.state
        monkeypatch.setattr(capacity.ray, "nodes", lambda: self.nodes)
        monkeypatch.setattr(state.state, "get_draining_nodes", lambda: self.draining or None)
        monkeypatch.setattr(state.state, "get_cluster_config", lambda: self.config)
        monkeypatch.setattr(state, "available_resources_per_node", lambda: self.free)
        monkeypatch.setattr(capacity, "placement_group_table", lambda: self.groups)

    def add(self, name: str, *, cpus: float = 4.0, gpus: float = 0.0, alive: bool = True, answers: bool = True) -> None:
        resources = {"CPU": cpus} | ({"GPU": gpus} if gpus else {})
        port = self._port if answers else 9
        entry = {"NodeID": name, "Alive": alive, "Resources": resources}
        self.nodes.append(entry | {"NodeManagerAddress": "127.0.0.1", "NodeManagerPort": port})
        self.free[name] = dict(resources)

    def types(self, *counts: int) -> None:
        """Of 8 CPUs the first, 9 the second, and so on; ``counts``: how many there may be."""
        self.config = autoscaler_pb2.ClusterConfig()
        for number, count in enumerate(counts):
            group = self.config.node_group_configs.add()
            group.resources["CPU"] = 8 + number
            group.max_count = count


@pytest.fixture
def cluster(monkeypatch: pytest.MonkeyPatch) -> Iterator[Cluster]:
    with socket.create_server(("127.0.0.1", 0), backlog=64) as raylet:
        yield Cluster(monkeypatch, raylet.getsockname()[1])


def test_only_nodes_that_live_answer_and_do_not_drain_are_used(cluster: Cluster) -> None:
    cluster.add("good")
    cluster.add("dead", alive=False)
    cluster.add("silent", answers=False)
    cluster.add("drains")
    assert silent_nodes() == {"silent"}
    assert set(usable_nodes()) == {"good", "drains"}
    cluster.draining = {"drains": 0}
    assert usable_nodes() == {"good": {"CPU": 4.0}}
    assert silent_nodes() == {"silent"}, "a dead node is not asked"


def test_many_nodes_are_probed_at_once_and_none_is_no_trouble(cluster: Cluster) -> None:
    assert silent_nodes() == set()
    for number in range(3):
        cluster.add(f"n{number}", answers=number != 1)
    assert silent_nodes() == {"n1"}


def test_room_counts_what_is_free_and_what_the_run_itself_holds(cluster: Cluster) -> None:
    cluster.add("a")
    cluster.add("b")
    cluster.add("c")
    cluster.free = {"a": {"CPU": 1.0}, "b": {"CPU": 4.0}}  # on c nothing is free
    assert capacity_for("run", ONE) == Capacity(now=2, total=6)
    group = {"bundles": {0: {"CPU": 2.0}, 1: {"CPU": 2.0}}, "bundles_to_node_id": {0: "a", 1: "gone"}}
    cluster.groups = {
        "own": {"name": "run/1", "state": "CREATED", **group},
        "removed": {"name": "run/0", "state": "REMOVED", **group},
        "another's": {"name": "runner/1", "state": "CREATED", **group},
    }
    assert capacity_for("run", ONE) == Capacity(now=3, total=6)
    assert capacity_for("run", ONE, {"b"}) == Capacity(now=1, total=4)
    on_c = {"bundles": {0: {"CPU": 3.0}}, "bundles_to_node_id": {0: "c"}}
    cluster.groups = {"own": {"name": "run/1", "state": "CREATED", **on_c}}
    assert capacity_for("run", ONE).now == 3, "a run's three CPUs, where nothing else is free, hold one worker"
    cluster.groups["own"]["state"] = "REMOVED"
    assert capacity_for("run", ONE).now == 2


def test_the_nearest_node_has_most_of_what_is_scarcest() -> None:
    worker = {"CPU": 8.0, "GPU": 1.0}
    assert nearest_node(worker, []) is None
    assert nearest_node(worker, [{"CPU": 8.0, "GPU": 1.0}, {"CPU": 1.0}]) is None
    assert nearest_node(worker, [{"CPU": 7.9999999, "GPU": 1.0}]) is None, "Ray counts ten-thousandths"
    assert nearest_node(worker, [{"CPU": 64.0}, {"CPU": 4.0, "GPU": 4.0}]) == {"CPU": 4.0, "GPU": 4.0}
    assert nearest_node(worker, [{"CPU": 2.0, "GPU": 1.0}, {"CPU": 6.0, "GPU": 1.0}]) == {"CPU": 6.0, "GPU": 1.0}
    assert nearest_node(worker, [{"CPU": 2.0, "GPU": 1.0}, {"CPU": 6.0, "GPU": 0.5}]) == {"CPU": 6.0, "GPU": 0.5}
    assert nearest_node(worker, [{"memory": 9.0}]) == {"CPU": 0.0, "GPU": 0.0}


def test_where_no_worker_fits_there_is_a_nearest_node_however_little_it_lacks() -> None:
    node = {"CPU": 7.9998}
    assert workers_that_fit({"CPU": 8.0}, {"a": node}) == 0
    assert nearest_node({"CPU": 8.0}, [node]) == node


def test_node_types_count_as_what_there_may_be(cluster: Cluster) -> None:
    cluster.add("a")
    cluster.add("dead", alive=False, cpus=99)
    assert nodes_and_types() == [{"CPU": 4.0}]
    assert not can_grow(ONE)
    cluster.types(0, 2)
    assert nodes_and_types() == [{"CPU": 4.0}, {"CPU": 9.0}]
    assert can_grow(ONE)
    assert not can_grow({"CPU": 10.0}), "no type holds such a worker"
    cluster.nodes = []
    cluster.types(1)
    assert can_grow(ONE)
    cluster.add("a")
    cluster.types(0, 1)
    assert not can_grow(ONE), "what there may be is there"
    assert can_grow({"CPU": 9.0}), "the node that is there is too small to be one of these"
    cluster.types(-1)
    assert can_grow(ONE), "without a limit"


def test_a_node_is_left_out_while_the_others_have_room_and_is_remembered(
    cluster: Cluster, monkeypatch: pytest.MonkeyPatch
) -> None:
    head = Head(monkeypatch)
    for name in ("a", "b", "c"):
        cluster.add(name)
    nodes = LeftOutNodes("run-1.1", ONE, least=4)
    assert left_out_nodes("run-1") == frozenset()
    assert nodes.add("a")
    assert not nodes.add("b"), "c alone has room for two of four"
    assert not nodes.add(""), "a node that is unknown"
    assert left_out_nodes("run-1") == {"a"}
    assert list(head) == [b"stoker/left-out/run-1"], "a driver of another version finds it, too"
    assert left_out_nodes("run-2") == frozenset()
    cluster.types(9)
    assert LeftOutNodes("run-1.2", ONE, least=4).add("b"), "the autoscaler may bring another"
    assert left_out_nodes("run-1") == {"a", "b"}
    head.is_away = True
    assert left_out_nodes("run-1") == frozenset()
    assert not nodes.add("c")
    forget_left_out("run-1")
    head.is_away = False
    forget_left_out("run-1")
    assert not head


def test_a_runs_key_is_that_of_all_its_trainers() -> None:
    assert run_key("my.run-0a1b.1") == run_key("my.run-0a1b.12") == "my.run-0a1b"


def test_a_store_is_reached_if_the_data_can_be_read_and_the_run_be_written(tmp_path: Path) -> None:
    write_dataset(str(tmp_path / "data"), {"train": [3], "validation": [2]})
    probe = StoreProbe(str(tmp_path / "data"), str(tmp_path / "run"))
    shard = str(tmp_path / "data/train/0.tar")
    assert probe(shard) is True
    assert probe(str(tmp_path / "run/checkpoints/x")) is True
    assert probe(probe.run) is True
    assert probe(probe.data) is True
    assert probe("s3://weights/x") is False, "a place that was not asked"
    assert probe(str(tmp_path / "data2/x")) is False, "another place whose name begins alike"
    assert not list((tmp_path / "run").iterdir()), "nothing is left behind"
    assert StoreProbe(str(tmp_path / "none"), probe.run)(probe.run) is False
    (tmp_path / "file").write_text("no folder")
    assert StoreProbe(probe.data, str(tmp_path / "file"))(shard) is False


def test_a_store_is_asked_for_seconds_not_as_long_as_a_worker_would(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_dataset(str(tmp_path / "data"), {"train": [3], "validation": [2]})
    told: dict[str, float] = {}

    def noting(url: str, **how: float) -> storage.Location:
        told.update({Path(url).name: seconds for seconds in how.values()})
        return locate(url, **how)

    monkeypatch.setattr(storage, "locate", noting)
    assert StoreProbe(str(tmp_path / "data"), str(tmp_path / "run"))(str(tmp_path / "run")) is True
    assert told == {"data": 5.0, "run": 5.0}


def test_workers_fit_by_their_scarcest_resource() -> None:
    assert workers_that_fit({"CPU": 2.0}, {"a": {"CPU": 3.99}, "b": {"CPU": 3.99999}}) == 3


@pytest.mark.parametrize(("free", "fits"), [(3.9999, 0), (3.99994, 0), (3.99996, 1), (4.0, 1)])
def test_what_is_free_counts_to_the_nearest_ten_thousandth(free: float, fits: int) -> None:
    """Ray gives out ten-thousandths and reports what is left in binary: less than half of one is rounding."""
    assert workers_that_fit({"CPU": 4.0}, {"a": {"CPU": free}}) == fits
