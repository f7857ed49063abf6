"""An alias's file: what is written, who else may move it, and what damage is named."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from pathlib import Path

import pytest

from stoker.errors import ModelError
from stoker.registry.alias import AliasFile, now
from stoker.storage import Conflict, Location, locate

TOLD = re.compile(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\+00:00")


@pytest.fixture
def place(tmp_path: Path) -> Location:
    return locate(tmp_path / "models/digits/aliases/live.json", timeout_s=0.3)


@pytest.fixture
def alias(place: Location) -> AliasFile:
    return AliasFile(place, "digits@live")


def exists() -> bool:
    return True


def is_deleted() -> bool:
    return False


def moved(alias: AliasFile) -> list[tuple[int, bool]]:
    return [(move["version"], move.get("is_rollback", False)) for move in alias.history()]


def test_the_file_holds_the_version_and_every_move_with_its_time(place: Location, alias: AliasFile) -> None:
    for version in (1, 4):
        alias.move(version, exists)
    assert alias.roll_back({1, 4}) == 1
    content = json.loads(place.read())
    assert content.keys() == {"version", "history"}
    assert content["version"] == 1
    times = [move.pop("moved") for move in content["history"]]
    assert content["history"] == [{"version": 1}, {"version": 4}, {"version": 1, "is_rollback": True}]
    assert all(TOLD.fullmatch(time) for time in [*times, now()])


def test_an_alias_that_does_not_exist_has_no_history(alias: AliasFile) -> None:
    assert alias.history() == []


def test_versions_that_were_written_as_texts_are_numbers(place: Location, alias: AliasFile) -> None:
    place.write(b'{"version": "2", "history": [{"version": "2", "moved": "then", "by": "hand"}]}')
    assert alias.history() == [{"version": 2, "moved": "then", "by": "hand"}]


@pytest.mark.parametrize(
    "history",
    [
        '[{"version": 1, "moved": "then"}, {"version": 2, "moved": 5}]',
        '[{"version": 1}]',
        "[]",
        "{}",
        '[{"version": null, "moved": "then"}]',
        '[{"version": 1e999, "moved": "then"}]',
        '[{"version": 1.5, "moved": "then"}]',
        '[{"version": true, "moved": "then"}]',
        '[{"version": 0, "moved": "then"}]',
        '[{"version": "-1", "moved": "then"}]',
        "[3]",
    ],
)
def test_damage_is_named_where_it_is_read_or_rolled_back_and_left_as_it_is(
    place: Location, alias: AliasFile, history: str
) -> None:
    place.write(b'{"version": 1, "history": %s}' % history.encode())
    before = place.read()
    again = r"set the alias digits@live again: stoker models alias digits@VERSION live"
    with pytest.raises(ModelError, match=rf"live\.json: damaged; {again}$"):
        alias.history()
    with pytest.raises(ModelError, match="damaged"):
        alias.roll_back({1, 2})
    assert place.read() == before
    alias.move(2, exists)
    assert moved(alias) == [(2, False)]


def test_a_new_alias_of_a_version_that_is_deleted_meanwhile_is_gone(place: Location, alias: AliasFile) -> None:
    with pytest.raises(ModelError, match="alias digits@live: version 5 was deleted at the same time"):
        alias.move(5, is_deleted)
    assert not place.exists()


def test_an_alias_that_moves_to_a_version_that_is_deleted_meanwhile_stays_byte_for_byte(
    place: Location, alias: AliasFile
) -> None:
    alias.move(1, exists)
    before = place.read()
    with pytest.raises(ModelError, match="version 5 was deleted"):
        alias.move(5, is_deleted)
    assert place.read() == before


def test_rollbacks_lead_back_and_pass_over_what_is_deleted(alias: AliasFile) -> None:
    for version in (1, 2, 2, 3, 4):
        alias.move(version, exists)
    assert alias.roll_back({1, 2, 4}) == 2
    assert alias.roll_back({1, 2, 4}) == 1
    with pytest.raises(ModelError, match="alias digits@live: no version before 1 in its history; set it instead"):
        alias.roll_back({1, 2, 4})
    alias.move(4, exists)
    assert alias.roll_back({1, 2, 4}) == 1
    assert moved(alias)[5:] == [(2, True), (1, True), (4, False), (1, True)]


def test_a_rollback_that_names_a_version_that_is_not_in_the_history_is_a_move(
    place: Location, alias: AliasFile
) -> None:
    rows = [{"version": v, "moved": "then", **rolled} for v, rolled in ((1, {}), (7, {"is_rollback": True}))]
    place.write(json.dumps({"version": 7, "history": rows}).encode())
    assert alias.roll_back({1, 7}) == 1


def conflicting(monkeypatch: pytest.MonkeyPatch, times: int, before: Callable[[], object] = exists) -> list[int]:
    """Let the first ``times`` swaps find that ``before`` came first; returns a list that counts all of them."""
    swap, asked = Location.swap, [0]

    def swapped(place: Location, data: bytes, expected: str | None) -> None:
        asked[0] += 1
        if asked[0] <= times:
            before()
            raise Conflict("it is not what it was", url=place.url)
        swap(place, data, expected)

    monkeypatch.setattr(Location, "swap", swapped)
    return asked


def test_a_move_that_others_come_before_is_made_after_theirs(
    place: Location, alias: AliasFile, monkeypatch: pytest.MonkeyPatch
) -> None:
    alias.move(1, exists)
    theirs = {"version": 8, "history": [*alias.history(), {"version": 8, "moved": "then"}]}
    asked = conflicting(monkeypatch, 19, lambda: place.write(json.dumps(theirs).encode()))
    alias.move(2, exists)
    assert moved(alias) == [(1, False), (8, False), (2, False)]
    assert asked == [20]


def test_a_move_gives_up_after_twenty_others(alias: AliasFile, monkeypatch: pytest.MonkeyPatch) -> None:
    asked = conflicting(monkeypatch, 1000)
    with pytest.raises(ModelError, match="alias digits@live: others keep moving it; try again"):
        alias.move(2, exists)
    assert asked == [20]


@pytest.mark.parametrize("content", [b"", b"\xff", b"[]", b"7", b"[" * 100_000, b'{"history": {"version": 1}}'])
def test_what_is_no_alias_is_replaced_and_the_log_says_that_its_history_starts_anew(
    place: Location, alias: AliasFile, content: bytes, caplog: pytest.LogCaptureFixture
) -> None:
    place.write(content)
    with pytest.raises(ModelError, match="damaged; set the alias digits@live again: "):
        alias.history()
    alias.move(2, exists)
    assert moved(alias) == [(2, False)]
    (line,) = caplog.messages
    assert line == f"{place} was damaged and is replaced: the history of digits@live starts anew with version 2"
    alias.move(3, exists)
    assert moved(alias) == [(2, False), (3, False)]
    assert caplog.messages == [line]


def test_a_damaged_alias_that_another_sets_at_the_same_time_keeps_that_move(
    place: Location, alias: AliasFile, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    place.write(b"no json")
    swap = Location.swap

    def swap_after_another(target: Location, data: bytes, expected: str | None) -> None:
        monkeypatch.setattr(Location, "swap", swap)
        AliasFile(place, "digits@live").move(1, exists)
        swap(target, data, expected)

    monkeypatch.setattr(Location, "swap", swap_after_another)
    alias.move(2, exists)
    assert moved(alias) == [(1, False), (2, False)]
    assert len(caplog.messages) == 1  # of the one that replaced it
