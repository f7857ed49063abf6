"""Two folders of pictures become a model, from weights that a package carries; equal weights on 1 and 3 ranks."""

from __future__ import annotations

import io
import json
import random
import sys
from pathlib import Path

import pytest
from PIL import Image

from conftest import Store
from driven import run, submit
from stoker.embedded import Instance
from stoker.embedded.demo import photographs
from stoker.registry import Registry
from stoker.runs.folder import RunFolder
from stoker.storage import locate

SIDE, EACH = 160, 16


def crops(folder: Path) -> Path:
    """Two classes in ``folder``: pieces of the photograph of a cat, and of the one of a cup of coffee."""
    draws = random.Random(3)
    for path, kind in zip(photographs(), ("cat", "coffee"), strict=False):
        (folder / kind).mkdir(parents=True)
        with Image.open(path) as picture:
            for number in range(EACH):
                left, top = draws.randrange(picture.width - SIDE), draws.randrange(picture.height - SIDE)
                encoded = io.BytesIO()
                picture.crop((left, top, left + SIDE, top + SIDE)).convert("RGB").save(encoded, "JPEG", quality=90)
                (folder / kind / f"{number}.jpg").write_bytes(encoded.getvalue())
    return folder


@pytest.mark.long
@pytest.mark.store
@pytest.mark.cluster
@pytest.mark.timeout(1500)
def test_two_folders_of_pictures_become_a_model_of_equal_weights_on_one_and_three_ranks(
    cluster: Instance, store: Store, tmp_path: Path
) -> None:
    storage, python = store.fresh("pictures"), sys.executable
    lite = ("efficientnet_lite0", "imagenet-lite0", "--alias", "production", "--storage", storage)
    assert json.loads(run(python, "jobs/import.py", *lite)[-1])["model"] == "imagenet-lite0@1"
    run(python, "jobs/prepare.py", str(crops(tmp_path / "pets")), f"{storage}/datasets/pets")
    base = (
        f"storage={storage}",
        f"data.url={storage}/datasets/pets",
        "reproducible=true",
        "batch.total=16",
        "batch.micro=4",
        "schedule.epochs=4",
    )
    hashes = {}
    for recipe, ranks in (("two-classes", 1), ("two-classes", 3), ("pictures-whole", 1), ("pictures-whole", 3)):
        name = f"{recipe}-{ranks}"
        workers = (f"workers.min={ranks}", f"workers.max={ranks}", "schedule.warmup_epochs=0")
        log = submit("jobs/train.py", f"jobs/recipes/{recipe}.yaml", f"name={name}", *base, *workers)
        assert any("initialized from imagenet-lite0@1, a new head for 2 classes" in line for line in log)
        result = json.loads(next(line for line in reversed(log) if line.startswith('{"run"')))
        assert result["accuracy"] >= (0.8 if recipe == "two-classes" else 0.5)
        checkpoint = RunFolder(locate(storage), name).latest_checkpoint()
        assert checkpoint is not None
        hashes[name] = checkpoint.files["model.safetensors"]["sha256"]
    assert hashes["two-classes-1"] == hashes["two-classes-3"]
    assert hashes["pictures-whole-1"] == hashes["pictures-whole-3"]
    assert len(set(hashes.values())) == 2

    run(python, "jobs/publish.py", "two-classes-1", "pets", "--storage", storage)
    version = Registry(locate(storage)).resolve("pets@1")
    assert (version.card.parent, version.classes) == ("imagenet-lite0@1", ("cat", "coffee"))
