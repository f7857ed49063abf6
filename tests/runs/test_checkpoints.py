import json
from pathlib import Path

import pytest
import safetensors.torch
import torch

from stoker.errors import RunError, StorageError
from stoker.runs.checkpoint_writer import CheckpointWriter
from stoker.runs.checkpoints import latest_checkpoint, list_checkpoints
from stoker.runs.fence import Fence
from stoker.runs.tensor_file import tensor_pieces
from stoker.storage import Location, locate


@pytest.fixture
def folder(tmp_path: Path) -> Location:
    return locate(tmp_path / "checkpoints", timeout_s=0.2)


def save(folder: Location, *steps: int, keep: int = 3) -> None:
    writer = CheckpointWriter(folder, keep)
    for step in steps:
        weights = {"weight": torch.full((3, 2), float(step)), "count": torch.tensor(step)}
        writer.save(step, {"model.safetensors": weights}, {"step": step})
    writer.close()


def test_what_was_saved_comes_back(folder: Location) -> None:
    save(folder, 7)
    checkpoint = latest_checkpoint(folder)
    assert checkpoint is not None
    assert checkpoint.step == 7
    assert checkpoint.state() == {"step": 7}
    assert torch.equal(checkpoint.weights()["weight"], torch.full((3, 2), 7.0))


def test_weights_are_copied_when_saved_so_that_training_goes_on(folder: Location) -> None:
    writer, weight = CheckpointWriter(folder, 3), torch.zeros(1000)
    writer.save(1, {"model.safetensors": {"weight": weight}}, {})
    weight += 1
    writer.close()
    assert latest_checkpoint(folder).weights()["weight"].sum() == 0  # type: ignore[union-attr]


def test_the_last_k_are_kept_and_nothing_else_stays(folder: Location) -> None:
    save(folder, 10, 20, 30, 40, keep=2)
    assert list_checkpoints(folder) == [30, 40]
    assert sorted({path.split("/")[0].partition("-")[0] for path, _ in folder.walk()}) == [
        "00000030",
        "00000030.json",
        "00000040",
        "00000040.json",
    ]


def test_an_interrupted_upload_is_never_seen_and_is_cleaned_up(folder: Location) -> None:
    save(folder, 10)
    (folder / "00000020-deadbeef" / "model.safetensors").write(b"half of it")
    (folder / "00000030-deadbeef" / "model.safetensors").write(b"all but the manifest")
    assert latest_checkpoint(folder).step == 10  # type: ignore[union-attr]
    save(folder, 30)
    assert not {"00000020-deadbeef", "00000030-deadbeef"} & set(folder.children())


def test_a_folder_without_checkpoints_has_none(folder: Location) -> None:
    assert latest_checkpoint(folder) is None


def test_a_damaged_file_is_refused_and_a_missing_one_is_named(folder: Location) -> None:
    save(folder, 5)
    checkpoint = latest_checkpoint(folder)
    assert checkpoint is not None
    where = checkpoint.location / "model.safetensors"
    where.write(where.read()[:-1] + b"x")
    with pytest.raises(StorageError, match=r"model\.safetensors.*do not match the checkpoint's manifest"):
        checkpoint.weights()
    where.delete()
    with pytest.raises(RunError, match=r"model\.safetensors: missing, although the checkpoint's manifest names it"):
        checkpoint.weights()


def test_a_failed_upload_is_raised_at_the_next_save(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("in the way")
    writer = CheckpointWriter(locate(tmp_path / "file" / "below", timeout_s=0.1), 3)
    writer.save(1, {"model.safetensors": {"w": torch.zeros(1)}}, {})
    with pytest.raises(StorageError, match="below"):
        writer.close()


def test_no_file_of_a_checkpoint_is_a_pickle(folder: Location) -> None:
    save(folder, 3)
    for path, _ in folder.walk():
        data = (folder / path).read()
        if path.endswith(".json"):
            json.loads(data)
        else:
            assert path.endswith(".safetensors")
            assert data[8:9] == b"{"  # a safetensors header: 8 bytes of length, then JSON


def test_the_best_stays_beside_the_last(folder: Location) -> None:
    writer = CheckpointWriter(folder, 2)
    for step, accuracy in ((1, 0.5), (2, 0.9), (3, None), (4, 0.9), (5, 0.7), (6, None)):
        writer.save(step, {"model.safetensors": {"w": torch.zeros(1)}}, {}, accuracy)
    writer.close()
    assert list_checkpoints(folder) == [2, 5, 6]


def test_a_writer_that_is_not_the_runs_any_more_commits_nothing(folder: Location) -> None:
    save(folder, 1)

    def check() -> None:
        if lost:
            raise RunError("somebody else has the lease")

    lost: list[bool] = []
    fence = Fence(folder / "attempt.json", folder, check_lease=check)
    fence.claim()
    lost.append(True)
    writer = CheckpointWriter(folder, 3, fence=fence)
    writer.save(2, {"model.safetensors": {"w": torch.zeros(1)}}, {})
    with pytest.raises(RunError, match="somebody else"):
        writer.close()
    assert list_checkpoints(folder) == [1]


def test_the_second_checkpoint_uses_the_buffers_of_the_first(folder: Location) -> None:
    writer, weights = CheckpointWriter(folder, 3), {"w": torch.zeros(1000), "count": torch.tensor(3)}
    writer.save(1, {"model.safetensors": weights}, {})
    first = {name: buffer.data_ptr() for name, buffer in writer._host["model.safetensors"].items()}
    writer.save(2, {"model.safetensors": weights}, {})
    assert {name: buffer.data_ptr() for name, buffer in writer._host["model.safetensors"].items()} == first
    writer.close()
    assert writer.stalled_s > 0


def test_a_file_of_tensors_is_byte_for_byte_what_the_library_writes() -> None:
    kinds = (torch.float32, torch.float16, torch.bfloat16, torch.float64, torch.int64, torch.uint8, torch.bool)
    tensors = {f"{kind} {n}": torch.ones(n, 3).to(kind) for kind in kinds for n in (2, 1, 0)}
    tensors |= {"scalar": torch.tensor(7), 'odd "name" ü': torch.zeros(1)}
    assert b"".join(tensor_pieces(tensors)) == safetensors.torch.save(tensors)
