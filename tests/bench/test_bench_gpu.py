"""The benchmark for a GPU: its figures, what a failing case does to the others, and all of its code on a CPU."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import warnings
from collections import Counter
from pathlib import Path

import pytest
import torch

from bench.train import gpu
from bench.train.gpu import main
from bench.train.gpu_cases import gpu_cases, gpu_figures
from bench.train.gpu_loop import synchronisations
from bench.train.place import CHECKOUT
from bench.train.ranks import CaseFailed

FIGURES = {
    "synthetic_vs_plain",
    "synthetic_vs_plain_compiled",
    "eager_vs_plain",
    "exact_sums_share",
    "true_vs_synthetic",
    "true_vs_synthetic_cpu_decode",
    "true_vs_synthetic_gpu_decode",
    "true_vs_synthetic_node_cache",
    "goodput_cpu_decode",
    "goodput_gpu_decode",
    "goodput_node_cache",
    "equal_weights_eager",
    "equal_weights_compiled",
    "memory_mb_stoker_synthetic",
    "memory_mb_plain_compiled_loop_synthetic",
    "parity_full",
}


def test_the_better_decoder_counts_against_the_bar_of_the_true_data_path() -> None:
    rounds = {
        "stoker, synthetic": [{"images_per_s": 100.0}],
        "stoker, S3, CPU decode": [{"images_per_s": 80.0, "goodput": 0.8}],
        "stoker, S3, GPU decode": [{"images_per_s": 98.0, "goodput": 0.99}],
    }
    found = {figure.name: figure.value for figure in gpu_figures(rounds)}
    assert found["true_vs_synthetic"] == 0.98
    assert found["goodput_cpu_decode"] == 0.8
    assert "synthetic_vs_plain" not in found


def test_exact_sums_cost_what_the_eager_step_is_faster_round_by_round() -> None:
    rounds = {
        "stoker eager, synthetic": [{"images_per_s": 100.0}, {"images_per_s": 210.0}, {"images_per_s": 90.0}],
        "stoker exact sums, synthetic": [{"images_per_s": 100.0}, {"images_per_s": 200.0}, {"images_per_s": 60.0}],
    }
    (found,) = gpu_figures(rounds)
    assert found.name == "exact_sums_share"
    assert found.value == pytest.approx(0.05)


def test_weights_are_equal_only_if_their_hashes_are() -> None:
    rounds = {
        "weights, eager, through": [{"hash": 5.0}],
        "weights, eager, resumed": [{"hash": 6.0}],
        "weights, compiled, through": [{"hash": 7.0}],
        "weights, compiled, resumed": [{"hash": 7.0}],
    }
    found = {figure.name: (figure.value, figure.is_missed) for figure in gpu_figures(rounds)}
    assert found == {"equal_weights_eager": (0.0, True), "equal_weights_compiled": (1.0, False)}


def test_our_step_may_not_wait_for_the_device_and_exact_sums_once() -> None:
    rounds = {
        "stoker, synthetic": [{"images_per_s": 1.0, "synchronisations": 1.0}],
        "stoker exact sums, synthetic": [{"images_per_s": 1.0, "synchronisations": 1.0}],
        "plain eager loop, synthetic": [{"images_per_s": 1.0, "synchronisations": 3.0}],
    }
    missed = {figure.name for figure in gpu_figures(rounds) if figure.is_missed}
    assert {name for name in missed if name.startswith("synchron")} == {"synchronisations_stoker_synthetic"}


def test_each_case_has_a_name_of_its_own_and_a_module_that_measures() -> None:
    for is_toy in (True, False):
        every = gpu_cases(is_toy=is_toy, micro=8)
        assert max(Counter(case.name for case in every).values()) == 1
        assert {case.measure for case in every} == {"gpu_loop", "gpu_weights", "gpu_parity"}
    assert [case.name for case in every] == [case.name for case in gpu_cases(is_toy=True, micro=8)]


def test_what_fails_or_comes_too_late_is_told_and_the_other_cases_still_give_their_figures(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    run: list[str] = []

    def measured(
        module: str, place: object, arguments: dict[str, object], *_: object, **__: object
    ) -> dict[str, float]:
        run.append(module)
        if module == "gpu_parity" or arguments.get("exact"):
            raise CaseFailed("exit status 1 (out of memory)")
        if module == "gpu_weights":
            return {"hash": 5.0}
        return {"images_per_s": 100.0, "step_ms": 1.0, "goodput": 1.0, "synchronisations": 0.0, "memory_mb": 1.0}

    def no_store(*_: object) -> None:
        raise OSError("no jpegtran")

    monkeypatch.setattr(gpu, "run_ranks", measured)
    monkeypatch.setattr(gpu, "place_in_store", no_store)
    assert main(["--toy", "--rounds", "2", "--folder", str(tmp_path)]) == 1
    said = capsys.readouterr().out
    assert "failed: stoker exact sums, synthetic: exit status 1 (out of memory)" in said
    assert said.count("no data set in a store: no jpegtran") == 3
    figures = json.loads(said.splitlines()[-1])["figures"]
    assert figures["synthetic_vs_plain"] == figures["equal_weights_compiled"] == 1
    assert not figures.keys() & {"exact_sums_share", "true_vs_synthetic", "parity_full"}
    assert Counter(run) == {"gpu_loop": 4 * 2 + 1, "gpu_weights": 4, "gpu_parity": 1}

    run.clear()
    assert main(["--toy", "--minutes", "0", "--folder", str(tmp_path)]) == 0
    assert run == []
    assert "not run for want of time (--minutes): plain eager loop, synthetic, round 0; " in capsys.readouterr().out


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
def test_without_a_gpu_the_gpu_benchmark_refuses_in_one_line(capsys: pytest.CaptureFixture[str]) -> None:
    assert main([]) == 2
    said = capsys.readouterr().err
    assert said.startswith("error: no CUDA device here")
    assert said.count("\n") == 1


def test_synchronisations_are_torchs_warnings_by_step(monkeypatch: pytest.MonkeyPatch) -> None:
    modes: list[str] = []
    monkeypatch.setattr(torch.cuda, "set_sync_debug_mode", modes.append)

    def waits() -> None:
        for text in ("called a synchronizing CUDA operation", "called a synchronizing CUDA operation", "other"):
            warnings.warn(text, stacklevel=1)

    assert synchronisations([waits, waits, lambda: None, lambda: None]) == 1
    assert modes == ["warn", "default"]


@pytest.mark.long
@pytest.mark.timeout(3000)
def test_all_of_its_cases_run_on_a_cpu_at_toy_size(tmp_path: Path) -> None:
    wanted = ["--toy", "--rounds", "1", "--minutes", "45", "--longest-s", "1500", "--folder", str(tmp_path)]
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join([str(CHECKOUT / "tests"), str(CHECKOUT / "platform")])}
    command = [sys.executable, "-m", "bench.train.gpu", *wanted]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-2000:]
    figures = json.loads(done.stdout.splitlines()[-1])["figures"]
    assert figures.keys() >= FIGURES
    assert figures["equal_weights_eager"] == figures["equal_weights_compiled"] == 1
    assert figures["parity_full"] < 1e-4
