"""Verify that the weights are bitwise identical however a run is executed: ``make verify-weights``.

Trains ResNet-18 for 100 steps on 1, 2, 3 and 4 gloo ranks, then by jobs/train.py on its own store and cluster: one run
is killed twice and resumed with another number of workers each time, one grows and shrinks while it runs. Prints the
sha256 of each model.safetensors, and exits 1 unless all are equal.

    PYTHONPATH=tests python -m weights               everything: ten to fifteen minutes on 2 cores
    PYTHONPATH=tests python -m weights ranks killed  only these; elastic is the third
"""

from __future__ import annotations

import json
import os
import sys
import tempfile
import time
from pathlib import Path

from made import write_dataset
from stoker.embedded import Instance, Settings
from stoker.recipe import Recipe, parse_recipe
from weights.jobs import STEPS_PER_EPOCH, JobRun, grown_and_shrunk, killed_twice
from weights.ranks import train_on_ranks

CASES = ("ranks", "killed", "elastic")
EPOCHS = 2
STEPS = EPOCHS * STEPS_PER_EPOCH
RECIPE = """
name: {name}
seed: 7
storage: {storage}
data: {{url: {storage}/data, image_size: 32, memory_mb: 16, decode_threads: 1}}
model: {{name: resnet18}}
batch: {{total: 48, micro: 8}}
optimizer: {{lr: 0.05}}
schedule: {{epochs: {epochs}, warmup_epochs: 1}}
ema: {{decay: 0.9}}
gradient_clip: 5.0
reproducible: true
evaluation: {{every_epochs: {epochs}}}
checkpoint: {{every_steps: 10, keep: 2}}
workers: {{min: 1, max: 4, gpus: 0, cpus: 1}}
log_every_s: 5
"""


def main(cases: list[str]) -> int:
    if unknown := sorted(set(cases) - set(CASES)):
        print(f"error: unknown case {unknown[0]!r}; choose from {', '.join(CASES)}")
        return 2
    found: dict[str, str] = {}
    with tempfile.TemporaryDirectory(prefix="stoker-weights-", ignore_cleanup_errors=True) as name:
        folder = Path(name)
        if "ranks" in cases:
            found |= _on_ranks(folder)
        if jobs := [case for case in cases if case != "ranks"]:
            found |= _as_jobs(folder, jobs)
    equal = len(set(found.values())) == 1
    print(json.dumps({"weights": "equal" if equal else "different", "steps": STEPS, "sha256": found}), flush=True)
    return 0 if equal else 1


def _on_ranks(folder: Path) -> dict[str, str]:
    recipe = _prepared(str(folder / "ranks"), "ranks")
    began, found = time.monotonic(), {}
    (trained,) = train_on_ranks([recipe], (1, 2, 3, 4), folder, STEPS)
    for size, run in trained.items():
        found[f"{size} ranks"] = run.sha256
        details = f"repeated steps {run.steps_redone}, bits kept {run.bits_kept}"
        print(f"{size} ranks: {run.sha256} ({details})", flush=True)
    print(f"trained on ranks in {time.monotonic() - began:.0f} s", flush=True)
    return found


def _as_jobs(folder: Path, cases: list[str]) -> dict[str, str]:
    ports = {"s3": 0, "gcs": 0, "dashboard": 0, "serve": 0}
    found, before = {}, dict(os.environ)
    for case in cases:
        # up to 3 workers in the killed one; from 2 to 3 in the elastic one, whose step of 6 micro-batches gets shorter
        given = {**Settings.read().model_dump(), "ports": ports, "cpus": 3 if case == "killed" else 2}
        with Instance(folder / f"state-{case}", Settings.model_validate(given)).started("quickstart") as instance:
            os.environ.update(instance.environment())
            try:
                began = time.monotonic()
                run = JobRun(_prepared(f"{instance.url}/{case}", case), folder / case)
                sizes = killed_twice(run) if case == "killed" else grown_and_shrunk(run, instance)
                found[case] = run.sha256(STEPS)
                took = time.monotonic() - began
                print(f"{case}: {found[case]} (workers {', '.join(map(str, sizes))}; {took:.0f} s)", flush=True)
            finally:
                os.environ.clear()
                os.environ.update(before)
    return found


def _prepared(storage: str, name: str) -> Recipe:
    write_dataset(f"{storage}/data", {"train": [1000, 1000, 48 * STEPS_PER_EPOCH - 2000], "validation": [40]})
    return parse_recipe(RECIPE.format(name=name, storage=storage, epochs=EPOCHS), "weights.yaml")


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:] or list(CASES)))
