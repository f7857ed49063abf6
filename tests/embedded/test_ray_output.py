"""Which lines of a job's output a person reads."""

from __future__ import annotations

import pytest

from stoker.embedded.ray_output import readable

NOISE = """\
2026-11-26 01:13:03,839	WARNING working_dir.py:101 -- Directory '.git' is now ignored by default when packaging
2026-11-26 01:13:05,022	INFO job_manager.py:581 -- Runtime env is setting up.
Running entrypoint for job quickstart-9d53e544: python jobs/prepare.py digits s3://stoker/datasets/digits
2026-11-26 01:13:22,390	INFO sdk.py:520 -- WebSocket closed for job quickstart-9d53e544 with close code 1000
2026-11-26 01:13:02,100	INFO dashboard_sdk.py:338 -- Uploading package gcs://_ray_pkg_bfc1a9.zip.
2026-11-26 01:13:02,100	INFO packaging.py:588 -- Creating a file package for local module '.'.
2026-11-26 01:13:02,100	SUCC cli.py:67 -- Job 'quickstart-1' submitted successfully
2026-11-26 01:34:36,088	ERR cli.py:74 -- ---------------------------
Tailing logs until the job exits (disable with --no-wait):
  ray job logs quickstart-1
(TrainController pid=77) [INFO] something
-------------------------------

"""


@pytest.mark.parametrize("line", NOISE.split("\n"))
def test_lines_of_rays_clients_are_left_out(line: str) -> None:
    assert readable(line) is None


def test_a_jobs_own_line_is_whole_and_without_colour_and_process() -> None:
    text = "digits-1: epoch 3/15 done: loss 0.5 " + "x" * 300
    assert readable(f"\x1b[36m(RayTrainWorker pid=10981, ip=127.0.0.1)\x1b[0m {text}\n") == text
    assert readable("error: recipe.yaml: batch: total (31) must be a multiple of micro (16)") is not None
    assert readable("2026-11-26 01:13:22,390 INFO stoker.training.driver: continuing") is not None
