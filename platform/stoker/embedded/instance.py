"""The object store and the Ray cluster together, in one state folder."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from pathlib import Path
from typing import Literal, get_args

from stoker.embedded.cluster import RayCluster
from stoker.embedded.ports import preferred_port
from stoker.embedded.settings import Settings
from stoker.embedded.state import StateFolder
from stoker.embedded.store import ObjectStore
from stoker.errors import ClusterError

__all__ = ["Instance", "Owner"]

Owner = Literal["demo", "quickstart", "up"]


class Instance:
    """An object store with a Ray cluster that reads and writes there.

    ``folder`` is the state folder (default: ``.stoker`` in the current folder). Two instances in two folders
    share nothing, not even a port.
    """

    def __init__(self, folder: Path | None = None, settings: Settings | None = None) -> None:
        self.settings = Settings.read() if settings is None else settings
        self.folder = StateFolder(folder or Path(".stoker"))
        self.store = ObjectStore(self.folder, self.settings)
        self.cluster = RayCluster(self.folder, self.settings)

    @property
    def owner(self) -> Owner | None:
        """Who keeps it running: ``up`` (until ``down``), ``quickstart`` or ``demo`` (until they exit); None: nobody."""
        found = self.folder.read().get("owner")
        return found if found in get_args(Owner) else None

    @property
    def url(self) -> str:
        """The store's bucket, as ``s3://stoker``."""
        return self.store.url

    @property
    def dashboard_url(self) -> str:
        return self.cluster.dashboard_url

    @property
    def serve_port(self) -> int:
        return self.cluster.serve_port

    @property
    def serve_url(self) -> str:
        return self.cluster.serve_url

    @property
    def api_key(self) -> str:
        """A key for the HTTP endpoint, which reads its hash from the file of keys."""
        return self.folder.api_key()

    def environment(self) -> dict[str, str]:
        """Variables for clients of store, cluster and endpoint, secrets included.

        Raises:
            ClusterError: the instance was not started.
        """
        return {
            **self.store.environment(),
            **self.cluster.environment(),
            "STOKER_API_KEY": self.api_key,
            "STOKER_API_KEY_FILE": str(self.folder.api_key_file()),
            "STOKER_SERVE_URL": self.serve_url,
            "STOKER_STORAGE": self.url,
        }

    def is_healthy(self) -> bool:
        return self.store.is_healthy() and self.cluster.is_healthy()

    def start(self, owner: Owner) -> None:
        """Start store and cluster; what is healthy already is kept. ``up`` is never taken back by others.

        Raises:
            ClusterError: something cannot be started.
        """
        for name, port in self.settings.ports:
            preferred_port(name, port)  # before the state folder is created
        with self.folder.lock():
            was_kept = self.owner == "up" and (self.store.is_healthy() or self.cluster.is_healthy())
            self.folder.record("owner", "up" if was_kept else owner)
            try:
                self.store.start()
            except ClusterError:
                if not self.cluster.is_healthy():
                    self.folder.record("owner", None)
                raise
            found_at = f"{self.folder.credentials().access_key}@{self.store.endpoint}"
            if self.folder.read().get("workers_store") != found_at:
                self.cluster.stop()  # its workers would use the store's old address
                self.folder.record("workers_store", found_at)
            keys = str(self.folder.api_key_file())
            self.cluster.start({**self.store.environment(), "STOKER_API_KEY_FILE": keys})

    def stop(self) -> int:
        """Stop both and leave nothing but the data and the secrets; returns how many processes were stopped.

        Works without ``state.json`` and after a crash of whoever started them.

        Raises:
            ClusterError: a process cannot be stopped.
        """
        with self.folder.lock():
            count = self.cluster.stop() + self.store.stop()
            self.folder.record("workers_store", None)
            self.folder.record("owner", None)
            return count

    @contextlib.contextmanager
    def started(self, owner: Owner) -> Iterator[Instance]:
        """Keep the instance running inside the block; stop it afterwards, unless ``up`` keeps it."""
        try:
            self.start(owner)
            yield self
        finally:
            if self.owner != "up":
                self.stop()

    def problem(self) -> str | None:
        """What does not answer, in words; None if both do."""
        down = [
            name
            for name, healthy in (
                ("the object store", self.store.is_healthy()),
                ("the Ray cluster", self.cluster.is_healthy()),
            )
            if not healthy
        ]
        return f"{' and '.join(down)} not answering" if down else None

    def require(self) -> None:
        """Check that store and cluster answer.

        Raises:
            ClusterError: one of them does not.
        """
        if problem := self.problem():
            raise ClusterError(f"{problem} ({self.folder.path}); start with: stoker up")
