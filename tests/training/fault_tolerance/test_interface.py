"""The interface that ranks talk over."""

from __future__ import annotations

import psutil
import ray.util

from stoker.training.fault_tolerance.process_group import interface_of


def test_the_interface_is_that_of_the_address() -> None:
    loopback = interface_of("127.0.0.1")
    assert loopback is not None
    assert "127.0.0.1" in [one.address for one in psutil.net_if_addrs()[loopback]]
    assert interface_of("203.0.113.9") is None  # of RFC 5737's, which no machine has


def test_the_address_of_this_node_has_an_interface() -> None:
    assert interface_of(ray.util.get_node_ip_address()) is not None
