"""The file of API keys: what a line may be, that a key in it is never repeated, and that no change is lost."""

from __future__ import annotations

import datetime
import os
import string
import subprocess
import sys
import threading
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from conftest import Store
from stoker.api_keys import NAME, Key, _change, add_key, hash_of, line_of, new_key, parse, read_keys, revoke_key
from stoker.embedded import StateFolder
from stoker.errors import StokerError
from stoker.storage import locate
from stoker_serve.keys import KeyRefusal, Keys

HEX = "ab" * 32
NAMES = st.from_regex(NAME, fullmatch=True)
KEYS = st.builds(
    Key,
    name=NAMES,
    digest=st.binary(min_size=32, max_size=32),
    models=st.none() | st.frozensets(NAMES, min_size=1, max_size=4),
    expires=st.none() | st.integers(0, 10**10).map(float),
    rate=st.none() | st.floats(0.001, 1e6).map(lambda rate: float(f"{rate:.6g}")),
)


@given(st.lists(KEYS, max_size=5, unique_by=(lambda key: key.name, lambda key: key.digest)))
def test_what_is_written_is_read_back(keys: list[Key]) -> None:
    text = "# first\n\n" + "".join(f"  {line_of(key)}  # a comment\r\n" for key in keys)
    assert parse(text.encode(), "keys") == tuple(keys)


def test_the_options_mean_what_the_page_says() -> None:
    (key,) = parse(f"a sha256:{HEX} models=digits,letters expires=2027-01-31 rate=50".encode(), "keys")
    day = datetime.datetime(2027, 1, 31, tzinfo=datetime.UTC).timestamp()
    assert key == Key("a", bytes.fromhex(HEX), frozenset({"digits", "letters"}), day, 50.0)
    (key,) = parse(f"a sha256:{HEX} expires=2027-01-31T12:00Z".encode(), "keys")
    assert key.expires == day + 12 * 3600
    (key,) = parse(f"a sha256:{HEX} expires=2027-01-31T12:00+01:00".encode(), "keys")
    assert key.expires == day + 11 * 3600


@pytest.mark.parametrize(
    "line",
    [
        "{secret}",
        "name {secret}",
        "name sha256:{secret}",
        "{secret}= sha256:" + HEX,
        f"name sha256:{HEX} {{secret}}",
        f"name sha256:{HEX} {{secret}}=1",
        f"name sha256:{HEX} models=digits,,{{secret}}",
        f"name sha256:{HEX} expires={{secret}}",
        f"name sha256:{HEX} rate={{secret}}",
        f"name sha256:{HEX} rate=0",
        f"name sha256:{HEX} rate=inf",
        f"name sha256:{HEX} rate=1e-320",
        f"name sha256:{HEX} rate=0.0009",
        f"name sha256:{HEX} rate=1000001",
        f"name sha256:{HEX} expires=9999-12-31T23:59-12:00",
        f"name sha256:{HEX} expires=9999-01-01",
        f"name sha256:{HEX} expires=0001-01-01T00:00+12:00",
        f"name sha256:{HEX} rate=1 rate=2",
        f"name sha256:{HEX} expires=2027-01-31T12:00",
        f"name sha256:{HEX.upper()}",
        f"name sha256:{HEX}00",
        f"first sha256:{HEX}",
        "name sha256:" + "01" * 32,
    ],
)
def test_a_wrong_line_is_refused_by_its_number_and_never_repeated(line: str) -> None:
    secret = new_key()
    text = f"# comment\nfirst sha256:{'01' * 32}\n{line.format(secret=secret)}\n"
    with pytest.raises(StokerError, match=r"^keys: line 3: .") as error:
        parse(text.encode(), "keys")
    assert secret not in str(error.value)
    assert secret[7:] not in repr(error.value.__cause__)
    assert "\n" not in str(error.value)


def test_keys_are_random_and_fit_a_header() -> None:
    keys = {new_key() for _ in range(1000)}
    assert len(keys) == 1000
    token = set(string.ascii_letters + string.digits + "-._~+/")  # RFC 6750, section 2.1
    assert all(len(key) == len("stoker_") + 43 and set(key) <= token for key in keys)  # 256 bits in base64


def test_only_the_owner_reads_the_file_whatever_the_umask(tmp_path: Path) -> None:
    path = tmp_path / "new" / "keys"
    before = os.umask(0)
    try:
        add_key(locate(path), Key("a", hash_of("a")))
        add_key(locate(path), Key("b", hash_of("b")))
    finally:
        os.umask(before)
    assert path.stat().st_mode & 0o777 == 0o600


def test_a_change_keeps_every_other_line(tmp_path: Path) -> None:
    path = tmp_path / "keys"
    path.write_text(f"# people\na  sha256:{HEX}  # of the lab\n\n# machines\nb sha256:{'01' * 32} rate=5")
    add_key(locate(path), Key("c", hash_of("c")))
    revoke_key(locate(path), "b")
    assert path.read_text() == (
        f"# people\na  sha256:{HEX}  # of the lab\n\n# machines\nc  sha256:{hash_of('c').hex()}\n"
    )


def test_the_longest_and_the_slowest_key_are_read_written_and_refused_in_words(tmp_path: Path) -> None:
    """As the bounds promise: nothing that they let through is too much for a date or a wait."""
    file = tmp_path / "keys"
    digest = hash_of("a").hex()
    for line in ("expires=9998-12-31T23:59:59Z rate=0.001", "expires=1970-01-01 rate=1e6"):
        file.write_text(f"a  sha256:{digest}  {line}\n")
        (key,) = read_keys(locate(file))
        assert parse(line_of(key).encode(), "again") == (key,)
        keys = Keys.load({"STOKER_API_KEY_FILE": str(file)})
        answers = [keys.check(b"Bearer a", None) for _ in range(2)]
        if "9998" in line:
            assert answers[0] == "a"
            assert isinstance(answers[1], KeyRefusal)
            assert answers[1].headers["Retry-After"] == "1000"
        else:
            assert isinstance(answers[0], KeyRefusal)
            assert "expired at 1970-01-01 00:00" in answers[0].detail


def test_a_name_is_used_once_and_an_unknown_one_is_refused_with_those_there_are(tmp_path: Path) -> None:
    location = locate(tmp_path / "keys")
    with pytest.raises(StokerError, match="no key named a; it has: none"):
        revoke_key(location, "a")
    add_key(location, Key("a", hash_of("a")))
    before = location.read()
    with pytest.raises(StokerError, match="has a key named a already"):
        add_key(location, Key("a", hash_of("b")))
    with pytest.raises(StokerError, match="no key named b; it has: a"):
        revoke_key(location, "b")
    assert location.read() == before


def test_a_damaged_file_is_not_changed(tmp_path: Path) -> None:
    (tmp_path / "keys").write_text("plain\n")
    location = locate(tmp_path / "keys")
    with pytest.raises(StokerError, match="line 1"):
        add_key(location, Key("a", hash_of("a")))
    with pytest.raises(StokerError, match="line 1"):
        revoke_key(location, "a")
    assert (tmp_path / "keys").read_text() == "plain\n"


def test_of_changes_by_several_processes_none_is_lost(tmp_path: Path) -> None:
    program = (
        "import sys\nfrom stoker.storage import locate\nfrom stoker.api_keys import Key, add_key, hash_of\n"
        "for i in range(20):\n    name = f'{sys.argv[1]}{i}'\n    add_key(locate('keys'), Key(name, hash_of(name)))"
    )
    running = [subprocess.Popen([sys.executable, "-c", program, who], cwd=tmp_path) for who in "abc"]
    assert [process.wait(timeout=120) for process in running] == [0, 0, 0]
    assert {key.name for key in read_keys(locate(tmp_path / "keys"))} == {f"{w}{i}" for w in "abc" for i in range(20)}


@pytest.mark.store
def test_of_changes_at_a_url_none_is_lost(store: Store) -> None:
    location = locate(f"{store.fresh('keys')}/api-keys")

    def add(who: str) -> None:
        for i in range(4):
            add_key(location, Key(f"{who}{i}", hash_of(f"{who}{i}")))

    threads = [threading.Thread(target=add, args=(who,)) for who in "abc"]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert {key.name for key in read_keys(location)} == {f"{w}{i}" for w in "abc" for i in range(4)}


@pytest.mark.store
def test_a_change_that_another_overtakes_at_a_url_is_made_to_what_that_one_wrote(store: Store) -> None:
    location = locate(f"{store.fresh('keys')}/api-keys")
    add_key(location, Key("a", hash_of("a")))
    seen = []

    def change(text: str) -> str:
        seen.append(text)
        if len(seen) == 1:
            add_key(location, Key("b", hash_of("b")))
        return f"{text}{line_of(Key('c', hash_of('c')))}\n"

    _change(location, change)
    assert len(seen) == 2
    assert [key.name for key in read_keys(location)] == ["a", "b", "c"]


def test_an_instance_of_before_is_upgraded_and_its_key_still_passes(tmp_path: Path) -> None:
    (tmp_path / "api-key").write_text("key-of-before")
    folder = StateFolder(tmp_path)
    path = folder.api_key_file()
    add_key(locate(path), Key("camera", hash_of("c")))
    assert path.stat().st_mode & 0o777 == 0o600
    assert "key-of-before" not in path.read_text()
    content = path.read_bytes()
    assert StateFolder(tmp_path).api_key_file().read_bytes() == content
    keys = Keys.load({"STOKER_API_KEY_FILE": str(path)})
    assert keys.check(b"Bearer key-of-before", "digits") == "stoker"


def test_a_new_key_of_an_instance_takes_the_place_of_the_one_before(tmp_path: Path) -> None:
    folder = StateFolder(tmp_path)
    before = folder.api_key()
    add_key(locate(folder.api_key_file()), Key("camera", hash_of("c")))
    (tmp_path / "api-key").unlink()
    keys = Keys.load({"STOKER_API_KEY_FILE": str(folder.api_key_file())})
    assert keys.check(f"Bearer {folder.api_key()}".encode(), None) == "stoker"
    assert not isinstance(keys.check(f"Bearer {before}".encode(), None), str)
    assert keys.check(b"Bearer c", None) == "camera"
