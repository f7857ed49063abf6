"""Data sets of torchvision that are on disk."""

import io
import pickle
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from torchvision import datasets

from images import encoded, make, make_folder, run_here, samples
from sources import write_mnist
from stoker.dataset.prepare import Options, open_source

PLAIN = Options(jpeg="original", shard_samples=8)


def test_pictures_without_files_are_stored_as_png_pixel_for_pixel(tmp_path: Path) -> None:
    write_mnist(tmp_path / "sets")

    made = make(f"torchvision://MNIST?root={tmp_path}/sets", tmp_path / "data", PLAIN)

    found = samples(made)
    assert {split: len(all_) for split, all_ in found.items()} == {"train": 30, "validation": 10, "test": 20}
    assert made.manifest.classes[3] == "3 - three"
    for split, all_ in found.items():
        whole = datasets.MNIST(tmp_path / "sets", train=split != "test")
        for key, name, data in all_:
            picture, label = whole[int(key)]
            assert data.startswith(b"\x89PNG")
            assert np.array_equal(np.asarray(Image.open(io.BytesIO(data))), np.asarray(picture))
            assert made.manifest.classes[label] == name


def test_a_second_time_nothing_is_done_also_when_the_files_were_touched(tmp_path: Path) -> None:
    write_mnist(tmp_path / "sets")
    url = f"torchvision://MNIST?root={tmp_path}/sets"
    first = make(url, tmp_path / "data", PLAIN)
    for file in (tmp_path / "sets").rglob("*ubyte"):
        file.touch()
    again = make(url, tmp_path / "data", PLAIN)
    assert again.was_there
    assert again.manifest == first.manifest


def test_image_files_keep_their_bytes(tmp_path: Path) -> None:
    make_folder(tmp_path / "sets", {"a": 5, "b": 5})
    made = make(f"torchvision://ImageFolder?root={tmp_path}/sets", tmp_path / "data", PLAIN)
    found = samples(made)
    assert {data for all_ in found.values() for _, _, data in all_} == {encoded(n) for n in range(10)}
    assert {(name, n) for all_ in found.values() for n, name, _ in all_} == {
        ("ab"[n // 5], f"{n:08d}") for n in range(10)
    }


def test_splits_by_name_are_all_taken_and_one_alone_when_it_is_named(tmp_path: Path) -> None:
    root = tmp_path / "country211"
    for split, count in (("train", 4), ("valid", 2), ("test", 3)):
        make_folder(root / split, {"DE": count, "ES": count})
    all_ = open_source(f"torchvision://Country211?root={tmp_path}", PLAIN)
    assert {split: len(entries) for split, entries in all_.splits.items()} == {"train": 8, "validation": 4, "test": 6}
    one = open_source(f"torchvision://Country211?root={tmp_path}&split=test", PLAIN)
    assert {split: len(entries) for split, entries in one.splits.items()} == {"train": 6}


def test_sets_that_are_made_up_work_too(tmp_path: Path) -> None:
    made = make("torchvision://FakeData?size=24&num_classes=2&image_size=3,8,8", tmp_path / "data", PLAIN)
    assert sum(split.samples for split in made.manifest.splits.values()) == 24


@pytest.mark.parametrize(
    ("source", "words"),
    [
        ("torchvision://MNIS?root=/tmp", "torchvision has no data set called 'MNIS'; its documentation lists them"),
        ("torchvision://mnist?root=/tmp", "did you mean MNIST?"),
        ("torchvision://MNIST", "give its folder, as torchvision://MNIST?root=FOLDER"),
        ("torchvision://MNIST?root={at}", "torchvision's MNIST cannot be opened (Dataset not found."),
        ("torchvision://MNIST?root={at}&download=1", "nothing is downloaded; it takes root, train"),
        ("torchvision://CIFAR10?root={at}&slit=train", "slit=train: it does not take this"),
    ],
)
def test_what_is_not_there_or_mistyped_gets_one_line(
    source: str, words: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    code, _, err = run_here(monkeypatch, capfd, source.format(at=tmp_path), tmp_path / "data")
    assert (code, err.count("\n")) == (2, 1), err
    assert words in err
    assert not (tmp_path / "data").exists()


def test_targets_that_are_not_classes_are_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    root = tmp_path / "VOCdevkit" / "VOC2012"
    for name, data in {
        "ImageSets/Segmentation/train.txt": b"1\n",
        "JPEGImages/1.jpg": encoded(1),
        "SegmentationClass/1.png": encoded(2, "PNG", "L"),
    }.items():
        (root / name).parent.mkdir(parents=True)
        (root / name).write_bytes(data)
    source = f"torchvision://VOCSegmentation?root={tmp_path}&image_set=train"
    code, _, err = run_here(monkeypatch, capfd, source, tmp_path / "data")
    assert (code, err.count("\n")) == (2, 1), err
    assert "torchvision's VOCSegmentation has targets that are not classes" in err


def test_cifar_is_read_by_both_of_its_splits(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = tmp_path / "cifar-10-batches-py"
    folder.mkdir()
    rng = np.random.default_rng(1)
    for name in [*(f"data_batch_{n}" for n in range(1, 6)), "test_batch"]:
        batch = {"data": rng.integers(0, 255, (10, 3072), dtype=np.uint8), "labels": list(range(10))}
        (folder / name).write_bytes(pickle.dumps(batch))
    (folder / "batches.meta").write_bytes(pickle.dumps({"label_names": [f"kind {n}" for n in range(10)]}))
    monkeypatch.setattr(datasets.CIFAR10, "_check_integrity", lambda self: True)  # the sums of the real archive
    monkeypatch.setattr("torchvision.datasets.cifar.check_integrity", lambda *_: True)

    made = make(
        f"torchvision://CIFAR10?root={tmp_path}", tmp_path / "data", Options(jpeg="original", validation_fraction=0)
    )

    assert {name: split.samples for name, split in made.manifest.splits.items()} == {"train": 50, "test": 10}
    assert made.manifest.classes == tuple(f"kind {n}" for n in range(10))
    pictures = datasets.CIFAR10(tmp_path, train=False)
    for key, name, data in samples(made)["test"]:
        picture, label = pictures[int(key)]
        assert np.array_equal(np.asarray(Image.open(io.BytesIO(data))), np.asarray(picture))
        assert name == f"kind {label}"
