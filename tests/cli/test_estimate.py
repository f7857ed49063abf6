"""stoker estimate: the report and the line of JSON, for a data set and for a recipe."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from made import write_dataset
from stoker.cli import main
from stoker.dataset import read_manifest
from stoker.storage import locate

RECIPE = """
name: estimated
storage: {storage}
data: {{url: {storage}/data, image_size: 32, block_samples: 4}}
model: {{name: digitsnet}}
batch: {{total: 8, micro: 4}}
optimizer: {{lr: 0.1}}
schedule: {{epochs: 1}}
workers: {{min: 1, max: 2, gpus: 0, cpus: 1}}
"""


@pytest.fixture
def dataset(tmp_path: Path) -> str:
    return write_dataset(f"{tmp_path}/data", {"train": [20, 12], "validation": [4]}).url


def estimate(capsys: pytest.CaptureFixture[str], *arguments: str) -> tuple[list[str], dict[str, float]]:
    """The lines for people, and the line for programs."""
    main(["estimate", *arguments])
    *lines, last = capsys.readouterr().out.splitlines()
    return lines, json.loads(last)


def test_a_data_set_is_estimated_with_the_numbers_given(dataset: str, capsys: pytest.CaptureFixture[str]) -> None:
    lines, content = estimate(capsys, dataset, "--batch", "16", "--ranks", "2", "--images-per-s", "8")
    assert lines[0].split() == ["samples", "32", "in", "2", "steps", "of", "16"]
    assert lines[3].split() == ["time", "2", "s", "on", "2", "ranks,", "limited", "by", "training"]
    shards = read_manifest(locate(dataset)).split("train").shards
    assert content["data_bytes"] == sum(shard.bytes for shard in shards)
    assert content["requests"] == content["data_requests"] + content["index_requests"]
    assert (content["samples"], content["steps"], content["seconds"]) == (32, 2, 2.0)


def test_a_recipe_gives_batch_workers_and_blocks(
    dataset: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "recipe.yaml").write_text(RECIPE.format(storage=tmp_path))
    lines, content = estimate(capsys, str(tmp_path / "recipe.yaml"))
    assert lines[0].split() == ["samples", "32", "in", "4", "steps", "of", "8"]
    assert " on 2 ranks, limited by reading" in lines[3]
    assert (
        content["data_requests"] > estimate(capsys, dataset, "--batch", "8")[1]["data_requests"]
    )  # blocks of 4, not 16


def test_a_size_below_1_is_refused_in_one_line(dataset: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as stopped:
        main(["estimate", dataset, "--ranks", "-1"])
    assert stopped.value.code == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith("error: stoker estimate: argument --ranks: '-1' is not a whole number of at least 1")
