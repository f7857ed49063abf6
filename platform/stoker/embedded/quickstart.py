"""The whole line on real data, from nothing: python -m stoker.embedded.quickstart (``make quickstart``).

    start store and cluster ─▶ digits as image files ─▶ prepare ─▶ train ─▶ publish ─▶ deploy ─▶ ask over HTTP

Each stage is the command that a user of a real cluster types, printed before it runs; its whole output is kept in
``.stoker/logs/quickstart.log``. Interrupted, the next call goes on: a data set that is there is kept, an unfinished
run continues from its last checkpoint.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import re
import shlex
import signal
import subprocess
import sys
import time
import uuid
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO, Any

import httpx

from stoker.command import run_command
from stoker.dataset import Sample, SampleReader
from stoker.embedded.instance import Instance
from stoker.embedded.settings import CHECKOUT
from stoker.errors import ClusterError
from stoker.recipe import Recipe, read_recipe
from stoker.runs.folder import RunFolder
from stoker.runs.records import Result
from stoker.storage import locate

__all__ = ["quickstart"]

_RECIPE = "jobs/recipes/digits.yaml"
_SERVE = "serve/digits.yaml"
_MODEL = "digits"
_BORING = re.compile(
    r"Job submission server|Next steps|Query the |Request the job|Tailing logs until|ray job (logs|status|stop)|^-+$"
    r"|submitted successfully|succeeded$|Connecting to existing Ray|Connected to Ray cluster|View the dashboard"
    r"|Setting up process group|TrainController pid|PreemptionWatcher|Uploading package|Creating a file package"
    r"|SUCC cli|INFO cli|INFO worker|INFO dashboard_sdk|INFO packaging"
)
_PREFIX = re.compile(r"\x1b\[[0-9;]*m|\((?:RayTrainWorker|[A-Za-z_]+) pid=\d+(?:, ip=[^)]*)?\)\s?")


@dataclass
class _Stages:
    """Seconds by stage, and the one place where the quickstart speaks."""

    log: IO[str]
    seconds: dict[str, float] = field(default_factory=dict)

    def say(self, line: str) -> None:
        print(line, flush=True)  # noqa: T201
        self.log.write(line + "\n")
        self.log.flush()

    @contextlib.contextmanager
    def stage(self, name: str, what: str) -> Iterator[None]:
        self.say(f"\n[{len(self.seconds) + 1}/6] {what}")
        began = time.monotonic()
        yield
        self.seconds[name] = round(time.monotonic() - began, 1)


@dataclass(frozen=True)
class _Shell:
    """Runs the commands that a user would type, in the checkout."""

    stages: _Stages

    def run(self, *command: str) -> list[str]:
        """The output's lines.

        Raises:
            ClusterError: the command failed; its last line is in the message.
        """
        self.stages.say("  $ " + shlex.join(command))
        programs = str(Path(sys.executable).parent)
        path = programs + os.pathsep + os.environ.get("PATH", "")
        lines: list[str] = []
        with subprocess.Popen(
            command,
            cwd=CHECKOUT,
            env=os.environ | {"PATH": path, "PYTHONUNBUFFERED": "1"},
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            errors="replace",
        ) as process:
            assert process.stdout is not None
            try:
                for line in process.stdout:
                    self._show(line.rstrip(), lines)
            except BaseException:
                process.terminate()
                raise
        if process.returncode:
            reason = next((line for line in reversed(lines) if "error" in line.lower()), lines[-1] if lines else "")
            raise ClusterError(f"{command[0]} {command[1]} failed: {reason.strip()} (log: {self.stages.log.name})")
        return lines

    def submit(self, *entrypoint: str) -> list[str]:
        """``ray job submit`` of ``entrypoint``; a job that we leave behind is stopped."""
        identity = f"quickstart-{uuid.uuid4().hex[:8]}"
        try:
            return self.run(
                *("ray", "job", "submit", "--submission-id", identity, "--working-dir", ".", "--", "python"),
                *entrypoint,
            )
        except BaseException:
            with contextlib.suppress(ClusterError, KeyboardInterrupt):
                self.run("ray", "job", "stop", "--no-wait", identity)
            raise

    def _show(self, line: str, lines: list[str]) -> None:
        self.stages.log.write(line + "\n")
        plain = _PREFIX.sub("", line)
        lines.append(plain)
        if plain.strip() and not _BORING.search(line):
            print("  | " + plain[:200], flush=True)  # noqa: T201


def quickstart(instance: Instance) -> dict[str, Any]:
    """Everything from an empty store to an answer over HTTP; returns what the closing line says."""
    instance.folder.logs.mkdir(parents=True, exist_ok=True)
    with (instance.folder.logs / "quickstart.log").open("a") as log:
        stages = _Stages(log)
        began = time.monotonic()
        with contextlib.ExitStack() as running:
            with stages.stage("start", "An object store and a Ray cluster on this machine"):
                if instance.owner == "quickstart":  # one that was killed: its job may still train under our run's name
                    stages.say(f"  ending what an interrupted quickstart left: {instance.stop()} processes")
                running.enter_context(instance.started("quickstart"))
                stages.say(f"  store {instance.store.endpoint}, Ray {instance.dashboard_url}")
            os.environ.update(instance.environment() | {"STOKER_STORAGE": instance.url})
            summary = _through(instance, _Shell(stages), stages)
        stages.seconds["total"] = round(time.monotonic() - began, 1)
        summary["seconds"] = stages.seconds
        _explain(stages, instance, summary)
        return summary


def _through(instance: Instance, shell: _Shell, stages: _Stages) -> dict[str, Any]:
    files, data = instance.folder.path / "digits", f"{instance.url}/datasets/digits"
    with stages.stage("prepare", "1,797 real scans of handwritten digits, as image files, into the store"):
        shell.run(sys.executable, "-m", "stoker.embedded.digits", str(files))
        # Crops of 32 pixels leave nothing out, so no restart markers, and no program that writes them, are needed.
        shell.submit("jobs/prepare.py", str(files), data, "--jpeg", "original")
    recipe = _next_run(instance, data)
    with stages.stage("train", f"Train {recipe.name}: 2 workers stream their part of each global batch from the store"):
        overrides = (f"name={recipe.name}", f"storage={recipe.storage}", f"data.url={data}")
        shell.submit("jobs/train.py", _RECIPE, *overrides)
    result = RunFolder(locate(instance.url), recipe.name).result()
    assert result is not None
    with stages.stage("publish", "Publish the weights: metrics and predictions are checked, then the version is there"):
        published = shell.run(
            sys.executable, "jobs/publish.py", recipe.name, _MODEL, "--storage", instance.url, "--alias", "production"
        )
        model = str(json.loads(published[-1])["model"])
    with stages.stage("deploy", "Deploy it with Ray Serve"):
        shell.run(
            *(sys.executable, "-m", "stoker_serve.deploy", _SERVE),
            *("--storage", instance.url, "--port", str(instance.serve_port)),
        )
    with stages.stage("ask", "Ask it over HTTP with every image of the held-out split"):
        line = _ask(instance, recipe, result, model)
        stages.say("  " + line)
    return {
        "quickstart": "ok",
        "accuracy": round(result.metrics.accuracy, 4),
        "train_images_per_s": round(result.images_per_s, 1),
        "seconds": {},
        "model": model,
        "url": f"{instance.serve_url}/v1/models/{_MODEL}/predict",
    }


def _next_run(instance: Instance, data: str) -> Recipe:
    """The recipe under the first name that has no finished run: an interrupted one continues."""
    storage = locate(instance.url)
    for number in range(1, 10_000):
        name = f"{_MODEL}-{number}"
        if RunFolder(storage, name).result() is None:
            overrides = (f"name={name}", f"storage={instance.url}", f"data.url={data}")
            return read_recipe(CHECKOUT / _RECIPE, overrides)
    raise ClusterError(f"{instance.url}/runs holds 9,999 runs of the quickstart; delete some")


def _ask(instance: Instance, recipe: Recipe, result: Result, model: str) -> str:
    """Compare the endpoint's answers with the labels and with the trainer's own evaluation.

    Raises:
        ClusterError: an answer is wrong where the trainer's was right, or comes from another version.
    """
    reader = SampleReader(locate(recipe.data.url), recipe.data.validation_split)
    samples = reader.read(range(len(reader)))
    headers = {"Authorization": f"Bearer {instance.api_key}", "Content-Type": "image/jpeg"}
    url = f"{instance.serve_url}/v1/models/{_MODEL}/predict"
    with httpx.Client(headers=headers, timeout=60, trust_env=False) as client:

        def ask(sample: Sample) -> dict[str, float]:
            answer = client.post(url, params={"top": len(result.classes)}, content=bytes(sample.data))
            if answer.status_code != httpx.codes.OK:
                raise ClusterError(f"{url} answered {answer.status_code}: {answer.text[:200]}")
            content = answer.json()
            if content["model"] != model:
                raise ClusterError(f"{url} answered as {content['model']}, not as {model}")
            return {row["label"]: row["probability"] for row in content["predictions"][0]}

        with ThreadPoolExecutor(4) as pool:
            answers = list(pool.map(ask, samples))
    best = [max(answer, key=lambda label: answer[label]) for answer in answers]
    right = sum(label == result.classes[sample.label] for label, sample in zip(best, samples, strict=True))
    expected = round(result.metrics.accuracy * result.metrics.samples)
    difference = max(
        abs(answers[p.number][name] - q)
        for p in result.parity
        for name, q in zip(result.classes, p.probabilities, strict=True)
    )
    if right != expected or difference > 1e-3:
        raise ClusterError(
            f"the endpoint is right on {right} of {len(samples)} images, the trainer was on {expected} "
            f"(largest difference of a probability {difference:.1e}); that must not be"
        )
    return (
        f"{right} of {len(samples)} answers are the label ({right / len(samples):.2%}), as in the trainer's own "
        f"evaluation; largest difference of a probability {difference:.0e}"
    )


def _explain(stages: _Stages, instance: Instance, summary: dict[str, Any]) -> None:
    took = "  ".join(f"{name} {seconds:g} s" for name, seconds in summary["seconds"].items())
    kept = instance.owner == "up"
    example = next((instance.folder.path / "digits" / "validation" / "7").glob("*.jpg"))
    stages.say(
        f"""
Accuracy   {summary["accuracy"]:.2%} on the held-out split, {summary["train_images_per_s"]:,.0f} images/s in training
Time       {took}
Model      {summary["model"]}, in {instance.url}/models/{_MODEL}/ (data: {instance.folder.path / "store"})
Endpoint   {summary["url"]} {"(kept running: make down ends it)" if kept else "(ended; make up brings it back)"}
Ask it     curl -H "Authorization: Bearer $(cat {instance.folder.path / "api-key"})" -H "Content-Type: image/jpeg" \\
                --data-binary @{example} {summary["url"]}
Keep it    make up   starts store, cluster and endpoint and keeps them running
           make down ends them and leaves no process"""
    )


def main(arguments: list[str]) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--folder", type=Path, help="state folder (default: .stoker in the checkout)")
    given = parser.parse_args(arguments)
    for number in (signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, signal.default_int_handler)  # ended from outside, it cleans up as after Ctrl-C
    summary = quickstart(Instance(given.folder))
    print(json.dumps(summary), flush=True)  # noqa: T201


if __name__ == "__main__":
    run_command(main)
