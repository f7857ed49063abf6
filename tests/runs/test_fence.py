"""The fence: of several attempts at a run the newest alone changes its checkpoints, whenever the others wake up."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from stoker.errors import RunError, StorageError
from stoker.runs.checkpoint_writer import CheckpointWriter
from stoker.runs.checkpoints import latest_checkpoint, list_checkpoints
from stoker.runs.fence import Fence
from stoker.storage import Location, locate


@pytest.fixture
def run(tmp_path: Path) -> Location:
    return locate(tmp_path / "runs" / "mine", timeout_s=1)


def fence(run: Location, order: tuple[int, int], lease: str = "driver") -> Fence:
    return Fence(run / "attempt.json", run / "checkpoints", lease=lease, order=order)


def attempt(run: Location, number: int, keep: int = 1) -> tuple[Fence, CheckpointWriter]:
    made = fence(run, (0, number))
    return made, CheckpointWriter(run / "checkpoints", keep, fence=made)


def save(writer: CheckpointWriter, step: int) -> None:
    writer.save(step, {"model.safetensors": {"w": torch.full((2,), float(step))}}, {"step": step})
    writer.wait()


def save_unpruned(writer: CheckpointWriter, step: int) -> None:
    """Commit, as if the writer had not come to delete older ones yet."""
    prune, writer._prune = writer._prune, lambda: None  # type: ignore[method-assign]
    save(writer, step)
    writer._prune = prune  # type: ignore[method-assign]


def test_an_attempt_that_was_superseded_commits_nothing(run: Location) -> None:
    old, old_writer = attempt(run, 1)
    old.claim()
    save(old_writer, 10)
    attempt(run, 2)[0].claim()
    with pytest.raises(RunError, match=r"run 'mine': these workers were superseded by those that began at 20.*json"):
        save(old_writer, 20)
    assert list_checkpoints(run / "checkpoints") == [10]


def test_an_attempt_that_was_superseded_deletes_nothing(run: Location) -> None:
    old, old_writer = attempt(run, 1)
    old.claim()
    save(old_writer, 10)
    attempt(run, 2)[0].claim()
    (run / "checkpoints" / "00000009-cafe" / "model.safetensors").write(b"half")
    with pytest.raises(RunError, match="superseded"):
        old_writer.clean()
    assert "00000009-cafe" in (run / "checkpoints").children()


def test_an_attempt_that_is_superseded_while_it_deletes_spares_what_the_newer_one_writes(
    run: Location, monkeypatch: pytest.MonkeyPatch
) -> None:
    old, old_writer = attempt(run, 1)
    new, new_writer = attempt(run, 2)
    old.claim()
    save(old_writer, 10)
    folder = run / "checkpoints"
    (folder / "00000008-dead" / "model.safetensors").write(b"half")
    check = old.check

    def superseded_after() -> None:
        check()
        new.claim()
        (folder / "00000009-cafe" / "model.safetensors").write(b"half")
        save_unpruned(new_writer, 5)

    monkeypatch.setattr(old, "check", superseded_after)
    old_writer.clean()
    assert list_checkpoints(folder) == [5, 10]
    assert "00000009-cafe" in folder.children()
    assert "00000008-dead" not in folder.children()


def test_a_suspended_attempt_that_claims_late_is_refused(run: Location) -> None:
    late = fence(run, (0, 1))
    new = fence(run, (0, 2))
    new.claim()
    with pytest.raises(RunError, match="superseded"):
        late.claim()
    with pytest.raises(RunError, match="superseded"):
        fence(run, (0, 2)).claim()
    new.check()
    fence(run, (1, 1)).claim()  # of the driver's next controller
    with pytest.raises(RunError, match="superseded"):
        new.check()


def test_another_driver_claims_whatever_the_number_of_the_attempt_before(run: Location) -> None:
    old, new = fence(run, (3, 7)), fence(run, (0, 1), lease="next driver")
    old.claim()
    new.claim()
    with pytest.raises(RunError, match="superseded"):
        old.check()
    new.check()


def test_of_two_that_claim_at_once_the_later_attempt_holds_the_fence(
    run: Location, monkeypatch: pytest.MonkeyPatch
) -> None:
    old, new = fence(run, (0, 1)), fence(run, (0, 2))

    def meanwhile() -> None:
        monkeypatch.setattr(old, "_check_lease", lambda: None)
        new.claim()

    monkeypatch.setattr(old, "_check_lease", meanwhile)
    with pytest.raises(RunError, match="superseded"):
        old.claim()
    new.check()


def test_a_commit_whose_manifest_was_not_written_is_completed_by_the_next_attempt(run: Location) -> None:
    old, writer = attempt(run, 1)
    old.claim()
    save(writer, 10)
    folder = run / "checkpoints"
    manifest = (folder / "00000010.json").read()
    (folder / "00000010.json").delete()
    old._folder = locate(__file__, timeout_s=0.1)  # nothing can be written below a file
    with pytest.raises(StorageError):
        old.commit("00000010.json", manifest)
    assert latest_checkpoint(folder) is None
    new = fence(run, (0, 2))
    new.claim()
    found = latest_checkpoint(folder)
    assert found is not None
    assert found.step == 10
    assert torch.equal(found.weights()["w"], torch.full((2,), 10.0))


def test_a_manifest_that_a_person_deletes_is_not_written_again(run: Location) -> None:
    old, writer = attempt(run, 1, keep=2)
    old.claim()
    save(writer, 10)
    save(writer, 20)
    (run / "checkpoints" / "00000020.json").delete()
    fence(run, (0, 2)).claim()
    assert list_checkpoints(run / "checkpoints") == [10]


def test_a_run_from_before_the_fence_and_a_damaged_one_are_claimed(run: Location) -> None:
    save(CheckpointWriter(run / "checkpoints", 3), 10)
    new, writer = attempt(run, 1)
    new.claim()
    save(writer, 20)
    assert list_checkpoints(run / "checkpoints") == [20]
    (run / "attempt.json").write(b"{")
    with pytest.raises(RunError, match="superseded by an unknown attempt"):
        new.check()
    fence(run, (0, 2)).claim()
