"""SeaweedFS as the object store of this machine: a real S3 API on loopback, with credentials of our own.

Its data are in ``store/`` of the state folder and survive a stop, a SIGKILL and other ports: volumes and the file
index are found again by what is on disk, and the master, which would remember its old address, starts afresh.
Clients reach it through S3 alone: what is behind it is closed (``inner_doors``).
"""

from __future__ import annotations

import contextlib
import json
import logging
import os
import re
import shutil
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import psutil
from botocore.config import Config  # type: ignore[import-untyped]
from botocore.exceptions import BotoCoreError, ClientError  # type: ignore[import-untyped]
from botocore.session import Session  # type: ignore[import-untyped]

from stoker.embedded.inner_doors import write_secrets
from stoker.embedded.ports import choose_port, free_ports, is_free
from stoker.embedded.processes import Part, Started, program, wait_until
from stoker.embedded.settings import Settings
from stoker.embedded.state import StateFolder
from stoker.errors import ClusterError

__all__ = ["ObjectStore"]

logger = logging.getLogger(__name__)

_HIDDEN_PORTS = ("s3-grpc", "master", "master-grpc", "volume", "volume-grpc", "filer", "filer-grpc")
_PORT = re.compile(r"^-\w+\.port(?:\.\w+)?=(\d+)$")
_REGION = "us-east-1"
_START_TIMEOUT_S = 120.0
# weed takes 15 s to leave its own open streams; what was written is with the kernel by then and survives a SIGKILL.
_STOP_TIMEOUT_S = 2.0
_STARTS = 3  # a hidden port may be taken between choosing and binding


class ObjectStore:
    """One object store; its methods are for one thread, but several processes may use the same folder."""

    def __init__(self, folder: StateFolder, settings: Settings | None = None) -> None:
        self.folder = folder
        self.settings = settings or Settings.model_validate({})
        self._part = Part(folder.instance, "store")

    @property
    def url(self) -> str:
        """The bucket, as ``s3://stoker``."""
        return f"s3://{self.settings.bucket}"

    @property
    def endpoint(self) -> str:
        """Where the S3 API answers, as ``http://127.0.0.1:8333``.

        Raises:
            ClusterError: the store was not started.
        """
        port = self._ports().get("s3")
        if port is None:
            raise ClusterError(f"no object store runs in {self.folder.path}; start it with: stoker up")
        return f"http://127.0.0.1:{port}"

    def environment(self) -> dict[str, str]:
        """Variables by which any S3 client finds the store. They hold its secret key."""
        credentials = self.folder.credentials()
        made = {
            "AWS_ENDPOINT_URL": self.endpoint,
            "AWS_ACCESS_KEY_ID": credentials.access_key,
            "AWS_SECRET_ACCESS_KEY": credentials.secret_key,
            "AWS_DEFAULT_REGION": _REGION,
        }
        # What would go before these, or away from loopback, is overridden.
        made |= {name: self.endpoint for name in ("AWS_ENDPOINT_URL_S3",) if name in os.environ}
        made |= {name: _REGION for name in ("AWS_REGION",) if name in os.environ}
        made |= {name: "" for name in ("AWS_SESSION_TOKEN", "AWS_SECURITY_TOKEN") if name in os.environ}
        for name in ("NO_PROXY", "no_proxy"):
            others = [
                host for host in os.environ.get(name, "").split(",") if host not in {"", "127.0.0.1", "localhost"}
            ]
            made[name] = ",".join([*others, "127.0.0.1", "localhost"])
        return made

    def is_healthy(self) -> bool:
        """Whether the store answers a signed request for its bucket now."""
        if "s3" not in self._ports():
            return False
        client = self._client()
        try:
            client.head_bucket(Bucket=self.settings.bucket)
        except (BotoCoreError, ClientError):
            return False
        finally:
            client.close()
        return True

    def start(self) -> None:
        """Start the store if it is not healthy, after stopping what is left of it. The caller holds the lock.

        Raises:
            ClusterError: it cannot be started; the message names the log.
        """
        if self.is_healthy():
            logger.info("the object store is running already at %s", self.endpoint)
            return
        self.stop()
        self.folder.prepare()
        for attempt in range(1, _STARTS + 1):
            try:
                self._start_once()
                return
            except ClusterError as error:
                self.stop()
                if attempt == _STARTS or "bind" not in str(error):
                    raise
                logger.info("a port was taken meanwhile (%s); trying others", error)

    def stop(self) -> int:
        """Stop the store and free its ports; returns how many processes were stopped. The data are kept."""
        ports = {*self._ports().values(), *self._ports_in_command_lines()}
        count = self._part.end(timeout_s=_STOP_TIMEOUT_S)
        deadline = time.monotonic() + 20.0
        while count and time.monotonic() < deadline and not all(is_free(port) for port in ports):
            time.sleep(0.1)
        for port in ports:  # a killed weed leaves its sockets; their folder is built into it
            for socket in Path("/tmp").glob(f"seaweedfs-*-{port}.sock"):  # noqa: S108
                socket.unlink(missing_ok=True)
        self.folder.remove_temporary("s")
        self.folder.record("store", None)
        return count

    # -- inside ----------------------------------------------------------------------------------------------------

    def _start_once(self) -> None:
        ports = {"s3": choose_port("s3", self.settings.ports.s3)}
        ports |= dict(zip(_HIDDEN_PORTS, free_ports(len(_HIDDEN_PORTS)), strict=True))
        log = self.folder.logs / "store.log"
        data = self.folder.path / "store"
        data.mkdir(exist_ok=True, mode=0o700)
        for past in data.glob("m[0-9]*"):  # a master's note of its own address; the filer's index must stay
            shutil.rmtree(past, ignore_errors=True)
        self._write_identities()
        logger.info("starting the object store on 127.0.0.1:%d (data: %s)", ports["s3"], data)
        began = time.monotonic()
        self.folder.record("store", {"ports": ports})  # before the start: a killed starter leaves no unknown port
        environment = {k: v for k, v in os.environ.items() if not k.startswith(("AWS_", "WEED_"))}
        process = self._part.start(
            [program("weed"), *self._arguments(ports, data)],
            environment=environment,
            folder=self.folder.path,
            log=log,
        )
        self.folder.record("store", {"ports": ports, **process.note()})
        wait_until(self._takes_writes, "the object store", timeout_s=_START_TIMEOUT_S, process=process, log=log)
        logger.info("the object store is ready after %.1f s at %s", time.monotonic() - began, self.endpoint)

    def _arguments(self, ports: dict[str, int], data: Path) -> Iterator[str]:
        sockets = self.folder.temporary("s")
        yield from ("-logtostderr=true", *write_secrets(self.folder))
        yield from ("server", f"-dir={data}", "-ip=127.0.0.1", "-ip.bind=127.0.0.1", "-disableHttp")
        yield from ("-master.resumeState=false", "-master.electionTimeout=1s")
        yield from ("-master.telemetry=false", f"-master.volumeSizeLimitMB={self.settings.volume_size_mb}")
        yield from (f"-volume.max={self.settings.volumes}", "-volume.preStopSeconds=0")
        yield from ("-filer", f"-filer.localSocket={sockets / 'filer.sock'}", "-webdav=false", "-iam=false")
        yield from ("-s3", f"-s3.config={self.folder.path / 's3.json'}", "-s3.iam=false")
        yield from (f"-s3.localSocket={sockets / 's3.sock'}", "-s3.port.iceberg=0", "-s3.port.lance=0")
        for name, port in ports.items():
            part, _, is_grpc = name.partition("-")
            yield f"-{part}.port{'.grpc' if is_grpc else ''}={port}"

    def _write_identities(self) -> None:
        credentials = self.folder.credentials()
        keys = [{"accessKey": credentials.access_key, "secretKey": credentials.secret_key}]
        actions = ["Admin", "Read", "List", "Tagging", "Write"]
        identities = [{"name": "stoker", "credentials": keys, "actions": actions}]
        self.folder.write_private(self.folder.path / "s3.json", json.dumps({"identities": identities}))

    def _takes_writes(self) -> bool:
        """Whether the bucket exists (it is created if not) and a write to it succeeds, which needs a volume."""
        client = self._client()
        bucket = self.settings.bucket
        try:
            if bucket not in {found["Name"] for found in client.list_buckets().get("Buckets", [])}:
                client.create_bucket(Bucket=bucket)
            client.put_object(Bucket=bucket, Key=".ready", Body=b"ready")
            client.delete_object(Bucket=bucket, Key=".ready")
        except (BotoCoreError, ClientError) as error:
            logger.debug("the object store is not ready: %s", error)
            return False
        finally:
            client.close()
        return True

    def _client(self) -> Any:
        """A client with explicit credentials, independent of the environment and of this process's filesystems."""
        credentials = self.folder.credentials()
        config = Config(connect_timeout=2, read_timeout=10, retries={"max_attempts": 0}, proxies={})
        return Session().create_client(
            "s3",
            region_name=_REGION,
            endpoint_url=self.endpoint,
            aws_access_key_id=credentials.access_key,
            aws_secret_access_key=credentials.secret_key,
            config=config,
        )

    def _ports(self) -> dict[str, int]:
        recorded = self.folder.read().get("store")
        ports = recorded.get("ports") if isinstance(recorded, dict) else None
        return ports if isinstance(ports, dict) and all(isinstance(p, int) for p in ports.values()) else {}

    def _ports_in_command_lines(self) -> set[int]:
        """The ports of running processes, also if their record was lost."""
        found = set()
        for process in self._part.processes():
            with contextlib.suppress(psutil.Error):
                found |= {int(port) for word in process.cmdline() for port in _PORT.findall(word)}
        return found - {0}

    def process(self) -> Started | None:
        """The process as recorded, which may have ended since."""
        return Started.of(self.folder.read().get("store"))
