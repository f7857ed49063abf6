"""A preparation that is killed with SIGKILL and started again has the same result as an undisturbed one."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from conftest import Store
from images import JOB, encoded, make, make_folder
from stoker.dataset.prepare import Options
from stoker.storage import Location, locate

IMAGES = 72


def a_folder(at: Path) -> str:
    make_folder(at / "images", {"a": IMAGES // 2, "b": IMAGES // 2})
    (at / "images" / "a" / "bad.jpg").write_bytes(b"no picture")
    (at / "images" / "b" / "again.jpg").write_bytes(encoded(0))
    return str(at / "images")


def parquet(at: Path) -> str:
    rows = {"image": [encoded(n) for n in range(IMAGES)], "label": [n % 2 for n in range(IMAGES)]}
    rows["image"][5], rows["image"][6] = b"no picture", encoded(0)
    pq.write_table(pa.table(rows), at / "train.parquet", row_group_size=10)
    return str(at / "train.parquet")


def start(source: str, destination: Location, *more: str) -> subprocess.Popen[str]:
    given = ["--shard-samples", "2", "--seed", "7", "--on-bad", "skip", "--deduplicate", "--jpeg", "original"]
    command = [sys.executable, str(JOB), source, destination.url, *given, "--local", *more]
    return subprocess.Popen(command, text=True, stdout=subprocess.PIPE, stderr=subprocess.PIPE)


def objects(root: Location) -> dict[str, bytes]:
    return {path: (root / path).read() for path, size in root.walk() if size}


@pytest.mark.store
@pytest.mark.parametrize("make_source", [a_folder, parquet])
def test_killed_in_the_middle_and_started_again_it_makes_the_very_same_data_set(
    make_source: Callable[[Path], str], store: Store, tmp_path: Path
) -> None:
    source = make_source(tmp_path)
    options = Options(shard_samples=2, seed=7, on_bad="skip", deduplicates=True, jpeg="original")
    undisturbed = make(source, store.fresh("whole"), options)

    data = locate(store.fresh("killed"))
    killed = start(source, data)
    try:
        deadline = time.monotonic() + 240
        while len((data / "build" / "train").children()) < 4:
            assert killed.poll() is None, "it ended before it could be killed"
            assert time.monotonic() < deadline, "no shards in time"
            time.sleep(0.01)
    finally:
        killed.send_signal(signal.SIGKILL)
        killed.communicate()
    finished = len((data / "build" / "train").children())
    assert not (data / "dataset.json").exists()

    with start(source, data, "--verify", "full") as again:
        output, errors = again.communicate()

    assert again.returncode == 0, errors
    told = json.loads(output.splitlines()[-1])
    assert told["shards_kept"] >= finished >= 4
    assert told["fingerprint"] == undisturbed.manifest.fingerprint
    assert (told["left_out"], told["duplicates"]) == (1, 1)
    ours, theirs = objects(data), objects(undisturbed.root)
    assert not any(path.startswith("build/") for path in ours)
    assert ours == theirs
