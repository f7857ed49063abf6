import json
import os
import subprocess
import sys
from collections import Counter
from pathlib import Path

import pytest

from bench.train.cases import cases, chosen
from bench.train.figures import train_figures
from bench.train.place import CHECKOUT


def test_a_job_is_compared_round_by_round_with_the_stock_job_of_the_same_round() -> None:
    every = cases()
    rounds = {
        "a worker killed, stoker": [{"next_step_s": 8.0}, {"next_step_s": 24.0}, {"next_step_s": 4.0}],
        "a worker killed, stock": [{"next_step_s": 10.0}, {"next_step_s": 60.0}, {"next_step_s": 10.0}],
    }
    found = {figure.name: figure for figure in train_figures(every, rounds)}
    assert found["worker_killed_vs_stock"].value == 0.4
    assert found["worker_killed_s"].value == 8.0
    assert not found["worker_killed_vs_stock"].is_missed


def test_a_frozen_worker_without_a_stock_run_is_held_against_a_tenth_of_ten_minutes() -> None:
    found = {f.name: f for f in train_figures(cases(), {"a worker frozen, stoker": [{"next_step_s": 61.0}]})}
    assert list(found) == ["worker_frozen_s"]
    assert found["worker_frozen_s"].is_missed


def test_the_overhead_is_what_the_ratio_is_above_one() -> None:
    sizes = {"time_ratio": 1.03, "cpu_ratio": 1.01, "images_per_s": 10.0}
    rounds = {
        "step, ResNet-50 at 224, 1 rank": [sizes],
        "step, ResNet-50 at 224, 2 ranks": [{**sizes, "images_per_s": 18.0}],
    }
    found = {figure.name: figure for figure in train_figures(cases(), rounds)}
    assert found["overhead_resnet_50_at_224_1_rank"].value == pytest.approx(0.03)
    assert found["overhead_resnet_50_at_224_1_rank"].is_missed
    assert found["scaling_1_to_2_resnet_50_at_224"].value == 1.8


def test_each_case_has_a_name_of_its_own_and_a_module_that_measures() -> None:
    every = cases(with_stock_frozen=True)
    assert max(Counter(case.name for case in every).values()) == 1
    for case in every:
        assert (Path(__file__).parent / "train" / f"{case.measure}.py").exists()
    assert len(every) == len(cases()) + 1  # stock Ray's frozen worker, ten minutes, only when it is asked for


def test_a_choice_that_matches_no_case_is_refused_with_all_names() -> None:
    with pytest.raises(ValueError, match="--only nothing: matches no case; choose from: step, ResNet-18"):
        chosen(cases(), ["nothing"])


def test_a_tiny_run_ends_with_the_figures_of_its_case(tmp_path: Path) -> None:
    wanted = ["--toy", "--rounds", "1", "--only", "step, ResNet-18 at 96, 1 rank", "--folder", str(tmp_path)]
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join([str(CHECKOUT / "tests"), str(CHECKOUT / "platform")])}
    command = [sys.executable, "-m", "bench.train", *wanted]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-2000:]
    lines = [json.loads(line) for line in done.stdout.splitlines() if line.startswith("{")]
    assert [line.get("case") for line in lines] == ["step, ResNet-18 at 96, 1 rank", None]
    assert lines[0]["images_per_s"] > 0
    assert lines[-1]["bench"] == "train"
    assert list(lines[-1]["figures"]) == [
        "overhead_resnet_18_at_96_1_rank",
        "overhead_cpu_resnet_18_at_96_1_rank",
    ]
