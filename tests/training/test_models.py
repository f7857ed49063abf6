import pytest
import torch

from stoker.errors import ModelError
from stoker.training.models import build_model, check_model, model_names


@pytest.mark.parametrize("name", [name for name in model_names() if not name.startswith(("regnet", "vit_h"))])
def test_every_model_builds_with_the_classes_asked_for(name: str) -> None:
    with torch.device("meta"):
        model = build_model(name, classes=7)
    heads = [m for m in model.modules() if isinstance(m, (torch.nn.Linear, torch.nn.Conv2d))]
    assert 7 in {getattr(head, "out_features", getattr(head, "out_channels", 0)) for head in heads}


def test_a_model_that_the_meta_device_cannot_build_is_checked_all_the_same() -> None:
    check_model("regnet_y_400mf", classes=3)


def test_an_unknown_model_gets_the_nearest_names() -> None:
    with pytest.raises(ModelError, match=r"no model is called 'resnet5O'; did you mean resnet50"):
        build_model("resnet5O", classes=2)


def test_a_drop_rate_for_a_model_that_takes_none_is_refused() -> None:
    with pytest.raises(ModelError, match=r"model\.drop_rate: resnet18 takes no dropout"):
        build_model("resnet18", classes=2, drop_rate=0.1)
