"""Tars that are damaged, joined, cut or written in another order: named in one line, indexed in place and copied."""

import io
import tarfile
from pathlib import Path

import pytest

from images import encoded, make, objects, samples
from sources import archives, tar_of
from stoker.dataset.prepare import Options, open_source
from stoker.dataset.prepare.sources.imagenet import open_imagenet
from stoker.errors import DatasetError
from stoker.storage import locate

BLOCK = 512
BOTH = pytest.mark.parametrize("copies", [False, True], ids=["indexed", "copied"])


def sample(key: str, number: int, label: bytes = b"0") -> dict[str, bytes]:
    return {f"{key}.jpg": encoded(number), f"{key}.cls": label}


def three() -> bytes:
    return tar_of(sample("a", 1) | sample("b", 2) | sample("c", 3))


def prepared(tar: bytes, at: Path, *, copies: bool, on_bad: str = "fail") -> dict[str, list[tuple[str, str, bytes]]]:
    """The samples of a data set made of one tar."""
    at.mkdir(exist_ok=True)
    (at / "a.tar").write_bytes(tar)
    options = Options(copies=copies, on_bad=on_bad, jpeg="original", validation_fraction=0 if copies else None)  # type: ignore[arg-type]
    return samples(make(at, at.with_name(f"{at.name}-data"), options))


def refusal(tar: bytes, at: Path, *, copies: bool, on_bad: str = "skip") -> str:
    with pytest.raises(DatasetError) as refused:
        prepared(tar, at, copies=copies, on_bad=on_bad)
    text = str(refused.value)
    assert "\n" not in text
    assert str(at) in text
    return text


def header_of(tar: bytes, name: str) -> int:
    with tarfile.open(fileobj=io.BytesIO(tar)) as archive:
        return archive.getmember(name).offset


@BOTH
def test_a_damaged_header_in_the_middle_is_named_with_its_place(copies: bool, tmp_path: Path) -> None:
    tar = bytearray(three())
    at = header_of(bytes(tar), "b.jpg")
    tar[at + 148 : at + 156] = b"\xff" * 8
    assert f"a.tar: not a valid, complete tar (bad checksum at byte {at})" in refusal(
        bytes(tar), tmp_path / "in", copies=copies
    )


@BOTH
@pytest.mark.parametrize("name", ["a.jpg", "c.cls"])
def test_each_header_counts_the_first_and_the_last(name: str, copies: bool, tmp_path: Path) -> None:
    tar = bytearray(three())
    tar[header_of(bytes(tar), name) + 100] ^= 1
    assert "bad checksum at byte" in refusal(bytes(tar), tmp_path / "in", copies=copies)


@BOTH
def test_a_hole_of_zeros_over_a_header_is_no_end(copies: bool, tmp_path: Path) -> None:
    tar = bytearray(three())
    at = header_of(bytes(tar), "b.jpg")
    tar[at : at + BLOCK] = bytes(BLOCK)
    assert f"its end is at byte {at}, but data follow" in refusal(bytes(tar), tmp_path / "in", copies=copies)


@BOTH
def test_tars_joined_by_cat_are_refused_with_the_place_of_the_second(copies: bool, tmp_path: Path) -> None:
    first, second = three(), tar_of(sample("d", 4) | sample("e", 5) | sample("f", 6))
    assert f"another tar begins at byte {len(first)}, after its end" in refusal(
        first + second, tmp_path / "in", copies=copies
    )


@BOTH
@pytest.mark.parametrize("zeros", [0, BLOCK, 10_240, 3 << 20])
def test_any_number_of_zeros_may_follow_the_end(zeros: int, copies: bool, tmp_path: Path) -> None:
    found = prepared(three() + bytes(zeros), tmp_path / "in", copies=copies)
    assert {key.rpartition("#")[2] for key, _, _ in found["train"]} == {"a", "b", "c"}


@BOTH
@pytest.mark.parametrize("after", [0, 100, 10_239, 2 << 20])
def test_a_single_byte_behind_the_end_is_found(after: int, copies: bool, tmp_path: Path) -> None:
    tar = three() + bytes(after) + b"\1"
    assert f"but data follow at byte {len(tar) - 1}" in refusal(tar, tmp_path / "in", copies=copies)


@BOTH
def test_a_tar_without_its_end_may_be_cut_and_counts_as_an_invalid_file(copies: bool, tmp_path: Path) -> None:
    tar = three()
    cut = tar[: header_of(tar, "c.jpg")]
    assert "a.tar cannot be a sample: the tar ends without the blocks of zeros" in refusal(
        cut, tmp_path / "in", copies=copies, on_bad="fail"
    )
    found = prepared(cut, tmp_path / "in", copies=copies, on_bad="skip")
    assert {key.rpartition("#")[2] for key, _, _ in found["train"]} == {"a", "b"}


@BOTH
@pytest.mark.parametrize("kept", [1, 100, 511, 513, 900, 1300])
def test_a_tar_cut_anywhere_else_is_refused(kept: int, copies: bool, tmp_path: Path) -> None:
    tar = three()
    assert "not a valid, complete tar" in refusal(tar[:kept], tmp_path / "in", copies=copies)
    at = header_of(tar, "c.jpg") + kept
    assert "not a valid, complete tar" in refusal(tar[:at], tmp_path / "more", copies=copies)


@BOTH
@pytest.mark.parametrize("tar", [b"", b"junk", b"x" * 2000, tar_of({}, "w:gz")], ids=["empty", "short", "junk", "gzip"])
def test_what_is_no_tar_is_refused_by_name(tar: bytes, copies: bool, tmp_path: Path) -> None:
    assert "a.tar: not a valid, complete tar (" in refusal(tar, tmp_path / "in", copies=copies)


@BOTH
def test_a_tar_without_members_is_refused_in_one_line(copies: bool, tmp_path: Path) -> None:
    refusal(tar_of({}), tmp_path / "in", copies=copies)


@BOTH
@pytest.mark.parametrize("size", [-512, -(2**40), 2**40, 2**62])
def test_a_header_with_an_impossible_size_ends_at_once(size: int, copies: bool, tmp_path: Path) -> None:
    body = io.BytesIO()
    with tarfile.open(fileobj=body, mode="w", format=tarfile.GNU_FORMAT) as archive:
        for name, data in sample("a", 1).items():
            member = tarfile.TarInfo(name)
            member.size = len(data)
            archive.addfile(member, io.BytesIO(data))
        member = tarfile.TarInfo("b.jpg")
        member.size = size
        archive.fileobj.write(member.tobuf(tarfile.GNU_FORMAT))  # type: ignore[union-attr]
    assert "not a valid, complete tar" in refusal(body.getvalue() + bytes(4096), tmp_path / "in", copies=copies)


@BOTH
def test_a_pax_header_that_leads_backwards_ends_at_once(copies: bool, tmp_path: Path) -> None:
    body = io.BytesIO()
    with tarfile.open(fileobj=body, mode="w", format=tarfile.PAX_FORMAT) as archive:
        for name, data in sample("a", 1).items():
            member = tarfile.TarInfo(name)
            member.size = len(data)
            archive.addfile(member, io.BytesIO(data))
        odd = tarfile.TarInfo("b.bin")
        odd.pax_headers = {"size": "-2048"}
        archive.addfile(odd)
    assert "leads backwards" in refusal(body.getvalue(), tmp_path / "in", copies=copies)


@BOTH
def test_a_name_as_long_as_the_tar_is_not_read(copies: bool, tmp_path: Path) -> None:
    body = io.BytesIO()
    with tarfile.open(fileobj=body, mode="w", format=tarfile.GNU_FORMAT) as archive:
        member = tarfile.TarInfo("././@LongLink")
        member.type, member.size = tarfile.GNUTYPE_LONGNAME, 2 << 20
        archive.addfile(member, io.BytesIO(b"x" * member.size))
        archive.addfile(tarfile.TarInfo("a.jpg"))
    assert f"a header says {2 << 20} bytes" in refusal(body.getvalue(), tmp_path / "in", copies=copies)


# -- order and names ---------------------------------------------------------------------------------------------------


@BOTH
def test_all_images_before_all_labels_is_told_in_one_line(copies: bool, tmp_path: Path) -> None:
    whole = {name: data for n in range(4) for name, data in sample(f"{n}", n).items()}
    tar = tar_of({name: whole[name] for name in sorted(whole, key=lambda name: (name[-3:] == "cls", name))})
    text = refusal(tar, tmp_path / "in", copies=copies)
    assert "the image and the label of 0 are apart" in text
    assert "tar --sort=name" in text


@BOTH
def test_a_few_samples_that_are_apart_are_left_out_one_by_one(copies: bool, tmp_path: Path) -> None:
    apart = sample("late", 9)
    members = {"late.jpg": apart["late.jpg"]} | sample("a", 1) | sample("b", 2) | {"late.cls": b"0"}
    found = prepared(tar_of(members), tmp_path / "in", copies=copies, on_bad="skip")
    assert {key.rpartition("#")[2] for key, _, _ in found["train"]} == {"a", "b"}


@BOTH
def test_names_with_a_dot_in_the_key_are_told_in_one_line(copies: bool, tmp_path: Path) -> None:
    text = refusal(tar_of(sample("IMG_01.02", 1) | sample("IMG_01.03", 2)), tmp_path / "in", copies=copies)
    assert "ends at the first dot of the file name, so IMG_01.02.jpg is no image of a sample of its own" in text


@BOTH
def test_further_images_of_a_sample_are_no_hindrance(copies: bool, tmp_path: Path) -> None:
    members = sample("a", 1) | {"a.mask.png": encoded(2, "PNG"), "a.depth.png": encoded(3, "PNG")} | sample("b", 4)
    found = prepared(tar_of(members), tmp_path / "in", copies=copies)
    assert {key.rpartition("#")[2] for key, _, _ in found["train"]} == {"a", "b"}


@BOTH
def test_a_label_that_is_too_long_or_too_deep_is_one_bad_sample(copies: bool, tmp_path: Path) -> None:
    bad = {
        "deep.jpg": encoded(2),
        "deep.json": b"[" * 100_000,
        "number.jpg": encoded(3),
        "number.json": b"9" * 10_000,
        "huge.jpg": encoded(4),
        "huge.txt": b"0" * ((1 << 24) + 1),
    }
    at = tmp_path / "in"
    assert "and 2 more cannot be a sample" in refusal(tar_of(sample("a", 1) | bad), at, copies=copies, on_bad="fail")
    report = (tmp_path / "in-data" / "bad.jsonl").read_text()
    assert report.count("its json member is no JSON") == 2
    assert "its txt member has 16,777,217 bytes" in report


def test_a_sample_of_very_many_members_is_described_in_a_line(tmp_path: Path) -> None:
    (tmp_path / "a.tar").write_bytes(tar_of(sample("a", 1) | {f"b.{n}.bin": b"" for n in range(500)}))
    with pytest.raises(DatasetError, match=r"among its members 0\.bin, .*, 29\.bin and 470 more") as refused:
        make(tmp_path, tmp_path / "data", Options())
    assert len(str(refused.value)) < 1000


# -- names that are not UTF-8 ------------------------------------------------------------------------------------------


def odd_tar(at: Path) -> Path:
    """A tar whose members are named in Latin-1, as an old unzip or Windows leaves them."""
    with tarfile.open(at, "w", format=tarfile.GNU_FORMAT, encoding="latin-1") as archive:
        for name, data in (sample("Muñoz", 1) | sample("ok", 2) | {"ñandú.jpg": encoded(3)}).items():
            member = tarfile.TarInfo(name)
            member.size = len(data)
            archive.addfile(member, io.BytesIO(data))
    return at


@BOTH
def test_members_named_in_another_encoding_are_samples_with_the_bytes_written_out(copies: bool, tmp_path: Path) -> None:
    (tmp_path / "in").mkdir()
    tar = odd_tar(tmp_path / "in" / "a.tar")
    found = prepared(tar.read_bytes(), tmp_path / "in", copies=copies, on_bad="skip")
    assert {(key.rpartition("#")[2], data) for key, _, data in found["train"]} == {
        ("Mu\\xf1oz", encoded(1)),
        ("ok", encoded(2)),
    }
    assert "#\\\\xf1and\\\\xfa" in (tmp_path / "in-data" / "bad.jsonl").read_text()


# -- ImageNet's archives -----------------------------------------------------------------------------------------------


def test_damage_in_imagenets_archives_is_named(tmp_path: Path) -> None:
    whole = archives()
    train = whole["ILSVRC2012_img_train.tar"]
    damaged = bytearray(train)
    second = train.index(b"n02119789.tar") + BLOCK
    inner = train.index(b"n02119789_1.JPEG", second)
    damaged[inner] ^= 1
    for tar in (train + train, train[:-5120] + b"x" * 5120, bytes(damaged)):
        root = locate(tmp_path / "in")
        for name, data in (whole | {"ILSVRC2012_img_train.tar": tar}).items():
            (root / name).write(data)
        with pytest.raises(DatasetError, match=r"ILSVRC2012_img_train\.tar: damaged at or after byte \d+ \("):
            open_imagenet(root, Options())


def test_a_tar_is_never_changed_by_being_refused(tmp_path: Path) -> None:
    (tmp_path / "in").mkdir()
    (tmp_path / "in" / "a.tar").write_bytes(three() + three())
    before = objects(tmp_path / "in")
    with pytest.raises(DatasetError):
        make(tmp_path / "in", tmp_path / "data", Options())
    assert objects(tmp_path / "in") == before
    assert list(open_source(str(tmp_path / "in"), Options()).splits) == ["train"]
