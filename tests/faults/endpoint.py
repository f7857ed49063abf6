"""A real deployment behind HAProxy, good clients beside an abuse of it, and what its processes take meanwhile."""

from __future__ import annotations

import asyncio
import os
import re
import socket
import subprocess
import sys
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import NamedTuple
from urllib.parse import urlsplit

import psutil
import yaml

from conftest import Store
from published import finished_run
from stoker.dataset import SampleReader
from stoker.embedded import Instance
from stoker.embedded.processes import Part
from stoker.predict import check_parity
from stoker.registry import publish_run
from traffic import Seen, traffic

__all__ = [
    "PREDICT",
    "Answer",
    "Endpoint",
    "beside",
    "connections",
    "deploy",
    "deployed",
    "form",
    "growth_of",
    "request",
]

PREDICT = "/v1/models/digits/predict"
YAML = Path(__file__).parents[2] / "serve" / "digits.yaml"
_ROLES = {"ServeReplica:digits": "replica", "contained.process": "decoders", "bin/haproxy": "haproxy"}
_ANONYMOUS = re.compile(r"^Pss_Anon:\s+(\d+) kB", re.MULTILINE)
_ANSWER_S = 60.0

MOST_GROWTH_MB = {"replica": 300, "decoders": 600, "haproxy": 350}
"""at any moment: a replica holds 128 MB of bodies (``held_bytes``) and for a moment copies of some, HAProxy has two
buffers of 128 kB for each of 2,048 connections at most, a decoding process may have a picture of 50 million pixels"""


class Answer(NamedTuple):
    """``status`` is 0 if the connection ended without an answer."""

    status: int
    head: str
    body: bytes


@dataclass(frozen=True)
class Endpoint:
    """Where a deployment answers, an image that it knows, and its processes."""

    instance: Instance
    image: bytes

    @property
    def url(self) -> str:
        return self.instance.serve_url

    @property
    def key(self) -> str:
        return self.instance.api_key

    def connect(self, timeout_s: float = _ANSWER_S) -> socket.socket:
        place = urlsplit(self.url)
        return socket.create_connection((place.hostname, place.port), timeout=timeout_s)

    def ask(self, data: bytes, timeout_s: float = _ANSWER_S) -> Answer:
        """What comes back for ``data``; the rest of it is not sent when the server does not take it."""
        with self.connect(timeout_s) as connection:
            with suppress(OSError):  # refused before it was all sent
                connection.sendall(data)
            received = b""
            with suppress(OSError):
                while not _is_complete(received) and (piece := connection.recv(65536)):
                    received += piece
        return answer_of(received)

    def memory(self) -> dict[str, float]:
        """MB of anonymous memory, what is shared divided among those who share it, by role."""
        found: Counter[str] = Counter()
        for process in _with_children(Part(self.instance.folder.instance, "cluster").processes()):
            with suppress(psutil.Error, OSError):
                line = " ".join(process.cmdline())
                role = next((role for word, role in _ROLES.items() if word in line), None)
                text = Path(f"/proc/{process.pid}/smaps_rollup").read_text() if role else ""
                if role and (size := _ANONYMOUS.search(text)):
                    found[role] += int(size[1]) / 1000
        return dict(found)


def _with_children(processes: Sequence[psutil.Process]) -> set[psutil.Process]:
    """Decoders do not have their parent's environment, by which the others are found."""
    found = set(processes)
    for process in processes:
        with suppress(psutil.Error):
            found.update(process.children(recursive=True))
    return found


def _is_complete(received: bytes) -> bool:
    head, end, body = received.partition(b"\r\n\r\n")
    length = head.lower().partition(b"\r\ncontent-length:")[2].partition(b"\r\n")[0].strip()
    return bool(end) and length.isdigit() and len(body) >= int(length)


def answer_of(received: bytes) -> Answer:
    head, _, body = received.partition(b"\r\n\r\n")
    status = head.split(b" ", 2)[1] if head.startswith(b"HTTP/1.") else b"0"
    return Answer(int(status), head.decode("latin-1").lower(), body)


def deploy(cluster: Instance, store: Store, folder: Path) -> Endpoint:
    """Deploy serve/digits.yaml with a small model; ``folder`` is for the YAML, changed in one limit.

    How long an image may wait is no limit here: on a slow machine good clients would be told that the endpoint is busy.
    """
    config = yaml.safe_load(YAML.read_text())
    model = next(application for application in config["applications"] if application["name"] == "digits")
    model["args"]["limits"]["queue_s"] = 25
    (folder / "digits.yaml").write_text(yaml.safe_dump(config))
    storage = finished_run(store.fresh("abused"))
    publish_run(storage, "run", "digits", verify=check_parity, alias="production")
    image = bytes(SampleReader(storage / "data", "validation").read([0])[0].data)
    _deploy(str(folder / "digits.yaml"), "--storage", storage.url, "--port", str(cluster.serve_port))
    return Endpoint(cluster, image)


@contextmanager
def deployed(cluster: Instance, store: Store, folder: Path) -> Iterator[Endpoint]:
    """The same, for the time of the block: Serve is shut down afterwards."""
    try:
        yield deploy(cluster, store, folder)
    finally:
        _deploy("--delete")


def _deploy(*arguments: str) -> None:
    line = [sys.executable, "-m", "stoker_serve.deploy", *arguments]
    done = subprocess.run(line, check=False, capture_output=True, text=True, timeout=400, env=dict(os.environ))
    assert done.returncode == 0, done.stdout + done.stderr


def request(
    endpoint: Endpoint,
    body: bytes | None = None,
    *extra: bytes,
    method: bytes = b"POST",
    target: bytes = PREDICT.encode(),
    kind: bytes = b"image/jpeg",
    length: int | None = -1,
    key: bytes | None = None,
    closes: bool = True,
) -> bytes:
    """The bytes of a request about ``body`` (default: the good image) with ``extra`` header lines.

    ``length`` is what Content-Length says: -1 the truth, None no such line.
    """
    body = endpoint.image if body is None else body
    lines = [
        b"%b %b HTTP/1.1" % (method, target),
        b"Host: %b" % urlsplit(endpoint.url).netloc.encode(),
        b"Authorization: Bearer %b" % (endpoint.key.encode() if key is None else key),
        b"Content-Type: %b" % kind,
        *extra,
    ]
    if length is not None:
        lines.append(b"Content-Length: %d" % (len(body) if length < 0 else length))
    if closes:
        lines.append(b"Connection: close")
    return b"\r\n".join(lines) + b"\r\n\r\n" + body


def form(images: Sequence[bytes]) -> bytes:
    """A multipart body with the boundary ``x0x0x``."""
    head = b'--x0x0x\r\nContent-Disposition: form-data; name="images"; filename="a"\r\n\r\n'
    return b"".join(head + image + b"\r\n" for image in images) + b"--x0x0x--\r\n"


@dataclass
class _Growth:
    before: dict[str, float]
    most: dict[str, float] = field(default_factory=dict)

    def see(self, now: dict[str, float]) -> None:
        for role, size in now.items():
            self.most[role] = max(self.most.get(role, 0.0), size - self.before.get(role, 0.0))


@contextmanager
def growth_of(endpoint: Endpoint) -> Iterator[dict[str, float]]:
    """The MB that each role has taken more inside the block than before it, at its worst; complete after it."""
    growth, ends = _Growth(endpoint.memory()), threading.Event()

    def watch() -> None:
        while not ends.wait(0.2):
            growth.see(endpoint.memory())

    thread = threading.Thread(target=watch)
    thread.start()
    try:
        yield growth.most
    finally:
        ends.set()
        thread.join()
        growth.see(endpoint.memory())


@contextmanager
def beside(endpoint: Endpoint, note: Callable[[str, object], None], *, clients: int = 2) -> Iterator[Seen]:
    """Good clients that ask inside the block: each is answered 200, and no process takes much more memory."""
    began = time.monotonic()
    with (
        growth_of(endpoint) as growth,
        traffic(endpoint.url + PREDICT, endpoint.key, endpoint.image, connections=clients, pause_s=0.02) as seen,
    ):
        _wait_for_more(seen)
        yield seen
        _wait_for_more(seen)
    note("seconds", round(time.monotonic() - began, 1))
    note("good answers", dict(seen.answers))
    note("slowest good answer, s", round(seen.slowest_s, 2))
    note("growth, MB", {role: round(size) for role, size in growth.items()})
    assert set(seen.answers) == {"200"}, seen.examples
    assert all(size < MOST_GROWTH_MB[role] for role, size in growth.items()), growth


def _wait_for_more(seen: Seen, count: int = 5) -> None:
    """Until ``count`` more good answers came, or any other."""
    enough, deadline = seen.answers["200"] + count, time.monotonic() + _ANSWER_S
    while seen.answers["200"] < enough and not seen.failed and time.monotonic() < deadline:
        time.sleep(0.02)


def connections(
    endpoint: Endpoint, count: int, head: bytes, *, drip: bytes = b"", every_s: float = 1.0, timeout_s: float = 100.0
) -> Counter[int]:
    """Open ``count`` connections at a time, send ``head`` and then ``drip`` again and again; the statuses that came.

    0 stands for a connection that was closed without an answer, -1 for one that stayed open for ``timeout_s``.
    """
    place = urlsplit(endpoint.url)
    got: Counter[int] = Counter()

    async def feed(writer: asyncio.StreamWriter) -> None:
        with suppress(OSError):
            writer.write(head)
            await writer.drain()
            while drip:
                writer.write(drip)
                await writer.drain()
                await asyncio.sleep(every_s)

    async def one() -> None:
        status, writer, feeding = 0, None, None
        with suppress(OSError):
            try:
                async with asyncio.timeout(timeout_s):
                    reader, writer = await asyncio.open_connection(place.hostname, place.port)
                    feeding = asyncio.create_task(feed(writer))
                    status = answer_of(await reader.readuntil(b"\r\n\r\n")).status
            except TimeoutError:
                status = -1
            except asyncio.IncompleteReadError:
                status = 0
        if feeding is not None:
            feeding.cancel()
        if writer is not None:
            writer.close()
        got[status] += 1

    async def all_of_them() -> None:
        await asyncio.gather(*(one() for _ in range(count)))

    asyncio.run(all_of_them())
    return got
