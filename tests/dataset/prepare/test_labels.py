"""One rule for the labels of lists and Parquet: the distinct ones are the classes, numbers in their order, bounded."""

from __future__ import annotations

import csv
import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from images import encoded, make, samples
from sources import NAMES, hub_schema, tar_of, write_hub
from stoker.dataset.prepare import Options, open_source
from stoker.dataset.prepare.sources.columns import MOST_CLASSES, class_names, label_text
from stoker.errors import DatasetError

PLAIN = Options(jpeg="original", validation_fraction=0)


@pytest.mark.parametrize(
    ("value", "text"),
    [
        *[(1, "1"), ("1", "1"), (1.0, "1"), ("1.0", "1"), (" 1.00 ", "1"), ("+1.0", "1"), (0.0, "0"), ("-0.0", "0")],
        *[("01", "01"), ("0.5", "0.5"), (0.5, "0.5"), ("cat", "cat"), ("1e3", "1e3"), ("1.2.3", "1.2.3"), ("٣", "٣")],
        *[(None, None), ("", None), (" ", None), (True, None), ([1], None), ({}, None), (float("nan"), None)],
        *[(float("inf"), None), (10**30, str(10**30)), ("2026-11-26", "2026-11-26"), ("-1", "-1")],
    ],
)
def test_a_whole_number_is_one_class_however_it_is_written(value: object, text: str | None) -> None:
    assert label_text(value) == text


def test_classes_are_in_the_order_of_numbers_if_all_are_numbers_else_of_the_text() -> None:
    names, number_of = class_names([str(n) for n in (10, 2, 1)], where="x", option="--y")
    assert names == ("1", "2", "10")
    assert number_of == {"1": 0, "2": 1, "10": 2}
    assert class_names(["10", "2", "b"], where="x", option="--y")[0] == ("10", "2", "b")
    assert class_names(["0.5", "-3", "10"], where="x", option="--y")[0] == ("-3", "0.5", "10")
    assert class_names(["01", "1", "0"], where="x", option="--y")[0] == ("0", "01", "1")


def test_more_labels_than_any_data_set_has_classes_are_ids() -> None:
    labels = [str(n) for n in range(MOST_CLASSES + 1)]
    assert len(class_names(labels[1:], where="x", option="--y")[0]) == MOST_CLASSES
    with pytest.raises(DatasetError, match=r"list\.csv has 250,001 different labels, .* ids .* --label-column"):
        class_names(labels, where="list.csv", option="--label-column")


def listed(folder: Path, labels: list[object], kind: str) -> Path:
    folder.mkdir(exist_ok=True)
    for number in range(len(labels)):
        (folder / f"{number}.jpg").write_bytes(encoded(number))
    rows = [(f"{number}.jpg", label) for number, label in enumerate(labels)]
    file = folder / f"list.{kind}"
    if kind == "csv":
        with file.open("w", newline="") as text:
            csv.writer(text).writerows([("path", "label"), *rows])
    else:
        file.write_text("\n".join(json.dumps({"path": path, "label": label}) for path, label in rows))
    return file


def parquet(folder: Path, labels: Any, images: Any = None) -> Path:
    folder.mkdir(exist_ok=True)
    count = len(labels)
    images = pa.array([encoded(n) for n in range(count)], pa.binary()) if images is None else images
    pq.write_table(pa.table({"image": images, "label": labels}), folder / "train.parquet")
    return folder / "train.parquet"


@pytest.mark.parametrize("kind", ["csv", "jsonl", "parquet"])
def test_numbers_with_a_point_are_numbers_in_their_order_in_every_table(kind: str, tmp_path: Path) -> None:
    labels = [float(n) for n in (11, 0, 1, 2, 10, 3)]
    file = parquet(tmp_path, labels) if kind == "parquet" else listed(tmp_path, list(labels), kind)
    made = make(file, tmp_path / "data", PLAIN)
    assert made.manifest.classes == ("0", "1", "2", "3", "10", "11")
    assert {(name, data) for _, name, data in samples(made)["train"]} == {
        (str(int(label)), encoded(n)) for n, label in enumerate(labels)
    }


@pytest.mark.parametrize("kind", ["csv", "jsonl", "parquet"])
def test_a_label_that_is_an_id_makes_no_class_for_each_smaller_number(kind: str, tmp_path: Path) -> None:
    labels = [7, 2_000_000, 7, 31]
    file = parquet(tmp_path, labels) if kind == "parquet" else listed(tmp_path, list(labels), kind)
    made = make(file, tmp_path / "data", PLAIN)
    assert made.manifest.classes == ("7", "31", "2000000")


@pytest.mark.parametrize("type_", [pa.uint8(), pa.uint16(), pa.uint32(), pa.uint64(), pa.int8(), pa.int32()])
def test_labels_of_every_whole_type_are_read(type_: Any, tmp_path: Path) -> None:
    made = make(parquet(tmp_path, pa.array([0, 1, 2, 1], type_)), tmp_path / "data", PLAIN)
    assert made.manifest.classes == ("0", "1", "2")


@pytest.mark.parametrize("type_", [pa.uint8(), pa.uint64(), pa.int16()])
def test_labels_of_every_whole_type_go_with_names(type_: Any, tmp_path: Path) -> None:
    schema = hub_schema()
    schema = schema.set(1, pa.field("label", type_))
    rows = {"image": [{"bytes": encoded(n), "path": ""} for n in range(4)], "label": [0, 1, 2, None]}
    pq.write_table(pa.table(rows, schema=schema), tmp_path / "train.parquet")
    made = make(tmp_path / "train.parquet", tmp_path / "data", Options(jpeg="original", on_bad="skip"))
    assert made.manifest.classes == NAMES
    assert [(bad.path, bad.reason) for bad in made.bad] == [("train.parquet/3", "no class: label is null or negative")]


def test_a_number_beyond_a_signed_one_is_a_class_by_its_text(tmp_path: Path) -> None:
    made = make(parquet(tmp_path, pa.array([2**64 - 1, 0], pa.uint64())), tmp_path / "data", PLAIN)
    assert made.manifest.classes == ("0", str(2**64 - 1))


def test_null_nan_and_negative_labels_are_no_classes(tmp_path: Path) -> None:
    file = parquet(tmp_path, pa.array([0.0, None, float("nan"), -1.0, 1.0], pa.float64()))
    made = make(file, tmp_path / "data", Options(jpeg="original", validation_fraction=0, on_bad="skip"))
    assert made.manifest.classes == ("0", "1")
    assert [bad.path for bad in made.bad] == [f"train.parquet/{row}" for row in (1, 2, 3)]


def test_tars_whose_labels_are_ids_are_refused(tmp_path: Path) -> None:
    (tmp_path / "tars").mkdir()
    members = {f"{n}.{kind}": data for n in range(2) for kind, data in (("jpg", encoded(n)), ("cls", b"2000000"))}
    (tmp_path / "tars" / "train-0.tar").write_bytes(tar_of(members))
    with pytest.raises(DatasetError, match=r"its label 2000000 is not below the 250,000 classes"):
        make(tmp_path / "tars", tmp_path / "data", Options())


IMAGES = pa.array([encoded(n) for n in range(4)], pa.binary())
TYPES = {
    "binary_view": IMAGES.cast(pa.binary_view()),
    "large_binary": IMAGES.cast(pa.large_binary()),
    "dictionary": IMAGES.dictionary_encode(),
    "struct of views": pa.StructArray.from_arrays(
        [IMAGES.cast(pa.binary_view()), pa.array(["a"] * 4, pa.string_view())], names=["bytes", "path"]
    ),
}


@pytest.mark.parametrize("name", TYPES)
@pytest.mark.parametrize("texts", [pa.string_view(), pa.large_string(), pa.string()])
def test_images_and_names_of_every_arrow_type_are_read(name: str, texts: Any, tmp_path: Path) -> None:
    labels = pa.array(["cat", "dog", "cat", "dog"], texts)
    made = make(parquet(tmp_path, labels, TYPES[name]), tmp_path / "data", PLAIN)
    assert made.manifest.classes == ("cat", "dog")
    assert {data for _, _, data in samples(made)["train"]} == {encoded(n) for n in range(4)}


def test_a_file_of_paths_says_so(tmp_path: Path) -> None:
    images = pa.array([{"bytes": None, "path": f"{n}.jpg"} for n in range(4)], hub_schema().field("image").type)
    file = parquet(tmp_path, [0, 1, 0, 1], images)
    with pytest.raises(DatasetError, match=r"train\.parquet: image holds paths, not bytes: .* embed_external_files"):
        open_source(str(file), Options())


def test_one_row_without_bytes_is_a_bad_sample_and_no_more(tmp_path: Path) -> None:
    rows = [{"bytes": encoded(n) if n else None, "path": f"{n}.jpg"} for n in range(4)]
    images = pa.array(rows, hub_schema().field("image").type)
    made = make(
        parquet(tmp_path, [0, 1, 0, 1], images),
        tmp_path / "data",
        Options(jpeg="original", validation_fraction=0, on_bad="skip"),
    )
    assert [bad.path for bad in made.bad] == ["train.parquet/0"]


def test_a_hubs_mirror_is_recognised_at_any_depth(tmp_path: Path) -> None:
    write_hub(tmp_path / "hub/plain_text/train-00000-of-00001.parquet", range(12))
    write_hub(tmp_path / "hub/plain_text/test-00000-of-00001.parquet", range(12, 18))
    (tmp_path / "hub/README.md").write_text("a data set")
    made = make(tmp_path / "hub", tmp_path / "data", PLAIN)
    assert {name: split.samples for name, split in made.manifest.splits.items()} == {"train": 12, "test": 6}


LARGE = """
import sys
import pyarrow as pa
from stoker.dataset.prepare import Options, open_source
from stoker.dataset.prepare.sources.base import runs
source = open_source(sys.argv[1], Options())
rows = 0
for run in runs(source.splits["train"]):
    for data in source.reader.read_run(run):
        rows += len(data) == 1 << 20
print(rows, pa.default_memory_pool().max_memory())
"""


def test_a_row_group_of_a_nested_column_is_read_in_parts(tmp_path: Path) -> None:
    """200 MB of images in one row group, 8 a page; whole, those of 2 GB and more are an error of Arrow's."""
    rows = [{"bytes": bytes([n]) * (1 << 20), "path": ""} for n in range(200)]
    table = pa.table({"image": pa.array(rows, hub_schema().field("image").type), "label": [0] * 200})
    pq.write_table(
        table,
        tmp_path / "train.parquet",
        compression="none",
        use_dictionary=False,
        row_group_size=200,
        write_batch_size=8,
    )
    ran = subprocess.run(
        [sys.executable, "-c", LARGE, str(tmp_path / "train.parquet")], capture_output=True, text=True, check=False
    )
    assert ran.returncode == 0, ran.stderr[-800:]
    count, most = map(int, ran.stdout.split())
    assert count == 200
    assert most < 40 << 20
