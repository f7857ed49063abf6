"""Models are listed by one request, however many versions there are, and cards are read only when asked for."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any
from urllib.parse import parse_qs, unquote, urlsplit

import pytest

from cards import CARD
from conftest import Store
from stoker.cli import main
from stoker.registry import Registry
from stoker.registry.listing import Contents
from stoker.storage import Location, locate

pytestmark = pytest.mark.store


@pytest.fixture(scope="module")
def storage(store: Store) -> Location:
    """Two models with three versions each, and an alias; a claim, a deletion and files that are no versions."""
    place = locate(store.fresh("listing"))
    registry = Registry(place)
    for name in ("letters", "digits"):
        for _ in range(3):
            registry.publish(name, CARD, {"weights": b"abc", "exports/model.json": b"{}"})
    registry.set_alias("digits", "live", 2)
    registry.delete("digits", 1)
    (registry.location / "digits/7/claim.json").write(b"{}")
    (registry.location / "digits/notes/model.json").write(b"{}")
    (registry.location / "digits/aliases/old/live.json").write(b"{}")
    (registry.location / "claimed/1/claim.json").write(b"{}")
    return place


@contextmanager
def requests(storage: Location) -> Iterator[list[tuple[str, str]]]:
    """The requests to the store inside the block: (LIST, prefix) or (method, key); HEAD, with which s3fs begins a
    read, is left out."""
    made: list[tuple[str, str]] = []

    def note(request: Any, **_: object) -> None:
        parts = urlsplit(request.url)
        prefix = parse_qs(parts.query).get("prefix")
        if request.method != "HEAD":
            made.append(("LIST", prefix[0]) if prefix else (request.method, unquote(parts.path)))

    events = storage.filesystem.s3.meta.events
    events.register("before-send.s3", note, unique_id="test-listing")
    try:
        yield made
    finally:
        events.unregister("before-send.s3", note, unique_id="test-listing")


def test_contents_are_numbers_in_their_order_and_aliases(storage: Location) -> None:
    assert Registry(storage).contents() == {
        "digits": Contents((2, 3), ("live",)),
        "letters": Contents((1, 2, 3), ()),
    }


def test_models_and_versions_are_one_listing_request_and_no_card_is_read(storage: Location) -> None:
    registry, prefix = Registry(storage), f"{storage.path.partition('/')[2]}/models/"
    with requests(storage) as made:
        assert registry.models() == ["digits", "letters"]
    assert made == [("LIST", prefix)]
    with requests(storage) as made:
        assert registry.versions("digits") == [2, 3]
    assert made == [("LIST", f"{prefix}digits/")]


def test_a_version_by_number_or_alias_lists_nothing(storage: Location) -> None:
    registry = Registry(storage)
    with requests(storage) as made:
        registry.resolve("digits@3")
        registry.resolve("digits@live")
    assert [(method, path.rpartition("/models/")[2]) for method, path in made] == [
        ("GET", "digits/3/model.json"),
        ("GET", "digits/aliases/live.json"),
        ("GET", "digits/2/model.json"),
    ]


def test_the_command_lists_once_and_reads_each_card_and_alias_once(
    storage: Location, capsys: pytest.CaptureFixture[str]
) -> None:
    with requests(storage) as made:
        main(["models", "--storage", storage.url])
    listed = [path for method, path in made if method == "LIST"]
    read = sorted(path.rpartition("/models/")[2] for method, path in made if method != "LIST")
    assert len(listed) == 1
    assert read == sorted([
        "digits/2/model.json", "digits/3/model.json", "digits/aliases/live.json", "letters/1/model.json",
        "letters/2/model.json", "letters/3/model.json",
    ])  # fmt: skip
    assert "live -> 2" in capsys.readouterr().out


def test_a_damaged_alias_is_a_line_of_the_list_and_hides_no_other(
    store: Store, capsys: pytest.CaptureFixture[str]
) -> None:
    place = locate(store.fresh("damaged"))
    registry = Registry(place)
    registry.publish("digits", CARD, {"weights": b"abc"}, alias="live")
    registry.set_alias("digits", "odd", 1)
    (registry.location / "digits/aliases/odd.json").write(b"no json")
    main(["models", "--storage", place.url])
    lines = capsys.readouterr().out.splitlines()
    assert any(line.startswith("  live -> 1  history: 1 (") for line in lines)
    (odd,) = [line for line in lines if line.startswith("  odd -> unreadable: ")]
    assert odd.endswith("damaged; set the alias digits@odd again: stoker models alias digits@VERSION odd")
