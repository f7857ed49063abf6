"""Who may read the file of API keys after a change: who could before, whoever changes it and wherever it is linked."""

from __future__ import annotations

import os
import stat
import struct
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from stoker.api_keys import Key, add_key, hash_of, read_keys, revoke_key
from stoker.storage import locate

OWNER, GROUP, STRANGER = 61_001, 61_002, 61_003
needs_root = pytest.mark.skipif(os.geteuid() != 0, reason="only root can make a file of another user")
CHANGE = """
import os, sys
from stoker.api_keys import Key, add_key, hash_of, read_keys
from stoker.errors import StokerError
from stoker.storage import locate
read_keys(locate(sys.argv[1]))  # imports what other users may not be able to
os.setgroups([]); os.setgid(int(sys.argv[2])); os.setuid(int(sys.argv[2]))
try:
    add_key(locate(sys.argv[1]), Key("new", hash_of("new")))
except StokerError as error:
    sys.exit(f"refused: {error}")
"""


@pytest.fixture(autouse=True)
def _any_umask() -> Iterator[None]:
    before = os.umask(0o077)
    yield
    os.umask(before)


def made(path: Path, *names: str) -> Path:
    for name in names:
        add_key(locate(path), Key(name, hash_of(name)))
    return path


def names_in(path: Path) -> list[str]:
    return [key.name for key in read_keys(locate(path))]


def access(path: Path) -> tuple[int, int, int]:
    found = path.stat()
    return found.st_uid, found.st_gid, stat.S_IMODE(found.st_mode)


def changed_by(user: int, path: Path) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-c", CHANGE, str(path), str(user)]
    return subprocess.run(command, capture_output=True, text=True, timeout=120, check=False)


@pytest.mark.parametrize("is_relative", [True, False])
def test_a_key_revoked_through_a_link_is_gone_from_the_file_itself(tmp_path: Path, is_relative: bool) -> None:
    real = made(tmp_path / "real" / "keys", "lost", "stays")
    link = tmp_path / "keys"
    link.symlink_to("real/keys" if is_relative else real)
    revoke_key(locate(link), "lost")
    assert names_in(real) == names_in(link) == ["stays"]
    assert link.is_symlink()
    assert not (tmp_path / ".keys.lock").exists()  # both names have one lock


def test_a_link_to_no_file_yet_gets_one(tmp_path: Path) -> None:
    (tmp_path / "keys").symlink_to("real/keys")
    made(tmp_path / "keys", "a")
    assert names_in(tmp_path / "real" / "keys") == ["a"]
    assert (tmp_path / "keys").is_symlink()


@pytest.mark.parametrize("mode", [0o600, 0o640, 0o644, 0o400])
def test_a_change_keeps_the_permissions(tmp_path: Path, mode: int) -> None:
    path = made(tmp_path / "keys", "a", "b")
    path.chmod(mode)
    revoke_key(locate(path), "a")
    assert access(path) == (os.geteuid(), os.getegid(), mode)


@needs_root
def test_a_key_that_root_revokes_is_gone_for_the_endpoints_user_too(tmp_path: Path) -> None:
    path = made(tmp_path / "keys", "a", "b")
    os.chown(path, OWNER, GROUP)
    path.chmod(0o640)
    revoke_key(locate(path), "a")
    assert access(path) == (OWNER, GROUP, 0o640)
    assert names_in(path) == ["b"]


@needs_root
def test_who_may_not_keep_owner_and_group_is_refused_in_one_line_and_changes_nothing(open_folder: Path) -> None:
    path = made(open_folder / "keys", "a")
    os.chown(path, OWNER, GROUP)
    path.chmod(0o644)
    open_folder.chmod(0o777)
    (open_folder / ".keys.lock").chmod(0o666)
    before = (path.read_bytes(), access(path), sorted(os.listdir(open_folder)))
    done = changed_by(STRANGER, path)
    assert done.returncode == 1
    (line,) = done.stderr.splitlines()
    assert line.startswith(f"refused: cannot write {path} (only user {OWNER} or root may keep its owner and group)")
    assert (path.read_bytes(), access(path), sorted(os.listdir(open_folder))) == before


@needs_root
def test_the_owner_can_change_the_file_after_root_did(open_folder: Path) -> None:
    path = open_folder / "keys"
    path.write_text("# none yet\n")
    os.chown(open_folder, OWNER, OWNER)
    os.chown(path, OWNER, OWNER)
    made(path, "by-root")
    done = changed_by(OWNER, path)
    assert done.returncode == 0, done.stderr
    assert names_in(path) == ["by-root", "new"]


READ, READ_WRITE = 4, 6
USER_OBJ, USER, GROUP_OBJ, MASK, OTHER = 0x01, 0x02, 0x04, 0x10, 0x20  # linux/posix_acl.h
_NOBODY = 0xFFFFFFFF


def acl(*entries: tuple[int, int, int]) -> bytes:
    """An access list of (tag, permissions, user), as linux/posix_acl_xattr.h has it."""
    return struct.pack("<I", 2) + b"".join(struct.pack("<HHI", *entry) for entry in entries)


ONE_READER = acl(
    *((USER_OBJ, READ_WRITE, _NOBODY), (USER, READ, STRANGER), (GROUP_OBJ, 0, _NOBODY)),
    *((MASK, READ, _NOBODY), (OTHER, 0, _NOBODY)),
)


def set_list(path: Path, name: str) -> None:
    try:
        os.setxattr(path, f"system.posix_acl_{name}", ONE_READER)
    except OSError as error:
        pytest.skip(f"this filesystem has no access lists ({error.strerror})")


def test_a_change_keeps_the_access_list_so_that_the_group_reads_no_more_than_before(tmp_path: Path) -> None:
    path = made(tmp_path / "keys", "a", "b")
    set_list(path, "access")
    revoke_key(locate(path), "a")
    assert os.getxattr(path, "system.posix_acl_access") == ONE_READER


def test_a_default_access_list_of_the_folder_opens_the_file_to_nobody(tmp_path: Path) -> None:
    path = made(tmp_path / "keys", "a", "b")
    path.chmod(0o640)
    set_list(tmp_path, "default")
    revoke_key(locate(path), "a")
    assert "system.posix_acl_access" not in os.listxattr(path)
    assert access(path)[2] == 0o640


@pytest.fixture
def open_folder() -> Iterator[Path]:
    """A folder that other users can reach, unlike pytest's own."""
    with tempfile.TemporaryDirectory(prefix="stoker-test-") as name:
        os.chmod(name, 0o755)
        yield Path(name)
