"""Augmentation on the device: torchvision's results for the same parameters, whatever else is in the batch."""

from __future__ import annotations

import math
from pathlib import Path
from typing import get_args

import numpy as np
import pytest
import torch
from torch import Tensor
from torchvision.transforms.v2 import CutMix, InterpolationMode, RandAugment, TrivialAugmentWide
from torchvision.transforms.v2 import functional as transform

from stoker import recipe as recipes
from stoker.dataset import Batch
from stoker.models import training_loss
from stoker.recipe import parse_recipe
from stoker.training.augment.augmentation import Augmentation
from stoker.training.augment.mixing import erase, erased_boxes
from stoker.training.augment.operations import OPERATIONS, POLICIES, apply_operations

RECIPE = """
name: augmented
storage: /tmp/none
data: {url: /tmp/none}
model: {name: resnet18}
batch: {total: 8, micro: 8}
optimizer: {lr: 0.1}
schedule: {epochs: 1}
workers: {gpus: 0, cpus: 1}
"""
CLASSES = 5
NAMES = [operation.name for operation in OPERATIONS]
RANGES = {"posterize": (2, 8), "solarize": (0, 1), "rotate": (-135, 135), "translate_x": (-9, 9),
          "translate_y": (-9, 9)}  # fmt: skip
BILINEAR = InterpolationMode.BILINEAR


def augmentation(*overrides: str) -> Augmentation:
    return Augmentation(parse_recipe(RECIPE, "augmented", [f"augmentation.{o}" for o in overrides]), CLASSES)


def batch_of(numbers: list[int], *, epoch: int = 1, micro_batch: int = 0, side: tuple[int, int] = (24, 20)) -> Batch:
    """Images that the sample's number alone decides."""
    images = [_image(number, side) for number in numbers]
    stacked = torch.stack(images).contiguous(memory_format=torch.channels_last)
    labels = torch.tensor([number % CLASSES for number in numbers])
    return Batch(stacked, labels, torch.tensor(numbers), epoch, 3, micro_batch)


def _image(number: int, side: tuple[int, int]) -> Tensor:
    rough = torch.randint(0, 256, (1, 3, 5, 5), generator=torch.Generator().manual_seed(number)).float()
    return torch.nn.functional.interpolate(rough, side, mode="bilinear")[0].to(torch.uint8)


def _by_torchvision(name: str, image: Tensor, strength: float) -> Tensor:
    height_width = {"angle": 0.0, "scale": 1.0, "interpolation": BILINEAR}
    degrees = math.degrees(math.atan(strength))
    operations = {
        "identity": lambda: image,
        "shear_x": lambda: transform.affine(
            image, translate=[0, 0], shear=[degrees, 0.0], center=[0, 0], **height_width
        ),
        "shear_y": lambda: transform.affine(
            image, translate=[0, 0], shear=[0.0, degrees], center=[0, 0], **height_width
        ),
        "translate_x": lambda: transform.affine(image, translate=[int(strength), 0], shear=[0.0, 0.0], **height_width),
        "translate_y": lambda: transform.affine(image, translate=[0, int(strength)], shear=[0.0, 0.0], **height_width),
        "rotate": lambda: transform.rotate(image, strength, interpolation=BILINEAR),
        "brightness": lambda: transform.adjust_brightness(image, 1 + strength),
        "color": lambda: transform.adjust_saturation(image, 1 + strength),
        "contrast": lambda: transform.adjust_contrast(image, 1 + strength),
        "sharpness": lambda: transform.adjust_sharpness(image, 1 + strength),
        "posterize": lambda: transform.posterize(image, int(strength)),
        "solarize": lambda: transform.solarize(image, 255 * strength),
        "auto_contrast": lambda: transform.autocontrast(image),
        "equalize": lambda: transform.equalize(image),
    }
    return operations[name]()


@pytest.mark.parametrize("name", NAMES)
def test_an_operation_gives_what_torchvision_gives_for_the_same_strength(name: str) -> None:
    images = batch_of(list(range(12))).images
    images[3] = 77  # of one colour
    strengths = np.linspace(*RANGES.get(name, (-0.99, 0.99)), len(images))
    ours = apply_operations(images, np.full(len(images), NAMES.index(name)), strengths)
    theirs = torch.stack([_by_torchvision(name, i, s) for i, s in zip(images, strengths.tolist(), strict=True)])
    difference = (ours.int() - theirs.int()).abs()
    assert difference.max() <= 1  # a rounding on the edge between two levels
    assert (difference > 0).float().mean() < 0.002
    assert ours.is_contiguous(memory_format=torch.channels_last)


@pytest.mark.parametrize("name", NAMES)
def test_an_operation_is_in_the_docs(name: str) -> None:
    pages = [page.read_text() for page in (Path(__file__).parents[3] / "docs").rglob("*.md")]
    assert any(f"`{name}`" in page for page in pages)


def test_draws_choose_operations_in_the_order_that_runs_were_trained_with() -> None:
    """A run that resumes must draw the same; a new operation therefore gets a policy of its own."""
    published = (
        "identity", "shear_x", "shear_y", "translate_x", "translate_y", "rotate", "brightness", "color", "contrast",
        "sharpness", "posterize", "solarize", "auto_contrast", "equalize",
    )  # fmt: skip
    assert POLICIES["rand_augment"] == POLICIES["trivial_augment_wide"] == published


def test_each_policy_of_the_recipe_draws_from_known_operations_and_each_operation_is_drawn() -> None:
    policies = set(get_args(recipes.Augmentation.model_fields["policy"].annotation)) - {"none"}
    assert policies == POLICIES.keys()
    assert {name for names in POLICIES.values() for name in names} == set(NAMES)


@pytest.mark.parametrize(("is_wide", "bins"), [(True, [1, 15, 30]), (False, [1, 9, 30])])
def test_strengths_and_signs_are_those_of_torchvisions_policies(is_wide: bool, bins: list[int]) -> None:
    """The ranges of TrivialAugmentWide and RandAugment at bins of 0 to 30, for images of 24 by 20 pixels."""
    policy = TrivialAugmentWide() if is_wide else RandAugment()
    for operation in OPERATIONS:
        if operation.name not in POLICIES["rand_augment"]:
            continue  # an operation of ours, which torchvision's policies do not have
        theirs, is_signed = policy._AUGMENTATION_SPACE[_name_in_torchvision(operation.name)]
        assert operation.is_signed == is_signed
        table = theirs(31, 24, 20)
        for bin_ in bins if table is not None else []:
            assert operation.strength(bin_ / 30, 24, 20, is_wide) == pytest.approx(float(table[bin_]))


def _name_in_torchvision(name: str) -> str:
    return "".join(word.capitalize() for word in name.split("_"))


@pytest.mark.parametrize("policy", ["rand_augment", "trivial_augment_wide"])
def test_a_sample_does_not_depend_on_the_rest_of_its_batch(policy: str) -> None:
    varied = augmentation(f"policy={policy}", "erase=0.5")
    together = batch_of(list(range(40)))
    images = varied.pixels(together.images, together)
    floats = varied.mix(images.float(), together.labels, together)[0]
    for numbers in ([7], [30, 7, 2], list(range(39, -1, -1))):
        other = batch_of(numbers, micro_batch=2)
        again = varied.pixels(other.images, other)
        assert torch.equal(again, images[numbers])
        assert torch.equal(varied.mix(again.float(), other.labels, other)[0], floats[numbers])
    assert not torch.equal(images, together.images)
    later = batch_of(list(range(40)), epoch=2)
    assert not torch.equal(varied.pixels(later.images, later), images)


def test_every_operation_comes_up_about_as_often_as_another() -> None:
    varied = augmentation("policy=trivial_augment_wide")
    batch = batch_of(list(range(1400)), side=(4, 4))
    seen: list[int] = []

    def count(images: Tensor, kinds: np.ndarray, strengths: np.ndarray) -> Tensor:
        seen.extend(kinds.tolist())
        return images

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("stoker.training.augment.augmentation.apply_operations", count)
        varied.pixels(batch.images, batch)
    counts = np.bincount(seen, minlength=len(OPERATIONS))
    assert counts.min() > 60
    assert counts.max() < 140


def test_erasing_is_that_of_torchvision_for_the_same_box() -> None:
    images = batch_of(list(range(16))).images.float()
    boxes = erased_boxes(9, np.arange(16), 0.7, *images.shape[-2:])
    ours = erase(images, boxes)
    sizes = boxes[:, 2:] - boxes[:, :2]
    assert 4 < (sizes[:, 0] > 0).sum() < 16
    for image, (left, top, right, bottom), result in zip(images, boxes.tolist(), ours, strict=True):
        value = torch.zeros(3, 1, 1)
        assert torch.equal(transform.erase(image, top, left, bottom - top, right - left, value), result)


def test_erased_areas_and_shapes_are_in_their_ranges() -> None:
    boxes = erased_boxes(1, np.arange(4000), 0.25, 224, 192)
    width, height = (boxes[:, 2:] - boxes[:, :2]).T
    hit = width > 0
    assert hit.mean() == pytest.approx(0.25, abs=0.03)
    fraction = (width * height / (224 * 192))[hit]
    assert fraction.min() > 0.019
    assert fraction.max() < 0.335
    assert (boxes[:, 2:] <= [192, 224]).all()


def test_mixup_mixes_images_and_targets_by_the_same_lambda() -> None:
    batch = batch_of([1, 2, 8, 4])
    images, targets = augmentation("mixup=0.5").mix(batch.images.float(), batch.labels, batch)
    lam = float(targets[0, 1])
    original = batch.images.float()
    torch.testing.assert_close(images, original * lam + original.roll(1, 0) * (1 - lam))
    torch.testing.assert_close(targets.sum(dim=1), torch.ones(4))
    assert targets[2, 3] == 1 - targets[2, 2] or targets[2, 2] == pytest.approx(1 - float(targets[2, 3]))


def test_cutmix_is_that_of_torchvision_for_the_same_box() -> None:
    batch = batch_of([1, 2, 8, 4])
    cut = augmentation("cutmix=1.0")
    found = [cut._mix_of(batch_of([1], micro_batch=i), 24, 20) for i in range(60)]
    assert all(mix is not None and mix.box is not None for mix in found)
    images, targets = cut.mix(batch.images.float(), batch.labels, batch)
    box, lam = found[0].box, found[0].lam  # type: ignore[union-attr]
    parameters = {"labels": batch.labels, "batch_size": 4, "box": box, "lam_adjusted": lam}
    theirs = CutMix(num_classes=CLASSES)
    assert torch.equal(images, theirs.transform(batch.images.float(), parameters))
    torch.testing.assert_close(targets, theirs.transform(batch.labels, parameters))
    assert 0.3 < np.mean([mix.lam for mix in found if mix]) < 0.9


def test_mixup_and_cutmix_take_turns_by_micro_batch_and_repeat_themselves() -> None:
    both = augmentation("mixup=0.2", "cutmix=1.0")
    kinds = [both._mix_of(batch_of([1], micro_batch=i), 24, 20) for i in range(200)]
    assert 60 < sum(mix is not None and mix.box is None for mix in kinds) < 140
    assert kinds == [both._mix_of(batch_of([5, 6], micro_batch=i), 24, 20) for i in range(200)]


def test_without_the_section_nothing_is_changed_or_copied() -> None:
    batch = batch_of([1, 2])
    plain = augmentation("policy=none")
    assert plain.pixels(batch.images, batch) is batch.images
    images, targets = plain.mix(floats := batch.images.float(), batch.labels, batch)
    assert images is floats
    assert targets is batch.labels


def test_smoothing_mixes_the_uniform_distribution_into_mixed_targets() -> None:
    logits = torch.randn(4, CLASSES, generator=torch.Generator().manual_seed(0))
    mixed = torch.rand(4, CLASSES, generator=torch.Generator().manual_seed(1)).softmax(dim=1)
    by_hand = -((0.9 * mixed + 0.1 / CLASSES) * logits.log_softmax(dim=1)).sum()
    torch.testing.assert_close(training_loss(logits, mixed, label_smoothing=0.1), by_hand)


def test_the_loss_of_mixed_targets_that_are_not_mixed_is_that_of_the_labels() -> None:
    logits, labels = torch.randn(4, CLASSES), torch.tensor([0, 4, 2, 2])
    hot = torch.eye(CLASSES)[labels]
    torch.testing.assert_close(
        training_loss(logits, labels, label_smoothing=0.1), training_loss(logits, hot, label_smoothing=0.1)
    )
