import io
import json
import os
import subprocess
import sys
from collections import Counter
from pathlib import Path

import pytest
from PIL import Image

from bench.data.cases import CASES, Case, chosen
from bench.data.environments import CHECKOUT
from bench.data.figures import best, data_figures
from bench.data.images import jpeg
from bench.data.rounds import Outcome
from bench.meter import Meter


def outcome(name: str, role: str, **measures: float) -> Outcome:
    case = Case(name, role, "epoch", {}, "own" if name.startswith("stoker") else "peers")  # type: ignore[arg-type]
    return Outcome(case, [measures])


def test_ratios_are_to_the_best_peer_of_the_same_kind() -> None:
    outcomes = [
        outcome("stoker, S3", "stoker", images_per_cpu_s=800.0, first_batch_s=1.0),
        outcome("slow", "streaming", images_per_cpu_s=200.0, first_batch_s=3.0),
        outcome("fast", "streaming", images_per_cpu_s=400.0, first_batch_s=1.5),
        outcome("near", "local", images_per_cpu_s=500.0),
    ]
    found = {figure.name: figure.value for figure in data_figures(outcomes)}
    assert found["s3_vs_best_streaming_peer"] == 2.0
    assert found["s3_vs_best_local_peer"] == 1.6
    assert found["first_batch_vs_best_streaming_peer"] == 1.5
    assert "cache_vs_best_local_peer" not in found


def test_our_own_cases_are_not_our_peers() -> None:
    assert (
        best([outcome("stoker, raw", "raw", mb_per_s=9.0), outcome("s3fs", "raw", mb_per_s=5.0)], "raw", "mb_per_s")
        == 5
    )


def test_each_case_has_a_name_of_its_own_and_a_module_that_measures() -> None:
    assert max(Counter(case.name for case in CASES).values()) == 1
    folder = Path(__file__).parent / "data"
    for case in CASES:
        assert (folder / f"{case.measure}.py").exists()
        if loader := case.arguments.get("loader"):
            assert (folder / "peers" / f"{loader}.py").exists()
            assert (case.kind == "stoker") is case.is_ours


def test_a_choice_that_matches_no_case_is_refused_with_all_names() -> None:
    assert [case.name for case in chosen(["ffcv"])] == ["FFCV, ffcv, local"]
    with pytest.raises(ValueError, match="--only nothing: matches no case; choose from: stoker, S3"):
        chosen(["nothing"])


def test_an_image_is_a_function_of_seed_and_number() -> None:
    first, again, other = jpeg(0, 5, 1), jpeg(0, 5, 1), jpeg(0, 6, 1)
    assert first == again
    assert first != other
    assert Image.open(io.BytesIO(first)).format == "JPEG"


def test_the_cpu_time_of_a_child_is_counted() -> None:
    meter = Meter(samples=True)
    subprocess.run([sys.executable, "-c", "sum(range(5_000_000))"], check=True)
    wall_s, cpu_s = meter.stop()
    assert wall_s > 0
    assert cpu_s > 0.02


@pytest.mark.store
def test_a_tiny_run_ends_with_figures_of_our_own_case(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "bench.data", "--images", "64", "--rounds", "1", "--folder", str(tmp_path)]
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join([str(CHECKOUT / "tests"), str(CHECKOUT / "platform")])}
    done = subprocess.run(
        [*command, "--peers", "as-they-are", "--only", "stoker, S3"],
        env=environment,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-2000:]
    lines = [json.loads(line) for line in done.stdout.splitlines() if line.startswith("{")]
    assert [line["case"] for line in lines[:-1]] == ["stoker, S3"]
    assert lines[-1]["bench"] == "data"
    assert lines[-1]["figures"]["s3_images_per_cpu_s"] > 0
