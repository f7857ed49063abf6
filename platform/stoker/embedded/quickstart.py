"""The whole line on real data, from nothing: what ``stoker quickstart`` runs.

    start store and cluster ─▶ digits as image files ─▶ prepare ─▶ train ─▶ publish ─▶ deploy ─▶ ask over HTTP

Each stage is a command that a user of a real cluster types, printed before it runs; what they print is kept in
``.stoker/logs/quickstart.log``. Interrupted, the next call resumes: a data set that exists is kept, an unfinished run
continues from its last checkpoint.
"""

from __future__ import annotations

import contextlib
import json
import os
import shlex
import shutil
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

from stoker.bundled import bundled_file
from stoker.dataset import Sample, SampleReader
from stoker.embedded.instance import Instance
from stoker.embedded.processes import program, shown_path, shown_program
from stoker.embedded.ray_output import readable
from stoker.errors import ClusterError
from stoker.recipe import Recipe, read_recipe
from stoker.runs.folder import RunFolder
from stoker.runs.records import Result
from stoker.storage import locate

__all__ = ["quickstart"]

_MODEL = "digits"


@dataclass
class _Stages:
    """Seconds by stage, and everything that the quickstart prints."""

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
    """Runs the commands that a user would type."""

    stages: _Stages

    def run(self, *command: str) -> list[str]:
        """Run a command whose first word is a program next to this Python; returns the output's lines.

        Raises:
            ClusterError: the command failed; its last line is in the message.
        """
        name, *arguments = command
        self.stages.say("  $ " + shlex.join([shown_program(name), *arguments]))
        programs = str(Path(sys.executable).parent)
        path = programs + os.pathsep + os.environ.get("PATH", "")
        lines: list[str] = []
        with subprocess.Popen(
            [sys.executable if name == "python" else program(name), *arguments],
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

    def submit(self, instance: Instance, folder: Path, *job: str) -> list[str]:
        """``stoker submit`` of ``job``, in the working directory ``folder``; the job is stopped when we are."""
        identity = f"quickstart-{uuid.uuid4().hex[:8]}"
        state = instance.folder.path
        elsewhere = () if state == Path(".stoker").absolute() else ("--folder", str(state))
        try:
            return self.run(
                *("stoker", "submit", *elsewhere, "--submission-id", identity, "--working-dir", shown_path(folder)),
                *job,
            )
        except BaseException:
            with contextlib.suppress(ClusterError, KeyboardInterrupt):
                self.run("ray", "job", "stop", "--no-wait", identity)
            raise

    def _show(self, line: str, lines: list[str]) -> None:
        self.stages.log.write(line + "\n")
        plain = readable(line)
        if plain is not None:
            lines.append(plain)
            print("  | " + plain, flush=True)  # noqa: T201


def quickstart(instance: Instance) -> dict[str, Any]:
    """Run everything from an empty store to an answer over HTTP; returns the closing line's content."""
    instance.folder.logs.mkdir(parents=True, exist_ok=True)
    with (instance.folder.logs / "quickstart.log").open("a") as log:
        stages = _Stages(log)
        began = time.monotonic()
        with contextlib.ExitStack() as running:
            with stages.stage("start", "An object store and a Ray cluster on this machine"):
                if instance.owner == "quickstart":  # one that was killed: its job may still train under our run's name
                    stages.say(f"  stopping what an interrupted quickstart left: {instance.stop()} processes")
                running.enter_context(instance.started("quickstart"))
                stages.say(f"  store {instance.store.endpoint}, Ray {instance.dashboard_url}")
            os.environ.update(instance.environment())
            summary = _through(instance, _Shell(stages), stages)
        stages.seconds["total"] = round(time.monotonic() - began, 1)
        summary["seconds"] = stages.seconds
        _explain(stages, instance, summary)
        return summary


def _through(instance: Instance, shell: _Shell, stages: _Stages) -> dict[str, Any]:
    files, data = instance.folder.path / "digits", f"{instance.url}/datasets/digits"
    folder = _working_directory(instance)
    with stages.stage("prepare", "Prepare 1,797 real scans of handwritten digits in the object store"):
        shell.run("python", "-m", "stoker.embedded.digits", shown_path(files))
        # Crops of 32 pixels leave nothing out, so no restart markers, and no program that writes them, are needed.
        shell.submit(instance, folder, "prepare", str(files), data, "--jpeg", "original")
    recipe = _next_run(instance, folder / "digits.yaml", data)
    with stages.stage("train", f"Train {recipe.name}: 2 workers stream their part of each global batch from the store"):
        overrides = (f"name={recipe.name}", f"storage={recipe.storage}", f"data.url={data}")
        shell.submit(instance, folder, "train", "digits.yaml", *overrides)
    result = RunFolder(locate(instance.url), recipe.name).result()
    assert result is not None
    with stages.stage("publish", "Publish the weights as a model version, after checking metrics and predictions"):
        published = shell.run(
            "stoker", "publish", recipe.name, _MODEL, "--storage", instance.url, "--alias", "production"
        )
        model = str(json.loads(published[-1])["model"])
    with stages.stage("deploy", "Deploy it with Ray Serve"):
        shell.run(
            *("stoker", "deploy", shown_path(folder / "serve.yaml")),
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


def _working_directory(instance: Instance) -> Path:
    """A folder with the recipe and the Serve config, as ``stoker init`` writes it: all that the jobs need."""
    folder = instance.folder.path / "quickstart"
    folder.mkdir(exist_ok=True)
    shutil.copyfile(bundled_file("recipes/digits.yaml"), folder / "digits.yaml")
    shutil.copyfile(bundled_file("serve/digits.yaml"), folder / "serve.yaml")
    return folder


def _next_run(instance: Instance, file: Path, data: str) -> Recipe:
    """The recipe under the first name that has no finished run, so that an interrupted run continues."""
    storage = locate(instance.url)
    for number in range(1, 10_000):
        name = f"{_MODEL}-{number}"
        if RunFolder(storage, name).result() is None:
            overrides = (f"name={name}", f"storage={instance.url}", f"data.url={data}")
            return read_recipe(file, overrides)
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
            f"(largest difference of a probability {difference:.1e}); see its log: serve status"
        )
    return (
        f"{right} of {len(samples)} answers are the label ({right / len(samples):.2%}), as in the trainer's own "
        f"evaluation; largest difference of a probability {difference:.0e}"
    )


def _explain(stages: _Stages, instance: Instance, summary: dict[str, Any]) -> None:
    took = "  ".join(f"{name} {seconds:g} s" for name, seconds in summary["seconds"].items())
    stoker = shown_program("stoker")
    kept = f"running; {stoker} down stops it" if instance.owner == "up" else f"stopped; {stoker} up starts it again"
    example = next((instance.folder.path / "digits" / "validation" / "7").glob("*.jpg"))
    stages.say(
        f"""
Accuracy   {summary["accuracy"]:.2%} on the held-out split, {summary["train_images_per_s"]:,.0f} images/s in training
Time       {took}
Model      {summary["model"]}, in {instance.url}/models/{_MODEL}/ (data: {instance.folder.path / "store"})
Endpoint   {summary["url"]} ({kept})
Log        {stages.log.name}

Try next
  {stoker} up
      keeps store, cluster and endpoint running; then ask it yourself:
      curl -H "Authorization: Bearer $(cat {shown_path(instance.folder.path / "api-key")})" \\
          -H "Content-Type: image/jpeg" --data-binary @{shown_path(example)} {summary["url"]}
  eval "$({stoker} environment)" && {stoker} models
      lists the models, their versions and aliases
  {stoker} init photos
      creates a folder with a recipe, a Serve config and the steps for images of your own"""
    )
