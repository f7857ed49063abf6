"""Invalid input of a user: one clear line, exit status 2, and nothing is written."""

import runpy
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from images import JOB, encoded, make_folder, objects, run_job

Case = Callable[[Path], tuple[list[str | Path], str]]


def _missing(at: Path) -> tuple[list[str | Path], str]:
    return [at / "nowhere", at / "data"], "no images at"


def _nothing(at: Path) -> tuple[list[str | Path], str]:
    (at / "images").mkdir()
    return [at / "images", at / "data"], "no images at"


def _no_classes(at: Path) -> tuple[list[str | Path], str]:
    (at / "images").mkdir()
    (at / "images" / "1.jpg").write_bytes(encoded(1))
    return [at / "images", at / "data"], "has no class folders"


def _empty_class(at: Path) -> tuple[list[str | Path], str]:
    folder = make_folder(at / "images", {"cat": 3, "dog": 2})
    (folder / "emu").mkdir()
    return [folder, at / "data"], "the class 'emu' is empty"


def _only_empty_classes(at: Path) -> tuple[list[str | Path], str]:
    return [make_folder(at / "images", {"cat": 0, "dog": 0}), at / "data"], "folders are empty"


def _empty_class_in_a_split(at: Path) -> tuple[list[str | Path], str]:
    make_folder(at / "images" / "train", {"cat": 3, "dog": 2})
    make_folder(at / "images" / "validation", {"cat": 3, "dog": 0})
    return [at / "images", at / "data"], "validation/dog: the class 'dog' is empty"


def _unknown_class_in_a_split(at: Path) -> tuple[list[str | Path], str]:
    make_folder(at / "images" / "train", {"cat": 3})
    make_folder(at / "images" / "validation", {"cow": 3})
    return [at / "images", at / "data"], "validation/cow: unknown class, not in"


def _file_as_source(at: Path) -> tuple[list[str | Path], str]:
    (at / "images.zip").write_bytes(b"PK")
    return [at / "images.zip", at / "data"], "is a file, not a folder"


def _inside(at: Path) -> tuple[list[str | Path], str]:
    return [make_folder(at / "images", {"cat": 3}), at / "images" / "data"], "is inside the source"


def _is_a_file(at: Path) -> tuple[list[str | Path], str]:
    (at / "data").write_text("x")
    return [make_folder(at / "images", {"cat": 3}), at / "data" / "set"], "data/set"


def _unreachable(at: Path) -> tuple[list[str | Path], str]:
    return [make_folder(at / "images", {"cat": 3}), "s3://bucket/data"], "no valid response in 5 s"


def _unknown_protocol(at: Path) -> tuple[list[str | Path], str]:
    return [make_folder(at / "images", {"cat": 3}), "ftpx://there/data"], "unknown protocol"


def _fraction(at: Path) -> tuple[list[str | Path], str]:
    return [make_folder(at / "images", {"cat": 3}), at / "data", "--validation-fraction", "1.5"], "must be at least 0"


def _quality(at: Path) -> tuple[list[str | Path], str]:
    return [make_folder(at / "images", {"cat": 3}), at / "data", "--quality", "0"], "--quality 0: must be from 1 to 100"


def _longest_side(at: Path) -> tuple[list[str | Path], str]:
    return [make_folder(at / "images", {"cat": 3}), at / "data", "--longest-side", "0"], "must be at least 1 pixel"


def _background(at: Path) -> tuple[list[str | Path], str]:
    return [
        make_folder(at / "images", {"cat": 3}),
        at / "data",
        "--background",
        "snow-ish",
    ], "--background 'snow-ish': neither a colour of CSS by name, such as white, nor #rrggbb"


def _fraction_although_split(at: Path) -> tuple[list[str | Path], str]:
    for split in ("train", "val"):
        make_folder(at / "images" / split, {"cat": 3})
    return [at / "images", at / "data", "--validation-fraction", "0.5"], "has a validation split already; leave"


def _no_list(at: Path) -> tuple[list[str | Path], str]:
    return [at / "list.csv", at / "data"], "no list at"


def _empty_list(at: Path) -> tuple[list[str | Path], str]:
    (at / "list.csv").write_text("path,label\n")
    return [at / "list.csv", at / "data"], "is not a valid list: it has no line with columns"


def _list_of_nothing(at: Path) -> tuple[list[str | Path], str]:
    (at / "list.jsonl").write_text('{"path": "1.jpg", "label": "a"}\n')
    return [at / "list.jsonl", at / "data"], "no line of the list names a file that exists"


def _list_in_another_code(at: Path) -> tuple[list[str | Path], str]:
    (at / "list.csv").write_bytes("path,label\n1.jpg,ä\n".encode("latin-1"))
    return [at / "list.csv", at / "data"], "cannot be read as a list in UTF-8"


def _list_without_train(at: Path) -> tuple[list[str | Path], str]:
    (at / "1.jpg").write_bytes(encoded(1))
    (at / "list.csv").write_text("path,label,split\n1.jpg,a,test\n")
    return [at / "list.csv", at / "data"], "has no train split, only test; add the images to train on"


def _no_parquet(at: Path) -> tuple[list[str | Path], str]:
    return [at / "a.parquet", at / "data"], "no Parquet files at"


def _folder_said_to_be_imagenet(at: Path) -> tuple[list[str | Path], str]:
    return [
        make_folder(at / "images", {"cat": 3}),
        at / "data",
        "--kind",
        "imagenet",
    ], "holds no ILSVRC2012_img_train.tar"


@pytest.mark.parametrize(
    "case",
    [
        _nothing,
        _no_classes,
        _empty_class,
        _only_empty_classes,
        _empty_class_in_a_split,
        _unknown_class_in_a_split,
        _file_as_source,
        _inside,
        _is_a_file,
        _unknown_protocol,
        _fraction,
        _quality,
        _longest_side,
        _background,
        _fraction_although_split,
        _no_list,
        _empty_list,
        _list_of_nothing,
        _list_in_another_code,
        _list_without_train,
        _no_parquet,
        _folder_said_to_be_imagenet,
    ],
)
def test_bad_input_gets_one_line_and_nothing_is_written(
    case: Case, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    """The job's own file, run in this process: a process of its own for each case takes seconds to import torch."""
    arguments, words = case(tmp_path)
    before = objects(tmp_path)
    monkeypatch.setattr(sys, "argv", [str(JOB), *map(str, arguments), "--local"])

    with pytest.raises(SystemExit) as ended:
        runpy.run_path(str(JOB), run_name="__main__")

    assert ended.value.code == 2
    assert_one_line(capfd.readouterr().err, words)
    assert objects(tmp_path) == before


@pytest.mark.parametrize("case", [_missing, _unreachable])
def test_bad_input_gets_one_line_as_a_user_sees_it(case: Case, tmp_path: Path) -> None:
    arguments, words = case(tmp_path)

    ran = run_job(
        *arguments,
        AWS_ENDPOINT_URL="http://127.0.0.1:9",
        AWS_ACCESS_KEY_ID="nobody",
        AWS_SECRET_ACCESS_KEY="nothing",
    )

    assert ran.returncode == 2
    assert_one_line(ran.stderr, words)


def assert_one_line(text: str, words: str) -> None:
    assert text.count("\n") == 1, text
    assert text.startswith("error: ")
    assert words in text
