"""stoker keys: what a person and a program read, and what an endpoint then accepts."""

from __future__ import annotations

import json
import time
from pathlib import Path

import pytest

from stoker.cli import main
from stoker.embedded import StateFolder
from stoker_serve.keys import KeyRefusal, Keys


@pytest.fixture
def file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("STOKER_API_KEY_FILE", str(tmp_path / "keys"))
    return tmp_path / "keys"


def printed(capsys: pytest.CaptureFixture[str], *arguments: str) -> str:
    main(["keys", *arguments])
    return capsys.readouterr().out


def refused(capsys: pytest.CaptureFixture[str], *arguments: str) -> str:
    with pytest.raises(SystemExit) as stopped:
        main(["keys", *arguments])
    assert stopped.value.code == 2
    captured = capsys.readouterr()
    assert captured.out == ""
    (line,) = captured.err.splitlines()
    return line.removeprefix("error: ")


def checked(file: Path, key: str, model: str | None = "digits", now: float | None = None) -> str | int:
    answer = Keys.load({"STOKER_API_KEY_FILE": str(file)}).check(f"Bearer {key}".encode(), model, now)
    return answer.status if isinstance(answer, KeyRefusal) else answer


def test_a_key_is_printed_alone_once_and_passes(file: Path, capsys: pytest.CaptureFixture[str]) -> None:
    key, end, rest = printed(capsys, "add", "camera-7").partition("\n")
    assert (end, rest) == ("\n", "")
    assert checked(file, key) == "camera-7"
    assert key not in file.read_text()
    assert key not in printed(capsys, "list") + printed(capsys, "list", "--json")


def test_options_of_a_key_hold_and_are_listed(file: Path, capsys: pytest.CaptureFixture[str]) -> None:
    printed(capsys, "add", "all")
    made = json.loads(
        printed(capsys, "add", "lab", "--models", "digits,letters", "--expires", "30d", "--rate", "0.5", "--json")
    )
    assert checked(file, made["key"]) == "lab"
    assert checked(file, made["key"], "photos") == 403
    assert checked(file, made["key"], now=time.time() + 29 * 86_400) == "lab"
    assert checked(file, made["key"], now=time.time() + 31 * 86_400) == 401
    rows = json.loads(printed(capsys, "--json"))
    assert rows[0] == {"name": "all", "models": None, "expires": None, "rate": None}
    assert rows[1] == {name: value for name, value in made.items() if name != "key"}
    assert (rows[1]["models"], rows[1]["rate"]) == (["digits", "letters"], 0.5)
    lines = printed(capsys).splitlines()
    assert lines[0] == "all  all models"
    assert lines[1] == f"lab  models digits, letters; expires {rows[1]['expires']}; 0.5 requests a second"


def test_a_key_until_a_day_ends_as_it_begins(file: Path, capsys: pytest.CaptureFixture[str]) -> None:
    key = printed(capsys, "add", "a", "--expires", "2999-01-02").strip()
    assert "expires 2999-01-02T00:00:00Z" in printed(capsys)
    assert [checked(file, key, now=32_472_230_400.0 + shift) for shift in (-1, 0)] == ["a", 401]


def test_a_revoked_key_is_refused_and_its_name_free_again(file: Path, capsys: pytest.CaptureFixture[str]) -> None:
    printed(capsys, "add", "stays")
    key = printed(capsys, "add", "a").strip()
    assert printed(capsys, "revoke", "a").startswith("revoked a;")
    assert checked(file, key) == 401
    assert checked(file, printed(capsys, "add", "a").strip()) == "a"
    assert json.loads(printed(capsys, "revoke", "a", "--json")) == {"revoked": "a"}
    assert [row["name"] for row in json.loads(printed(capsys, "list", "--json"))] == ["stays"]


@pytest.mark.parametrize(
    ("arguments", "line"),
    [
        (("add", "a", "--expires", "2001-01-01"), "stoker keys add: --expires 2001-01-01T00:00:00Z has passed"),
        (("add", "a", "--expires", "soon"), "stoker keys add: argument --expires: expires is no day or time"),
        (("add", "a", "--expires", "0d"), "stoker keys add: --expires "),
        (("add", "a", "--rate", "-1"), "stoker keys add: argument --rate: rate is no number from 0.001 to 1e6"),
        (("add", "a", "--rate", "1e-320"), "stoker keys add: argument --rate: rate is no number from 0.001 to 1e6"),
        (("add", "a", "--expires", "9999-12-31T23:59-12:00"), "argument --expires: expires is not in the years 1970"),
        (("add", "a", "--models", "digits,"), "stoker keys add: argument --models: models is not names"),
        (("add", "a", "--models", "digits@3"), "stoker keys add: argument --models: models is not names"),
        (("add", "a b"), "stoker keys add: argument NAME: the name is not 1 to 64 of"),
        (("add", "#a"), "stoker keys add: argument NAME: the name is not 1 to 64 of"),
        (("revoke", "a"), "keys has no key named a; it has: none"),
    ],
)
def test_what_cannot_be_done_is_one_line_and_changes_nothing(
    file: Path, capsys: pytest.CaptureFixture[str], arguments: tuple[str, ...], line: str
) -> None:
    assert line in refused(capsys, *arguments)
    assert not file.exists()


def test_the_file_is_the_options_then_the_environments_then_the_instances(
    file: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    printed(capsys, "add", "by-option", "--file", "other")
    printed(capsys, "--file", "other", "add", "before-the-action")
    assert not file.exists()
    printed(capsys, "add", "by-environment")
    monkeypatch.delenv("STOKER_API_KEY_FILE")
    assert "give --file" in refused(capsys, "add", "a")
    folder = StateFolder(Path(".stoker"))
    folder.prepare()
    printed(capsys, "add", "of-the-instance")
    assert checked(folder.api_key_file(), folder.api_key()) == "stoker"
    names = {row["name"] for row in json.loads(printed(capsys, "list", "--json"))}
    assert names == {"of-the-instance", "stoker"}
    assert {row["name"] for row in json.loads(printed(capsys, "--file", "other", "--json"))} == {
        "by-option",
        "before-the-action",
    }
