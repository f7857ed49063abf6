"""The handwritten digits as image files."""

import shutil
from collections import Counter
from pathlib import Path

import pytest

from stoker.dataset.decode import decode
from stoker.embedded.digits import digit_files, write_digits
from stoker.errors import DatasetError


def test_the_digits_are_all_there_once_and_no_scan_is_on_both_sides(tmp_path: Path) -> None:
    files = digit_files()
    numbers = [path.rpartition("/")[2] for path in files]
    splits = Counter(path.partition("/")[0] for path in files)
    contents = {split: {files[p] for p in files if p.startswith(split)} for split in splits}

    assert len(files) == len(set(numbers)) == 1797
    assert splits == {"train": 1438, "validation": 359}
    assert not contents["train"] & contents["validation"]
    assert {tuple(decode(data).shape) for data in list(files.values())[:20]} == {(3, 32, 32)}


def test_the_digits_are_written_whole_once_and_over_a_half_written_folder(tmp_path: Path) -> None:
    assert write_digits(tmp_path / "digits")
    assert not write_digits(tmp_path / "digits")
    shutil.rmtree(tmp_path / "digits" / "train" / "3")
    assert write_digits(tmp_path / "digits")
    assert not write_digits(tmp_path / "digits")
    assert [p.name for p in tmp_path.iterdir()] == ["digits"]
    (tmp_path / "digits" / "mine.txt").write_text("x")
    with pytest.raises(DatasetError, match=r"mine\.txt"):
        write_digits(tmp_path / "digits")
