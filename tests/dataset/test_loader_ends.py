"""A loader that is left, closed, moved or dropped at any point: nothing hangs, no thread stays, no place is wrong."""

from __future__ import annotations

import random
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import torch

from loops import SHARDS, STEPS, loader, wait_for_threads, wait_until
from made import write_dataset
from stoker.dataset import Batch, Loader, read_pool
from stoker.storage import Location, ranges


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Location:
    return write_dataset(str(tmp_path_factory.mktemp("data")), {"train": SHARDS})


@pytest.fixture(autouse=True)
def no_thread_stays() -> Iterator[None]:
    yield
    wait_for_threads()


def in_time(function: Callable[[], None]) -> None:
    """Call ``function`` in a thread; a hang fails the test and does not stop the suite."""
    failed: list[BaseException] = []

    def run() -> None:
        try:
            function()
        except BaseException as error:
            failed.append(error)

    thread = threading.Thread(target=run, daemon=True)
    thread.start()
    thread.join(540)
    assert not thread.is_alive(), "hangs"
    if failed:
        raise failed[0]


def leave_early(root: Location, monkeypatch: pytest.MonkeyPatch, times: int) -> None:
    """Leave the loop after a random number of batches, while submissions and reads are late at random."""
    draw = random.Random(times)
    submit, read = read_pool.ReadPool.submit, ranges.read_file_range

    def late(pool: object, *arguments: object) -> object:
        time.sleep(draw.random() * 0.001)
        return submit(pool, *arguments)  # type: ignore[arg-type]

    def slow(path: str, start: int, stop: int) -> object:
        time.sleep(draw.random() * 0.001)
        return read(path, start, stop)

    monkeypatch.setattr(read_pool.ReadPool, "submit", late)
    monkeypatch.setattr(ranges, "read_file_range", slow)

    def leave() -> None:
        kept = loader(root)
        for _ in range(times):
            if draw.random() < 0.5:
                kept = loader(root)
            most = int(45 * draw.random() ** 3)  # mostly early
            for taken, _ in enumerate(kept):
                if taken == most:
                    break
            if draw.random() < 0.3:
                kept.close()

    in_time(leave)


def test_leaving_the_loop_at_any_point_never_hangs(root: Location, monkeypatch: pytest.MonkeyPatch) -> None:
    leave_early(root, monkeypatch, 40)


@pytest.mark.long
def test_leaving_the_loop_a_thousand_times_never_hangs(root: Location, monkeypatch: pytest.MonkeyPatch) -> None:
    leave_early(root, monkeypatch, 1000)


def first_at(loader: Loader, epoch: int, step: int) -> Batch:
    loader.load_state_dict({"epoch": epoch, "step": step})
    return next(iter(loader))


def seek(root: Location, times: int) -> None:
    """Seek to random places, in and out of the epoch, in the middle of an epoch or between two."""
    draw, kept = random.Random(times), loader(root)
    for _ in range(times):
        epoch, step = draw.randrange(-1, 3), draw.randrange(-3, STEPS + 3)
        if epoch < 0 or not 0 <= step < STEPS:
            with pytest.raises(ValueError, match=r"^(epoch|step): "):
                kept.load_state_dict({"epoch": epoch, "step": step})
            continue
        batch = first_at(kept, epoch, step)
        assert (batch.epoch, batch.step, batch.micro_batch) == (epoch, step, 0)
        assert batch.numbers.tolist() == kept.order(epoch).samples_at(step, range(4)).tolist()
        if draw.random() < 0.1:
            assert sum(1 for _ in kept) == (STEPS - step) * 6
            assert kept.state_dict()["epoch"] == epoch + 1


def test_a_position_gives_its_batch_or_is_refused(root: Location) -> None:
    in_time(lambda: seek(root, 40))


@pytest.mark.long
def test_a_thousand_positions_give_their_batches_or_are_refused(root: Location) -> None:
    in_time(lambda: seek(root, 1000))


@pytest.mark.parametrize(
    ("state", "line"),
    [
        ({"epoch": 0, "step": 999}, rf"step: 999 is not in an epoch of {STEPS} steps \(0 to {STEPS - 1}\)"),
        ({"epoch": 0, "step": STEPS}, rf"step: {STEPS} is not in an epoch"),
        ({"epoch": 0, "step": -3}, r"step: a position's step is a whole number from 0 on, not -3"),
        ({"epoch": -1, "step": 0}, r"epoch: .* not -1"),
        ({"epoch": 0, "step": 1.5}, r"step: .* not 1\.5"),
        ({"epoch": 0, "step": True}, r"step: .* not True"),
        ({"epoch": 0}, r"step: .* not None"),
        ({"epoch": 0, "step": 1, "order": 3}, r"order: a position's order is a mapping, not 3"),
        ({"epoch": 0, "step": 1, "order": {"seed": 3}}, r"order: a position's order lacks block_samples"),
        ({"epoch": 0, "step": 1, "order": {}}, r"order: a position's order lacks block_samples"),
        ([], r"a position is a mapping, not \[\]"),
        (None, r"a position is a mapping, not None"),
    ],
)
def test_what_is_no_position_is_refused(root: Location, state: object, line: str) -> None:
    made = loader(root)
    with pytest.raises(ValueError, match=line):
        made.load_state_dict(state)  # type: ignore[arg-type]
    assert made.state_dict()["step"] == 0


@pytest.mark.parametrize(
    ("options", "name"),
    [
        ({"seed": 4}, "seed"),
        ({"global_batch": 28}, "global_batch"),
        ({"shuffled": False}, "last_batch"),
    ],
)
def test_a_position_of_another_order_is_refused_by_name(root: Location, options: dict[str, object], name: str) -> None:
    state = loader(root).state_dict()
    with pytest.raises(ValueError, match=rf"^{name}: the position is of an order with .* this loader has"):
        loader(root, **options).load_state_dict(state)


def test_a_position_of_another_data_set_is_refused_by_name(root: Location, tmp_path: Path) -> None:
    other = write_dataset(str(tmp_path), {"train": [170]})
    with pytest.raises(ValueError, match=r"^fingerprint: the position is of an order with 'sha256:"):
        loader(other).load_state_dict(loader(root).state_dict())


def test_a_position_goes_to_another_rank_and_micro_batch(root: Location) -> None:
    state = loader(root).state_dict() | {"step": 2}
    resumed = loader(root, micro_batch=12, rank=1, world_size=2)
    resumed.load_state_dict(state)
    batch = next(iter(resumed))
    assert (batch.step, batch.micro_batch) == (2, 1)


def test_the_next_epoch_is_read_and_decoded_before_it_is_asked_for(
    root: Location, monkeypatch: pytest.MonkeyPatch
) -> None:
    alone = loader(root)
    alone.load_state_dict({"epoch": 1, "step": 0})
    expected = [batch.images for _, batch in zip(range(4), alone, strict=False)]
    del alone

    made, is_over, read = loader(root), threading.Event(), ranges.read_file_range
    assert {batch.epoch for batch in made} == {0}
    idle = made._idle
    assert idle is not None
    wait_until(idle._ready.gi_frame.f_locals["ready"].full)  # four micro-batches

    def refuse(path: str, start: int, stop: int) -> object:
        if is_over.is_set():
            return read(path, start, stop)
        raise AssertionError(f"read {path} from {start} after the epoch")

    monkeypatch.setattr(ranges, "read_file_range", refuse)
    following = iter(made)
    for images in expected:
        assert torch.equal(next(following).images, images)
    is_over.set()
    following.close()  # type: ignore[attr-defined]


def test_a_loader_reads_no_epoch_that_the_run_does_not_have(root: Location) -> None:
    made = loader(root, epochs=2)
    assert [len(list(made)) for _ in range(2)] == [STEPS * 6] * 2
    assert made._idle is None
    assert len(list(made)) == STEPS * 6, "a further epoch may be asked for all the same"


def test_an_evaluation_reads_nothing_after_its_last_batch(root: Location) -> None:
    made = loader(root, shuffled=False)
    list(made)
    assert made._idle is None


def test_a_loop_that_counts_its_batches_goes_on_with_the_next_epoch(root: Location) -> None:
    made = loader(root)
    for taken, _ in enumerate(made, 1):
        if taken == STEPS * 6:
            break
    assert (made.state_dict()["epoch"], made.state_dict()["step"]) == (1, 0)
    assert next(iter(made)).epoch == 1


def test_moving_between_two_epochs_drops_what_was_read_ahead(root: Location) -> None:
    made = loader(root)
    list(made)
    batch = first_at(made, 0, 2)
    assert (batch.epoch, batch.step) == (0, 2)


def test_closing_between_two_epochs_keeps_the_position(root: Location) -> None:
    made = loader(root)
    list(made)
    made.close()
    assert next(iter(made)).epoch == 1
