"""Lists whose files are on a web server that lists nothing, or beside names that are not UTF-8."""

from __future__ import annotations

import os
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest

from stoker.dataset.prepare import Options, open_source
from stoker.dataset.prepare.sources import Source
from stoker.dataset.prepare.sources.layout import refuse_nested, splits_of
from stoker.errors import DatasetError
from stoker.storage import locate


class _Handler(BaseHTTPRequestHandler):
    """Two files; of one it says no size. No folder is listed."""

    def do_GET(self) -> None:
        if self.path not in {"/a.jpg", "/d/b.jpg"}:
            self.send_error(404)
            return
        self.send_response(200)
        if self.path == "/a.jpg":
            self.send_header("Content-Length", "5")
        self.end_headers()
        if self.command == "GET":
            self.wfile.write(b"12345")

    do_HEAD = do_GET  # noqa: N815 - the standard library calls it by this name

    def log_message(self, *_: object) -> None:
        pass


@pytest.fixture
def server() -> Iterator[str]:
    with ThreadingHTTPServer(("127.0.0.1", 0), _Handler) as server:
        thread = threading.Thread(target=server.serve_forever, args=(0.01,))
        thread.start()
        yield f"http://127.0.0.1:{server.server_port}"
        server.shutdown()
        thread.join()


def sizes(source: Source) -> dict[str, int]:
    entries = source.splits["train"]
    return {entries.path(row): int(entries.size[row]) for row in range(len(entries))}


def test_each_file_on_a_web_server_is_asked_for_and_taken_for_100_kb_where_it_says_no_size(
    server: str, tmp_path: Path
) -> None:
    rows = "".join(f"{server}/{name},cat\n" for name in ("a.jpg", "d/b.jpg", "none.jpg"))
    (tmp_path / "list.csv").write_text(f"url,label\n{rows}")
    source = open_source(str(tmp_path / "list.csv"), Options())
    assert sizes(source) == {f"{server}/a.jpg": 5, f"{server}/d/b.jpg": 100_000}
    assert source.strays == ((f"{server}/none.jpg", "no such file, although line 4 of the list names it"),)


def test_a_name_that_is_not_utf_8_beside_a_listed_file_is_no_reason_to_stop(tmp_path: Path) -> None:
    (tmp_path / "a.jpg").write_bytes(b"12345")
    with open(os.fsencode(tmp_path) + b"/\xf1.jpg", "wb"):
        pass
    (tmp_path / "list.csv").write_text("path,label\na.jpg,cat\n")
    assert sizes(open_source(str(tmp_path / "list.csv"), Options())) == {"a.jpg": 5}


# -- folders -----------------------------------------------------------------------------------------------------------


def splits(*folders: str, top: str | None = None, has_files: bool = False) -> dict[str, str] | None:
    return splits_of(locate("/place"), list(folders), Options(top_folders=top), lambda _: has_files)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("folders", "found"),
    [
        (("train",), {"train": "train"}), (("train", "val"), {"train": "train", "validation": "val"}),
        (("Training", "TEST", "valid"), {"train": "Training", "test": "TEST", "validation": "valid"}),
        (("cat", "dog"), None), (("development", "data"), None), (("settrain", "cat"), None),
    ],
)  # fmt: skip
def test_folders_with_the_names_of_splits_alone_are_splits(
    folders: tuple[str, ...], found: dict[str, str] | None
) -> None:
    assert splits(*folders) == found


@pytest.mark.parametrize(
    "name",
    ["train", "train_set",
     "images-train", "img_train2", "TrainData", "dev", "eval", "evaluation", "validate", "trainval",
     "train-test", "holdout", "held_out", "test.dataset", "seg_test", "valid_split", "test folder", "train-images"],
)  # fmt: skip
def test_a_usual_name_of_a_split_beside_classes_is_refused_unless_it_holds_images(name: str) -> None:
    with pytest.raises(DatasetError, match=f"{name} has the name of a split, and cat, dog beside it"):
        splits("cat", name, "dog")
    assert splits("cat", name, "dog", has_files=True) is None
    assert splits("cat", name, "dog", top="classes") is None


def test_at_most_four_folders_are_named() -> None:
    with pytest.raises(DatasetError, match="a, b, c, d beside it;"):
        splits("train", "a", "b", "c", "d")
    with pytest.raises(DatasetError, match=r"a, b, c, d, \.\.\. beside it;"):
        splits("train", "a", "b", "c", "d", "e")


def test_told_that_they_are_splits_the_usual_names_are_taken_and_the_others_left() -> None:
    found = splits("images_train", "dev", "trainval", "cat", top="splits")
    assert found == {"train": "images_train", "validation": "dev"}
    with pytest.raises(DatasetError, match=r"two validation folders \(val, dev\)"):
        splits("train", "val", "dev", top="splits")
    with pytest.raises(DatasetError, match="no train folder, only dev;"):
        splits("dev", "cat", top="splits")
    with pytest.raises(DatasetError, match="no train folder, only others;"):
        splits("cat", "dog", top="splits")


def test_folders_of_folders_with_the_same_two_names_are_no_classes_and_all_else_may_be() -> None:
    both, root = frozenset({"cat", "dog"}), locate("/place")
    for inside in ([], [both], [None, both], [both, None], [both, frozenset({"cat"})], [frozenset({"cat"})] * 3):
        refuse_nested(root, inside, ["a", "b"])
    with pytest.raises(DatasetError, match="a, b all hold the folders cat, dog and nothing else"):
        refuse_nested(root, [both, both], ["a", "b"])
