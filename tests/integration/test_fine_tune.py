"""Fine-tuning as a user drives it: a published model of ten digits is narrowed to two, and the version says so."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import pytest

from conftest import Store
from driven import run, submit, write_digits
from stoker.embedded import Instance
from stoker.registry import Registry
from stoker.runs.folder import RunFolder
from stoker.storage import locate


@pytest.mark.long
@pytest.mark.store
@pytest.mark.cluster
@pytest.mark.timeout(900)
def test_a_published_model_is_fine_tuned_onto_a_subset_of_its_classes(
    cluster: Instance, store: Store, tmp_path: Path
) -> None:
    storage, python = store.fresh("tune"), sys.executable
    for name, classes in (("digits", "0123456789"), ("some-digits", "07")):
        run(python, "jobs/prepare.py", str(write_digits(tmp_path / name, classes)), f"{storage}/datasets/{name}")
    base = (f"storage={storage}", "schedule.epochs=12", "evaluation.every_epochs=12")
    submit("jobs/train.py", "jobs/recipes/digits.yaml", *base, f"data.url={storage}/datasets/digits")
    run(python, "jobs/publish.py", "digits", "digits", "--storage", storage, "--alias", "production")

    tuned = (f"storage={storage}", f"data.url={storage}/datasets/some-digits", "schedule.epochs=16")
    log = submit("jobs/train.py", "jobs/recipes/digits-fine-tune.yaml", *tuned)
    assert any("initialized from digits@1, a new head for 2 classes" in line for line in log)
    result = json.loads(next(line for line in reversed(log) if line.startswith('{"run"')))
    assert result["samples"] == 16
    assert result["accuracy"] > 0.7
    source = RunFolder(locate(storage), "digits-fine-tune").recipe().model.source
    assert source is not None
    assert source.reference == "digits@1"

    run(python, "jobs/publish.py", "digits-fine-tune", "pair", "--storage", storage)
    version = Registry(locate(storage)).resolve("pair@1")
    assert version.card.parent == "digits@1"
    assert version.classes == ("0", "7")
    evaluated = json.loads(run(python, "jobs/evaluate.py", "pair@1", "--storage", storage)[-1])
    assert evaluated["accuracy"] == pytest.approx(result["accuracy"])
