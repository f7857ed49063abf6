"""A real data set of pictures, many of them transparent, prepared as a user does it for fine-tuning."""

from __future__ import annotations

import json
from collections import Counter
from pathlib import Path

import pytest

from images import make, run_job, samples
from stamps import COUNTS, FEW, StampsMissing, find_stamps, link_by_class, pictures
from stoker.dataset import SampleReader, read_manifest
from stoker.dataset.decode import decode_opacity
from stoker.dataset.prepare import Options
from stoker.storage import locate

pytestmark = pytest.mark.long


@pytest.fixture(scope="module")
def stamps(tmp_path_factory: pytest.TempPathFactory) -> Path:
    try:
        return find_stamps(tmp_path_factory.mktemp("stamps"))
    except StampsMissing as error:
        pytest.skip(str(error))


def test_the_classes_have_the_pictures_that_benchmarks_speak_of(stamps: Path) -> None:
    found = {folder.name: len(pictures(stamps, folder.name)) for folder in stamps.iterdir()}
    assert {name: count for name, count in found.items() if count >= 30} == COUNTS


def test_a_fifth_of_each_class_is_held_out_and_all_are_opaque_on_white(stamps: Path, tmp_path: Path) -> None:
    folder, data = link_by_class(stamps, tmp_path / "pictures"), tmp_path / "data"

    ran = run_job(folder, data, "--validation-fraction", "0.2", "--background", "white", "--local")

    assert ran.returncode == 0, ran.stderr
    told = json.loads(ran.stdout.splitlines()[-1])
    assert told["splits"]["train"]["samples"] + told["splits"]["validation"]["samples"] == sum(COUNTS.values())
    assert told["left_out"] == 0
    assert told["transparent"] > 400
    made = read_manifest(locate(data))
    assert made.classes == tuple(COUNTS)
    reader = SampleReader(locate(data), "validation")
    held = list(reader.read(range(len(reader))))
    counts = Counter(made.classes[sample.label] for sample in held)
    assert counts == {name: round(count / 5) for name, count in COUNTS.items()}
    assert all(decode_opacity(bytes(sample.data)) is None for sample in held)


def test_the_classes_that_imagenet_knows_are_prepared_alone(stamps: Path, tmp_path: Path) -> None:
    made = make(link_by_class(stamps, tmp_path / "few", FEW), tmp_path / "data", Options(background="#ffffff"))
    assert made.manifest.classes == FEW
    assert sum(map(len, samples(made).values())) == sum(COUNTS[name] for name in FEW)
