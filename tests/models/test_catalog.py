"""The catalog of families: every claim of a row holds for a real model of the family, built on the meta device."""

from __future__ import annotations

import subprocess
import sys

import pytest
import torch
from torch import nn
from torch.overrides import TorchFunctionMode
from torchvision import models
from torchvision.ops import StochasticDepth

from stoker.errors import ModelError
from stoker.models import build_model, known_models, model_on_meta
from stoker.models.build import _builder, _OnMeta
from stoker.models.catalog import DEFAULT, FAMILIES, Family, check_model_name, family_of

MEMBERS = {prefix: sorted(n for n in known_models() if n.startswith(prefix)) for f in FAMILIES for prefix in f.prefixes}
ROWS = [pytest.param(name, family_of(name), id=name) for name in [*(m[0] for m in MEMBERS.values()), "densenet121"]]
"""the first member of each prefix, and one without a row"""
RATE = 0.123


def _on_meta(name: str, **options: object) -> nn.Module | None:
    """The model ``name``, from its own builder with ``options``; None if the builder refuses them."""
    family = family_of(name)
    if family.auxiliary_heads:
        options["init_weights"] = True
    try:
        with _OnMeta():
            return _builder(name, family)(num_classes=3, **options).to("meta")
    except TypeError:
        return None


def _output(model: nn.Module, side: int) -> torch.Tensor:
    with torch.no_grad():
        return model(torch.empty(2, 3, side, side, device="meta"))


class _Pooled(TorchFunctionMode):
    """The sizes to which ``adaptive_avg_pool2d`` pools; to 1 x 1 it is a mean, whose gradient has an order."""

    def __init__(self) -> None:
        super().__init__()
        self.pooled: set[object] = set()

    def __torch_function__(self, func, types, args=(), kwargs=None):  # type: ignore[no-untyped-def]
        if getattr(func, "__name__", "") == "adaptive_avg_pool2d":
            self.pooled.add(str(args[1]))
        return func(*args, **(kwargs or {}))


@pytest.mark.parametrize(("name", "family"), ROWS)
def test_a_row_says_whether_its_models_pool_to_more_than_one_place(name: str, family: Family) -> None:
    side = 299 if name == "inception_v3" else 224
    for heads in {False, bool(family.auxiliary_heads)}:
        model = model_on_meta(name, classes=3, image_size=side, auxiliary=heads).train()
        with _Pooled() as seen, torch.no_grad():
            model(torch.empty(2, 3, side, side, device="meta"))
        known = {family.nondeterministic_on_gpu, family.nondeterministic_heads_on_gpu if heads else None}
        assert ("AdaptiveAvgPool2d" in known) == bool(seen.pooled - {"1", "(1, 1)"})


def test_the_catalog_is_read_without_torch() -> None:
    code = (
        "import sys; from stoker.models.catalog import family_of, known_models; import stoker.models as m; "
        "assert 'resnet50' in known_models() and m.family_of('vit_b_16').has_dropout; "
        "sys.exit(', '.join({'torch', 'torchvision', 'numpy'} & sys.modules.keys()) or None)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr) == (0, "")


def test_the_known_models_are_those_of_torchvision_and_ours() -> None:
    ours = {name for family in FAMILIES if family.builder for name in family.prefixes}
    assert known_models() == {*models.list_models(module=models), *ours}


def test_each_name_has_one_row() -> None:
    assert all(MEMBERS.values())
    for name in known_models():
        assert sum(name.startswith(family.prefixes) for family in FAMILIES) <= 1
    assert family_of("densenet121") is DEFAULT


@pytest.mark.parametrize(("name", "family"), ROWS)
def test_a_row_tells_which_rates_the_builder_uses(name: str, family: Family) -> None:
    dropout = _on_meta(name, dropout=RATE)
    uses_dropout = dropout is not None and any(isinstance(m, nn.Dropout) and m.p == RATE for m in dropout.modules())
    depth = _on_meta(name, stochastic_depth_prob=0.9)
    uses_depth = depth is not None and any(isinstance(m, StochasticDepth) and m.p > 0.7 for m in depth.modules())
    assert (uses_dropout, uses_depth) == (family.has_dropout, family.has_stochastic_depth)
    accepted = {"drop_rate": (dropout, uses_dropout), "stochastic_depth": (depth, uses_depth)}
    assert set(family.ignored) == {key for key, (model, uses) in accepted.items() if model is not None and not uses}


@pytest.mark.parametrize(("name", "family"), ROWS)
def test_a_row_tells_whether_images_of_any_size_go_through(name: str, family: Family) -> None:
    if family.least_side is None:
        return
    model = model_on_meta(name, classes=3)
    for side in (family.least_side, family.least_side + 1, 47, 225):
        assert _output(model, side).shape == (2, 3)


@pytest.mark.parametrize(("name", "family"), ROWS)
def test_a_row_tells_what_the_builder_must_know_of_the_image_size(name: str, family: Family) -> None:
    if family.image_options is None:
        assert _output(model_on_meta(name, classes=3), 300).shape == (2, 3)
        return
    with pytest.raises((AssertionError, RuntimeError, ValueError)):
        _output(model_on_meta(name, classes=3), 448)
    assert _output(model_on_meta(name, classes=3, image_size=448), 448).shape == (2, 3)


@pytest.mark.parametrize(("name", "family"), ROWS)
def test_a_row_names_the_heads_that_exist_in_training_only(name: str, family: Family) -> None:
    plain, trained = (set(model_on_meta(name, classes=3, auxiliary=a).state_dict()) for a in (False, True))
    assert {n for n in trained if n.startswith(family.auxiliary_heads)} == trained - plain
    for prefix in family.auxiliary_heads:
        assert any(n.startswith(prefix) for n in trained)
    assert (family.auxiliary_weight > 0) == bool(family.auxiliary_heads)


@pytest.mark.parametrize(("name", "family"), ROWS)
def test_a_row_names_embeddings_and_containers_that_exist(name: str, family: Family) -> None:
    model = model_on_meta(name, classes=3)
    parameters = dict(model.named_parameters())
    for embedding in family.embeddings:
        assert any(n.rpartition(".")[2] == embedding and p.ndim > 1 for n, p in parameters.items())
    kinds = {f"{type(m).__module__}.{type(m).__qualname__}" for m in model.modules()}
    assert kinds.issuperset(family.containers)


@pytest.mark.parametrize(("name", "family"), ROWS)
def test_a_row_names_position_embeddings_of_the_patches_and_their_projection(name: str, family: Family) -> None:
    if family.position_embedding is None or family.patch_projection is None:
        assert family.position_embedding is family.patch_projection is None
        return
    small, large = (dict(model_on_meta(name, classes=3, image_size=side).named_parameters()) for side in (224, 448))
    *_, patch = small[family.patch_projection].shape
    counts = [each[family.position_embedding].shape[1] for each in (small, large)]
    assert counts == [1 + (side // patch) ** 2 for side in (224, 448)]


def test_a_rate_that_torchvision_ignores_stays_valid_and_others_are_refused() -> None:
    assert build_model("convnext_tiny", classes=2, drop_rate=0.1) is not None
    assert build_model("mobilenet_v3_small", classes=2, stochastic_depth=0.1) is not None
    with pytest.raises(ModelError, match=r"model\.stochastic_depth: mobilenet_v2 has no stochastic depth"):
        build_model("mobilenet_v2", classes=2, stochastic_depth=0.1)


def test_a_name_without_near_ones_gets_a_hint() -> None:
    with pytest.raises(ModelError) as caught:
        check_model_name("qqqq")
    assert str(caught.value) == (
        "model.name: unknown model 'qqqq'; give a torchvision classification model, or one of digitsnet, "
        "efficientnet_lite0, efficientnet_lite1, efficientnet_lite2, efficientnet_lite3, efficientnet_lite4"
    )
