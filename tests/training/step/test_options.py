"""What a recipe asks of models and augmentation reaches the step: one rank, one step, and the same by hand."""

from __future__ import annotations

import copy
from collections.abc import Iterator

import pytest
import torch
import torch.distributed as dist
from torch import nn

from stoker.dataset import Batch
from stoker.models import training_loss
from stoker.models.initialize import training_model
from stoker.recipe import Recipe, parse_recipe
from stoker.training.augment.augmentation import Augmentation
from stoker.training.step.stepper import Stepper

RECIPE = """
name: options
storage: /tmp/none
data: {url: /tmp/none, image_size: 16}
model: {name: digitsnet}
batch: {total: 6, micro: 6}
optimizer: {lr: 0.1}
schedule: {epochs: 1}
loss: {label_smoothing: 0.1}
ema: {decay: 0.9}
workers: {gpus: 0, cpus: 1}
"""


@pytest.fixture(autouse=True)
def _alone() -> Iterator[None]:
    """A process group of one rank."""
    dist.init_process_group("gloo", store=dist.HashStore(), rank=0, world_size=1)
    yield
    dist.destroy_process_group()


def stepped(*overrides: str) -> tuple[Recipe, nn.Module, Stepper, Batch]:
    """(recipe, the model before, the stepper after one step, the step's batch)."""
    recipe = parse_recipe(RECIPE, "options.yaml", overrides)
    torch.manual_seed(0)
    model = training_model(recipe, 3)
    before = copy.deepcopy(model)
    images = torch.randint(0, 256, (6, 3, 16, 16), dtype=torch.uint8).contiguous(memory_format=torch.channels_last)
    batch = Batch(images, torch.arange(6) % 3, torch.arange(10, 16), 0, 0, 0)
    stepper = Stepper(recipe, model, torch.device("cpu"), 1)
    stepper.run([batch], 0, 6)
    return recipe, before, stepper, batch


@pytest.mark.parametrize("kind", ["mixup", "cutmix"])
def test_a_step_loses_what_augmented_images_and_mixed_targets_lose(kind: str) -> None:
    recipe, before, stepper, batch = stepped(
        f"augmentation.{kind}=1.0", "augmentation.policy=rand_augment", "augmentation.erase=0.5"
    )
    varied = Augmentation(recipe, 3)
    images = stepper.normalize(varied.pixels(batch.images, batch))
    images, targets = varied.mix(images, batch.labels, batch)
    by_hand = training_loss(before(images), targets, label_smoothing=0.1).detach()
    assert float(stepper.totals[0]) == pytest.approx(float(by_hand), rel=1e-4)
    plain = training_loss(before(stepper.normalize(batch.images)), batch.labels, label_smoothing=0.1).detach()
    assert float(plain) != pytest.approx(float(by_hand), rel=1e-4)


def test_a_linear_probe_moves_the_head_alone() -> None:
    _, before, stepper, _ = stepped("model.frozen=backbone", "optimizer.weight_decay=0.1")
    for model in (stepper.model, stepper.evaluated_model):
        old = before.state_dict()
        changed = {name for name, value in model.state_dict().items() if not torch.equal(value, old[name])}
        assert changed == {"head.weight", "head.bias"}


def test_rates_by_layer_reach_the_optimizer_at_each_step() -> None:
    _, _, stepper, _ = stepped("optimizer.layer_decay=0.5")
    rates = {group["lr"] for group in stepper.optimizer.param_groups}
    assert rates == {0.1 * 0.5**depth for depth in range(7)}


def test_lamb_takes_a_step() -> None:
    _, before, stepper, _ = stepped("optimizer.name=lamb")
    assert not torch.equal(before.head.weight, stepper.model.head.weight)
