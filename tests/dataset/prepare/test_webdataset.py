"""WebDataset's own writer and reader against ours, and tars as people have them."""

import argparse
import gzip
import io
import itertools
import json
import tarfile
from pathlib import Path

import numpy as np
import pytest
import webdataset
from PIL import Image

from conftest import Store
from images import encoded, make, make_folder, objects, samples
from stoker.dataset import Loader, SampleReader
from stoker.dataset.format.index import read_index
from stoker.dataset.format.manifest import checksum
from stoker.dataset.prepare import Options, open_source
from stoker.dataset.prepare.command import add_arguments, prepare_command
from stoker.dataset.prepare.verify import verify
from stoker.errors import DatasetError
from stoker.storage import locate

Member = tuple[str, bytes]


def write_tar(path: Path, members: list[Member], form: int = tarfile.PAX_FORMAT) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    with tarfile.open(path, "w", format=form) as archive:
        for name, data in members:
            member = tarfile.TarInfo(name)
            member.size = len(data)
            archive.addfile(member, io.BytesIO(data))
    return path


def sample(key: str, number: int, label: object = None) -> list[Member]:
    return [(f"{key}.jpg", encoded(number)), (f"{key}.cls", str(number % 3 if label is None else label).encode())]


def write_by_webdataset(folder: Path, split: str, count: int, per_shard: int) -> list[tuple[str, int, bytes]]:
    folder.mkdir(parents=True, exist_ok=True)
    written = []
    with webdataset.ShardWriter(str(folder / f"{split}-%04d.tar"), maxcount=per_shard, verbose=0) as writer:
        for number in range(count):
            key, label, image = f"n{number % 4:02d}/{split}{number:05d}", number % 5, encoded(number)
            writer.write({"__key__": key, "jpg": image, "cls": label, "json": {"note": "x" * number}})
            written.append((key, label, image))
    return written


# -- between WebDataset and us -----------------------------------------------------------------------------------------


def test_shards_of_webdatasets_own_writer_are_read_sample_for_sample_where_they_lie(tmp_path: Path) -> None:
    train = write_by_webdataset(tmp_path / "tars", "train", 23, 8)
    held = write_by_webdataset(tmp_path / "tars", "val", 7, 8)
    before = objects(tmp_path / "tars")

    made = make(tmp_path / "tars", tmp_path / "data", Options())

    assert objects(tmp_path / "tars") == before
    assert sorted(objects(tmp_path / "data")) == [
        "dataset.json",
        *(f"index/{name}.idx" for name in ("train/000000", "train/000001", "train/000002", "validation/000000")),
        "prepared.json",
    ]
    assert made.manifest.classes == ("0", "1", "2", "3", "4")
    found = {split: [(key, int(name), data) for key, name, data in read] for split, read in samples(made).items()}
    assert found == {"train": train, "validation": held}
    first = made.manifest.split("train").shards[0]
    assert first.path == str(tmp_path / "tars" / "train-0000.tar")
    assert first.checksum == checksum((tmp_path / "tars" / "train-0000.tar").read_bytes())
    assert verify(made.root, is_full=True).manifest == made.manifest


def test_shards_of_ours_are_read_by_webdatasets_own_reader_sample_for_sample(tmp_path: Path) -> None:
    folder = make_folder(tmp_path / "images", {"a": 9, "b": 8})
    made = make(folder, tmp_path / "data", Options(shard_samples=5, validation_fraction=0))

    tars = [str(tmp_path / "data" / shard.path) for shard in made.manifest.split("train").shards]
    read = [
        (found["__key__"], made.manifest.classes[int(found["cls"])], found["jpg"])
        for found in webdataset.WebDataset(tars, shardshuffle=False, empty_check=False)
    ]

    assert len(tars) > 1
    assert read == samples(made)["train"]


def test_tars_indexed_where_they_lie_or_copied_hold_the_same_samples(tmp_path: Path) -> None:
    written = write_by_webdataset(tmp_path / "tars", "train", 12, 5)

    made = make(tmp_path / "tars", tmp_path / "data", Options(copies=True, validation_fraction=0))

    reader = SampleReader(made.root, "train")
    copied = reader.read(range(len(reader)))
    assert sorted(s.label for s in copied) == sorted(label for _, label, _ in written)
    assert all(s.marks is not None for s in copied)
    kept = make(tmp_path / "tars", tmp_path / "kept", Options(copies=True, validation_fraction=0, jpeg="original"))
    assert sorted(bytes(s[2]) for s in samples(kept)["train"]) == sorted(image for _, _, image in written)


# -- where and what ----------------------------------------------------------------------------------------------------


def test_a_folder_of_tars_can_be_the_data_set_itself_and_is_never_written_over(tmp_path: Path) -> None:
    folder = tmp_path / "tars"
    for split, number in (("train", 0), ("val", 10)):
        write_tar(folder / split / "000000.tar", [m for n in range(number, number + 5) for m in sample(f"{n:03d}", n)])
    before = objects(folder)

    made = make(folder, folder, Options())

    assert [shard.path for split in made.manifest.splits.values() for shard in split.shards] == [
        "train/000000.tar",
        "val/000000.tar",
    ]
    images = make_folder(tmp_path / "images", {"a": 3, "b": 3})
    with pytest.raises(DatasetError, match="tars that stoker did not write"):
        make(images, folder, replaces=True)
    write_tar(folder / "train" / "000001.tar", sample("more", 1))
    again = make(folder, folder, Options(), replaces=True)
    assert again.manifest.split("train").samples == 6
    assert {name: before[name] for name in before} == {name: objects(folder)[name] for name in before}


def test_replacing_a_data_set_of_foreign_tars_leaves_them_alone(tmp_path: Path) -> None:
    write_tar(tmp_path / "tars" / "a.tar", sample("x", 0) + sample("y", 1))
    before = objects(tmp_path / "tars")
    make(tmp_path / "tars", tmp_path / "data", Options())
    make(make_folder(tmp_path / "images", {"a": 3, "b": 3}), tmp_path / "data", replaces=True)
    assert objects(tmp_path / "tars") == before
    assert not (tmp_path / "data" / "index" / "train" / "000000.idx").exists()


@pytest.mark.store
def test_tars_on_the_store_are_indexed_beside_them_and_streamed_by_the_loader(store: Store, tmp_path: Path) -> None:
    place = locate(store.fresh("tars"))
    written = write_by_webdataset(tmp_path / "tars", "train", 21, 8)
    for path in (tmp_path / "tars").iterdir():
        (place / "some" / path.name).write(path.read_bytes())

    made = make((place / "some").url, (place / "some").url, Options())
    beside = make((place / "some").url, (place / "data").url, Options())

    assert beside.manifest.fingerprint == made.manifest.fingerprint
    assert beside.manifest.split("train").shards[0].path == f"{place.url}/some/train-0000.tar"
    loader = Loader(beside.root, "train", global_batch=7, micro_batch=7)
    labels = [label for batch in loader for label in batch.labels.tolist()]
    assert sorted(labels) == sorted(label for _, label, _ in written)


def test_tars_that_were_copied_are_known_by_their_bytes_and_changed_ones_are_refused(tmp_path: Path) -> None:
    tar = write_tar(tmp_path / "tars" / "a.tar", sample("x", 0) + sample("y", 1))
    first = make(tmp_path / "tars", tmp_path / "data", Options())
    content = bytearray(tar.read_bytes())
    tar.write_bytes(content)
    again = make(tmp_path / "tars", tmp_path / "data", Options())
    assert (again.was_there, again.manifest) == (True, first.manifest)

    write_tar(tmp_path / "tars" / "b.tar", sample("z", 2))
    with pytest.raises(DatasetError, match="another data set already"):
        make(tmp_path / "tars", tmp_path / "data", Options())


def test_an_interrupted_indexing_goes_on_from_the_tars_that_are_done(tmp_path: Path) -> None:
    class Stopped(Exception):
        pass

    def two(build, tasks):  # type: ignore[no-untyped-def]
        for task in itertools.islice(tasks, 2):
            yield build(task)
        raise Stopped

    for number in range(4):
        write_tar(tmp_path / "tars" / f"{number}.tar", sample(f"{number}", number))
    with pytest.raises(Stopped):
        make(tmp_path / "tars", tmp_path / "data", Options(), map_=two)

    made = make(tmp_path / "tars", tmp_path / "data", Options())

    assert made.shards_kept == 2
    assert made.manifest == make(tmp_path / "tars", tmp_path / "other", Options()).manifest


@pytest.mark.parametrize("form", [tarfile.GNU_FORMAT, tarfile.PAX_FORMAT])
def test_long_names_and_other_members_are_no_hindrance(tmp_path: Path, form: int) -> None:
    long = "/".join(["folder" * 10] * 3) + "/ünïcode"
    members = [
        ("__meta__", b"about the tar"),
        ("README", b"no extension"),
        (f"{long}.cls", b"2\n"),
        (f"{long}.PNG", encoded(4, "PNG")),
        (f"{long}.mask.png", encoded(5, "PNG")),
        *sample("short", 1),
    ]
    write_tar(tmp_path / "tars" / "a.tar", members, form)

    made = make(tmp_path / "tars", tmp_path / "data", Options())

    assert samples(made)["train"] == [(long, "2", encoded(4, "PNG")), ("short", "1", encoded(1))]


def test_labels_come_from_cls_json_or_txt_as_numbers_or_names(tmp_path: Path) -> None:
    (tmp_path / "names.txt").write_text("cat\ndog\nemu\n")
    labels = [
        ("cls", b"1"),
        ("json", json.dumps({"label": 2, "more": "x"}).encode()),
        ("json", json.dumps({"cls": "cat"}).encode()),
        ("txt", b"dog\n"),
        ("txt", b"0"),
    ]
    members = [m for n, (ext, told) in enumerate(labels) for m in ((f"{n}.jpg", encoded(n)), (f"{n}.{ext}", told))]
    write_tar(tmp_path / "tars" / "a.tar", members)

    made = make(tmp_path / "tars", tmp_path / "data", Options(classes_file=str(tmp_path / "names.txt")))

    assert [name for _, name, _ in samples(made)["train"]] == ["dog", "emu", "cat", "dog", "cat"]
    assert made.manifest.classes == ("cat", "dog", "emu")


def test_the_index_holds_size_orientation_and_the_marks_that_a_jpeg_happens_to_have(tmp_path: Path) -> None:
    exif = Image.Exif()
    exif[0x112] = 6
    members = [
        ("a.jpg", encoded(1, exif=exif, restart_marker_blocks=3)),
        ("a.cls", b"0"),
        ("b.jpg", encoded(2)),
        ("b.cls", b"0"),
    ]
    write_tar(tmp_path / "tars" / "a.tar", members)
    made = make(tmp_path / "tars", tmp_path / "data", Options())
    index = read_index(made.root, made.manifest.split("train").shards[0])
    assert (index.width.tolist(), index.height.tolist()) == ([48, 48], [36, 36])
    assert [index.orientation(0), index.orientation(1)] == [6, 1]
    marks = index.marks(0)
    assert marks is not None
    assert marks.interval == 3
    assert index.marks(1) is None


def test_sounds_are_indexed_as_samples_without_a_size(tmp_path: Path) -> None:
    wav = b"RIFF\x24\0\0\0WAVEfmt " + bytes(32)
    write_tar(
        tmp_path / "tars" / "a.tar", [("a.wav", wav), ("a.cls", b"0"), ("b.flac", b"fLaC" + bytes(40)), ("b.cls", b"1")]
    )
    made = make(tmp_path / "tars", tmp_path / "data", Options())
    index = read_index(made.root, made.manifest.split("train").shards[0])
    assert np.all(index.width == 0)
    assert [data for _, _, data in samples(made)["train"]] == [wav, b"fLaC" + bytes(40)]


# -- what is refused ---------------------------------------------------------------------------------------------------


def test_bad_samples_are_left_out_or_end_it_and_each_says_why(tmp_path: Path) -> None:
    members = [
        *sample("good", 1),
        ("torn.jpg", encoded(2)[:-40]),
        ("torn.cls", b"0"),
        ("unlabelled.jpg", encoded(3)),
        ("alone.cls", b"0"),
        ("named.jpg", encoded(4)),
        ("named.txt", b"cat"),
        *sample("twice", 5),
        ("twice.jpg", encoded(6)),
        *sample("negative", 7, -1),
        ("noise.wav", b"no sound"),
        ("noise.cls", b"0"),
    ]
    write_tar(tmp_path / "tars" / "a.tar", members)

    made = make(tmp_path / "tars", tmp_path / "data", Options(on_bad="skip"))

    assert [key for key, _, _ in samples(made)["train"]] == ["good"]
    reasons = {bad.path: bad.reason for bad in made.bad}
    assert list(reasons) == [
        f"a.tar#{k}" for k in ("alone", "named", "negative", "noise", "torn", "twice", "unlabelled")
    ]
    assert reasons["a.tar#alone"].startswith("no image (jpg, ")
    assert reasons["a.tar#unlabelled"].startswith("no label (cls, ")
    assert "--classes" in reasons["a.tar#named"]
    with pytest.raises(DatasetError, match=r"a\.tar#alone and 6 more cannot be a sample"):
        make(tmp_path / "tars", tmp_path / "other", Options())


def test_tars_that_cannot_be_indexed_are_named_in_one_line(tmp_path: Path) -> None:
    packed = tmp_path / "packed" / "a.tar.gz"
    packed.parent.mkdir()
    packed.write_bytes(gzip.compress(write_tar(tmp_path / "whole" / "a.tar", sample("x", 1)).read_bytes()))
    with pytest.raises(DatasetError, match=r"a\.tar\.gz is compressed"):
        open_source(str(tmp_path / "packed"), Options(), kind="webdataset")
    (tmp_path / "hidden").mkdir()
    (tmp_path / "hidden" / "a.tar").write_bytes(packed.read_bytes())
    (tmp_path / "torn").mkdir()
    (tmp_path / "torn" / "a.tar").write_bytes((tmp_path / "whole" / "a.tar").read_bytes()[:900])
    for name in ("hidden", "torn"):
        with pytest.raises(DatasetError, match=rf"{name}/a\.tar: not a "):
            make(tmp_path / name, tmp_path / "data" / name, Options())
    with pytest.raises(DatasetError, match="--limit: tars that are indexed in place are not changed"):
        open_source(str(tmp_path / "whole"), Options(limit=3), kind="webdataset")


def test_the_job_indexes_a_folder_of_tars_and_says_so(tmp_path: Path) -> None:
    write_by_webdataset(tmp_path / "tars", "train", 6, 4)
    parser = argparse.ArgumentParser()
    add_arguments(parser)
    given = parser.parse_args([str(tmp_path / "tars"), str(tmp_path / "data"), "--local", "--verify", "full"])

    told = json.loads(prepare_command(given).splitlines()[-1])

    assert (told["splits"]["train"]["samples"], told["splits"]["train"]["shards"]) == (6, 2)
    assert "already prepared" in prepare_command(given)
