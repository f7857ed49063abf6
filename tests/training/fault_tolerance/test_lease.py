import subprocess
import sys
import threading
from dataclasses import replace
from pathlib import Path

import pytest

from stoker.errors import RunError
from stoker.storage import Location, locate
from stoker.training.fault_tolerance.lease import Holder, Lease, read_holder

PERIOD_S = 0.8


@pytest.fixture
def place(tmp_path: Path) -> Location:
    return locate(tmp_path / "runs" / "mine" / "lease.json", timeout_s=1)


def lease(place: Location) -> Lease:
    return Lease(place, period_s=PERIOD_S)


def of_another_machine(**changes: object) -> Holder:
    return replace(Holder.this_process(), machine="another", host="elsewhere", pid=4711, job="raysubmit_1", **changes)  # type: ignore[arg-type]


def test_a_second_driver_is_refused_and_told_who_the_first_is(place: Location) -> None:
    with (
        lease(place),
        pytest.raises(RunError, match=r"'mine' already has a driver: process \d+ on .* renewed its lease at 20"),
    ):
        lease(place).__enter__()
    with lease(place):
        pass  # it was given back


def test_a_dead_process_of_this_machine_is_succeeded_at_once(place: Location) -> None:
    took = "from stoker.training.fault_tolerance.lease import Lease; from stoker.storage import locate; import os, sys"
    code = f"{took}; Lease(locate(sys.argv[1])).__enter__(); os._exit(9)"
    subprocess.run([sys.executable, "-c", code, place.url], check=False)
    before = read_holder(place)
    assert before is not None
    assert before.is_gone() is True
    with Lease(place, period_s=3600):  # it would watch for an hour
        after = read_holder(place)
    assert after is not None
    assert after.token != before.token


def test_a_lease_of_another_machine_that_does_not_change_runs_out(place: Location) -> None:
    place.write(of_another_machine(renewed="2999-01-01T00:00:00+00:00").encoded())  # its clock is not asked
    with lease(place) as mine:
        assert read_holder(place).token == mine.token  # type: ignore[union-attr]


def test_a_lease_of_another_machine_that_changes_is_refused(place: Location) -> None:
    other = of_another_machine(renewed="2001-01-01T00:00:00+00:00")
    place.write(other.encoded())
    renewal = threading.Timer(PERIOD_S / 4, lambda: place.write(replace(other, beat=1).encoded()))
    renewal.start()
    with pytest.raises(RunError, match="process 4711 on elsewhere, job raysubmit_1 renewed its lease at 2001"):
        lease(place).__enter__()
    renewal.join()


def test_one_of_many_that_find_it_free_gets_it(place: Location) -> None:
    place.write(replace(of_another_machine(), released=True).encoded())
    held, refused = [], []

    def take() -> None:
        mine = lease(place)
        try:
            mine.__enter__()
            held.append(mine)
        except RunError:
            refused.append(mine)

    threads = [threading.Thread(target=take) for _ in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert (len(held), len(refused)) == (1, 5)
    held[0].__exit__()


def test_a_driver_that_stood_still_finds_that_it_lost_its_lease(place: Location) -> None:
    with lease(place) as mine:
        place.write(of_another_machine().encoded())
        assert mine.lost.wait(30)
    assert read_holder(place).host == "elsewhere"  # type: ignore[union-attr]


def test_a_request_to_stop_travels_in_the_lease(place: Location) -> None:
    with lease(place) as mine:
        mine.request_stop()
        assert read_holder(place).stops  # type: ignore[union-attr]
