"""stoker models: what a person and a program read, and what it changes."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from published import finished_run
from stoker.cli import main
from stoker.predict import check_parity
from stoker.registry import Registry, publish_run
from stoker.storage import locate


@pytest.fixture
def storage(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    """Three versions of digits; production was moved from 1 to 2 and to 3."""
    location = finished_run(tmp_path)
    for _ in range(3):
        publish_run(location, "run", "digits", verify=check_parity, alias="production")
    monkeypatch.setenv("STOKER_STORAGE", location.url)
    return location.url


def printed(capsys: pytest.CaptureFixture[str], *arguments: str) -> Any:
    main(["models", *arguments, "--json"])
    return json.loads(capsys.readouterr().out)


def refused(capsys: pytest.CaptureFixture[str], *arguments: str) -> str:
    with pytest.raises(SystemExit) as stopped:
        main(["models", *arguments])
    assert stopped.value.code == 2
    (line,) = capsys.readouterr().err.splitlines()
    return line.removeprefix("error: ")


def test_models_are_listed_with_versions_aliases_and_history(storage: str, capsys: pytest.CaptureFixture[str]) -> None:
    (model,) = printed(capsys)
    assert model["model"] == "digits"
    assert [row["version"] for row in model["versions"]] == [1, 2, 3]
    assert model["versions"][0]["accuracy"] == Registry(locate(storage)).resolve("digits@1").card.metrics.accuracy
    production = model["aliases"]["production"]
    assert (production["version"], [move["version"] for move in production["history"]]) == (3, [1, 2, 3])
    main(["models"])
    lines = capsys.readouterr().out.splitlines()
    assert lines[0] == "digits"
    assert [line.endswith("<- production") for line in lines[1:4]] == [False, False, True]
    assert lines[4].startswith("  production -> 3  history: 1 (")
    assert printed(capsys, "list", "digits") == [model]


def test_an_alias_is_moved_and_rolled_back(storage: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert printed(capsys, "rollback", "digits", "production") == {
        "model": "digits",
        "alias": "production",
        "version": 2,
    }
    printed(capsys, "alias", "digits@1", "staging")
    assert Registry(locate(storage)).aliases("digits") == {"production": 2, "staging": 1}


def test_a_version_without_alias_is_deleted(storage: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert printed(capsys, "delete", "digits@2") == {"deleted": "digits@2"}
    assert Registry(locate(storage)).versions("digits") == [1, 3]
    assert refused(capsys, "delete", "digits@3") == (
        "digits@3: cannot be deleted, digits@production names it; move the alias to another version first"
    )
    assert refused(capsys, "delete", "digits@production").startswith("'digits@production' does not name a version; ")


def test_a_storage_that_is_not_given_or_empty_is_explained(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.delenv("STOKER_STORAGE", raising=False)
    assert refused(capsys) == "no storage given for models; give --storage s3://bucket or set STOKER_STORAGE"
    main(["models", "--storage", str(tmp_path)])
    assert capsys.readouterr().out.startswith("no models in ")
    assert "unknown model 'digits'" in refused(capsys, "list", "digits", "--storage", str(tmp_path))
