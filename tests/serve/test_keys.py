"""API keys: who may pass, what is said to whom may not, and how soon a change of the file counts."""

from __future__ import annotations

import asyncio
import inspect
import logging
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from conftest import Store
from stoker.api_keys import Key, add_key, hash_of, line_of, revoke_key
from stoker.errors import StokerError
from stoker.storage import locate
from stoker_serve.keys import _WATCH_TIMEOUT_S, KeyRefusal, Keys

A, B = "stoker_" + "a" * 43, "stoker_" + "b" * 43
NOW = 1_800_000_000.0


def bearer(key: str) -> bytes:
    return f"Bearer {key}".encode()


def keys_of(path: Path, *keys: Key) -> Keys:
    path.write_text("".join(f"{line_of(key)}\n" for key in keys))
    return Keys.load({"STOKER_API_KEY_FILE": str(path)})


def refused(answer: KeyRefusal | str) -> KeyRefusal:
    assert isinstance(answer, KeyRefusal), answer
    return answer


def wait_for(condition: Callable[[], bool], timeout_s: float = 60.0) -> None:
    deadline = time.monotonic() + timeout_s
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.01)


@contextmanager
def watched(keys: Keys, every_s: float = 0.01) -> Iterator[Keys]:
    keys.watch(every_s)
    try:
        yield keys
    finally:
        keys.close()


def test_a_key_passes_by_its_name_whatever_the_case_of_the_scheme(tmp_path: Path) -> None:
    keys = keys_of(tmp_path / "keys", Key("camera-7", hash_of(A)), Key("lab", hash_of(B)))
    for scheme in ("Bearer", "bearer", "BEARER"):
        assert keys.check(f"{scheme} {A}".encode(), "digits") == "camera-7"
    assert keys.check(bearer(B), None) == "lab"


@pytest.mark.parametrize("header", [None, b"", b"Bearer", b"Bearer ", b"Basic dXNlcjpwYXNz", A.encode()])
def test_a_request_without_a_key_is_challenged_without_an_error(tmp_path: Path, header: bytes | None) -> None:
    """RFC 6750, section 3.1: no error code where the request had no authentication."""
    refusal = refused(keys_of(tmp_path / "keys", Key("a", hash_of(A))).check(header, "digits"))
    assert (refusal.status, refusal.code) == (401, "unauthorized")
    assert refusal.headers == {"WWW-Authenticate": 'Bearer realm="stoker"'}
    assert A not in refusal.detail


@pytest.mark.parametrize("given", [B, A[:-1], f"{A}x", f"{A} {A}", "sha256:" + hash_of(A).hex(), hash_of(A).hex(), "é"])
def test_an_unknown_key_is_an_invalid_token_and_is_not_repeated(tmp_path: Path, given: str) -> None:
    refusal = refused(keys_of(tmp_path / "keys", Key("a", hash_of(A))).check(bearer(given), "digits"))
    assert refusal.status == 401
    assert refusal.headers["WWW-Authenticate"].startswith("Bearer ")
    assert 'error="invalid_token"' in refusal.headers["WWW-Authenticate"]
    assert given not in repr(refusal)


def test_a_key_is_refused_from_the_moment_on_at_which_it_expires(tmp_path: Path) -> None:
    keys = keys_of(tmp_path / "keys", Key("a", hash_of(A), expires=NOW))
    assert keys.check(bearer(A), "digits", NOW - 0.001) == "a"
    refusal = refused(keys.check(bearer(A), "digits", NOW))
    assert refusal.status == 401
    assert 'error="invalid_token"' in refusal.headers["WWW-Authenticate"]
    assert "a expired at 2027-01-15 08:00 UTC" in refusal.detail
    assert isinstance(keys_of(tmp_path / "old", Key("a", hash_of(A), expires=1.0)).check(bearer(A), None), KeyRefusal)


def test_a_key_opens_its_models_only_by_any_reference_to_them(tmp_path: Path) -> None:
    keys = keys_of(tmp_path / "keys", Key("a", hash_of(A), models=frozenset({"letters", "digits"})))
    for model in ("digits", "digits@3", "letters@production", None):
        assert keys.check(bearer(A), model) == "a"
    for model in ("digit", "digits2", "photos@digits", "@digits", ""):
        refusal = refused(keys.check(bearer(A), model))
        assert (refusal.status, refusal.code) == (403, "forbidden")
        assert "it is for digits, letters" in refusal.detail
        assert 'error="insufficient_scope"' in refusal.headers["WWW-Authenticate"]
    assert len(refused(keys.check(bearer(A), "x" * 9_000)).detail) < 250


def test_an_expired_key_for_another_model_is_expired(tmp_path: Path) -> None:
    keys = keys_of(tmp_path / "keys", Key("a", hash_of(A), models=frozenset({"digits"}), expires=NOW))
    assert refused(keys.check(bearer(A), "photos", NOW)).status == 401


def test_a_key_has_its_rate_after_a_burst_of_one_second(tmp_path: Path) -> None:
    keys = keys_of(tmp_path / "keys", Key("a", hash_of(A), rate=4), Key("b", hash_of(B), rate=4))
    answers = [keys.check(bearer(A), "digits", NOW) for _ in range(5)]
    assert answers[:4] == ["a"] * 4
    refusal = refused(answers[4])
    assert (refusal.status, refusal.code, refusal.headers) == (429, "rate_limited", {"Retry-After": "1"})
    assert keys.check(bearer(B), "digits", NOW) == "b"
    passed = [keys.check(bearer(A), "digits", NOW + i / 64) == "a" for i in range(1, 641)]
    assert sum(passed) == 40


def test_a_key_that_rests_saves_up_one_second_and_no_more(tmp_path: Path) -> None:
    keys = keys_of(tmp_path / "keys", Key("a", hash_of(A), rate=4))
    assert keys.check(bearer(A), "digits", NOW) == "a"
    assert [keys.check(bearer(A), "digits", NOW + 1_000) == "a" for _ in range(10)] == [True] * 4 + [False] * 6


def test_what_is_refused_takes_nothing_from_the_rate(tmp_path: Path) -> None:
    keys = keys_of(tmp_path / "keys", Key("a", hash_of(A), models=frozenset({"digits"}), rate=1))
    for _ in range(10):
        assert refused(keys.check(bearer(A), "photos", NOW)).status == 403
    assert keys.check(bearer(A), "digits", NOW) == "a"
    for i in range(10):
        assert refused(keys.check(bearer(A), "digits", NOW + i / 20)).status == 429
    assert keys.check(bearer(A), "digits", NOW + 1) == "a"


def test_a_slow_rate_says_how_long_to_wait_and_a_clock_set_back_closes_no_key(tmp_path: Path) -> None:
    keys = keys_of(tmp_path / "keys", Key("a", hash_of(A), rate=0.1))
    assert keys.check(bearer(A), "digits", NOW) == "a"
    assert refused(keys.check(bearer(A), "digits", NOW + 2)).headers["Retry-After"] == "8"
    assert refused(keys.check(bearer(A), "digits", NOW - 3_600)).headers["Retry-After"] == "8"
    assert keys.check(bearer(A), "digits", NOW - 3_600 + 8) == "a"


def test_the_key_of_the_environment_opens_every_model_beside_the_file(tmp_path: Path) -> None:
    keys = Keys.load({"STOKER_API_KEY": f" {A}\n"})
    assert keys.check(bearer(A), "digits") == "STOKER_API_KEY"
    (tmp_path / "keys").write_text(line_of(Key("b", hash_of(B))))
    both = Keys.load({"STOKER_API_KEY": A, "STOKER_API_KEY_FILE": str(tmp_path / "keys")})
    assert [both.check(bearer(key), "digits") for key in (A, B)] == ["STOKER_API_KEY", "b"]


def test_without_a_key_nothing_is_loaded_and_one_line_says_why(tmp_path: Path) -> None:
    path = tmp_path / "keys"
    named = {"STOKER_API_KEY_FILE": str(path)}
    messages = []
    for environment in ({}, {"STOKER_API_KEY": " ", "STOKER_API_KEY_FILE": ""}, named):
        with pytest.raises(StokerError, match=r"has no API key|cannot read .*/keys \(there is no such file\)") as error:
            Keys.load(environment)
        messages.append(str(error.value))
    path.write_text("# nobody yet\n")
    with pytest.raises(StokerError, match=r"/keys .* has no key; make one with: stoker keys add"):
        Keys.load(named)
    path.unlink()
    path.mkdir()
    with pytest.raises(StokerError, match="cannot read") as error:
        Keys.load(named)
    messages.append(str(error.value))
    assert all("\n" not in message for message in messages)


def test_a_new_key_passes_and_a_revoked_one_is_refused_without_a_restart(tmp_path: Path) -> None:
    path = tmp_path / "keys"
    with watched(keys_of(path, Key("a", hash_of(A)))) as keys:
        add_key(locate(path), Key("b", hash_of(B)))
        wait_for(lambda: keys.check(bearer(B), "digits") == "b")
        revoke_key(locate(path), "a")
        wait_for(lambda: isinstance(keys.check(bearer(A), "digits"), KeyRefusal))
        assert keys.check(bearer(B), "digits") == "b"
        revoke_key(locate(path), "b")  # the last one too
        wait_for(lambda: isinstance(keys.check(bearer(B), "digits"), KeyRefusal))


def test_the_file_is_reread_often_enough_unless_told_otherwise(tmp_path: Path) -> None:
    """The promise is 5 s from the change to the refusal: the interval and the longest read are less together."""
    assert inspect.signature(Keys.watch).parameters["every_s"].default + _WATCH_TIMEOUT_S < 5
    path = tmp_path / "keys"
    keys = keys_of(path, Key("a", hash_of(A)), Key("b", hash_of(B)))
    keys.watch()
    try:
        revoke_key(locate(path), "a")
        wait_for(lambda: isinstance(keys.check(bearer(A), "digits"), KeyRefusal))
    finally:
        keys.close()


def test_a_revoked_key_is_refused_while_the_event_loop_never_rests(tmp_path: Path) -> None:
    path = tmp_path / "keys"
    keys = keys_of(path, Key("a", hash_of(A)), Key("b", hash_of(B)))

    async def busy() -> None:
        revoke_key(locate(path), "a")
        deadline = time.monotonic() + 60
        while keys.check(bearer(A), "digits") == "a":
            assert time.monotonic() < deadline

    with watched(keys):
        asyncio.run(busy())


@pytest.mark.parametrize("damage", [b"", b"a\n", b"\xff\xfe", b"a sha256:12\n", None])
def test_a_damaged_file_leaves_the_keys_as_they_were_and_says_so_once(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, damage: bytes | None
) -> None:
    path = tmp_path / "keys"
    keys = keys_of(path, Key("a", hash_of(A)))
    if damage is None:
        path.unlink()
    else:
        path.write_bytes(damage)
    with caplog.at_level(logging.INFO):
        for _ in range(3):
            keys.reload()
        assert keys.check(bearer(A), "digits") == "a"
        (record,) = caplog.records
        assert "\n" not in record.getMessage()
        assert str(path) in record.getMessage() or "no such file" in record.getMessage()
        path.write_text(f"{line_of(Key('b', hash_of(B)))}\nplain-key\n")
        keys.reload()
        assert len(caplog.records) == 2
        assert "line 2" in caplog.records[1].getMessage()
        assert "plain-key" not in caplog.text
        path.write_text(line_of(Key("b", hash_of(B))))
        keys.reload()
    assert keys.check(bearer(B), "digits") == "b"
    assert isinstance(keys.check(bearer(A), "digits"), KeyRefusal)


def test_a_reload_gives_no_new_burst(tmp_path: Path) -> None:
    path = tmp_path / "keys"
    keys = keys_of(path, Key("a", hash_of(A), rate=2))
    assert [keys.check(bearer(A), "digits", NOW) for _ in range(2)] == ["a", "a"]
    add_key(locate(path), Key("b", hash_of(B)))
    keys.reload()
    assert keys.check(bearer(B), "digits", NOW) == "b"
    assert refused(keys.check(bearer(A), "digits", NOW)).status == 429


@pytest.mark.store
def test_keys_at_a_url_are_the_same_for_every_node_and_are_reread(store: Store) -> None:
    url = f"{store.fresh('keys')}/api-keys"
    add_key(locate(url), Key("a", hash_of(A)))
    nodes = [Keys.load({"STOKER_API_KEY_FILE": url}) for _ in range(2)]
    with watched(nodes[0]), watched(nodes[1]):
        assert all(keys.check(bearer(A), "digits") == "a" for keys in nodes)
        add_key(locate(url), Key("b", hash_of(B)))
        revoke_key(locate(url), "a")
        wait_for(lambda: all(isinstance(keys.check(bearer(A), "digits"), KeyRefusal) for keys in nodes))
        assert all(keys.check(bearer(B), "digits") == "b" for keys in nodes)
