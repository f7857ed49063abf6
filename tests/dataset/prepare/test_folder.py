"""A folder of images: what its folders are, classes or splits, and how it is told."""

from pathlib import Path

import pytest

from images import encoded, make, make_folder
from stoker.dataset.prepare import Options, Source, open_source
from stoker.errors import DatasetError


def opened(root: Path, per_folder: dict[str, int], **options: str) -> Source:
    """The source of a folder with so many images in each of these folders."""
    make_folder(root, per_folder)
    return open_source(str(root), Options(**options))  # type: ignore[arg-type]


def splits(*folders: str) -> dict[str, int]:
    return {f"{folder}/{name}": 2 for folder in folders for name in ("cat", "dog")}


@pytest.mark.parametrize(
    ("folders", "found"),
    [
        (("train", "test"), ["train", "test"]),
        (("Train", "Test"), ["train", "test"]),
        (("TRAIN", "Valid"), ["train", "validation"]),
        (("training", "testing"), ["train", "test"]),
        (("Training", "val", "test"), ["train", "validation", "test"]),
        (("train", "test", "__MACOSX"), ["train", "test"]),
        (("train",), ["train"]),
    ],
)
def test_folders_that_are_all_called_after_splits_are_splits(
    folders: tuple[str, ...], found: list[str], tmp_path: Path
) -> None:
    source = opened(tmp_path, splits(*folders))
    assert (source.classes, list(source.splits)) == (("cat", "dog"), found)


@pytest.mark.parametrize(
    ("folders", "named"),
    [
        (("train", "test", "validation", "custom"), "test, train, validation have the name of a split, and custom"),
        (("train", "val", "extra"), "train, val have the name of a split, and extra beside them"),
        (("train", "extra"), "train has the name of a split, and extra beside it"),
        (("train", "test_set"), "test_set, train have the name of a split"),
        (("training_set", "test_set"), "test_set, training_set have the name of a split"),
        (("train2017", "val2017"), "train2017, val2017 have the name of a split"),
        (("seg_pred", "seg_test", "seg_train"), "seg_test, seg_train have the name of a split, and seg_pred"),
        (("train", "dev"), "dev, train have the name of a split"),
        (("Test",), "Test has the name of a split"),
        (("val", "test"), "has no train folder, only test, val"),
        (("Train", "train"), "has two train folders (Train, train)"),
        (("train", "val", "valid"), "has two validation folders (val, valid)"),
        (("one", "two", "three"), "its folders one, three, two all hold the folders cat, dog and nothing else"),
    ],
)
def test_folders_that_may_be_splits_are_refused_by_name_with_what_to_do(
    folders: tuple[str, ...], named: str, tmp_path: Path
) -> None:
    with pytest.raises(DatasetError) as refused:
        opened(tmp_path, splits(*folders))
    assert named in str(refused.value)
    assert "--top-folders" in str(refused.value) or "keep one" in str(refused.value)
    assert "\n" not in str(refused.value)


def test_folders_called_after_splits_that_hold_images_are_told_what_they_may_be(tmp_path: Path) -> None:
    with pytest.raises(DatasetError, match=r"train has no class folders; .* --top-folders classes"):
        opened(tmp_path, {"train": 2, "test": 2})


@pytest.mark.parametrize(
    "folders",
    [
        {"bus": 2, "car": 2, "train": 2},
        {"test": 2, "trial": 2},
        {"test": 2},
        {"dev": 2, "ops": 2},
        {"steam train": 2, "test tube": 2, "trainer": 2},
        {"cat/left": 2, "cat/right": 2, "dog/left": 2, "dog": 2},
        {"cat/images": 2, "dog/images": 2},
        {"cat/1": 2, "cat/2": 2, "dog/1": 2, "dog/3": 2},
        {"cat/a": 2, "cat/b": 2},
    ],
)
def test_ordinary_classes_stay_classes(folders: dict[str, int], tmp_path: Path) -> None:
    for folder in (name for name in folders if "/" in name):
        (tmp_path / folder).mkdir(parents=True, exist_ok=True)
    for folder in folders:
        (tmp_path / folder).mkdir(parents=True, exist_ok=True)
        for number in range(2):
            (tmp_path / folder / f"{number}.jpg").write_bytes(encoded(number))
    source = open_source(str(tmp_path), Options())
    assert source.classes == tuple(sorted({folder.partition("/")[0] for folder in folders}))
    assert list(source.splits) == ["train"]


def test_the_option_makes_classes_of_any_folders(tmp_path: Path) -> None:
    source = opened(tmp_path, splits("train", "val", "extra"), top_folders="classes")
    assert (source.classes, list(source.splits)) == (("extra", "train", "val"), ["train"])
    source = opened(tmp_path / "same", splits("one", "two"), top_folders="classes")
    assert source.classes == ("one", "two")


def test_the_option_takes_the_splits_and_says_what_it_leaves_out(tmp_path: Path) -> None:
    make_folder(tmp_path / "in", splits("Training Set", "dev", "test1", "extra", "more"))
    made = make(tmp_path / "in", tmp_path / "data", Options(top_folders="splits", jpeg="original"))
    assert {name: split.samples for name, split in made.manifest.splits.items()} == {
        "train": 4,
        "validation": 4,
        "test": 4,
    }
    assert made.notes == ("left out the folders extra, more: none is a split",)
    with pytest.raises(DatasetError, match="has no train folder"):
        opened(tmp_path / "other", splits("one", "two"), top_folders="splits")


def test_a_set_of_a_clear_layout_is_the_same_with_or_without_the_option(tmp_path: Path) -> None:
    make_folder(tmp_path / "in", splits("train", "test"))
    made = make(tmp_path / "in", tmp_path / "data")
    again = make(tmp_path / "in", tmp_path / "data", Options(shard_samples=7, jpeg="original", top_folders="splits"))
    assert (again.was_there, again.manifest) == (True, made.manifest)


@pytest.mark.parametrize("kind", ["parquet", "tar"])
def test_folders_training_and_testing_are_splits_of_other_kinds_too(kind: str, tmp_path: Path) -> None:
    from sources import tar_of, write_hub

    for first, split in enumerate(("Training", "testing")):
        if kind == "parquet":
            write_hub(tmp_path / split / "rows.parquet", range(9 * first, 9 * first + 9))
        else:
            (tmp_path / split).mkdir()
            (tmp_path / split / "0.tar").write_bytes(tar_of({"a.jpg": encoded(first), "a.cls": b"0"}))
    assert list(open_source(str(tmp_path), Options()).splits) == ["train", "test"]


@pytest.mark.parametrize("inside", [("train", "val"), ("train",), ("Training", "Testing"), ("a", "test")])
def test_a_folder_around_the_splits_is_no_class(inside: tuple[str, ...], tmp_path: Path) -> None:
    for name in inside:
        make_folder(tmp_path / "images" / "set" / name, {"cat": 2, "dog": 2})
    with pytest.raises(DatasetError, match=r"its only folder set holds .*, of which some are splits; give set itself"):
        open_source(str(tmp_path / "images"), Options())
