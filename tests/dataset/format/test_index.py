import hashlib
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import safetensors.numpy
import safetensors.torch
import torch
from hypothesis import given
from hypothesis import strategies as st

from stoker.dataset.format.index import IndexRow, ShardIndex, read_index
from stoker.dataset.format.jpeg import Marks
from stoker.dataset.format.manifest import Shard, checksum
from stoker.errors import DatasetError
from stoker.storage import locate

MARKS = Marks(32, 32, 20, 200, 16, 16, 1, 150)


def index_of(keys: list[str]) -> ShardIndex:
    """Every second sample can be cut."""
    rows = (
        IndexRow(512 + 1024 * n, n, n % 3, 32, 32, 2**64 - 1, key, 1 + n % 8, MARKS if n % 2 else None)
        for n, key in enumerate(keys)
    )
    return ShardIndex.of(rows)


@given(st.lists(st.text(st.characters(codec="utf-8"), max_size=20), min_size=1, max_size=30))
def test_an_index_reads_back_with_any_keys(keys: list[str]) -> None:
    index = index_of(keys)

    found = ShardIndex.from_bytes(index.to_bytes())

    assert found.keys == index.keys
    for row in range(len(keys)):
        assert found.orientation(row) == 1 + row % 8
        assert found.marks(row) == (MARKS if row % 2 else None)
    for name in ("offset", "length", "label", "width", "height", "checksum"):
        assert np.array_equal(getattr(found, name), getattr(index, name))
        assert getattr(found, name).dtype == getattr(index, name).dtype


def test_the_same_index_is_the_same_bytes_in_every_process() -> None:
    code = (
        "import hashlib; from stoker.dataset.format.index import IndexRow, ShardIndex\n"
        "rows = [IndexRow(n, n, n, n, n, n, 'ab'[n]) for n in range(2)]\n"
        "print(hashlib.sha256(ShardIndex.of(rows).to_bytes()).hexdigest())"
    )
    elsewhere = subprocess.run([sys.executable, "-c", code], capture_output=True, check=True, text=True).stdout.strip()
    here = ShardIndex.of(IndexRow(n, n, n, n, n, n, "ab"[n]) for n in range(2))
    assert hashlib.sha256(here.to_bytes()).hexdigest() == elsewhere
    assert len({index_of(["a", "b"]).to_bytes() for _ in range(50)}) == 1


def test_columns_that_a_later_version_adds_are_ignored() -> None:
    columns = safetensors.numpy.load(index_of(["a", "b"]).to_bytes())
    more = safetensors.numpy.save(columns | {"restart_interval": np.arange(2)})
    assert ShardIndex.from_bytes(more).keys == ["a", "b"]


def test_an_index_of_version_1_0_is_read_and_nothing_in_it_can_be_cut() -> None:
    columns = safetensors.numpy.load(index_of(["a", "b"]).to_bytes())
    first = ("offset", "length", "label", "width", "height", "checksum", "keys", "key_ends")
    old = ShardIndex.from_bytes(safetensors.numpy.save({name: columns[name] for name in first}))
    assert old.keys == ["a", "b"]
    assert [(old.orientation(row), old.marks(row)) for row in range(2)] == [(1, None), (1, None)]


def test_what_is_no_index_or_lacks_a_column_is_refused() -> None:
    columns = safetensors.numpy.load(index_of(["a", "b"]).to_bytes())
    with pytest.raises(ValueError, match="not an index"):
        ShardIndex.from_bytes(b"words, words, words")
    with pytest.raises(ValueError, match="lacks the columns label"):
        ShardIndex.from_bytes(safetensors.numpy.save({k: v for k, v in columns.items() if k != "label"}))
    with pytest.raises(ValueError, match="differ in length"):
        ShardIndex.from_bytes(safetensors.numpy.save(columns | {"label": np.arange(3)}))


@pytest.mark.parametrize(
    ("name", "column"),
    [
        ("label", np.zeros(2, np.float64)),
        ("label", np.zeros((2, 1), np.int64)),
        ("label", np.zeros((), np.int64)),
        ("offset", np.zeros(2, np.int32)),
        ("interval", np.zeros(2, np.int32)),
        ("key_ends", np.array([2, 1])),
        ("key_ends", np.array([1, 3])),
    ],
)
def test_a_column_of_another_type_or_shape_is_refused(name: str, column: np.ndarray) -> None:
    columns = safetensors.numpy.load(index_of(["a", "b"]).to_bytes())
    with pytest.raises(ValueError, match=f"index's (column )?{name}"):
        ShardIndex.from_bytes(safetensors.numpy.save(columns | {name: column}))


def test_a_column_of_a_type_that_numpy_does_not_have_is_ignored_unless_it_is_ours() -> None:
    columns = {name: torch.from_numpy(c) for name, c in safetensors.numpy.load(index_of(["a"]).to_bytes()).items()}
    more = safetensors.torch.save(columns | {"later": torch.zeros(1, dtype=torch.bfloat16)})
    assert ShardIndex.from_bytes(more).keys == ["a"]
    with pytest.raises(ValueError, match=r"column label is BF16 \[1\], not I64 \[n\]"):
        ShardIndex.from_bytes(safetensors.torch.save(columns | {"label": torch.zeros(1, dtype=torch.bfloat16)}))


def test_a_key_that_is_not_utf_8_is_shown_all_the_same() -> None:
    columns = safetensors.numpy.load(index_of(["ab"]).to_bytes())
    found = ShardIndex.from_bytes(safetensors.numpy.save(columns | {"keys": np.array([0x61, 0xFF], np.uint8)}))
    assert found.keys == ["a\\xff"]


def test_an_index_takes_less_than_100_bytes_a_sample_beside_its_key() -> None:
    keys = [f"n01440764/{n:05d}" for n in range(1000)]
    assert len(index_of(keys).to_bytes()) < 1000 * (100 + len(keys[0]))


def test_an_index_that_is_missing_or_of_another_count_is_named(tmp_path: Path) -> None:
    data = index_of(["a", "b"]).to_bytes()
    shard = Shard("0.tar", 1, 3, "", "0.idx", len(data), checksum(data))
    with pytest.raises(DatasetError, match=r"0\.idx: missing"):
        read_index(locate(tmp_path), shard)
    (tmp_path / "0.idx").write_bytes(data)
    with pytest.raises(DatasetError, match="holds 2 samples, the manifest says 3"):
        read_index(locate(tmp_path), shard)
