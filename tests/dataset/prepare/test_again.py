"""Preparations that are repeated, interrupted, replaced or damaged."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from images import make, make_folder, objects
from sources import write_hub
from stoker.dataset import read_manifest
from stoker.dataset.prepare import Options
from stoker.dataset.prepare.verify import verify
from stoker.errors import DatasetError


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_folder(tmp_path_factory.mktemp("source") / "images", {"cat": 23, "dog": 30, "St. Bernard": 11})


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

    for source, options in ((folder, Options(jpeg="original", seed=5, shard_samples=7)), (tmp_path / "copy", None)):
        with pytest.raises(DatasetError, match="another data set already"):
            make(source, tmp_path / "data", options)
    assert read_manifest(first.root) == first.manifest

    replaced = make(folder, tmp_path / "data", Options(jpeg="original", seed=5, shard_samples=30), replaces=True)
    assert replaced.manifest.fingerprint != first.manifest.fingerprint
    assert verify(replaced.root, is_full=True).manifest == replaced.manifest
    tars = {f"{p.parent.name}/{p.name}" for p in (tmp_path / "data").rglob("*.tar")}
    assert tars == {shard.path for split in replaced.manifest.splits.values() for shard in split.shards}


def test_a_destination_with_foreign_files_is_refused_and_left_as_it_is(folder: Path, tmp_path: Path) -> None:
    (tmp_path / "thesis.txt").write_text("years of work")
    with pytest.raises(DatasetError, match=r"not empty \(thesis\.txt\)"):
        make(folder, tmp_path)
    assert [p.name for p in tmp_path.iterdir()] == ["thesis.txt"]


def test_other_options_take_over_an_unfinished_preparation_only_to_replace_it(folder: Path, tmp_path: Path) -> None:
    class Stopped(Exception):
        pass

    def three(build, tasks):  # type: ignore[no-untyped-def]
        for number, task in enumerate(tasks):
            if number == 3:
                raise Stopped
            yield build(task)

    with pytest.raises(Stopped):
        make(folder, tmp_path / "data", Options(jpeg="original", shard_samples=2), map_=three)
    left = objects(tmp_path / "data")
    other = Options(jpeg="original", shard_samples=40)
    with pytest.raises(DatasetError, match=r"unfinished preparation of .* another shard_samples \(2, now 40\)"):
        make(folder, tmp_path / "data", other)
    assert objects(tmp_path / "data") == left
    made = make(folder, tmp_path / "data", other, replaces=True)
    assert made.shards_kept == 0
    make(folder, tmp_path / "fresh", Options(jpeg="original", shard_samples=40))
    assert objects(tmp_path / "data") == objects(tmp_path / "fresh")


@pytest.mark.cluster
def test_tasks_on_ray_make_the_same_bytes_and_their_errors_are_ours(folder: Path, tmp_path: Path) -> None:
    (tmp_path / "gone").mkdir()
    hub = write_hub(tmp_path / "hub" / "train-00000.parquet", [*range(40), 0, 1])
    code = """if True:
        import sys, ray
        from dataclasses import replace
        from stoker.dataset.prepare import Options, on_ray, open_source, prepare
        from stoker.dataset.prepare.sources.readers import FileReader
        from stoker.errors import DatasetError
        from stoker.storage import locate
        destination, gone, sorted_ = map(locate, sys.argv[2:5])
        ray.init(num_cpus=2, include_dashboard=False, log_to_driver=False)
        options = Options(jpeg="original", shard_samples=7)
        source = open_source(sys.argv[1], options)
        print(prepare(source, destination, options, map=on_ray()).manifest.fingerprint)
        lost = replace(source, reader=FileReader(gone))
        try: prepare(lost, gone.__class__(gone.url + "-data"), options, map=on_ray())
        except DatasetError as error: print(error)
        options = replace(options, deduplicates=True)
        rows = open_source(sys.argv[5], options)
        print(prepare(rows, sorted_, options, map=on_ray()).manifest.fingerprint)
    """
    ran = subprocess.run(
        [
            sys.executable,
            "-c",
            code,
            str(folder),
            str(tmp_path / "on-ray"),
            str(tmp_path / "gone"),
            str(tmp_path / "sorted"),
            str(hub),
        ],
        capture_output=True,
        text=True,
        check=False,
        env={k: v for k, v in os.environ.items() if k != "RAY_ADDRESS"}
        | {"RAY_AUTH_MODE": "disabled", "RAY_USAGE_STATS_ENABLED": "0"},
        timeout=300,
    )
    assert ran.returncode == 0, ran.stderr[-2000:]
    fingerprint, error, from_rows = ran.stdout.splitlines()
    assert fingerprint == make(folder, tmp_path / "here").manifest.fingerprint
    assert objects(tmp_path / "on-ray") == objects(tmp_path / "here")
    assert "listed a moment ago but not there now" in error
    rows = make(hub, tmp_path / "rows", Options(jpeg="original", shard_samples=7, deduplicates=True))
    assert from_rows == rows.manifest.fingerprint
    assert len(rows.duplicates) == 2


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
