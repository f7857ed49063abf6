"""Models by name: each builds, one of each family takes a step with its real loss, and parts are found by name."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import nn
from torchvision import models

from stoker.errors import ModelError
from stoker.models import (
    BlurredConv2d,
    FrozenBatchNorm,
    auxiliary_weight,
    build_model,
    catalog,
    check_images,
    classes_of,
    freeze,
    head_names,
    known_models,
    load_weights,
    logits_of,
    model_on_meta,
    no_loss,
    training_loss,
)
from stoker.recipe import Optimizer
from stoker.training.optim.optimizers import build_optimizer

FAMILIES = {
    "alexnet": 64, "convnext_tiny": 32, "densenet121": 32, "digitsnet": 8, "efficientnet_b0": 32,
    **{f"efficientnet_lite{size}": 32 for size in range(5)}, "googlenet": 64,
    "inception_v3": 299, "maxvit_t": 224, "mnasnet0_5": 32, "mobilenet_v2": 32, "mobilenet_v3_small": 32,
    "regnet_x_400mf": 32, "resnet18": 32, "shufflenet_v2_x0_5": 32, "squeezenet1_1": 32,
    "swin_t": 32, "swin_v2_t": 32, "vgg11": 32, "vit_b_32": 64,
}  # fmt: skip
"""the smallest member of each of torchvision's families and ours, and a side of images that goes through it"""
OURS = {name for family in catalog.FAMILIES if family.builder for name in family.prefixes}
DOCS = Path(__file__).parents[2] / "docs" / "recipes.md"


@pytest.mark.parametrize("name", sorted(known_models()))
def test_every_model_builds_with_the_classes_asked_for(name: str) -> None:
    model = model_on_meta(name, classes=7, auxiliary=True)
    assert all(parameter.is_meta for parameter in model.parameters())
    assert classes_of(model) == 7
    assert head_names(model, model_on_meta(name, classes=8, auxiliary=True))


def test_every_family_of_torchvision_is_among_those_that_take_a_step() -> None:
    files = {models.get_model_builder(name).__module__ for name in models.list_models(module=models)}
    assert files == {models.get_model_builder(name).__module__ for name in FAMILIES if name not in OURS}


@pytest.mark.parametrize("name", sorted(OURS))
def test_a_model_of_ours_takes_a_step_here_and_is_in_the_docs(name: str) -> None:
    assert name in FAMILIES
    assert f"`{name}`" in DOCS.read_text()


@pytest.mark.parametrize(("name", "side"), FAMILIES.items())
def test_a_member_of_each_family_takes_a_step(name: str, side: int) -> None:
    torch.manual_seed(0)
    model = build_model(name, classes=3, auxiliary=True, image_size=side)
    optimizer = build_optimizer(model, Optimizer(lr=0.01))
    before = {parameter: parameter.detach().clone() for parameter in model.parameters()}
    for _ in range(2 if name.startswith("vit") else 1):  # whose head is 0 at first and sends no gradient back
        outputs = model(torch.randn(2, 3, side, side))
        assert logits_of(outputs).shape == (2, 3)
        training_loss(outputs, torch.tensor([0, 2]), auxiliary_weight=auxiliary_weight(name)).backward()
        optimizer.step()
    assert all(torch.isfinite(parameter).all() for parameter in model.parameters())
    moved = sum(not torch.equal(before[p], p) for p in before)
    assert moved > 0.9 * len(before)  # not all: a bias before a norm has no gradient


def test_auxiliary_losses_count_as_their_papers_say() -> None:
    logits = [torch.randn(4, 3, generator=torch.Generator().manual_seed(i)) for i in range(3)]
    targets = torch.tensor([0, 1, 2, 0])
    single = [float(training_loss(each, targets, label_smoothing=0.1)) for each in logits]
    together = training_loss(
        (*logits, None), targets, label_smoothing=0.1, auxiliary_weight=auxiliary_weight("googlenet")
    )
    assert float(together) == pytest.approx(single[0] + 0.3 * (single[1] + single[2]))
    assert (auxiliary_weight("inception_v3"), auxiliary_weight("resnet50")) == (0.4, 0.0)


def test_no_loss_reaches_every_parameter_with_a_gradient_of_zero() -> None:
    model = build_model("googlenet", classes=3, auxiliary=True)
    no_loss(model(torch.randn(2, 3, 64, 64))).backward()
    assert all(parameter.grad is not None and not parameter.grad.any() for parameter in model.parameters())


def test_weights_trained_with_auxiliary_heads_serve_without_them() -> None:
    trained = build_model("googlenet", classes=3, auxiliary=True).eval()
    served = build_model("googlenet", classes=3).eval()
    load_weights(served, trained.state_dict())
    images = torch.randn(1, 3, 64, 64)
    assert torch.equal(served(images), trained(images))
    assert not any(name.startswith("aux") for name in served.state_dict())


def test_a_blurred_model_has_the_same_weights_and_is_steadier_under_a_shift() -> None:
    torch.manual_seed(0)
    plain = build_model("resnet18", classes=4).eval()
    blurred = build_model("resnet18", classes=4, blur_pool=True).eval()
    load_weights(blurred, plain.state_dict())
    assert blurred.state_dict().keys() == plain.state_dict().keys()
    assert sum(isinstance(m, BlurredConv2d) for m in blurred.modules()) == 6  # two in each of three stages
    image = torch.randn(1, 3, 72, 72)
    here, there = image[..., 4:68, 4:68], image[..., 4:68, 5:69]
    with torch.no_grad():
        change = [float((m(here) - m(there)).norm() / m(here).norm()) for m in (plain, blurred)]
    assert change[1] < change[0]


def test_a_blurred_convolution_is_its_convolution_of_the_blurred_image() -> None:
    plain = nn.Conv2d(16, 8, 3, stride=2, padding=1)
    image = torch.randn(1, 16, 9, 9)
    kernel = torch.tensor([[1.0, 2, 1], [2, 4, 2], [1, 2, 1]]) / 16
    soft = nn.functional.conv2d(image, kernel.expand(16, 1, 3, 3), padding=1, groups=16)
    torch.testing.assert_close(BlurredConv2d.of(plain)(image), plain(soft))


def test_frozen_norms_stay_as_they_are_whatever_mode_is_asked_for() -> None:
    model, other = (build_model("resnet18", classes=classes) for classes in (3, 4))
    freeze(model, "backbone", lambda: head_names(model, other))
    before = {name: value.clone() for name, value in model.state_dict().items()}
    model.train()
    training_loss(model(torch.randn(4, 3, 32, 32)), torch.tensor([0, 1, 2, 0])).backward()
    build = build_optimizer(model, Optimizer(lr=0.1))
    build.step()
    changed = {name for name, value in model.state_dict().items() if not torch.equal(value, before[name])}
    assert changed == {"fc.weight", "fc.bias"}
    assert before.keys() == other.state_dict().keys()


def test_a_prefix_of_names_freezes_what_is_below_it() -> None:
    model = freeze(build_model("resnet18", classes=3), ("conv1", "bn1", "layer[12].*"), tuple)
    trained = {name.partition(".")[0] for name, p in model.named_parameters() if p.requires_grad}
    assert trained == {"layer3", "layer4", "fc"}
    assert isinstance(model.bn1, FrozenBatchNorm)
    assert not isinstance(model.layer3[0].bn1, FrozenBatchNorm)


@pytest.mark.parametrize(
    ("patterns", "line"),
    [
        (("layer5",), "model.frozen: 'layer5' matches no parameter of the model; did you mean layer"),
        (("*",), "model.frozen: every parameter would be frozen and none trained; leave the head out"),
    ],
)
def test_freezing_nothing_or_everything_is_refused(patterns: tuple[str, ...], line: str) -> None:
    with pytest.raises(ModelError) as caught:
        freeze(model_on_meta("resnet18", classes=3), patterns, tuple)
    assert str(caught.value).startswith(line)


def test_an_unknown_model_gets_the_nearest_names() -> None:
    with pytest.raises(ModelError, match=r"unknown model 'resnet5O'; did you mean resnet50"):
        build_model("resnet5O", classes=2)


def test_a_drop_rate_for_a_model_without_dropout_is_refused() -> None:
    with pytest.raises(ModelError, match=r"model\.drop_rate: resnet18 has no dropout"):
        build_model("resnet18", classes=2, drop_rate=0.1)
    with pytest.raises(ModelError, match=r"model\.stochastic_depth: resnet18 has no stochastic depth"):
        build_model("resnet18", classes=2, stochastic_depth=0.1)


def _send(name: str, side: int) -> None:
    check_images(model_on_meta(name, classes=2, image_size=side, auxiliary=True), name, sides=(side,), micro=4, last=4)


@pytest.mark.parametrize(
    ("name", "size", "line"),
    [
        ("inception_v3", 128, "images of 128 pixels in micro-batches of 4 do not go through inception_v3"),
        ("alexnet", 32, "images of 32 pixels in micro-batches of 4 do not go through alexnet"),
        ("vit_b_16", 225, "vit_b_16 cannot be built for 225 pixels"),
    ],
)
def test_images_that_do_not_go_through_are_refused_without_memory(name: str, size: int, line: str) -> None:
    with pytest.raises(ModelError, match=line):
        _send(name, size)
