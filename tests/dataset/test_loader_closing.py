"""A loader that is closed, moved or ended while a loop runs over it: the promised error, and no thread that stays."""

from __future__ import annotations

import random
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from loops import SHARDS, loader, wait_for_threads
from made import write_dataset
from stoker.dataset import Loader, read_pool
from stoker.dataset.decode import EvaluationImages
from stoker.dataset.format.manifest import Manifest, Split, read_manifest, write_manifest
from stoker.dataset.undecodable import UndecodableImage, UndecodableSample
from stoker.errors import DatasetError
from stoker.storage import Location


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Location:
    return write_dataset(str(tmp_path_factory.mktemp("data")), {"train": SHARDS})


@pytest.fixture(autouse=True)
def no_thread_stays() -> Iterator[None]:
    yield
    wait_for_threads()


def test_a_position_loaded_in_a_loop_is_the_next_loops(root: Location) -> None:
    made = loader(root)
    for taken, batch in enumerate(made):
        if taken == 0:
            made.load_state_dict({"epoch": 3, "step": 2})
        assert batch.epoch == 0
        if taken == 15:
            break
    assert (made.state_dict()["epoch"], made.state_dict()["step"]) == (3, 2)
    batch = next(iter(made))
    assert (batch.epoch, batch.step) == (3, 2)


def test_closing_ends_a_loop_that_is_running(root: Location) -> None:
    made = loader(root)
    running = iter(made)
    assert next(running).step == 0
    made.close()
    assert not [t.name for t in threading.enumerate() if t.name == "stoker-schedule"]
    with pytest.raises(RuntimeError, match="the loader was closed"):
        next(running)
    assert next(iter(made)).step == 0, "and it can be iterated over again"


@pytest.mark.parametrize(("batch", "micro"), [(0, 4), (24, 0), (24, -4), (24, 5)])
def test_sizes_that_make_no_batch_are_refused(root: Location, batch: int, micro: int) -> None:
    with pytest.raises(ValueError, match="must be a multiple"):
        loader(root, global_batch=batch, micro_batch=micro)


def test_a_sample_that_ends_the_loop_waits_for_no_read(root: Location, monkeypatch: pytest.MonkeyPatch) -> None:
    submit, hanging, hangs = read_pool.ReadPool.submit, threading.Event(), threading.Event()

    def submitted(pool: Any, urgency: int, read: Callable[[], object]) -> object:
        def hang() -> object:
            hanging.set()
            hangs.wait(120)
            return read()

        return submit(pool, urgency, hang if urgency else read)  # 0: those of the first step

    class Broken(EvaluationImages):
        def decode(self, *_: object) -> dict[int, UndecodableSample]:
            hanging.wait(60)
            return {0: UndecodableImage("broken")}

    monkeypatch.setattr(read_pool.ReadPool, "submit", submitted)
    ended: list[BaseException] = []

    def run() -> None:
        try:
            next(iter(loader(root, decoder=Broken(16, 16))))
        except BaseException as error:
            ended.append(error)

    thread = threading.Thread(target=run, daemon=True)
    thread.start()
    thread.join(90)
    try:
        assert [type(error) for error in ended] == [DatasetError], "it waits for a read that hangs"
    finally:
        hangs.set()
        thread.join()


def test_closing_in_another_thread_ends_a_loop_as_promised(root: Location) -> None:
    class Slow(EvaluationImages):
        def decode(self, *arguments: Any) -> dict[int, UndecodableSample]:
            time.sleep(0.002)
            return super().decode(*arguments)

    draw = random.Random(3)
    for _ in range(25):
        made, begun = loader(root, decoder=Slow(16, 16)), threading.Event()
        ended: list[BaseException] = []

        def run(made: Loader = made, begun: threading.Event = begun, ended: list[BaseException] = ended) -> None:
            try:
                while True:
                    for _ in made:
                        begun.set()
            except BaseException as caught:
                ended.append(caught)

        thread = threading.Thread(target=run, daemon=True)
        thread.start()
        begun.wait(60)
        time.sleep(draw.random() * 0.02)
        made.close()
        thread.join(60)
        made.close()
        assert [(type(error), str(error)) for error in ended] == [
            (RuntimeError, "the loader was closed while it was iterated over")
        ]


def test_of_two_loops_the_one_begun_last_moves_the_position(root: Location) -> None:
    made = loader(root)
    one = iter(made)
    next(one)
    other = iter(made)
    for _ in range(15):
        next(other)
    state = made.state_dict()
    for _ in range(9):
        next(one)
    assert made.state_dict() == state
    made.close()


def test_a_split_without_samples_is_named(tmp_path: Path) -> None:
    empty = write_dataset(str(tmp_path), {"train": SHARDS[:1]})
    manifest = read_manifest(empty)
    write_manifest(empty, Manifest(manifest.classes, {"train": Split(0, ())}))
    with pytest.raises(DatasetError, match="the split 'train' has no samples"):
        loader(empty)
