"""Fine-tuning on real pictures: ``make bench-pictures``.

Prepares Debian's stamps by kind (tests/stamps.py), all seven kinds and the three that ImageNet knows, imports the
weights of EfficientNet-Lite0, and trains each recipe with three seeds on a cluster of its own on this machine.
A seed draws the held-out fifth of each class too. Prints a line of JSON a run, a table and a closing line.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path

from stamps import COUNTS, FEW, find_stamps, link_by_class
from stoker.embedded import Instance, Settings

CHECKOUT = Path(__file__).resolve().parents[3]
SETS = {"seven": tuple(COUNTS), "three": FEW}
BARS = {"probe, seven": 0.80, "probe, three": 0.93}
"""least mean accuracy on the held-out fifth; for three, of the better of the two recipes"""


@dataclass(frozen=True)
class Case:
    """A recipe on a data set."""

    recipe: str
    data: str
    overrides: tuple[str, ...] = ()


CASES = {
    "probe, seven": Case("pictures", "seven"),
    "probe, three": Case("pictures", "three"),
    "whole, seven": Case("pictures-whole", "seven"),
    "whole, three": Case("pictures-whole", "three"),
    "fresh weights, seven": Case("pictures-whole", "seven", ("model.weights=null",)),
    "fresh weights, three": Case("pictures-whole", "three", ("model.weights=null",)),
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, default=3, help="seeds of each case (default 3)")
    parser.add_argument("--only", action="append", default=[], help="cases whose name holds this; repeatable")
    parser.add_argument("--folder", type=Path, default=CHECKOUT / "bench-pictures", help="where pictures and logs stay")
    parser.add_argument("--set", action="append", default=[], metavar="KEY=VALUE", help="override of every recipe")
    given = parser.parse_args()
    folder = given.folder.absolute()
    stamps = find_stamps(folder)
    settings = Settings.model_validate(
        {
            **Settings.read(CHECKOUT / "cluster/local.yaml").model_dump(),
            "ports": dict.fromkeys(("s3", "gcs", "dashboard", "serve"), 0),
        }
    )
    chosen = {name: case for name, case in CASES.items() if not given.only or any(o in name for o in given.only)}
    figures = {}
    with Instance(folder / "state", settings).started("quickstart") as instance:
        os.environ.update(instance.environment())
        if "imagenet-lite0" not in _run("models", "--json")[-1]:
            _run("models", "import", "efficientnet_lite0", "imagenet-lite0", "--alias", "production")
        for name in dict.fromkeys(case.data for case in chosen.values()):
            if not (folder / name).exists():
                link_by_class(stamps, folder / name, SETS[name])
            for seed in range(given.seeds):
                options = ("--background", "white", "--validation-fraction", "0.2", "--jpeg", "original", "--local")
                data = f"{instance.url}/datasets/{name}-{seed}"
                _run("prepare", str(folder / name), data, *options, "--seed", str(seed))
        for name, case in chosen.items():
            results = [_train(case, name, seed, instance, given.set) for seed in range(given.seeds)]
            figures[name] = round(statistics.mean(result["accuracy"] for result in results), 4)
    print(f"\n{'case':<24}{'accuracy':>10}{'bar':>8}")
    for name, figure in figures.items():
        print(f"{name:<24}{figure:>10.2%}" + (f"{BARS[name]:>8.0%}" if name in BARS else ""))
    missed = [name for name, bar in BARS.items() if name in figures and figures[name] < bar]
    print(json.dumps({"bench": "pictures", "figures": figures, "missed": missed}))


def _train(case: Case, name: str, seed: int, instance: Instance, extra: list[str]) -> dict[str, float]:
    run = f"{name.replace(', ', '-').replace(' ', '-')}-{seed}-{int(time.time())}"
    began = time.perf_counter()
    lines = _run(
        *("train", f"jobs/recipes/{case.recipe}.yaml", f"name={run}", f"seed={seed}", f"storage={instance.url}"),
        *(f"data.url={instance.url}/datasets/{case.data}-{seed}", *case.overrides, *extra),
    )
    result = json.loads(next(line for line in reversed(lines) if line.startswith('{"run"')))
    print(json.dumps({"case": name, "seed": seed, "s": round(time.perf_counter() - began, 1), **result}), flush=True)
    return result


def _run(*arguments: str) -> list[str]:
    command = [sys.executable, "-m", "stoker", *arguments]
    done = subprocess.run(command, cwd=CHECKOUT, capture_output=True, text=True, check=False, timeout=3600)
    if done.returncode:
        sys.exit(
            f"error: stoker {' '.join(arguments[:3])} failed: {' '.join((done.stderr or done.stdout).split())[-600:]}"
        )
    return done.stdout.splitlines()


if __name__ == "__main__":
    main()
