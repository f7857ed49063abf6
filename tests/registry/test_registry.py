"""Versions are immutable and appear whole; aliases move by compare-and-swap and keep a history."""

from __future__ import annotations

import hashlib
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
import safetensors.torch

from published import finished_run
from stoker.errors import ModelError, RunError, StorageError
from stoker.predict import check_parity
from stoker.recipe import Recipe
from stoker.registry import ModelVersion, Registry, publish_run
from stoker.runs.folder import RunFolder
from stoker.runs.records import Result
from stoker.storage import Location, locate


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Location:
    return finished_run(tmp_path_factory.mktemp("storage"))


@pytest.fixture
def storage(run: Location, tmp_path: Path) -> Location:
    """A separate storage with a copy of the run."""
    for path, _ in run.walk():
        if path.startswith("runs/"):
            (locate(tmp_path) / path).write((run / path).read())
    return locate(tmp_path, timeout_s=0.3)


def publish(storage: Location, alias: str | None = None) -> ModelVersion:
    return publish_run(storage, "run", "digits", verify=check_parity, alias=alias)


def test_versions_count_up_and_are_found_by_number_alias_and_name(storage: Location) -> None:
    assert [publish(storage).reference, publish(storage, "production").reference] == ["digits@1", "digits@2"]
    registry = Registry(storage)
    assert [registry.resolve(r).version for r in ("digits@1", "digits@production", "digits")] == [1, 2, 2]
    assert registry.models() == ["digits"]
    assert registry.aliases("digits") == {"production": 2}


def test_a_version_records_its_data_set_and_its_metrics(storage: Location) -> None:
    publish(storage)
    card = Registry(storage).resolve("digits").card
    result = RunFolder(storage, "run").result()
    assert result is not None
    assert (card.architecture, card.classes) == ("digitsnet", ("class0", "class1", "class2"))
    assert (card.metrics, card.dataset_fingerprint) == (result.metrics, result.dataset_fingerprint)
    assert card.recipe["optimizer"]["lr"] == 0.1
    assert Registry(storage).resolve("digits").read("report.html").startswith(b"<!doctype html>")


def test_racing_publishers_get_a_number_each(storage: Location) -> None:
    with ThreadPoolExecutor(6) as pool:
        numbers = [version.version for version in pool.map(lambda _: publish(storage), range(6))]
    assert sorted(numbers) == [1, 2, 3, 4, 5, 6]


def test_a_publisher_that_dies_leaves_nothing_to_be_seen(storage: Location, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("stoker.registry.registry._discard", lambda _: None)  # a killed process cleans nothing up

    def die(staged: ModelVersion, recipe: Recipe, result: Result) -> None:
        assert (staged.location / "model.safetensors").exists()
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        publish_run(storage, "run", "digits", verify=die)
    assert Registry(storage).models() == []
    assert publish(storage).version == 2
    assert Registry(storage).versions("digits") == [2]


def test_racing_moves_of_an_alias_are_all_in_its_history(storage: Location) -> None:
    registry = Registry(storage)
    versions = [publish(storage).version for _ in range(4)]
    with ThreadPoolExecutor(4) as pool:
        list(pool.map(lambda version: registry.set_alias("digits", "production", version), versions))
    history = registry.alias_history("digits", "production")
    assert sorted(entry["version"] for entry in history) == versions
    assert registry.resolve("digits@production").version == history[-1]["version"]


def test_weights_that_were_changed_are_refused(storage: Location) -> None:
    version = publish(storage)
    where = version.location / "model.safetensors"
    where.write(where.read()[:-1] + b"!")
    with pytest.raises(StorageError, match=r"not what digits@1 was published with"):
        version.weights()


@pytest.mark.parametrize(("has_ema", "file"), [(False, "model.safetensors"), (True, "ema.safetensors")])
def test_a_published_file_is_the_checkpoints_byte_for_byte(tmp_path: Path, has_ema: bool, file: str) -> None:
    storage = finished_run(tmp_path, has_ema=has_ema)
    checkpoint = RunFolder(storage, "run").latest_checkpoint()
    assert checkpoint is not None
    version = publish(storage)
    data = (version.location / "model.safetensors").read()
    assert version.files["model.safetensors"].sha256 == checkpoint.files[file]["sha256"]
    assert hashlib.sha256(data).hexdigest() == checkpoint.files[file]["sha256"]
    assert data == safetensors.torch.save(checkpoint.weights())
    assert Registry(storage).resolve("digits").read("model.safetensors") == data


def test_a_checkpoint_that_was_changed_is_not_published(storage: Location) -> None:
    checkpoint = RunFolder(storage, "run").latest_checkpoint()
    assert checkpoint is not None
    where = checkpoint.location / "model.safetensors"
    where.write(where.read()[:-1] + b"!")
    with pytest.raises(
        StorageError, match=r"model\.safetensors: damaged \(.* do not have the recorded sha256\); restore the file"
    ):
        publish(storage)
    where.delete()
    with pytest.raises(ModelError, match=r"model\.safetensors: missing, although it was recorded"):
        publish(storage)
    assert Registry(storage).models() == []


def test_the_registry_imports_no_torch() -> None:
    line = "import sys, stoker.registry; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", line], check=False, timeout=120).returncode == 0


@pytest.mark.parametrize(
    ("reference", "line"),
    [
        ("digit", r"unknown model 'digit' .*; did you mean digits\?"),
        ("letters", "unknown model 'letters' .*; known models: digits"),
        ("digits@7", "digits has no version 7; its versions: 1"),
        ("digits@staging", "digits has no alias 'staging'; its aliases: digits@production"),
        ("digits@", "expected a version or an alias after @"),
        ("../digits", "use letters, digits, dots, dashes and underscores"),
    ],
)
def test_an_unknown_reference_gets_one_line_that_names_what_exists(
    storage: Location, reference: str, line: str
) -> None:
    publish(storage, "production")
    with pytest.raises(ModelError, match=line) as caught:
        Registry(storage).resolve(reference)
    assert "\n" not in str(caught.value)


def test_an_alias_of_an_unknown_version_or_that_is_a_number_is_refused(storage: Location) -> None:
    publish(storage)
    with pytest.raises(ModelError, match="digits has no version 9"):
        Registry(storage).set_alias("digits", "production", 9)
    with pytest.raises(ModelError, match="a number names a version"):
        Registry(storage).set_alias("digits", "12", 1)


def test_a_run_that_is_missing_unfinished_or_without_checkpoint_is_refused(tmp_path: Path) -> None:
    storage = finished_run(tmp_path, is_finished=False)
    with pytest.raises(RunError, match=r"run 'other' not found at .*/runs/other"):
        publish_run(storage, "other", "digits", verify=check_parity)
    with pytest.raises(RunError, match=r"run 'run' is not finished \(last checkpoint at step 1\)"):
        publish(storage)
    RunFolder(storage, "run").checkpoints.delete()
    with pytest.raises(RunError, match="run 'run' has no checkpoint"):
        publish(storage)
    assert Registry(storage).models() == []


def test_the_gate_refuses_partial_metrics_and_other_predictions(storage: Location) -> None:
    folder = RunFolder(storage, "run")
    result = folder.result()
    assert result is not None
    partial = result.metrics.model_copy(update={"samples": 20})
    folder.write_result(result.model_copy(update={"metrics": partial}))
    with pytest.raises(ModelError, match="evaluated on 20 of 23 validation samples"):
        publish(storage)
    odd = result.parity[3].model_copy(update={"probabilities": (0.9, 0.05, 0.05)})
    folder.write_result(result.model_copy(update={"parity": (*result.parity[:3], odd)}))
    with pytest.raises(ModelError, match=r"does not predict what run 'run' did: sample 00000\d differs by"):
        publish(storage)
    assert Registry(storage).models() == []


def test_a_newer_format_is_refused_clearly(storage: Location) -> None:
    where = publish(storage).location / "model.json"
    where.write(where.read().replace(b'"version": [\n  1,', b'"version": [\n  3,'))
    with pytest.raises(ModelError, match="newer than this stoker reads"):
        Registry(storage).resolve("digits")


def test_a_rollback_leads_back_through_the_history_and_not_forth_again(storage: Location) -> None:
    registry = Registry(storage)
    for _ in range(3):
        publish(storage, "production")
    assert [registry.roll_back_alias("digits", "production") for _ in range(2)] == [2, 1]
    assert registry.resolve("digits@production").version == 1
    assert [move["version"] for move in registry.alias_history("digits", "production")] == [1, 2, 3, 2, 1]
    with pytest.raises(ModelError, match="no version before 1 in its history"):
        registry.roll_back_alias("digits", "production")
    registry.set_alias("digits", "production", 3)
    registry.set_alias("digits", "production", 1)
    assert registry.roll_back_alias("digits", "production") == 3  # a move back by hand is a move like any other
    with pytest.raises(ModelError, match="digits has no alias 'staging'"):
        registry.roll_back_alias("digits", "staging")


def test_a_rollback_passes_over_deleted_versions(storage: Location) -> None:
    registry = Registry(storage)
    for _ in range(3):
        publish(storage, "production")
    registry.delete("digits", 2)
    assert registry.roll_back_alias("digits", "production") == 1
    with pytest.raises(ModelError, match="no version before 1 in its history"):
        registry.roll_back_alias("digits", "production")


def test_a_deleted_version_leaves_its_claim_and_its_number_is_not_given_again(storage: Location) -> None:
    registry = Registry(storage)
    publish(storage)
    location = publish(storage).location
    registry.delete("digits", 2)
    assert sorted(path for path, _ in location.walk()) == ["claim.json", "deleted.json"]
    assert registry.versions("digits") == [1]
    with pytest.raises(ModelError, match="digits has no version 2; its versions: 1"):
        registry.delete("digits", 2)
    assert publish(storage).version == 3


def test_a_version_that_an_alias_names_is_not_deleted(storage: Location) -> None:
    registry = Registry(storage)
    version = publish(storage, "production")
    registry.set_alias("digits", "live", 1)
    with pytest.raises(ModelError, match="cannot be deleted, digits@live and digits@production name it"):
        registry.delete("digits", 1)
    assert version.read("model.safetensors")


def test_an_interrupted_deletion_leaves_no_visible_version(storage: Location, monkeypatch: pytest.MonkeyPatch) -> None:
    registry = Registry(storage)
    location = publish(storage).location

    def die(place: Location) -> None:
        if place.name != "model.json":
            raise KeyboardInterrupt
        delete(place)

    delete = Location.delete
    monkeypatch.setattr(Location, "delete", die)
    with pytest.raises(KeyboardInterrupt):
        registry.delete("digits", 1)
    assert (location / "model.safetensors").exists()
    assert registry.versions("digits") == []
    monkeypatch.setattr(Location, "delete", delete)
    registry.delete("digits", 1)  # the same call finishes it
    assert sorted(path for path, _ in location.walk()) == ["claim.json", "deleted.json"]


def test_an_alias_that_arrives_during_a_deletion_keeps_the_version(
    storage: Location, monkeypatch: pytest.MonkeyPatch
) -> None:
    registry = Registry(storage)
    version = publish(storage)
    found = iter([{}, {"production": 1}])
    monkeypatch.setattr(registry, "aliases", lambda name: next(found))
    with pytest.raises(ModelError, match="digits@production names it"):
        registry.delete("digits", 1)
    assert registry.resolve("digits@1") == version
    assert not (version.location / "deleted.json").exists()


def test_an_alias_is_not_left_on_a_version_that_is_deleted_at_the_same_time(
    storage: Location, monkeypatch: pytest.MonkeyPatch
) -> None:
    registry = Registry(storage)
    publish(storage, "production")
    publish(storage)
    swap = Location.swap

    def swap_after_deletion(place: Location, data: bytes, expected: str | None) -> None:
        monkeypatch.setattr(Location, "swap", swap)
        registry.delete("digits", 2)
        swap(place, data, expected)

    for alias in ("production", "new"):
        monkeypatch.setattr(Location, "swap", swap_after_deletion if alias == "production" else swap)
        with pytest.raises(ModelError, match=r"digits@2|was deleted at the same time"):
            registry.set_alias("digits", alias, 2)
    assert registry.aliases("digits") == {"production": 1}


def test_undoing_a_move_onto_a_deleted_version_keeps_a_later_move_of_another(
    storage: Location, monkeypatch: pytest.MonkeyPatch
) -> None:
    registry = Registry(storage)
    for _ in range(3):
        publish(storage)
    registry.set_alias("digits", "production", 1)
    swap = Location.swap

    def swap_then_lose(place: Location, data: bytes, expected: str | None) -> None:
        monkeypatch.setattr(Location, "swap", swap)
        swap(place, data, expected)
        registry.set_alias("digits", "production", 2)
        (storage / "models/digits/3/model.json").delete()

    monkeypatch.setattr(Location, "swap", swap_then_lose)
    with pytest.raises(ModelError, match="version 3 was deleted at the same time"):
        registry.set_alias("digits", "production", 3)
    assert registry.aliases("digits") == {"production": 2}


@pytest.mark.parametrize("content", ["{}", "no json", '{"history": []}', '{"history": [{"version": "abc"}]}'])
def test_a_damaged_alias_is_named_and_setting_it_again_repairs_it(storage: Location, content: str) -> None:
    registry = Registry(storage)
    publish(storage, "production")
    (storage / "models/digits/aliases/production.json").write(content.encode())
    with pytest.raises(ModelError, match="damaged; set the alias digits@production again"):
        registry.resolve("digits@production")
    registry.set_alias("digits", "production", 1)
    assert registry.aliases("digits") == {"production": 1}


def test_a_damaged_version_is_named_and_may_be_deleted(storage: Location) -> None:
    registry = Registry(storage)
    location = publish(storage).location
    (location / "model.json").write(b'{"format": "stoker-model"}')
    with pytest.raises(ModelError, match="damaged"):
        registry.resolve("digits@1")
    registry.delete("digits", 1)
    assert registry.versions("digits") == []


def test_an_alias_that_cannot_be_is_refused_before_anything_is_published(storage: Location) -> None:
    for alias in ("3", "a/b"):
        with pytest.raises(ModelError, match="alias"):
            publish(storage, alias)
    assert Registry(storage).versions("digits") == []


def test_a_failed_publication_leaves_nothing_and_takes_no_number(storage: Location) -> None:
    def refuse(*_: object) -> None:
        raise ModelError("predicts otherwise")

    with pytest.raises(ModelError, match="predicts otherwise"):
        publish_run(storage, "run", "digits", verify=refuse)
    assert list((storage / "models").walk()) == []
    assert publish(storage).reference == "digits@1"
