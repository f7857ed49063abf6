"""The registry at its edges, with versions of a few bytes: numbers, names, damage, and what is told of them."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest

from cards import CARD
from stoker.errors import ModelError, StorageError
from stoker.registry import ModelVersion, Registry, registry
from stoker.storage import Location, locate

SHA256_OF_ABC = "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad"


@pytest.fixture
def models(tmp_path: Path) -> Registry:
    return Registry(locate(tmp_path, timeout_s=0.3))


def publish(models: Registry, name: str = "digits", **files: bytes) -> ModelVersion:
    return models.publish(name, CARD, files or {"weights": b"abc"})


def change(published: ModelVersion, **fields: Any) -> None:
    where = published.location / "model.json"
    content = json.loads(where.read())
    where.write(json.dumps({k: v for k, v in (content | fields).items() if v is not ...}).encode())


# -- what is written ---------------------------------------------------------------------------------------------------


def test_a_versions_files_are_its_card_its_claim_and_its_own(models: Registry) -> None:
    version = publish(models, weights=b"abc", notes=b"")
    assert sorted(path for path, _ in version.location.walk()) == ["claim.json", "model.json", "notes", "weights"]
    content = json.loads((version.location / "model.json").read())
    files = content.pop("files")
    assert files["weights"] == {"bytes": 3, "sha256": SHA256_OF_ABC}
    assert files["notes"]["bytes"] == 0
    own = {"format": "stoker-model", "version": [1, 1], "name": "digits", "number": 1}
    assert content == own | CARD.model_dump(mode="json")
    claim = json.loads((version.location / "claim.json").read())
    assert claim.keys() == {"publisher", "at"}
    assert re.fullmatch("[0-9a-f]{32}", claim["publisher"])
    assert re.fullmatch(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\+00:00", claim["at"])


def test_what_was_published_is_what_is_found(models: Registry) -> None:
    version = publish(models)
    found = models.resolve("digits@1")
    assert found == version
    assert (found.reference, found.classes, found.card) == ("digits@1", ("a", "b"), CARD)
    assert found.read("weights") == b"abc"


def test_the_next_number_is_above_all_that_were_taken(models: Registry) -> None:
    for number in (2, 10, 9):
        (models.location / "digits" / str(number) / "claim.json").write(b"{}")
    (models.location / "digits" / "x12" / "claim.json").write(b"{}")
    assert publish(models).version == 11
    assert models.versions("digits") == [11]


def test_a_number_that_another_takes_at_the_same_time_is_passed_over(
    models: Registry, monkeypatch: pytest.MonkeyPatch
) -> None:
    (models.location / "digits" / "1" / "claim.json").write(b"{}")
    (models.location / "digits" / "2" / "claim.json").write(b"{}")
    children = Location.children
    monkeypatch.setattr(Location, "children", lambda place: [c for c in children(place) if c not in "12"])
    assert publish(models).version == 3


def test_versions_are_told_as_numbers_in_their_order(models: Registry) -> None:
    for _ in range(11):
        publish(models)
    assert models.versions("digits") == list(range(1, 12))
    assert models.resolve("digits").version == 11
    with pytest.raises(ModelError, match=r"digits has no version 12; its versions: 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11$"):
        models.resolve("digits@12")


def test_models_are_those_with_a_version_and_a_valid_name(models: Registry) -> None:
    for name in ("zeros", "digits"):
        publish(models, name)
    (models.location / "claimed" / "1" / "claim.json").write(b"{}")
    (models.location / "-odd" / "1" / "model.json").write(b"{}")
    assert models.models() == ["digits", "zeros"]


# -- what is told ------------------------------------------------------------------------------------------------------


def test_an_unknown_model_is_told_the_known_ones_or_the_nearest(models: Registry) -> None:
    with pytest.raises(ModelError, match=r"model 'digits': unknown model 'digits' in .*; known models: none yet$"):
        models.resolve("digits")
    for name in ("digits", "letters"):
        publish(models, name)
    with pytest.raises(ModelError, match=r"unknown model 'birds' in .*; known models: digits, letters$"):
        models.resolve("birds@3")
    with pytest.raises(ModelError, match=r"unknown model 'digitz' in .*; did you mean digits\?$"):
        models.resolve("digitz@live")


def test_an_unknown_alias_is_told_the_known_ones(models: Registry) -> None:
    publish(models)
    with pytest.raises(ModelError, match=r"digits has no alias 'live'; its aliases: none yet$"):
        models.resolve("digits@live")
    for alias in ("one", "two"):
        models.set_alias("digits", alias, 1)
    with pytest.raises(ModelError, match=r"digits has no alias 'live'; its aliases: digits@one, digits@two$"):
        models.resolve("digits@live")


def test_an_unknown_file_is_told_the_known_ones(models: Registry) -> None:
    version = publish(models, b=b"2", a=b"1")
    with pytest.raises(ModelError, match=r"digits@1 has no file 'c'; its files: a, b$"):
        version.read("c")
    (version.location / "a").delete()
    with pytest.raises(ModelError, match="a: missing, although digits@1 names it; publish the run again"):
        version.read("a")


@pytest.mark.parametrize("content", [b"abd", b"ab", b"abcd", b""])
def test_a_file_that_changed_is_refused(models: Registry, content: bytes) -> None:
    version = publish(models)
    (version.location / "weights").write(content)
    line = rf"weights.*\({len(content)} bytes were read that are not what digits@1 was published with"
    with pytest.raises(StorageError, match=line):
        version.read("weights")


@pytest.mark.parametrize("name", ["", "a/b", "-a", ".a", "a b", "é", "a" * 101, "a@b", "a\n"])
def test_names_that_cannot_be_are_refused_for_what_they_are(models: Registry, name: str) -> None:
    for what, call in (
        ("model", lambda: models.versions(name)),
        ("model", lambda: models.aliases(name)),
        ("model", lambda: models.delete(name, 1)),
        ("model", lambda: models.check_alias_name(name, "live")),
        ("alias", lambda: models.check_alias_name("digits", name)),
        ("model", lambda: publish(models, name)),
    ):
        with pytest.raises(ModelError, match=rf"^{what} name {re.escape(repr(name))} is not valid; use letters"):
            call()
    assert not list(models.location.walk())


@pytest.mark.parametrize("name", ["a", "9a", "A.b_c-d", "a" * 100])
def test_names_of_letters_digits_and_a_few_marks_are_taken(models: Registry, name: str) -> None:
    assert publish(models, name).reference == f"{name}@1"
    models.set_alias(name, f"x{name}"[:100], 1)


def test_a_reference_without_what_is_after_its_at_is_refused(models: Registry) -> None:
    publish(models)
    with pytest.raises(ModelError, match="model reference 'digits@': expected a version or an alias after @"):
        models.resolve("digits@")
    for number in ("²", "\u0663"):  # digits elsewhere
        with pytest.raises(ModelError, match="alias name"):
            models.resolve(f"digits@{number}")


# -- damage ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("content", [b"[]", b"3", b"{}", b'{"format": "another"}', b'"stoker-model"', b"null"])
def test_what_is_no_card_is_no_model(models: Registry, content: bytes) -> None:
    (publish(models).location / "model.json").write(content)
    with pytest.raises(ModelError, match=r"model\.json: not a stoker model; check the storage URL"):
        models.resolve("digits@1")


def test_a_card_that_is_no_json_is_damaged(models: Registry) -> None:
    (publish(models).location / "model.json").write(b"{")
    with pytest.raises(ModelError, match=r"model\.json: damaged, not valid JSON; publish the run again"):
        models.resolve("digits@1")


@pytest.mark.parametrize(
    "fields",
    [{"version": ...}, {"version": []}, {"version": None}, {"version": ["1"]}, {"files": ...}, {"files": []},
     {"files": {"a": 3}}, {"classes": ...}, {"classes": 3}],
)  # fmt: skip
def test_a_card_without_its_parts_is_damaged(models: Registry, fields: dict[str, Any]) -> None:
    change(publish(models), **fields)
    with pytest.raises(ModelError, match=r"model\.json: damaged \(\w+\); publish the run again"):
        models.resolve("digits@1")


def test_a_minor_version_and_fields_of_tomorrow_are_read_and_a_major_one_is_not(models: Registry) -> None:
    version = publish(models)
    change(version, version=[1, 7], tomorrow={"a": 1})
    assert models.resolve("digits@1").card == CARD.model_copy(update={"tomorrow": {"a": 1}})
    change(version, version=[3, 0])
    with pytest.raises(ModelError, match=r"format version \[3, 0\] is newer than this stoker reads; upgrade stoker"):
        models.resolve("digits@1")
    with pytest.raises(ValueError, match="frozen"):
        CARD.run = "other"


# -- deletions and what a failed publication leaves --------------------------------------------------------------------


def test_a_version_that_one_alias_names_is_not_deleted(models: Registry) -> None:
    publish(models)
    models.set_alias("digits", "live", 1)
    with pytest.raises(ModelError, match="digits@1: cannot be deleted, digits@live names it; move the alias"):
        models.delete("digits", 1)
    publish(models)
    models.set_alias("digits", "live", 2)
    models.delete("digits", 1)
    assert models.versions("digits") == [2]
    mark = json.loads((models.location / "digits/1/deleted.json").read())
    assert re.fullmatch(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\+00:00", mark["at"])


def test_a_claim_without_a_version_is_not_deleted(models: Registry) -> None:
    publish(models)
    (models.location / "digits/2/claim.json").write(b"{}")
    (models.location / "digits/2/weights").write(b"abc")
    with pytest.raises(ModelError, match="digits has no version 2; its versions: 1"):
        models.delete("digits", 2)
    assert (models.location / "digits/2/weights").exists()


def test_a_failed_publication_ends_its_uploads_and_gives_its_number_back(
    models: Registry, monkeypatch: pytest.MonkeyPatch
) -> None:
    ended: list[str] = []
    monkeypatch.setattr(registry, "abandon_uploads", lambda place: ended.append(place.url))

    def refuse(staged: ModelVersion) -> None:
        assert (staged.location / "weights").read() == b"abc"
        raise ModelError("it predicts otherwise")

    with pytest.raises(ModelError, match="it predicts otherwise"):
        models.publish("digits", CARD, {"weights": b"abc"}, verify=refuse)
    assert ended == [(models.location / "digits" / "1").url]
    assert not Path(models.location.path, "digits", "1").exists()
    assert publish(models).version == 1


@pytest.mark.parametrize("digits", ["9" * 5_000, "0" * 4_999 + "1", "1" + "0" * 18])
def test_a_reference_with_too_many_digits_is_one_line(models: Registry, digits: str) -> None:
    publish(models)
    with pytest.raises(
        ModelError, match=rf"^digits@{digits[:18]}…: .* at most 18 digits, not {len(digits)}; "
    ) as error:
        models.resolve(f"digits@{digits}")
    assert len(str(error.value)) < 200
    assert "\n" not in str(error.value)
    with pytest.raises(ModelError, match=r"its versions: 1$"):
        models.resolve(f"digits@{'9' * 18}")
