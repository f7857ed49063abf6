"""What can be refused is refused before anything is published, and what was published is told."""

from __future__ import annotations

from pathlib import Path

import pytest

from cards import CARD
from conftest import Store
from published import finished_run
from stoker.cli import main
from stoker.errors import ModelError, StorageError
from stoker.registry import ModelVersion, Registry
from stoker.registry.alias import AliasFile
from stoker.storage import Location, locate


@pytest.fixture
def models(tmp_path: Path) -> Registry:
    return Registry(locate(tmp_path, timeout_s=0.3))


@pytest.mark.parametrize("alias", ["bad/name", "../up", "", "7", ".", "a" * 101])
def test_an_alias_that_cannot_be_leaves_no_version_behind(models: Registry, alias: str) -> None:
    with pytest.raises(ModelError, match="alias"):
        models.publish("digits", CARD, {"weights": b"abc"}, alias=alias)
    assert not list(models.location.walk())


def test_the_command_with_an_alias_that_cannot_be_publishes_nothing(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    storage = finished_run(tmp_path)
    with pytest.raises(SystemExit):
        main(["publish", "run", "digits", "--alias", "bad/name", "--storage", storage.url])
    assert capsys.readouterr().err.startswith("error: alias name 'bad/name' is not valid; use letters")
    assert not list((storage / "models").walk())


def test_an_alias_points_at_what_was_published_with_it(models: Registry) -> None:
    for _ in range(2):
        version = models.publish("digits", CARD, {"weights": b"abc"}, alias="live")
    assert models.resolve("digits@live") == version
    assert [move["version"] for move in models.alias_history("digits", "live")] == [1, 2]


def test_a_version_whose_alias_could_not_be_moved_is_told_with_the_command_that_moves_it(
    models: Registry, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_: object) -> None:
        raise StorageError("the store is gone", url="s3://bucket")

    monkeypatch.setattr(AliasFile, "move", fail)
    with pytest.raises(ModelError) as caught:
        models.publish("digits", CARD, {"weights": b"abc"}, alias="live")
    assert str(caught.value) == (
        "digits@1 is published, but digits@live was not moved (the store is gone); repeat that alone: "
        "stoker models alias digits@1 live"
    )
    assert models.versions("digits") == [1]


def refuse(staged: ModelVersion) -> None:
    assert (staged.location / "weights").exists()
    raise ModelError("predicts otherwise")


@pytest.mark.store
def test_a_refused_gate_leaves_nothing_in_the_store(store: Store) -> None:
    storage: Location = locate(store.fresh("gate"))
    with pytest.raises(ModelError, match="predicts otherwise"):
        Registry(storage).publish("digits", CARD, {"weights": b"abc"}, verify=refuse, alias="live")
    bucket, prefix, _ = storage.filesystem.split_path(storage.path)
    assert storage.filesystem.call_s3("list_objects_v2", Bucket=bucket, Prefix=f"{prefix}/")["KeyCount"] == 0
