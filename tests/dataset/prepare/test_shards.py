"""The result of a preparation: shards, indexes, splits."""

import io
import tarfile
from collections import Counter
from pathlib import Path

import pytest

from images import make, make_folder, objects
from stoker.dataset import SampleReader
from stoker.dataset.format.index import payload_checksum, read_index
from stoker.dataset.format.manifest import checksum
from stoker.dataset.prepare import Options, on_threads


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_folder(tmp_path_factory.mktemp("source") / "images", {"cat": 23, "dog": 30, "St. Bernard": 11})


def test_the_same_source_gives_the_same_bytes_whatever_order_threads_run_in(folder: Path, tmp_path: Path) -> None:
    one = make(folder, tmp_path / "one", map_=on_threads(1))
    many = make(folder, tmp_path / "many", map_=on_threads(5))
    other = make(folder, tmp_path / "other", Options(jpeg="original", seed=1, shard_samples=7))

    assert one.manifest.fingerprint == many.manifest.fingerprint != other.manifest.fingerprint
    first, second = objects(tmp_path / "one"), objects(tmp_path / "many")
    assert first == second
    assert not any(name.startswith("build/") for name in first)


def test_each_file_is_in_exactly_one_split_once_with_its_own_bytes_and_label(folder: Path, tmp_path: Path) -> None:
    made = make(folder, tmp_path / "data", Options(jpeg="original", validation_fraction=0.3, shard_samples=7))

    seen: Counter[bytes] = Counter()
    for name in ("train", "validation"):
        reader = SampleReader(made.root, name)
        for sample in reader.read(range(len(reader))):
            data = bytes(sample.data)
            seen[data] += 1
            label = made.manifest.classes[sample.label]
            assert (folder / label / f"{sample.key[-3:]}.jpg").read_bytes() == data
    assert sum(seen.values()) == 64
    assert set(seen.values()) == {1}
    assert made.verified.class_samples["validation"] == (3, 7, 9)  # St. Bernard, cat, dog: 30 % of each
    assert made.verified.shared_images == 0


def test_a_shard_is_a_plain_tar_and_its_index_points_at_the_images(folder: Path, tmp_path: Path) -> None:
    made = make(folder, tmp_path / "data")
    for split in made.manifest.splits.values():
        for shard in split.shards:
            data = (tmp_path / "data" / shard.path).read_bytes()
            assert (len(data), checksum(data)) == (shard.bytes, shard.checksum)
            index = read_index(made.root, shard)
            with tarfile.open(fileobj=io.BytesIO(data)) as tar:
                members = tar.getmembers()
                contents = [tar.extractfile(member).read() for member in members]  # type: ignore[union-attr]
            assert {(m.mtime, m.uid, m.gid, m.uname) for m in members} == {(0, 0, 0, "")}
            assert [m.name for m in members[::2]] == [f"{key}.jpg" for key in index.keys]
            assert [m.name for m in members[1::2]] == [f"{key}.cls" for key in index.keys]
            assert [m.offset_data for m in members[::2]] == index.offset.tolist()
            assert [int(label) for label in contents[1::2]] == index.label.tolist()
            assert [payload_checksum(image) for image in contents[::2]] == index.checksum.tolist()
            assert [len(image) for image in contents[::2]] == index.length.tolist()
            assert {(48, 36)} == set(zip(index.width.tolist(), index.height.tolist(), strict=True))
            assert all("." not in key for key in index.keys)


def test_shards_mix_the_classes_and_keep_to_the_bound(tmp_path: Path) -> None:
    folder = make_folder(tmp_path / "images", {"a": 40, "b": 40})
    made = make(folder, tmp_path / "data", Options(jpeg="original", shard_samples=20, validation_fraction=0))
    assert list(made.manifest.splits) == ["train"]
    for shard in made.manifest.split("train").shards:
        assert shard.samples <= 20
        assert len(set(read_index(made.root, shard).label.tolist())) == 2
    by_size = make(folder, tmp_path / "small", Options(jpeg="original", shard_mb=0.05))
    assert len(by_size.manifest.split("train").shards) > 2


def test_splits_that_the_folder_has_are_kept(tmp_path: Path) -> None:
    make_folder(tmp_path / "images" / "train", {"a": 5, "b": 6})
    make_folder(tmp_path / "images" / "val", {"a": 2, "b": 3}, first=100)
    make_folder(tmp_path / "images" / "test", {"b": 1}, first=200)
    made = make(tmp_path / "images", tmp_path / "data")
    assert {name: split.samples for name, split in made.manifest.splits.items()} == {
        "train": 11,
        "validation": 5,
        "test": 1,
    }
    assert made.verified.class_samples["test"] == (0, 1)


def test_a_class_called_train_among_others_is_a_class(tmp_path: Path) -> None:
    make_folder(tmp_path / "images", {"bus": 4, "train": 4})
    assert make(tmp_path / "images", tmp_path / "data").manifest.classes == ("bus", "train")


def test_hidden_files_are_ignored(tmp_path: Path) -> None:
    folder = make_folder(tmp_path / "images", {"a": 4, "b": 4})
    (folder / ".DS_Store").write_bytes(b"x")
    (folder / "a" / "._000.jpg").write_bytes(b"x")
    assert make(folder, tmp_path / "data").bad == ()


def test_images_that_stand_in_two_splits_are_counted(tmp_path: Path) -> None:
    make_folder(tmp_path / "images" / "train", {"a": 5})
    make_folder(tmp_path / "images" / "validation", {"a": 3}, first=3)
    assert make(tmp_path / "images", tmp_path / "data").verified.shared_images == 2
