"""The state folder: secrets, what is running, and the lock that lets one process at a time start or stop things.

``credentials.json`` (S3 key pair), ``ray-token`` and ``api-key`` are created once, readable by their owner only; so is
``api-keys``, which has the hashes of that key and of those that ``stoker keys`` adds.
``state.json`` records processes and ports; it is checked, never trusted.
"""

from __future__ import annotations

import contextlib
import fcntl
import hashlib
import json
import logging
import os
import secrets
import shutil
import stat
import tempfile
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from stoker.api_keys import Key, hash_of, new_key, renew_key
from stoker.errors import ClusterError
from stoker.storage import locate

__all__ = ["Credentials", "StateFolder"]

logger = logging.getLogger(__name__)

_LONGEST_TEMPORARY = 32  # characters; a unix socket's path has 107, and Ray appends about 70


@dataclass(frozen=True)
class Credentials:
    """The key pair of the object store."""

    access_key: str
    secret_key: str

    def __repr__(self) -> str:
        return f"Credentials({self.access_key!r}, …)"


class StateFolder:
    """The folder of one instance. Everything that belongs to it carries :attr:`instance`, a hash of its path."""

    def __init__(self, path: Path) -> None:
        self.path = path.absolute()
        self.instance = hashlib.sha256(str(self.path).encode()).hexdigest()[:12]

    @property
    def logs(self) -> Path:
        return self.path / "logs"

    @property
    def token_path(self) -> Path:
        return self.path / "ray-token"

    def prepare(self) -> None:
        """Create the folder, readable by its owner only.

        Raises:
            ClusterError: it cannot be created or written.
        """
        try:
            self.path.mkdir(parents=True, exist_ok=True, mode=0o700)
            self.logs.mkdir(exist_ok=True)
        except OSError as error:
            raise ClusterError(
                f"cannot create the state folder {self.path} ({error.strerror}); choose another with --folder"
            ) from None

    # -- secrets ---------------------------------------------------------------------------------------------------

    def credentials(self) -> Credentials:
        """The store's key pair, created at the first call.

        Raises:
            ClusterError: the file exists but holds no key pair.
        """
        path = self.path / "credentials.json"
        made = {"access_key": secrets.token_hex(10).upper(), "secret_key": secrets.token_urlsafe(30)}
        try:
            kept = json.loads(self._secret(path, json.dumps(made)))
            return Credentials(str(kept["access_key"]), str(kept["secret_key"]))
        except (ValueError, KeyError, TypeError):
            raise ClusterError(f"{path} holds no key pair; delete it, and a new one is created") from None

    def ray_token(self) -> str:
        """The cluster's token, created at the first call."""
        return self._secret(self.token_path, secrets.token_hex(32))

    def api_key(self) -> str:
        """Our own API key for the HTTP endpoint, created at the first call."""
        return self._secret(self.path / "api-key", new_key())

    def api_key_file(self) -> Path:
        """The file of API keys that the endpoint reads, made to have the hash of :meth:`api_key` as the key ``stoker``.

        A folder from before this file existed is upgraded, and a new ``api-key`` takes the place of the one before.

        Raises:
            StokerError: the file is damaged, or cannot be read or written.
        """
        path = self.path / "api-keys"
        renew_key(locate(path), Key("stoker", hash_of(self.api_key())))
        return path

    def _secret(self, path: Path, fresh: str) -> str:
        self.prepare()
        try:
            if not path.exists() or not path.read_text(encoding="utf-8").strip():
                self.write_private(path, fresh)
            return path.read_text(encoding="utf-8").strip()
        except (OSError, UnicodeDecodeError) as error:
            reason = getattr(error, "strerror", None) or "not UTF-8"
            raise ClusterError(f"cannot read or write {path} ({reason}); delete it, and a new one is created") from None

    def write_private(self, path: Path, text: str) -> None:
        """Write a file that only its owner reads, whole or not at all."""
        handle, temporary = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")  # mode 0600
        try:
            with os.fdopen(handle, "w", encoding="utf-8") as file:
                file.write(text)
                file.flush()
                os.fsync(file.fileno())
            os.replace(temporary, path)
        except BaseException:
            os.unlink(temporary)
            raise

    # -- what runs -------------------------------------------------------------------------------------------------

    def read(self) -> dict[str, Any]:
        """The content of ``state.json``; empty if it is missing or damaged."""
        try:
            found = json.loads((self.path / "state.json").read_text(encoding="utf-8"))
        except (OSError, ValueError):
            return {}
        return found if isinstance(found, dict) else {}

    def record(self, key: str, value: Any) -> None:
        """Record ``value`` under ``key``; None removes it, and the last removal removes the file."""
        now = {k: v for k, v in self.read().items() if k != key}
        if value is not None:
            now[key] = value
        if now:
            self.write_private(self.path / "state.json", json.dumps(now, indent=1))
        else:
            (self.path / "state.json").unlink(missing_ok=True)

    # -- exclusion and short paths ---------------------------------------------------------------------------------

    @contextlib.contextmanager
    def lock(self, timeout_s: float = 300.0) -> Iterator[None]:
        """Hold the folder while starting or stopping.

        Raises:
            ClusterError: another process holds it for longer than ``timeout_s`` seconds.
        """
        self.prepare()
        path = self.path / "lock"
        deadline = time.monotonic() + timeout_s
        with open(path, "a", encoding="utf-8") as file:
            waited = False
            while True:
                try:
                    fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
                    break
                except BlockingIOError:
                    if not waited:
                        logger.info("waiting for another process that starts or stops things in %s", self.path)
                        waited = True
                    if time.monotonic() > deadline:
                        raise ClusterError(
                            f"another process has held {path} for {timeout_s:g} s; see `fuser {path}` and end it"
                        ) from None
                    time.sleep(0.2)
            yield

    @contextlib.contextmanager
    def held(self, name: str) -> Iterator[None]:
        """Hold the folder for the whole program ``name``; the kernel lets go of it when the process ends.

        Raises:
            ClusterError: another program holds it.
        """
        self.prepare()
        with open(self.path / "program", "a+", encoding="utf-8") as file:
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                file.seek(0)
                raise ClusterError(
                    f"stoker {file.read().strip() or 'quickstart'} runs in {self.path}; end it with Ctrl-C there, or "
                    "choose another folder with --folder"
                ) from None
            file.truncate(0)
            file.write(name)
            file.flush()
            yield

    def temporary(self, part: str) -> Path:
        """The folder ``part`` in a folder of ours in the system's temporary one; short enough for unix sockets.

        Raises:
            ClusterError: somebody else made it first.
        """
        path = self._temporary_path()
        path.mkdir(mode=0o700, exist_ok=True)
        about = path.lstat()
        if not stat.S_ISDIR(about.st_mode) or about.st_uid != os.getuid():
            raise ClusterError(
                f"{path} is not a folder of this user's; remove it, or set TMPDIR to a folder of your own"
            )
        path.chmod(0o700)
        (path / part).mkdir(exist_ok=True, mode=0o700)
        return path / part

    def remove_temporary(self, part: str) -> None:
        """Remove what :meth:`temporary` made for ``part``, and the whole with the last part."""
        path = self._temporary_path()
        if not path.is_symlink():
            shutil.rmtree(path / part, ignore_errors=True)
            with contextlib.suppress(OSError):  # absent, or another part is in it
                path.rmdir()

    def _temporary_path(self) -> Path:
        base = Path(tempfile.gettempdir())
        if len(str(base)) > _LONGEST_TEMPORARY - len("/stoker-") - len(self.instance):
            base = Path("/tmp")  # noqa: S108 - its owner is checked; $TMPDIR is too long for a socket's path
        return base / f"stoker-{self.instance}"
