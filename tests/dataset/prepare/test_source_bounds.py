"""What is read of tars and lists, name by name and byte by byte, without looking at an image."""

from __future__ import annotations

import io
import tarfile
from pathlib import Path

import pytest

from sources import tar_of
from stoker.dataset.prepare import Options, open_source
from stoker.dataset.prepare.sources import Source
from stoker.dataset.prepare.sources.tar_samples import LABELS, Member, _key, is_used, samples_of
from stoker.dataset.prepare.sources.webdataset import BadSample, holds_tars, pick
from stoker.dataset.prepare.tar_file import has_end, headers, open_tar
from stoker.errors import DatasetError
from stoker.storage import locate

ONE = tar_of({"a.jpg": b"picture", "a.cls": b"0"})


def member(extension: str, data: bytes | None = None) -> Member:
    return Member(f"a.{extension}", extension, 0, len(data or b""), data)


def opened(tar: bytes) -> tarfile.TarFile:
    return open_tar(io.BytesIO(tar))


def paths(source: Source, split: str) -> list[str]:
    entries = source.splits[split]
    return sorted(entries.path(row) for row in range(len(entries)))


# -- tars --------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", [b"L", b"K", b"x", b"g", b"X"])
@pytest.mark.parametrize(("size", "is_taken"), [(2**20, True), (2**20 + 1, False)])
def test_a_header_that_describes_the_next_has_at_most_a_megabyte(kind: bytes, size: int, is_taken: bool) -> None:
    header = tarfile.TarInfo("long")
    header.type, header.size = kind, size
    tar = header.tobuf(tarfile.USTAR_FORMAT)
    if is_taken:
        # the megabyte itself is missing, which is another fault
        with pytest.raises(Exception, match=r"^(?!a header says)"):
            list(headers(opened(tar + bytes(2**20) + ONE[:512] + b"\xff"), 2**21))
    else:
        with pytest.raises(tarfile.ReadError, match=f"a header says {size} bytes"):
            list(headers(opened(tar), 2**21))


def test_a_tar_is_not_a_stream_unless_told_so_a_member_may_be_read_again() -> None:
    archive = opened(ONE)
    first, *_ = headers(archive, len(ONE))
    assert [archive.extractfile(first).read() for _ in range(2)] == [b"picture", b"picture"]  # type: ignore[union-attr]


def test_a_file_of_more_than_a_megabyte_is_no_such_header() -> None:
    tar = tar_of({"a.bin": bytes(2**20 + 1)})
    assert [found.size for found in headers(opened(tar), len(tar))] == [2**20 + 1]


def test_no_header_is_kept_while_a_tar_is_read() -> None:
    tar = tar_of({f"{n}.cls": b"0" for n in range(50)})
    archive = opened(tar)
    assert max(len(archive.members) for _ in headers(archive, len(tar))) <= 1


@pytest.mark.parametrize("is_cut", [False, True])
def test_a_tar_has_an_end_where_a_block_of_zeros_follows(is_cut: bool) -> None:
    tar = ONE[: 4 * 512] if is_cut else ONE
    archive = opened(tar)
    assert len(list(headers(archive, len(tar)))) == 2
    assert has_end(archive) is not is_cut


@pytest.mark.parametrize("behind", [0, 5000, 30_000, 2_000_000])
def test_what_follows_an_end_is_named_with_its_byte(behind: int) -> None:
    zeros = ONE + bytes(behind)
    archive = opened(zeros + b"\0\0X" + bytes(600))
    list(headers(archive, len(zeros)))
    with pytest.raises(tarfile.ReadError, match=f"its end is at byte 2048, but data follow at byte {len(zeros) + 2}$"):
        has_end(archive)


@pytest.mark.parametrize("name", ["b.jpg", "\udcf1.jpg"])
@pytest.mark.parametrize("blocks", [0, 1, 100])
def test_a_tar_behind_a_tar_is_named_with_its_byte_whatever_its_names(name: str, blocks: int) -> None:
    second = tarfile.TarInfo(name).tobuf(tarfile.GNU_FORMAT, "utf-8", "surrogateescape")
    at = len(ONE) + 512 * blocks
    archive = opened(ONE + bytes(512 * blocks) + second + bytes(1024))
    list(headers(archive, at))
    with pytest.raises(tarfile.ReadError, match=f"another tar begins at byte {at}, after its end"):
        has_end(archive)


@pytest.mark.parametrize(
    ("name", "key"),
    [
        ("a.jpg", "a"), ("a.b.jpg", "a"), ("d/a.jpg", "d/a"), ("d.e/a.jpg", "d.e/a"), ("d/e/a.b", "d/e/a"),
        ("README", None), ("d/.hidden", None), (".hidden", None), ("__a.b__", None), ("__a.jpg", "__a"),
        ("a.b__", "a"), ("d/__a.b__", "d/__a"),
    ],
)  # fmt: skip
def test_a_key_is_the_path_up_to_the_first_dot_of_the_file_name(name: str, key: str | None) -> None:
    assert _key(name) == key


def test_images_sounds_and_labels_are_used_and_nothing_else() -> None:
    used = ["jpg", "jpeg", "png", "webp", "gif", "wav", "flac", "cls", "json", "txt"]
    assert all(is_used(extension) for extension in used)
    assert not any(is_used(extension) for extension in ("", "bmp", "tiff", "seg.png", "JPG", "npy"))


@pytest.mark.parametrize(
    ("extension", "data", "classes", "label"),
    [
        ("cls", b" 7\n", (), 7), ("cls", b"1", ("a", "b"), 1), ("txt", b"b", ("a", "b"), 1),
        ("json", b'{"label": 3}', (), 3), ("json", b'{"cls": "4"}', (), 4), ("json", b'{"class": "b"}', ("a", "b"), 1),
        ("json", b"5", (), 5), ("json", b'{"label": 1, "cls": 2}', (), 1), ("cls", b"249999", (), 249_999),
    ],
)  # fmt: skip
def test_a_label_is_a_number_or_a_class(extension: str, data: bytes, classes: tuple[str, ...], label: int) -> None:
    assert pick([member("png"), member(extension, data)], classes) == (member("png"), label)


@pytest.mark.parametrize(
    ("members", "classes", "why"),
    [
        ([("jpg", b""), ("cls", b"cat")], (), "its label is the name 'cat'; name the classes in a file, one a line, "
         "with --classes"),
        ([("jpg", b""), ("cls", b"emu")], ("cat",), "its label 'emu' is neither a number nor a class"),
        ([("jpg", b""), ("cls", b"")], (), "its label '' is neither a number nor a class"),
        ([("jpg", b""), ("cls", b"\xff")], ("cat",), "its label '\ufffd' is neither a number nor a class"),
        ([("jpg", b""), ("json", b"true")], (), "its label 'True' is neither a number nor a class"),
        ([("jpg", b""), ("json", b"{}")], (), "its json member says none of label, cls, class"),
        ([("jpg", b""), ("json", b"{")], (), "its json member is no JSON"),
        ([("jpg", b""), ("cls", b"1")], ("cat",), "its label 1 is not below the 1 classes"),
        ([("jpg", b""), ("cls", b"250000")], (), "its label 250000 is not below the 250,000 classes"),
        ([("jpg", b""), ("json", b"-1")], (), "its label -1 is not below the 250,000 classes"),
        ([("jpg", b""), ("jpg", b"")], (), "the tar holds two members a.jpg of one sample"),
        ([("cls", b"1")], (), "no image (jpg, jpeg, png, webp, gif, wav, flac) among its members cls"),
        ([("jpg", b"")], (), "no label (cls, json, txt) among its members jpg"),
    ],
)  # fmt: skip
def test_a_sample_that_is_none_has_its_reason_by_which_sets_are_known_again(
    members: list[tuple[str, bytes]], classes: tuple[str, ...], why: str
) -> None:
    with pytest.raises(BadSample) as refused:
        pick([member(*one) for one in members], classes)
    assert str(refused.value) == why


@pytest.mark.parametrize(("count", "end"), [(30, "x29"), (31, "x29 and 1 more")])
def test_of_many_members_thirty_are_named(count: int, end: str) -> None:
    with pytest.raises(BadSample) as refused:
        pick([member(f"x{n}") for n in range(count)], ())
    assert str(refused.value).endswith(end)


@pytest.mark.parametrize(
    ("name", "split"),
    [
        ("a.tar", "train"), ("imagenet-val-0003.tar", "validation"), ("A-TEST.TAR", "test"), ("test.tar", "test"),
        ("validation/train.tar", "validation"), ("Test/a.tar", "test"), ("contest-1.tar", "train"),
        ("tar.validation.tar", "validation"),
    ],
)  # fmt: skip
def test_the_split_of_a_tar_is_that_of_its_folder_or_of_a_word_in_its_name(
    tmp_path: Path, name: str, split: str
) -> None:
    (tmp_path / name).parent.mkdir(exist_ok=True)
    (tmp_path / name).write_bytes(ONE)
    (tmp_path / "x.tar").write_bytes(ONE)
    (tmp_path / "README.md").write_text("no tar")
    source = open_source(str(tmp_path), Options())
    assert source.is_indexed
    assert name in paths(source, split)
    assert [kept for kept in source.splits if "x.tar" in paths(source, kept)] == ["train"]


def test_folders_of_tars_beside_what_stoker_wrote_are_tars_and_folders_in_them_are_not(tmp_path: Path) -> None:
    for name in ("train", "val", "build", "index"):
        (tmp_path / name).mkdir()
        (tmp_path / name / ("a.tar" if name in {"train", "val"} else "a.json")).write_bytes(ONE)
    (tmp_path / "val" / "README").write_text("no tar")
    assert list(open_source(str(tmp_path), Options()).splits) == ["train", "validation"]


@pytest.mark.parametrize(
    ("options", "name"),
    [
        (Options(validation_fraction=0.1), "--validation-fraction"),
        (Options(limit=5), "--limit"),
        (Options(deduplicates=True), "--deduplicate"),
        (Options(longest_side=64), "--longest-side"),
        (Options(background="#ffffff"), "--background"),
    ],
)
def test_what_would_change_tars_that_are_indexed_is_refused_by_name(
    tmp_path: Path, options: Options, name: str
) -> None:
    (tmp_path / "a.tar").write_bytes(ONE)
    with pytest.raises(DatasetError, match=f"^{name}: tars that are indexed in place are not changed"):
        open_source(str(tmp_path), options)


@pytest.mark.parametrize("text", ["", " \n\n", "cat\ndog\ncat\n"])
def test_a_file_of_classes_that_names_none_or_one_twice_is_refused(tmp_path: Path, text: str) -> None:
    (tmp_path / "a.tar").write_bytes(ONE)
    (tmp_path / "classes.txt").write_text(text)
    with pytest.raises(DatasetError, match="names a class twice or none at all"):
        open_source(str(tmp_path), Options(classes_file=str(tmp_path / "classes.txt")), kind="webdataset")


def test_without_names_the_classes_of_copied_tars_are_the_numbers_up_to_the_last(tmp_path: Path) -> None:
    (tmp_path / "a.tar").write_bytes(ONE + b"")
    (tmp_path / "test.tar").write_bytes(tar_of({"b.jpg": b"picture", "b.cls": b"2"}))
    source = open_source(str(tmp_path), Options(copies=True))
    assert source.classes == ("0", "1", "2")
    assert {split: paths(source, split) for split in source.splits} == {
        "train": ["a.tar#a.jpg"],
        "test": ["test.tar#b.jpg"],
    }
    (tmp_path / "test.tar").unlink()
    assert open_source(str(tmp_path), Options(copies=True)).classes == ("0",)


def read(*names: str) -> list[str]:
    """The keys of a tar with these members, in this order."""
    tar = b"".join(tarfile.TarInfo(name).tobuf(tarfile.USTAR_FORMAT) for name in names) + bytes(1024)
    return [key for key, _ in samples_of(opened(tar), locate("/in/a.tar"), len(tar), LABELS.__contains__)]


WHOLE = ("w.jpg", "w.cls")


def test_as_many_samples_may_be_apart_as_are_whole_and_no_more() -> None:
    assert read(*WHOLE, "a.jpg", "b.jpg", "a.cls") == ["w", "a", "b", "a"]
    with pytest.raises(DatasetError, match=r"the image and the label of a are apart; .* \(tar --sort=name\)"):
        read(*WHOLE, "a.jpg", "b.jpg", "a.cls", "b.cls")


def test_images_that_have_no_labels_anywhere_are_not_apart() -> None:
    assert read("a.jpg", "b.jpg", "c.jpg", "a.jpg", "d.cls") == ["a", "b", "c", "a", "d"]


@pytest.mark.parametrize(
    "names", [("i.1.jpg", "i.1.cls"), ("i.1.2.jpg", "i.1.2.cls"), ("h.1.cls", "i.1.jpg", "i.1.cls")]
)
def test_names_with_a_dot_in_their_keys_are_refused_with_an_image_where_there_are_more_than_whole_samples(
    names: tuple[str, ...],
) -> None:
    image = next(name for name in names if name.endswith("jpg"))
    with pytest.raises(DatasetError, match=f"ends at the first dot of the file name, so {image} is no image"):
        read(*names)
    assert read(*WHOLE, *names)[0] == "w"


def test_folders_that_hold_folders_beside_their_tars_are_no_tars(tmp_path: Path) -> None:
    for name in ("train", "val", "val/deeper"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "a.tar").write_bytes(ONE)
    assert not holds_tars(locate(tmp_path), {}, ["train", "val"])
    assert holds_tars(locate(tmp_path), {}, ["train"])
    assert not holds_tars(locate(tmp_path), {"a.tar": (1, "")}, ["cat"])


# -- lists -------------------------------------------------------------------------------------------------------------


def listed(folder: Path, name: str, text: str) -> Source:
    (folder / name).write_text(text)
    return open_source(str(folder / name), Options())


@pytest.fixture
def images(tmp_path: Path) -> Path:
    for name in ("a", "b", "c"):
        (tmp_path / f"{name}.jpg").write_bytes(name.encode())
    return tmp_path


@pytest.mark.parametrize(
    "column", ["path", "file", "filename", "file_name", "image", "image_path", "url", "image_url", "Path"]
)
def test_each_usual_name_of_the_column_of_paths_is_known(images: Path, column: str) -> None:
    assert paths(listed(images, "list.csv", f"{column},label\na.jpg,cat\n"), "train") == ["a.jpg"]


@pytest.mark.parametrize("name", ["list.jsonl", "list.ndjson"])
def test_lines_of_json_are_known_by_either_suffix(images: Path, name: str) -> None:
    source = listed(images, name, '{"path": "a.jpg", "label": "cat"}\n\n{"path": "b.jpg", "label": "dog"}\n[1]\n{\n')
    assert paths(source, "train") == ["a.jpg", "b.jpg"]
    assert source.strays == (("line 4", "not a JSON object"), ("line 5", "not a JSON object"))


def test_splits_are_kept_and_spaces_behind_commas_and_the_reasons_of_bad_lines_are_as_ever(images: Path) -> None:
    text = "path, label, split\na.jpg, cat, train\nb.jpg, dog, val\nc.jpg, dog, TEST\n./a.jpg, cat,\n"
    text += "x.jpg, cat,\n, cat,\na.jpg, ,\na.jpg, cat, dev\n"
    source = listed(images, "list.csv", text)
    assert {split: paths(source, split) for split in source.splits} == {
        "train": ["a.jpg"],
        "validation": ["b.jpg"],
        "test": ["c.jpg"],
    }
    assert sorted(source.strays) == sorted(
        [
            ("a.jpg", "the list names it more than once"),
            ("x.jpg", "no such file, although line 6 of the list names it"),
            ("line 7", "no path"),
            ("line 8", "no label that is a number or a name"),
            ("line 9", "split 'dev' is none of train, validation, test"),
        ]
    )


def test_a_list_without_files_says_so_without_a_reason_that_there_is_not(images: Path) -> None:
    with pytest.raises(DatasetError, match=r"no line of the list names a file that exists$"):
        listed(images, "list.csv", "path,label\nx.jpg,cat\n")
    with pytest.raises(DatasetError, match=r"names a file that exists; line 2: no path$"):
        listed(images, "list.csv", "path,label\n,cat\n")


def test_the_choice_of_a_column_says_what_it_is_for(images: Path) -> None:
    with pytest.raises(DatasetError, match="no column that clearly holds labels; choose with --label-column"):
        listed(images, "list.csv", "path,x\na.jpg,cat\n")
    with pytest.raises(DatasetError, match="no column that clearly names files; choose with --image-column"):
        listed(images, "list.csv", "x,label\na.jpg,cat\n")
