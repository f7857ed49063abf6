"""The interval that is chosen, and what the program does to JPEGs of every kind."""

import io
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from images import encoded, make, make_folder
from stoker.dataset.decode import decode
from stoker.dataset.format.jpeg import read_marks
from stoker.dataset.prepare import Options
from stoker.dataset.prepare.images import store_image
from stoker.dataset.prepare.markers import choose_interval, program_version, rewrite
from stoker.errors import DatasetError


def photograph(width: int = 320, height: int = 240, **how: object) -> bytes:
    """Noise with structure, so that a damaged byte changes what follows."""
    rng = np.random.default_rng(0)
    rough = Image.fromarray(rng.integers(0, 255, (height // 8, width // 8, 3), dtype=np.uint8)).resize((width, height))
    pixels = np.asarray(rough).astype(np.int16) + rng.integers(-20, 20, (height, width, 3))
    file = io.BytesIO()
    Image.fromarray(pixels.clip(0, 255).astype(np.uint8)).save(file, "JPEG", quality=92, **how)
    return file.getvalue()


@given(st.integers(1, 4000), st.sampled_from([64, 128, 256]))
def test_the_interval_always_divides_the_row(columns: int, mcu_pixels: int) -> None:
    assert columns % choose_interval(columns, mcu_pixels) == 0


def test_the_interval_is_the_one_that_was_measured_to_be_fastest_or_within_a_tenth_of_it() -> None:
    assert choose_interval(32, 256) == 2
    assert choose_interval(24, 256) == 2
    assert choose_interval(63, 64) in {3, 7}
    assert choose_interval(47, 64) == 47  # a prime: single MCUs of 64 pixels cost more than the whole row
    assert choose_interval(31, 256) == 1  # a prime: single MCUs of 256 pixels cost less
    assert choose_interval(1, 256) == 1


def test_longer_rows_take_longer_intervals() -> None:
    found = [choose_interval(2**n, 256) for n in range(12)]
    assert found == sorted(found)
    assert found[-1] < 2**11 / 8


@pytest.mark.parametrize("how", [{}, {"progressive": True}, {"subsampling": "4:4:4"}, {"restart_marker_blocks": 1}])
@pytest.mark.parametrize("keeps_metadata", [True, False])
def test_a_rewritten_jpeg_can_be_cut_and_has_the_same_pixels(how: dict[str, object], keeps_metadata: bool) -> None:
    data = photograph(**how)
    new = rewrite(data, 4, keeps_metadata=keeps_metadata)
    assert new.data is not None
    assert new.damage == ""
    assert torch.equal(decode(new.data), decode(data))
    marks = read_marks(new.data)
    assert marks is not None
    assert marks.interval == 4
    assert rewrite(data, 4, keeps_metadata=keeps_metadata) == new


def test_what_is_dropped_is_all_but_the_orientation() -> None:
    exif = Image.Exif()
    exif[0x112] = 6
    exif[0x110] = "a camera that nobody shall know"
    data = photograph(exif=exif, comment=b"a secret", icc_profile=b"profile" * 50)

    kept = rewrite(data, 4, keeps_metadata=True, orientation=6).data
    dropped = rewrite(data, 4, keeps_metadata=False, orientation=6).data

    assert kept is not None
    assert dropped is not None
    assert all(word in kept for word in (b"a camera", b"a secret", b"profile"))
    assert not any(word in dropped for word in (b"a camera", b"a secret", b"profile"))
    assert torch.equal(decode(dropped), decode(data))
    assert decode(dropped).shape == (3, 320, 240)


def test_damage_in_the_middle_is_told_where_decoders_say_nothing() -> None:
    data = photograph()
    half = len(data) // 2
    damaged = {
        "zeros": data[:half] + bytes(600) + data[half + 600 :],
        "a hole": data[:half] + data[half + 600 :],
        "ends early": data[:half] + b"\xff\xd9",
        "a marker": data[:half] + b"\xff\xd3" + data[half:],
    }
    for name, torn in damaged.items():
        assert decode(torn).shape == (3, 240, 320), name
        assert "is damaged" in rewrite(torn, 4, keeps_metadata=True).damage, name


def test_padding_before_the_end_and_bytes_after_it_are_no_damage() -> None:
    data = photograph()
    for harmless in (data[:-2] + bytes(500) + data[-2:], data[:-2] + b"\xff" * 20 + data[-2:], data + b"trailing"):
        assert rewrite(harmless, 4, keeps_metadata=True).damage == ""


def test_a_machine_without_the_program_is_refused_before_anything_is_written(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = make_folder(tmp_path / "images", {"a": 2, "b": 2})
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(DatasetError, match=r"jpegtran not found on \S+ .*apt install libjpeg-turbo-progs.*--jpeg orig"):
        make(folder, tmp_path / "data", Options())
    assert not (tmp_path / "data").exists()
    assert make(folder, tmp_path / "data", Options(jpeg="original")).manifest.split("train").samples == 2


def test_images_that_are_no_jpegs_do_not_need_the_program(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for number in range(4):
        (tmp_path / "images" / f"{number % 2}").mkdir(parents=True, exist_ok=True)
        (tmp_path / "images" / f"{number % 2}" / f"{number}.png").write_bytes(encoded(number, "PNG"))
    monkeypatch.setenv("PATH", str(tmp_path))
    assert make(tmp_path / "images", tmp_path / "data", Options()).manifest.split("train").samples == 2
    (tmp_path / "images" / "0" / "a-jpeg.png").write_bytes(encoded(5))
    with pytest.raises(DatasetError, match="jpegtran not found on"):
        make(tmp_path / "images", tmp_path / "other", Options())


def test_another_program_of_that_name_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    other = tmp_path / "jpegtran"
    other.write_text("#!/bin/sh\necho 'mozjpeg version 4.1.1 (build 20230203)' >&2\n")
    other.chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(DatasetError, match=r"calls itself 'mozjpeg version 4\.1\.1', but must be libjpeg-turbo's"):
        program_version()


def test_a_program_that_changes_pixels_is_not_believed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    other = tmp_path / "jpegtran"
    version = """if test "$1" = -version; then echo 'libjpeg-turbo version 9'; exit; fi"""
    other.write_text(f"#!/bin/sh\n{version}\n/usr/bin/djpeg | /usr/bin/cjpeg -quality 10\n")
    other.chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path))
    stored = store_image(photograph(), Options())
    assert (stored.data, stored.kept) == (photograph(), "rewritten, it would have other pixels")


def test_what_is_no_jpeg_is_not_rewritten() -> None:
    assert rewrite(encoded(1, "PNG"), 4, keeps_metadata=True).data is None
