"""An evaluation counts every sample once, and equal weights give equal numbers, bit for bit."""

from __future__ import annotations

import json
import socket
import subprocess
import sys
from pathlib import Path

import pytest
import torch
import torch.multiprocessing as processes
from torch import nn
from torch.nn import functional

from made import write_dataset
from published import finished_run
from ranks import evaluate_rank
from stoker.dataset import Batch
from stoker.evaluation import evaluate
from stoker.models.normalize import Normalize
from stoker.predict import check_parity
from stoker.recipe import parse_recipe
from stoker.registry import Registry, publish_run
from stoker.runs.folder import RunFolder

CHECKOUT = Path(__file__).parents[2]
RECIPE = """
name: evaluation
storage: {root}/runs
data: {{url: {root}/data, image_size: 16, block_samples: 4, memory_mb: 1, decode_threads: 1}}
model: {{name: digitsnet}}
batch: {{total: 24, micro: 4}}
optimizer: {{lr: 0.05}}
schedule: {{epochs: 1}}
workers: {{max: 3, gpus: 0, cpus: 1}}
"""


def test_one_two_and_three_ranks_find_the_same_bit_for_bit(tmp_path: Path) -> None:
    write_dataset(f"{tmp_path}/data", {"train": [30], "validation": [40, 31]})
    recipe = parse_recipe(RECIPE.format(root=tmp_path), "evaluation.yaml")
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    processes.spawn(evaluate_rank, (port, recipe, f"{tmp_path}/found.json"), nprocs=3)
    three, two, one = json.loads((tmp_path / "found.json").read_text())
    assert json.loads(one[0])["samples"] == sum(map(sum, one[2])) == 71
    assert three == two == one


class _Scores(nn.Module):
    """The logits of a sample are the first pixel of each of its three channels."""

    def __init__(self) -> None:
        super().__init__()
        self.scale = nn.Parameter(torch.ones(3))

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        return images[:, :, 0, 0] * self.scale


def batches(images: torch.Tensor, labels: torch.Tensor, order: list[int], size: int) -> list[Batch]:
    made = []
    for first in range(0, len(order), size):
        numbers = torch.tensor(order[first : first + size])
        made.append(Batch(images[numbers], labels[numbers], numbers, 0, first // size, 0))
    return made


def test_the_sums_have_no_order_and_are_those_of_cross_entropy() -> None:
    images = torch.randint(0, 256, (50, 3, 1, 1), dtype=torch.uint8, generator=torch.manual_seed(1))
    labels = torch.arange(50) % 3
    normalize = Normalize((0.0,) * 3, (0.1,) * 3)
    forward = evaluate(_Scores(), normalize, batches(images, labels, list(range(50)), 7), 3)
    backward = evaluate(_Scores(), normalize, batches(images, labels, list(range(49, -1, -1)), 5), 3)
    assert forward.metrics == backward.metrics
    assert forward.mistakes == backward.mistakes
    logits = normalize(images)[:, :, 0, 0]
    losses = functional.cross_entropy(logits.double(), labels, reduction="none")
    assert forward.metrics.loss == pytest.approx(losses.mean().item(), abs=1e-7)
    wrong = logits.argmax(dim=1) != labels
    assert forward.metrics.accuracy == 1 - wrong.double().mean().item()
    worst = [n for n in losses.argsort(descending=True).tolist() if wrong[n]]
    assert [mistake.number for mistake in forward.mistakes] == worst[:24]
    assert forward.top5_by_class.tolist() == torch.bincount(labels).tolist()


def test_logits_that_are_not_finite_give_no_loss_and_a_record_that_reads_back() -> None:
    model = _Scores()
    model.scale.data.fill_(float("nan"))
    images, labels = torch.ones(4, 3, 1, 1, dtype=torch.uint8), torch.arange(4) % 3
    found = evaluate(model, Normalize((0.0,) * 3, (1.0,) * 3), batches(images, labels, [0, 1, 2, 3], 2), 3).metrics
    assert found.loss != found.loss
    assert type(found).model_validate_json(found.model_dump_json()).samples == 4


def test_a_checkpoint_a_version_and_a_file_of_the_same_weights_give_the_same_numbers(tmp_path: Path) -> None:
    storage = finished_run(tmp_path)
    version = publish_run(storage, "run", "digits", verify=check_parity)
    run = RunFolder(storage, "run")
    exported = tmp_path / "exported.safetensors"
    exported.write_bytes(version.read("model.safetensors"))

    def line(*arguments: str) -> dict[str, object]:
        command = [sys.executable, "jobs/evaluate.py", *arguments]
        done = subprocess.run(command, check=True, cwd=CHECKOUT, text=True, capture_output=True)
        *_, mean, last = done.stdout.splitlines()
        printed = json.loads(last)
        assert mean.split() == ["mean", "of", "the", "classes", f"{printed['macro_accuracy']:.2%}"]
        printed.pop("reference")
        return dict(printed)

    where = ("--storage", str(tmp_path))
    of_run, result = line("run", "--run", *where), run.result()
    assert of_run == line("digits@1", *where)
    assert of_run == line(str(version.location / "model.safetensors"))
    assert of_run == line(str(exported), "--recipe", str(run.location / "recipe.yaml"))
    assert result is not None
    assert {**result.metrics.model_dump(), "by_class": of_run["by_class"]} == of_run
    assert Registry(storage).resolve("digits").card.metrics == result.metrics
