"""What a user mistypes or forgets, tried as a user would: one clear line, exit status 2, before a resource is taken."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
from pathlib import Path

import pytest

from conftest import Store
from made import write_dataset
from published import finished_run

CHECKOUT = Path(__file__).parents[2]
RECIPE = """
name: small
storage: {root}/storage
data: {{url: {root}/data, image_size: 16}}
model: {{name: digitsnet}}
batch: {{total: 8, micro: 4}}
optimizer: {{lr: 0.1}}
schedule: {{epochs: 1}}
workers: {{gpus: 0, cpus: 1}}
"""


def line_of(*command: str, **environment: str) -> str:
    """The one line that ``python jobs/<command>`` says on standard error; it must be one, and the status 2."""
    done = subprocess.run(
        [sys.executable, f"jobs/{command[0]}.py", *command[1:]],
        check=False,
        cwd=CHECKOUT,
        env=os.environ | {"RAY_ADDRESS": "127.0.0.1:1"} | environment,  # a resource that is asked for is a failure
        text=True,
        capture_output=True,
        timeout=180,
    )
    assert done.returncode == 2, done.stdout + done.stderr
    lines = done.stderr.strip().splitlines()
    assert len(lines) == 1, done.stderr
    assert lines[0].startswith("error: ")
    return lines[0].removeprefix("error: ")


@pytest.fixture
def recipe(tmp_path: Path) -> str:
    write_dataset(f"{tmp_path}/data", {"train": [20], "validation": [9]})
    file = tmp_path / "small.yaml"
    file.write_text(RECIPE.format(root=tmp_path))
    return str(file)


def test_a_recipe_that_does_not_exist() -> None:
    assert line_of("train", "jobs/recipes/digts.yaml") == (
        "jobs/recipes/digts.yaml: recipe not found; jobs/recipes/ holds the ones that come with stoker"
    )


def test_a_recipe_that_is_no_yaml(tmp_path: Path) -> None:
    file = tmp_path / "broken.yaml"
    file.write_text("name: [a\nb: }")
    assert line_of("train", str(file)).startswith(f"{file}: not valid YAML: line 2, column ")


@pytest.mark.parametrize(
    ("override", "line"),
    [
        ("optimizer.lrr=0.1", "optimizer.lrr: unknown key; did you mean optimizer.lr?"),
        ("schedule.epochs=many", 'schedule.epochs: input should be a valid integer, not "many"'),
        ("batch.micro=3", "batch: total (8) must be a multiple of micro (3)"),
    ],
)
def test_an_unknown_key_a_wrong_type_an_impossible_batch(recipe: str, override: str, line: str) -> None:
    assert line_of("train", recipe, override) == f"{recipe}: {line}"


def test_more_classes_than_the_data_set_has(recipe: str) -> None:
    assert "model.classes: 10 given, but the data set" in (line := line_of("train", recipe, "model.classes=10"))
    assert line.endswith("has 3 classes; set it to 3 or leave it out")


def test_a_model_that_nobody_knows(recipe: str) -> None:
    assert line_of("train", recipe, "model.name=resnet5") == (
        "model.name: unknown model 'resnet5'; did you mean resnet50 or resnet152 or resnet34?"
    )


def test_a_global_batch_larger_than_the_split(recipe: str) -> None:
    line = line_of("train", recipe, "batch.total=64")
    assert line.startswith("batch.total: a global batch of 64 is larger than the split (20 samples)")


def test_a_data_set_url_without_a_data_set(recipe: str, tmp_path: Path) -> None:
    assert line_of("train", recipe, f"data.url={tmp_path}/nothing") == (
        f"no data set at {tmp_path}/nothing: dataset.json not found; check the URL, or make one with stoker prepare"
    )


def test_a_split_that_the_data_set_lacks(recipe: str) -> None:
    assert "has no split 'test'; it has train, validation" in line_of("train", recipe, "data.validation_split=test")


def test_a_protocol_that_is_unknown(recipe: str) -> None:
    assert "unknown protocol" in line_of("train", recipe, "data.url=s4://bucket/data")


@pytest.mark.store
def test_a_bucket_that_is_not_there(recipe: str, store: Store) -> None:
    assert line_of("train", recipe, "data.url=s3://no-such-bucket-here/data").startswith(
        "no data set at s3://no-such-bucket-here/data"
    )


@pytest.mark.store
def test_wrong_credentials(recipe: str, store: Store) -> None:
    line = line_of("train", recipe, f"data.url={store.url}/data", AWS_SECRET_ACCESS_KEY="wrong")
    assert line.startswith(f"not permitted to read {store.url}/data/dataset.json")
    assert "check AWS_ACCESS_KEY_ID, AWS_SECRET_ACCESS_KEY, AWS_PROFILE or the machine's role" in line
    assert "wrong" not in line


def test_a_store_that_cannot_be_reached(recipe: str) -> None:
    with socket.socket() as unused:
        unused.bind(("127.0.0.1", 0))
        endpoint = f"http://127.0.0.1:{unused.getsockname()[1]}"
        line = line_of(
            *("train", recipe, "data.url=s3://stoker/data"),
            AWS_ENDPOINT_URL=endpoint,
            AWS_ACCESS_KEY_ID="any",
            AWS_SECRET_ACCESS_KEY="any",
        )
    assert line.startswith("cannot read s3://stoker/data/dataset.json: no valid response in 5 s")
    assert "check that the store runs and that its address is right" in line


def test_a_cluster_that_is_not_there(recipe: str) -> None:
    assert line_of("train", recipe).startswith("no Ray cluster answers at RAY_ADDRESS 127.0.0.1:1 (Connection refused)")


def test_a_run_that_was_started_with_another_recipe(tmp_path: Path) -> None:
    storage = finished_run(tmp_path)
    recipe = str(tmp_path / "runs" / "run" / "recipe.yaml")
    assert line_of("train", recipe, "optimizer.lr=0.2") == (
        "run 'run' exists with another recipe (optimizer.lr differ); resume it with the same values, or choose "
        "another name"
    )
    assert storage.is_local


def test_publishing_a_run_that_is_missing_or_has_no_checkpoint(tmp_path: Path) -> None:
    finished_run(tmp_path, is_finished=False)
    where = ("--storage", str(tmp_path))
    assert line_of("publish", "other", "digits", *where) == (
        f"run 'other' not found at {tmp_path}/runs/other; train it first with stoker train"
    )
    for file in (tmp_path / "runs" / "run" / "checkpoints").glob("*.json"):
        file.unlink()
    assert line_of("publish", "run", "digits", *where).startswith("run 'run' has no checkpoint at ")


def test_evaluating_a_model_or_alias_that_does_not_exist(tmp_path: Path) -> None:
    assert line_of("evaluate", "digits@production", "--storage", str(tmp_path)) == (
        f"model 'digits@production': unknown model 'digits' in {tmp_path}/models; known models: none yet"
    )


def test_a_storage_that_was_not_named() -> None:
    assert "give --storage s3://bucket or set STOKER_STORAGE" in line_of("evaluate", "digits", STOKER_STORAGE="")
