"""Links in a folder of images are followed, as ImageFolder follows them, and never for ever."""

import os
import socket
from pathlib import Path

import pytest
from torchvision.datasets import ImageFolder

from images import encoded, make, make_folder
from stoker.dataset.prepare import Options, open_source
from stoker.errors import DatasetError


def listed(root: Path) -> list[str]:
    return sorted(entry.path for entry in open_source(str(root), Options()).splits["train"])


def by_torchvision(root: Path) -> list[str]:
    return sorted(str(Path(path).relative_to(root)) for path, _ in ImageFolder(str(root)).samples)


def test_linked_class_folders_and_files_are_prepared(tmp_path: Path) -> None:
    pool = make_folder(tmp_path / "pool", {"cat": 4, "dog": 4})
    links = tmp_path / "links"
    (links / "emu").mkdir(parents=True)
    (links / "cat").symlink_to(pool / "cat")
    (links / "dog").symlink_to("../pool/dog")
    for number in range(4):
        (links / "emu" / f"{number}.jpg").symlink_to(pool / "cat" / f"{number:03d}.jpg")

    assert listed(links) == by_torchvision(links)
    made = make(links, tmp_path / "data")
    assert made.manifest.classes == ("cat", "dog", "emu")
    assert sum(split.samples for split in made.manifest.splits.values()) == 12


def test_a_linked_folder_below_a_class_or_a_split_is_followed(tmp_path: Path) -> None:
    more = make_folder(tmp_path / "more", {"deep/er": 2})
    folder = make_folder(tmp_path / "in", {"cat": 2, "dog": 2})
    (folder / "cat" / "more").symlink_to(more)
    assert listed(folder) == by_torchvision(folder)
    assert len(listed(folder)) == 6
    (tmp_path / "split").mkdir()
    (tmp_path / "split" / "train").symlink_to(folder)
    assert len(listed(tmp_path / "split")) == 6
    (tmp_path / "whole").symlink_to(folder)
    assert len(listed(tmp_path / "whole")) == 6


def test_links_to_a_folder_above_end_and_lose_nothing(tmp_path: Path) -> None:
    folder = make_folder(tmp_path / "in", {"cat/deep": 2, "dog": 2})
    (folder / "cat" / "deep" / "up").symlink_to("..")
    (folder / "cat" / "deep" / "self").symlink_to(".")
    (folder / "dog" / "all").symlink_to(folder)
    found = listed(folder)
    assert [path for path in found if "all" not in path] == [
        "cat/deep/000.jpg",
        "cat/deep/001.jpg",
        "dog/000.jpg",
        "dog/001.jpg",
    ]
    assert len(found) == len(set(found)) == 6


def test_a_folder_that_is_linked_twice_counts_twice(tmp_path: Path) -> None:
    folder = make_folder(tmp_path / "in", {"cat": 2, "dog/deep": 2})
    (folder / "dog" / "again").symlink_to("deep")
    assert listed(folder) == by_torchvision(folder)


def test_a_link_that_leads_nowhere_or_to_itself_is_named(tmp_path: Path) -> None:
    folder = make_folder(tmp_path / "in", {"cat": 2, "dog": 2})
    (folder / "cat" / "gone.jpg").symlink_to(tmp_path / "nowhere.jpg")
    with pytest.raises(DatasetError, match=r"cat/gone\.jpg: .* broken links must be removed"):
        make(folder, tmp_path / "data")
    (folder / "cat" / "gone.jpg").unlink()
    (folder / "dog" / "loop.jpg").symlink_to("loop.jpg")
    assert "dog/loop.jpg" in listed(folder)


def test_pipes_and_sockets_are_left_out(tmp_path: Path) -> None:
    folder = make_folder(tmp_path / "in", {"cat": 2})
    os.mkfifo(folder / "cat" / "pipe.jpg")
    os.mkfifo(folder / "pipe")
    with socket.socket(socket.AF_UNIX) as one:
        one.bind(os.path.relpath(folder / "cat" / "socket.jpg"))
        assert listed(folder) == ["cat/000.jpg", "cat/001.jpg"]
    assert open_source(str(folder), Options()).strays == ()


def test_hidden_folders_are_not_entered(tmp_path: Path) -> None:
    folder = make_folder(tmp_path / "in", {"cat": 2})
    make_folder(tmp_path / "in", {"cat/.cache": 1, ".git": 1})
    (folder / "cat" / ".hidden.jpg").write_bytes(encoded(1))
    assert listed(folder) == ["cat/000.jpg", "cat/001.jpg"]


def test_the_file_that_a_link_leads_to_is_noticed_when_it_is_written_again(tmp_path: Path) -> None:
    folder = make_folder(tmp_path / "in", {"cat": 3})
    target = tmp_path / "target.png"
    target.write_bytes(encoded(90, "PNG"))
    (folder / "cat" / "linked.png").symlink_to(target)
    make(folder, tmp_path / "data")
    assert make(folder, tmp_path / "data").was_there

    other = bytearray(target.read_bytes())
    other[-20] ^= 1  # a byte of the pixels' checksum, so that no size changes
    target.write_bytes(other)
    os.utime(target, (1, 1))

    with pytest.raises(DatasetError, match="holds another data set already"):
        make(folder, tmp_path / "data")
