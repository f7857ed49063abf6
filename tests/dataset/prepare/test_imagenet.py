"""ImageNet's archives, small ones of the same make."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest

from conftest import Store
from images import encoded, make, run_here, samples
from sources import VALIDATION, WNIDS, archives, synsets
from stoker.dataset.prepare import Options
from stoker.dataset.prepare.sources.imagenet import open_imagenet
from stoker.errors import DatasetError
from stoker.storage import Location, locate

PLAIN = Options(jpeg="original", shard_samples=5)


def put(root: Location, files: Mapping[str, bytes]) -> Location:
    for name, data in files.items():
        (root / name).write(data)
    return root


def assert_all_there(found: dict[str, list[tuple[str, str, bytes]]]) -> None:
    train = {(wnid, data) for wnid, files in synsets().items() for data in files.values()}
    assert {(name, data) for _, name, data in found["train"]} == train
    truth = {(WNIDS[number - 1], encoded(1000 + n)) for n, number in enumerate(VALIDATION)}
    assert {(name, data) for _, name, data in found["validation"]} == truth


def test_the_archives_are_read_where_they_lie_with_the_devkits_truth(tmp_path: Path) -> None:
    put(locate(tmp_path / "imagenet"), archives())

    made = make(tmp_path / "imagenet", tmp_path / "data", PLAIN)

    assert made.manifest.classes == tuple(sorted(WNIDS))
    found = samples(made)
    assert_all_there(found)
    assert "n02119789/n02119789_2" in {key for key, _, _ in found["train"]}
    assert "ILSVRC2012_val_00000003" in {key for key, _, _ in found["validation"]}


@pytest.mark.store
def test_archives_on_the_store_are_listed_by_their_headers_alone(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    root = put(locate(store.fresh("imagenet")), archives())
    read: list[int] = []
    real = Location.read_range

    def counted(self: Location, start: int, stop: int, *rest: Any) -> bytes:
        read.append(stop - start)
        return real(self, start, stop, *rest)

    monkeypatch.setattr(Location, "read_range", counted)
    source = open_imagenet(root, Options())
    members = sum(map(len, source.splits.values()))
    monkeypatch.undo()

    assert members == 17
    ends = [size for size in read if size > 2048 + 512]  # what follows an archive's end must be zeros
    assert max(read) <= 10_240
    assert len(ends) <= len(WNIDS) + 2
    assert len(read) <= 2 * members + 4 * (len(WNIDS) + 2)
    assert_all_there(samples(make(root.url, f"{root}-data", PLAIN)))


TRUTHS: dict[str, dict[str, bytes]] = {
    "one WNID a line": {
        "imagenet_2012_validation_synset_labels.txt": "\n".join(WNIDS[n - 1] for n in VALIDATION).encode()
    },
    "the devkit's files": {
        "ILSVRC2012_validation_ground_truth.txt": b"3\n1\n2\n2\n1\n",
        "map_clsloc.txt": "".join(f"{wnid} {n} some_name\n" for n, wnid in enumerate(WNIDS, start=1)).encode(),
    },
    "Kaggle's": {
        "LOC_val_solution.csv": b"ImageId,PredictionString\n"
        + "".join(f"ILSVRC2012_val_{n + 1:08d},{WNIDS[i - 1]} 1 2 3 4 \n" for n, i in enumerate(VALIDATION)).encode()
    },
}


@pytest.mark.parametrize("form", TRUTHS)
def test_other_forms_of_the_truth_say_the_same(form: str, tmp_path: Path) -> None:
    files = archives()
    del files["ILSVRC2012_devkit_t12.tar.gz"]
    source = open_imagenet(put(locate(tmp_path), files | TRUTHS[form]), Options())
    labels = {entry.key: source.classes[entry.label] for entry in source.splits["validation"]}
    assert labels == {f"ILSVRC2012_val_{n + 1:08d}": WNIDS[number - 1] for n, number in enumerate(VALIDATION)}


def test_without_the_validation_archive_a_part_is_held_out(tmp_path: Path) -> None:
    put(locate(tmp_path / "in"), {"ILSVRC2012_img_train.tar": archives()["ILSVRC2012_img_train.tar"]})
    made = make(tmp_path / "in", tmp_path / "data", PLAIN)
    assert {name: split.samples for name, split in made.manifest.splits.items()} == {"train": 9, "validation": 3}


def test_what_is_missing_or_damaged_gets_one_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    files = archives()
    devkit = files.pop("ILSVRC2012_devkit_t12.tar.gz")
    root = put(locate(tmp_path / "in"), files)

    def line() -> str:
        code, _, err = run_here(monkeypatch, capfd, root.url, tmp_path / "data", "--local")
        assert (code, err.count("\n")) == (2, 1), err
        assert not (tmp_path / "data").exists()
        return err

    assert "holds ILSVRC2012_img_val.tar but not its labels; put ILSVRC2012_devkit_t12.tar.gz" in line()
    (root / "ILSVRC2012_devkit_t12.tar.gz").write(devkit[: len(devkit) // 2])
    assert "ILSVRC2012_devkit_t12.tar.gz: not a valid gzipped tar" in line()
    (root / "imagenet_2012_validation_synset_labels.txt").write(b"n01440764\n" * 3)
    assert "no class for ILSVRC2012_val_00000004.JPEG" in line()
    (root / "imagenet_2012_validation_synset_labels.txt").write(b"n77777777\n" * 5)
    assert "n77777777 is not a class of ILSVRC2012_img_train.tar" in line()
    whole = files["ILSVRC2012_img_train.tar"]
    (root / "ILSVRC2012_img_train.tar").write(whole[: len(whole) // 2])
    assert "ILSVRC2012_img_train.tar: damaged at or after byte" in line()


def test_the_same_archives_elsewhere_are_known_as_such(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    for name in ("one", "two"):
        put(locate(tmp_path / name), archives())
    told = []
    for name in ("one", "two"):
        code, out, err = run_here(monkeypatch, capfd, tmp_path / name, tmp_path / "data", "--kind", "imagenet")
        assert code == 0, err
        told.append(json.loads(out.splitlines()[-1]))
    assert [one["was_there"] for one in told] == [False, True]
    assert told[0]["fingerprint"] == told[1]["fingerprint"]


def test_a_folder_without_the_train_archive_is_refused_when_it_is_said_to_be_imagenet(tmp_path: Path) -> None:
    with pytest.raises(DatasetError, match=r"holds no ILSVRC2012_img_train\.tar; put ImageNet's archives there"):
        open_imagenet(locate(tmp_path), Options())
