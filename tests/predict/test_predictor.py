"""A predictor gives the trained model's probabilities for every kind of image that is sent."""

from __future__ import annotations

import io
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from published import finished_run, weights_of
from stoker.dataset import SampleReader, UndecodableImage
from stoker.dataset.decode import evaluation_image
from stoker.errors import ModelError
from stoker.models import build_model
from stoker.predict import Predictor, check_parity
from stoker.predict.golden import GOLDEN, check_golden
from stoker.registry import Registry, publish_run
from stoker.runs.folder import RunFolder
from stoker.storage import Location


@pytest.fixture(scope="module")
def storage(tmp_path_factory: pytest.TempPathFactory) -> Location:
    storage = finished_run(tmp_path_factory.mktemp("storage"))
    publish_run(storage, "run", "digits", verify=check_parity, alias="production")
    return storage


@pytest.fixture(scope="module")
def predictor(storage: Location) -> Predictor:
    return Predictor.load("digits@production", storage=storage)


def images(storage: Location) -> list[bytes]:
    reader = SampleReader(storage / "data", "validation")
    return [bytes(sample.data) for sample in reader.read(range(len(reader)))]


def test_probabilities_are_those_of_the_plain_model(storage: Location, predictor: Predictor) -> None:
    model = build_model("digitsnet", classes=3)
    model.load_state_dict(weights_of(storage))
    recipe = RunFolder(storage, "run").recipe()
    pixels = torch.stack([evaluation_image(data, image_size=32, resize=37) for data in images(storage)]).float() / 255
    mean, std = (torch.tensor(v).view(3, 1, 1) for v in (recipe.data.mean, recipe.data.std))
    with torch.no_grad():
        expected = model.eval()((pixels - mean) / std).softmax(dim=1).numpy()
    np.testing.assert_allclose(predictor.predict(images(storage)), expected, atol=1e-5)


def test_a_published_run_carries_its_golden_predictions(storage: Location, predictor: Predictor) -> None:
    version = Registry(storage).resolve("digits@1")
    check_golden(version, predictor)
    assert GOLDEN in version.files


def test_an_image_gets_the_same_answer_alone_and_in_any_batch(storage: Location, predictor: Predictor) -> None:
    together = predictor.predict(images(storage))
    alone = np.concatenate([predictor.predict([data]) for data in images(storage)])
    np.testing.assert_allclose(together, alone, atol=1e-5)
    np.testing.assert_allclose(together.sum(axis=1), 1, atol=1e-5)


@pytest.mark.parametrize("form", ["PNG", "WEBP", "JPEG"])
@pytest.mark.parametrize("mode", ["RGB", "L"])
def test_what_people_send_is_read(predictor: Predictor, form: str, mode: str) -> None:
    data = io.BytesIO()
    Image.new(mode, (300, 200)).save(data, form)
    assert predictor.predict([data.getvalue()]).shape == (1, 3)


def test_the_top_classes_come_most_probable_first(predictor: Predictor) -> None:
    rows = predictor.top(np.array([[0.2, 0.5, 0.3]], dtype=np.float32), 2)
    assert [label for label, _ in rows[0]] == ["class1", "class2"]


def test_no_images_give_no_rows(predictor: Predictor) -> None:
    assert predictor.predict([]).shape == (0, 3)


def test_bytes_that_are_no_image_are_refused(predictor: Predictor) -> None:
    with pytest.raises(UndecodableImage):
        predictor.predict([b"hello"])


def test_weights_of_another_architecture_are_refused(tmp_path: Path) -> None:
    storage = finished_run(tmp_path)
    version = publish_run(storage, "run", "digits", verify=check_parity)
    where = version.location / "model.json"
    where.write(where.read().replace(b'"architecture": "digitsnet"', b'"architecture": "resnet18"'))
    with pytest.raises(ModelError, match="its weights do not fit a resnet18"):
        Predictor.load("digits", storage=storage)
