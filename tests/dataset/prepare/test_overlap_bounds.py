"""What counts as inside of what, by names alone."""

from __future__ import annotations

from pathlib import Path

import pytest

from stoker.dataset.prepare.overlap import _is_inside, _own_shards, _places, _resolved
from stoker.dataset.prepare.sources import Source
from stoker.storage import locate


def source(url: str, *places: str) -> Source:
    return Source(url, (), {}, None, places=places)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("inner", "outer", "is_inside"),
    [
        ("/a/b", "/a", True), ("/a", "/a", True), ("/a/", "/a", True), ("/a", "/a/", True), ("/a/b/", "/a/", True),
        ("/a", "/a/b", False), ("/ab", "/a", False), ("/a/b", "/b", False), ("/a", "/", True),
    ],
)  # fmt: skip
def test_a_place_is_inside_itself_and_what_is_above_and_not_in_a_namesake(
    inner: str, outer: str, is_inside: bool
) -> None:
    assert _is_inside(inner, outer) is is_inside


@pytest.mark.parametrize(
    ("url", "whole"),
    [("s3://b/x-*.csv", "s3://b"), ("/d/x?.csv", "/d"), ("/d/[ab]/y.csv", "/d"), ("/d/x.csv", "/d/x.csv")],
)
def test_a_pattern_stands_for_the_folder_above_it(url: str, whole: str) -> None:
    assert _places(source(url, "/other")) == [whole, "/other"]


def test_the_same_path_in_two_stores_is_two_places() -> None:
    assert _resolved("s3://bucket/set") == "s3://bucket/set"
    assert not _is_inside(_resolved("memory://bucket/set"), _resolved("s3://bucket/set"))
    assert _resolved("torchvision://mnist?root=/d") == "torchvision://mnist?root=/d"


def test_a_file_url_and_its_path_are_one_place(tmp_path: Path) -> None:
    (tmp_path / "link").symlink_to(tmp_path / "real")
    assert _resolved(f"file://{tmp_path}/link") == _resolved(str(tmp_path / "real")) == str(tmp_path / "real")


@pytest.mark.parametrize("content", [None, b"damaged"])
def test_where_there_is_no_sound_data_set_no_shards_would_be_deleted(tmp_path: Path, content: bytes | None) -> None:
    if content:
        (tmp_path / "dataset.json").write_bytes(content)
    assert _own_shards(locate(tmp_path)) == []
