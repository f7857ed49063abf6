"""Two ranks restore a run: rank 0 reads, the other gets the same bits from it, and both fail together."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
import torch.multiprocessing as mp

from made import write_dataset
from ranks import restored_rank
from stoker.embedded.ports import free_ports
from stoker.models import build_model
from stoker.recipe import parse_recipe
from stoker.runs.folder import RunFolder
from stoker.storage import locate
from stoker.training import broadcast

RECIPE = """
name: {name}
storage: {storage}
data: {{url: {storage}/data, image_size: 32}}
model: {{name: digitsnet{weights}}}
batch: {{total: 8, micro: 4}}
optimizer: {{lr: 0.1, momentum: 0.9}}
schedule: {{epochs: 1}}
ema: {{decay: 0.9}}
reproducible: true
storage_timeout_s: 1
workers: {{gpus: 0, cpus: 1}}
"""
FILES = {"model.safetensors", "optimizer.safetensors", "step.safetensors", "ema.safetensors"}


@pytest.fixture(scope="module")
def storage(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("restored")
    write_dataset(f"{folder}/data", {"train": [20, 20], "validation": [4]})
    torch.manual_seed(3)
    torch.save(build_model("digitsnet", classes=3).state_dict(), folder / "w.pth")
    return folder


@pytest.fixture(scope="module")
def ranks(storage: Path) -> list[dict[str, Any]]:
    """What each rank found."""
    recipe = parse_recipe(RECIPE.format(storage=storage, name="kept", weights=""), "kept.yaml")
    weights = f", weights: {storage}/w.pth"
    fresh = parse_recipe(RECIPE.format(storage=storage, name="fresh", weights=weights), "fresh.yaml")
    mp.spawn(restored_rank, (free_ports(1)[0], recipe, fresh, str(storage)), nprocs=2)  # type: ignore[no-untyped-call]
    return [torch.load(storage / f"{rank}.pt") for rank in range(2)]


def test_one_rank_reads_a_checkpoint_and_the_other_reads_none_of_it(ranks: list[dict[str, Any]]) -> None:
    read = [{url.rpartition("/")[2] for url in found["resumed"]["read"]} for found in ranks]
    assert read[0] > FILES | {"state.json"}
    assert read[1] == set()


def test_both_ranks_have_the_bits_that_were_stored(storage: Path, ranks: list[dict[str, Any]]) -> None:
    newest = RunFolder(locate(storage), "kept").latest_checkpoint()
    assert newest is not None
    (newest.location / "optimizer.safetensors").delete()  # damaged since
    for file in FILES - {"optimizer.safetensors"}:
        stored = newest.tensors(file)
        for found in ranks:
            restored = found["resumed"]["tensors"][file]
            assert restored.keys() == stored.keys()
            assert [name for name in stored if not torch.equal(stored[name], restored[name])] == []
    first, second = (found["resumed"]["tensors"]["optimizer.safetensors"] for found in ranks)
    assert first.keys() == second.keys() != set()
    assert all(torch.equal(first[name], second[name]) for name in first)


def test_what_rank_0_cannot_read_fails_both_ranks_with_the_same_line(ranks: list[dict[str, Any]]) -> None:
    first, second = (found["damaged"]["error"] for found in ranks)
    assert first == second
    assert first.startswith("StorageError: ")
    assert "optimizer.safetensors" in first
    assert "do not match the checkpoint's manifest" in first
    assert [found["damaged"]["node"] for found in ranks] == ["node 0", "node 0"]  # whose way to the store it is


def test_one_rank_reads_initial_weights_and_both_have_them(storage: Path, ranks: list[dict[str, Any]]) -> None:
    stored = torch.load(storage / "w.pth")
    assert [url for url in ranks[0]["fresh"]["read"] if url.endswith("w.pth")] != []
    assert ranks[1]["fresh"]["read"] == []
    for found in ranks:
        for file in ("model.safetensors", "ema.safetensors"):
            restored = found["fresh"]["tensors"][file]
            assert all(torch.equal(restored[name], stored[name]) for name in stored)


def test_tensors_go_in_buckets_of_bounded_size(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(broadcast, "BUCKET_BYTES", 16)
    tensors = [
        torch.arange(9, dtype=torch.float32),
        torch.tensor(5),
        torch.zeros(0, 3),
        torch.ones(3, dtype=torch.bool),
        torch.arange(4, dtype=torch.bfloat16).reshape(2, 2),
    ]
    buckets = list(broadcast._buckets(tensors))
    assert [sum(map(len, bucket)) for bucket in buckets] == [16, 16, 16, 7]
    joined = torch.cat([piece for bucket in buckets for piece in bucket])
    assert torch.equal(joined, torch.cat([tensor.reshape(-1).view(torch.uint8) for tensor in tensors]))
    buckets[0][0].zero_()  # views: what arrives is written where it belongs
    assert tensors[0][:4].tolist() == [0.0] * 4
