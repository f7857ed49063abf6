"""Which lines of a job's output a person reads."""

from __future__ import annotations

import pytest

from stoker.embedded.ray_output import has_failed, is_accepted, readable

NOISE = """\
2026-11-26 01:13:03,839	WARNING working_dir.py:101 -- Directory '.git' is now ignored by default when packaging
2026-11-26 01:13:05,022	INFO job_manager.py:581 -- Runtime env is setting up.
Running entrypoint for job quickstart-9d53e544: python jobs/prepare.py digits s3://stoker/datasets/digits
2026-11-26 01:13:22,390	INFO sdk.py:520 -- WebSocket closed for job quickstart-9d53e544 with close code 1000
2026-11-26 01:13:02,100	INFO dashboard_sdk.py:338 -- Uploading package gcs://_ray_pkg_bfc1a9.zip.
2026-11-26 01:13:02,100	INFO packaging.py:588 -- Creating a file package for local module '.'.
2026-11-26 01:13:02,100	SUCC cli.py:67 -- Job 'quickstart-1' submitted successfully
2026-11-26 01:34:36,088	ERR cli.py:74 -- ---------------------------
2026-11-26 02:29:33,074	INFO cli.py:351 -- Tailing logs until the job exits (disable with --no-wait):
2026-11-26 02:29:33,054	INFO cli.py:331 -- Query the logs of the job:
2026-11-26 02:29:33,054	INFO cli.py:333 -- \x1b[1mray job logs train-5bed924f\x1b[22m
2026-11-26 02:29:29,159	INFO packaging.py:385 -- Ignoring upload to cluster for these files: [PosixPath('.gitignore')]
2026-11-26 02:29:42,470	INFO worker.py:1691 -- Using address 127.0.0.1:20126 set in the environment variable RAY_ADDRESS
2026-11-26 02:29:42,488	INFO worker.py:1841 -- Connecting to existing Ray cluster at address: 127.0.0.1:20126...
2026-11-26 02:29:42,838	INFO worker.py:2029 -- Connected to Ray cluster. View the dashboard at http://127.0.0.1:20710
2026-11-26 01:34:36,088	ERR cli.py:74 -- Job 'quickstart-1' failed
\x1b[36m(RayTrainWorker pid=1)\x1b[0m Setting up process group for: env:// [rank=0, world_size=2]
Tailing logs until the job exits (disable with --no-wait):
  ray job logs quickstart-1
(TrainController pid=77) [INFO] something
-------------------------------

"""


@pytest.mark.parametrize("line", NOISE.split("\n"))
def test_lines_of_rays_clients_are_left_out(line: str) -> None:
    assert readable(line) is None


USEFUL = """\
Query the store failed for shard 7
epoch 3: checkpoint submitted successfully
Uploading package 3 of 7 to the store
Next steps: train on all classes
Setting up process groups took 3 s
ray job logs are kept for a day
2026-11-26 01:13:02,100	ERR cli.py:68 -- Working directory is 700 MB
2026-11-26 01:13:02,100	WARNING packaging.py:588 -- The package is large
2026-11-26 01:13:02,100	WARNING worker.py:20 -- Connecting to a store that is slow
2026-11-26 01:13:02,100	INFO worker.py:20 -- epoch 3 of 4
2026-11-26 01:13:02,100 INFO my_cli.py: epoch 3
note: INFO cli.py:68 -- is how Ray begins a line"""


@pytest.mark.parametrize("line", USEFUL.split("\n"))
def test_lines_of_the_job_that_resemble_rays_are_shown(line: str) -> None:
    assert readable(line) == line


def test_only_rays_own_line_says_that_a_job_is_accepted_or_failed() -> None:
    prefix = "2026-11-26 01:13:02,100	"
    assert is_accepted(f"{prefix}SUCC cli.py:67 -- \x1b[32mJob 'a.b' submitted successfully\x1b[39m\n", "a.b")
    assert has_failed(f"{prefix}ERR cli.py:74 -- Job 'a.b' failed\n", "a.b")
    assert not is_accepted(f"{prefix}SUCC cli.py:67 -- Job 'axb' submitted successfully", "a.b")
    assert not is_accepted("Job 'a' submitted successfully", "a")
    assert not has_failed("Job 'a' failed", "a")
    assert not has_failed(f"{prefix}ERR cli.py:74 -- Job 'a' failed to read shard 7", "a")


def test_a_jobs_own_line_is_whole_and_without_colour_and_process() -> None:
    text = "digits-1: epoch 3/15 done: loss 0.5 " + "x" * 300
    assert readable(f"\x1b[36m(RayTrainWorker pid=10981, ip=127.0.0.1)\x1b[0m {text}\n") == text
    assert readable("error: recipe.yaml: batch: total (31) must be a multiple of micro (16)") is not None
    assert readable("2026-11-26 01:13:22,390 INFO stoker.training.driver: continuing") is not None
