import hashlib
import io
import json
import os
import runpy
import shutil
import signal
import subprocess
import sys
import tarfile
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from stoker.dataset import SampleReader, read_manifest
from stoker.dataset.decode import decode
from stoker.dataset.index import payload_checksum, read_index
from stoker.dataset.manifest import checksum
from stoker.dataset.prepare import ImageFolder, Options, Prepared, on_threads, prepare
from stoker.dataset.prepare.digits import digit_files, write_digits
from stoker.dataset.prepare.plan import held_out, unique_keys
from stoker.dataset.prepare.verify import verify
from stoker.errors import DatasetError
from stoker.storage import locate

JOB = Path(__file__).parents[2] / "jobs" / "prepare.py"


def encoded(number: int, kind: str = "JPEG", mode: str = "RGB", **options: object) -> bytes:
    pixels = np.random.default_rng(number).integers(0, 255, (6, 8, 3), dtype=np.uint8)
    file = io.BytesIO()
    Image.fromarray(pixels).resize((48, 36)).convert(mode).save(file, kind, **options)
    return file.getvalue()


def deep() -> bytes:
    file = io.BytesIO()
    Image.fromarray(np.arange(36 * 48, dtype=np.uint16).reshape(36, 48) * 37).save(file, "PNG")
    return file.getvalue()


def make_folder(root: Path, per_class: dict[str, int], *, first: int = 0) -> Path:
    for name, count in per_class.items():
        (root / name).mkdir(parents=True)
        for number in range(count):
            (root / name / f"{number:03d}.jpg").write_bytes(encoded(first))
            first += 1
    return root


def make(source: Path, destination: Path, options: Options | None = None, **how: object) -> Prepared:
    options = options or Options(shard_samples=7)
    return prepare(ImageFolder.scan(locate(source), options), locate(destination), options, **how)  # type: ignore[arg-type]


def objects(root: Path) -> dict[str, str]:
    files = (
        path for path in root.rglob("*") if path.is_file() and not path.name.startswith(".")
    )  # a killed write leaves a hidden file
    return {str(p.relative_to(root)): hashlib.sha256(p.read_bytes()).hexdigest() for p in files}


def run(*arguments: str | Path, **environment: str) -> subprocess.CompletedProcess[str]:
    inherited = {key: value for key, value in os.environ.items() if not key.startswith(("AWS_", "RAY_"))}
    return subprocess.run(
        [sys.executable, str(JOB), *map(str, arguments)],
        capture_output=True,
        text=True,
        check=False,
        env=inherited | environment,
        timeout=120,
    )


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_folder(tmp_path_factory.mktemp("source") / "images", {"cat": 23, "dog": 30, "St. Bernard": 11})


# -- what is made ------------------------------------------------------------------------------------------------------


def test_the_same_source_gives_the_same_bytes_whatever_order_threads_run_in(folder: Path, tmp_path: Path) -> None:
    one = make(folder, tmp_path / "one", map=on_threads(1))
    many = make(folder, tmp_path / "many", map=on_threads(5))
    other = make(folder, tmp_path / "other", Options(seed=1, shard_samples=7))

    assert one.manifest.fingerprint == many.manifest.fingerprint != other.manifest.fingerprint
    first, second = objects(tmp_path / "one"), objects(tmp_path / "many")
    assert first == second
    assert not any(name.startswith("build/") for name in first)


def test_each_file_is_in_exactly_one_split_once_with_its_own_bytes_and_label(folder: Path, tmp_path: Path) -> None:
    made = make(folder, tmp_path / "data", Options(validation_share=0.3, shard_samples=7))

    seen: Counter[bytes] = Counter()
    for name in ("train", "validation"):
        reader = SampleReader(made.root, name)
        for sample in reader.read(range(len(reader))):
            data = bytes(sample.data)
            seen[data] += 1
            label = made.manifest.classes[sample.label]
            assert (folder / label / f"{sample.key[-3:]}.jpg").read_bytes() == data
    assert sum(seen.values()) == 64
    assert set(seen.values()) == {1}
    assert made.verified.class_samples["validation"] == (3, 7, 9)  # St. Bernard, cat, dog: 30 % of each
    assert made.verified.shared_images == 0


def test_a_shard_is_a_plain_tar_and_its_index_points_at_the_images(folder: Path, tmp_path: Path) -> None:
    made = make(folder, tmp_path / "data")
    for split in made.manifest.splits.values():
        for shard in split.shards:
            data = (tmp_path / "data" / shard.path).read_bytes()
            assert (len(data), checksum(data)) == (shard.bytes, shard.checksum)
            index = read_index(made.root, shard)
            with tarfile.open(fileobj=io.BytesIO(data)) as tar:
                members = tar.getmembers()
                contents = [tar.extractfile(member).read() for member in members]  # type: ignore[union-attr]
            assert {(m.mtime, m.uid, m.gid, m.uname) for m in members} == {(0, 0, 0, "")}
            assert [m.name for m in members[::2]] == [f"{key}.jpg" for key in index.keys]
            assert [m.name for m in members[1::2]] == [f"{key}.cls" for key in index.keys]
            assert [m.offset_data for m in members[::2]] == index.offset.tolist()
            assert [int(label) for label in contents[1::2]] == index.label.tolist()
            assert [payload_checksum(image) for image in contents[::2]] == index.checksum.tolist()
            assert [len(image) for image in contents[::2]] == index.length.tolist()
            assert {(48, 36)} == set(zip(index.width.tolist(), index.height.tolist(), strict=True))
            assert all("." not in key for key in index.keys)


def test_shards_mix_the_classes_and_keep_to_the_bound(tmp_path: Path) -> None:
    folder = make_folder(tmp_path / "images", {"a": 40, "b": 40})
    made = make(folder, tmp_path / "data", Options(shard_samples=20, validation_share=0))
    assert list(made.manifest.splits) == ["train"]
    for shard in made.manifest.split("train").shards:
        assert shard.samples <= 20
        assert len(set(read_index(made.root, shard).label.tolist())) == 2
    by_size = make(folder, tmp_path / "small", Options(shard_mb=0.05))
    assert len(by_size.manifest.split("train").shards) > 2


def test_splits_that_the_folder_has_are_kept(tmp_path: Path) -> None:
    make_folder(tmp_path / "images" / "train", {"a": 5, "b": 6})
    make_folder(tmp_path / "images" / "val", {"a": 2, "b": 3}, first=100)
    make_folder(tmp_path / "images" / "test", {"b": 1}, first=200)
    made = make(tmp_path / "images", tmp_path / "data")
    assert {name: split.samples for name, split in made.manifest.splits.items()} == {
        "train": 11,
        "validation": 5,
        "test": 1,
    }
    assert made.verified.class_samples["test"] == (0, 1)


def test_a_class_called_train_among_others_is_a_class(tmp_path: Path) -> None:
    make_folder(tmp_path / "images", {"bus": 4, "train": 4})
    assert make(tmp_path / "images", tmp_path / "data").manifest.classes == ("bus", "train")


def test_hidden_files_are_ignored(tmp_path: Path) -> None:
    folder = make_folder(tmp_path / "images", {"a": 4, "b": 4})
    (folder / ".DS_Store").write_bytes(b"x")
    (folder / "a" / "._000.jpg").write_bytes(b"x")
    assert make(folder, tmp_path / "data").bad == ()


def test_keys_are_unique_short_and_without_dots() -> None:
    paths = [
        "a/x.jpg",
        "a/x.png",
        "a.b/x.jpg",
        "a_b/x.jpg",
        f"{'long' * 40}/1.jpg",
        f"{'long' * 40}/2.jpg",
        "ü/ß.é.png",
    ]
    keys = unique_keys(paths)
    assert len(set(keys)) == len(paths)
    assert all("." not in key and len(key.encode()) <= 90 for key in keys)
    assert keys[0] == "a/x"


def test_what_is_held_out_is_a_share_of_each_class_never_all_and_does_not_hang_on_the_order() -> None:
    paths = [f"a/{i}" for i in range(50)]
    assert len(held_out(paths, 0.2, 0)) == 10
    assert held_out(paths, 0.2, 0) == held_out(paths[::-1], 0.2, 0) != held_out(paths, 0.2, 1)
    assert len(held_out(paths[:2], 0.01, 0)) == len(held_out(paths[:2], 0.99, 0)) == 1
    assert held_out(paths[:1], 0.5, 0) == set()


def test_images_that_stand_in_two_splits_are_counted(tmp_path: Path) -> None:
    make_folder(tmp_path / "images" / "train", {"a": 5})
    make_folder(tmp_path / "images" / "validation", {"a": 3}, first=3)
    assert make(tmp_path / "images", tmp_path / "data").verified.shared_images == 2


# -- again, interrupted, replaced --------------------------------------------------------------------------------------


def test_a_second_time_nothing_is_done_and_a_copy_of_the_source_is_known_as_such(folder: Path, tmp_path: Path) -> None:
    first = make(folder, tmp_path / "data")
    shutil.copytree(folder, tmp_path / "copy")
    before = {p: p.stat().st_mtime_ns for p in (tmp_path / "data").rglob("*.tar")}

    again, from_copy = make(folder, tmp_path / "data"), make(tmp_path / "copy", tmp_path / "data")

    assert (first.was_there, again.was_there, from_copy.was_there) == (False, True, True)
    assert again.manifest == from_copy.manifest == first.manifest
    assert before == {p: p.stat().st_mtime_ns for p in (tmp_path / "data").rglob("*.tar")}


def test_other_images_or_options_are_refused_unless_they_may_replace(folder: Path, tmp_path: Path) -> None:
    first = make(folder, tmp_path / "data")
    shutil.copytree(folder, tmp_path / "copy")
    changed = tmp_path / "copy" / "cat" / "000.jpg"
    altered = bytearray(changed.read_bytes())
    altered[-10] ^= 1
    changed.write_bytes(altered)  # of the same size

    for source, options in ((folder, Options(seed=5, shard_samples=7)), (tmp_path / "copy", None)):
        with pytest.raises(DatasetError, match="another data set already"):
            make(source, tmp_path / "data", options)
    assert read_manifest(first.root) == first.manifest

    replaced = make(folder, tmp_path / "data", Options(seed=5, shard_samples=30), replaces=True)
    assert replaced.manifest.fingerprint != first.manifest.fingerprint
    assert verify(replaced.root, is_full=True).manifest == replaced.manifest
    tars = {f"{p.parent.name}/{p.name}" for p in (tmp_path / "data").rglob("*.tar")}
    assert tars == {shard.path for split in replaced.manifest.splits.values() for shard in split.shards}


def test_a_destination_with_foreign_files_is_refused_and_left_as_it_is(folder: Path, tmp_path: Path) -> None:
    (tmp_path / "thesis.txt").write_text("years of work")
    with pytest.raises(DatasetError, match=r"not empty \(thesis\.txt\)"):
        make(folder, tmp_path)
    assert [p.name for p in tmp_path.iterdir()] == ["thesis.txt"]


def test_killed_in_the_middle_and_started_again_it_makes_the_very_same_data_set(tmp_path: Path) -> None:
    folder = make_folder(tmp_path / "images", {"a": 150, "b": 150})
    whole = make(folder, tmp_path / "whole", Options(shard_samples=1))
    data = tmp_path / "data"
    command = [sys.executable, str(JOB), str(folder), str(data), "--shard-samples", "1", "--local"]
    child = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    while len(list(data.glob("build/train/*.json"))) < 5:
        assert child.poll() is None, "it ended before it could be killed"
        time.sleep(0.002)
    child.send_signal(signal.SIGKILL)
    child.wait()
    assert not (data / "dataset.json").exists()

    ran = run(folder, data, "--shard-samples", "1", "--local", "--verify", "full")

    assert ran.returncode == 0, ran.stderr
    told = json.loads(ran.stdout.splitlines()[-1])
    assert told["shards_kept"] >= 5
    assert told["fingerprint"] == whole.manifest.fingerprint
    ours, theirs = objects(data), objects(tmp_path / "whole")
    assert ours == theirs


def test_what_an_abandoned_attempt_left_is_replaced(folder: Path, tmp_path: Path) -> None:
    class Stopped(Exception):
        pass

    def three(build, tasks):  # type: ignore[no-untyped-def]
        for number, task in enumerate(tasks):
            if number == 3:
                raise Stopped
            yield build(task)

    with pytest.raises(Stopped):
        make(folder, tmp_path / "data", Options(shard_samples=2), map=three)
    made = make(folder, tmp_path / "data", Options(shard_samples=40))
    assert made.shards_kept == 0
    make(folder, tmp_path / "fresh", Options(shard_samples=40))
    assert objects(tmp_path / "data") == objects(tmp_path / "fresh")


@pytest.mark.cluster
def test_tasks_on_ray_make_the_same_bytes_and_their_errors_are_ours(folder: Path, tmp_path: Path) -> None:
    (tmp_path / "gone").mkdir()
    code = """if True:
        import sys, ray
        from stoker.dataset.prepare import ImageFolder, Options, on_ray, prepare
        from stoker.errors import DatasetError
        from stoker.storage import locate
        folder, destination, gone = map(locate, sys.argv[1:])
        ray.init(num_cpus=2, include_dashboard=False, log_to_driver=False)
        options = Options(shard_samples=7)
        source = ImageFolder.scan(folder, options)
        print(prepare(source, destination, options, map=on_ray()).manifest.fingerprint)
        lost = ImageFolder(gone, source.classes, source.splits)
        try: prepare(lost, gone.__class__(gone.url + "-data"), options, map=on_ray())
        except DatasetError as error: print(error)
    """
    ran = subprocess.run(
        [sys.executable, "-c", code, str(folder), str(tmp_path / "on-ray"), str(tmp_path / "gone")],
        capture_output=True,
        text=True,
        check=False,
        env={k: v for k, v in os.environ.items() if k != "RAY_ADDRESS"}
        | {"RAY_AUTH_MODE": "disabled", "RAY_USAGE_STATS_ENABLED": "0"},
        timeout=300,
    )
    assert ran.returncode == 0, ran.stderr[-2000:]
    fingerprint, error = ran.stdout.splitlines()
    assert fingerprint == make(folder, tmp_path / "here").manifest.fingerprint
    assert objects(tmp_path / "on-ray") == objects(tmp_path / "here")
    assert "listed a moment ago but not there now" in error


def test_damage_on_the_store_is_found_and_named(folder: Path, tmp_path: Path) -> None:
    made = make(folder, tmp_path / "data")
    tar = tmp_path / "data" / "train" / "000001.tar"
    good = tar.read_bytes()
    tar.write_bytes(good[:-1])
    with pytest.raises(DatasetError, match=r"train/000001\.tar: has"):
        verify(made.root)
    tar.unlink()
    with pytest.raises(DatasetError, match=r"train/000001\.tar: missing"):
        verify(made.root)


# -- bad input ---------------------------------------------------------------------------------------------------------

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
    return [at / "images", at / "data"], "validation/cow: there is no such class"


def _file_as_source(at: Path) -> tuple[list[str | Path], str]:
    (at / "images.zip").write_bytes(b"PK")
    return [at / "images.zip", at / "data"], "is a file, not a folder"


def _inside(at: Path) -> tuple[list[str | Path], str]:
    return [make_folder(at / "images", {"cat": 3}), at / "images" / "data"], "lies inside the source"


def _is_a_file(at: Path) -> tuple[list[str | Path], str]:
    (at / "data").write_text("x")
    return [make_folder(at / "images", {"cat": 3}), at / "data" / "set"], "data/set"


def _unreachable(at: Path) -> tuple[list[str | Path], str]:
    return [make_folder(at / "images", {"cat": 3}), "s3://bucket/data"], "no good answer in 5 s"


def _unknown_protocol(at: Path) -> tuple[list[str | Path], str]:
    return [make_folder(at / "images", {"cat": 3}), "ftpx://there/data"], "unknown protocol"


def _share(at: Path) -> tuple[list[str | Path], str]:
    return [make_folder(at / "images", {"cat": 3}), at / "data", "--validation-share", "1.5"], "must be at least 0"


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
        _share,
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

    ran = run(
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


ODDITIES = {
    "a/cmyk.jpg": encoded(1, mode="CMYK"),
    "a/grey.jpg": encoded(2, mode="L"),
    "a/alpha.png": encoded(3, "PNG", "RGBA"),
    "a/deep.png": deep(),
    "a/really-a-png.jpg": encoded(5, "PNG"),
    "b/webp.webp": encoded(6, "WEBP"),
    "b/plain.jpg": encoded(7),
}
BAD = {
    "a/truncated.jpg": encoded(8)[:-40],
    "a/truncated.png": encoded(9, "PNG")[:-40],
    "b/empty.jpg": b"",
    "b/words.jpg": b"not a picture at all",
    "b/notes.txt": b"remember the milk",
    "readme.md": b"outside of the classes",
}


def odd_folder(at: Path) -> Path:
    exif = Image.Exif()
    exif[0x112] = 6
    for path, data in (ODDITIES | BAD | {"b/rotated.jpg": encoded(10, exif=exif)}).items():
        (at / path).parent.mkdir(parents=True, exist_ok=True)
        (at / path).write_bytes(data)
    return at


def test_oddities_are_taken_and_bad_files_left_out_with_a_report(tmp_path: Path) -> None:
    source = odd_folder(tmp_path / "images")

    ran = run(source, tmp_path / "data", "--on-bad", "skip", "--validation-share", "0", "--local")

    assert ran.returncode == 0, ran.stderr
    assert "left out 6 files" in ran.stdout
    report = [json.loads(line) for line in (tmp_path / "data" / "bad.jsonl").read_text().splitlines()]
    assert {bad["path"] for bad in report} == set(BAD)
    assert all(bad["reason"] and "\n" not in bad["reason"] for bad in report)
    reader = SampleReader(locate(tmp_path / "data"), "train")
    shapes = {sample.key: tuple(decode(sample.data).shape) for sample in reader.read(range(len(reader)))}
    assert len(shapes) == len(ODDITIES) + 1
    assert shapes.pop("b/rotated") == (3, 48, 36)
    assert set(shapes.values()) == {(3, 36, 48)}
    with tarfile.open(tmp_path / "data" / "train" / "000000.tar") as tar:
        assert "a/really-a-png.png" in tar.getnames()


def test_bad_files_end_the_preparation_with_one_line_that_names_the_first_and_counts_the_rest(tmp_path: Path) -> None:
    source = odd_folder(tmp_path / "images")

    ran = run(source, tmp_path / "data", "--local")

    assert ran.returncode == 2
    line = ran.stderr.splitlines()[-1]
    assert "a/truncated.jpg and 5 more" in line
    assert "--on-bad skip" in line
    assert not (tmp_path / "data" / "dataset.json").exists()
    assert len((tmp_path / "data" / "bad.jsonl").read_text().splitlines()) == 6
    for path in BAD:
        (source / path).unlink()
    assert make(source, tmp_path / "data").bad == ()
    assert not (tmp_path / "data" / "bad.jsonl").exists()


def test_a_class_without_one_good_image_is_named(tmp_path: Path) -> None:
    folder = make_folder(tmp_path / "images", {"cat": 3, "dog": 0})
    (folder / "dog" / "1.jpg").write_bytes(b"woof")
    with pytest.raises(DatasetError, match="no good image is left of class 'dog'"):
        make(folder, tmp_path / "data", Options(on_bad="skip"))


# -- the digits --------------------------------------------------------------------------------------------------------


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
