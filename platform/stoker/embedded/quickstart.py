"""The whole line on real data, from nothing: what ``stoker quickstart`` runs.

    start store and cluster ─▶ digits as image files ─▶ prepare ─▶ train ─▶ publish ─▶ deploy ─▶ ask over HTTP

Each stage is a command that a user of a real cluster types, printed before it runs; what they print is kept in
``.stoker/logs/quickstart.log``. Interrupted, the next call resumes: a data set that exists is kept, an unfinished run
continues from its last checkpoint.
"""

from __future__ import annotations

import json
import shutil
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import httpx

from stoker.bundled import bundled_file
from stoker.dataset import Sample, SampleReader
from stoker.embedded.instance import Instance
from stoker.embedded.processes import shown_path, shown_program
from stoker.embedded.stages import Shell, Stages
from stoker.errors import ClusterError
from stoker.recipe import Recipe, read_recipe
from stoker.runs.folder import RunFolder
from stoker.runs.records import Result
from stoker.storage import locate

__all__ = ["quickstart", "train_digits", "working_directory"]

_MODEL = "digits"


def quickstart(instance: Instance) -> dict[str, Any]:
    """Run everything from an empty store to an answer over HTTP; returns the closing line's content."""
    instance.folder.logs.mkdir(parents=True, exist_ok=True)
    with (instance.folder.logs / "quickstart.log").open("a") as log:
        stages = Stages("quickstart", log, count=6)
        began = time.monotonic()
        with stages.running(instance):
            summary = _through(instance, Shell(stages), stages)
        stages.seconds["total"] = round(time.monotonic() - began, 1)
        summary["seconds"] = stages.seconds
        _explain(stages, instance, summary)
        return summary


def _through(instance: Instance, shell: Shell, stages: Stages) -> dict[str, Any]:
    folder = working_directory(instance, "quickstart", "digits")
    recipe, result, model = train_digits(instance, folder, shell)
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


def train_digits(instance: Instance, folder: Path, shell: Shell) -> tuple[Recipe, Result, str]:
    """Prepare, train and publish the digits in three stages; ``folder`` holds ``digits.yaml``.

    Returns the run's recipe and result, and the version: ``digits@production``.
    """
    stages = shell.stages
    files, data = instance.folder.path / "digits", f"{instance.url}/datasets/digits"
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
    return recipe, result, model


def working_directory(instance: Instance, name: str, served: str) -> Path:
    """A folder with the digits' recipe and the Serve config ``served``, as ``stoker init`` writes it.

    That is all that jobs and the deployment need.
    """
    folder = instance.folder.path / name
    folder.mkdir(exist_ok=True)
    shutil.copyfile(bundled_file("recipes/digits.yaml"), folder / "digits.yaml")
    shutil.copyfile(bundled_file(f"serve/{served}.yaml"), folder / "serve.yaml")
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


def _explain(stages: Stages, instance: Instance, summary: dict[str, Any]) -> None:
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
