"""What a replica tells about its requests: a line of JSON each in the access log, and Prometheus metrics.

A request only appends a tuple to a bounded queue; threads format and write what is there, the access log five times a
second and the metrics once. When a queue is full, what does not fit is dropped and counted, and the request is answered
all the same.

| metric | labels | |
|---|---|---|
| stoker_serve_requests_total | model, version, status | |
| stoker_serve_request_seconds, _decode_seconds | model, version | histograms over requests |
| stoker_serve_forward_seconds, _batch_images | model, version | histograms over batches |
| stoker_serve_queue_images | model, version | images that waited for a batch, sampled once a second |
"""

from __future__ import annotations

import atexit
import datetime
import json
import logging
import re
import secrets
import sys
import threading
import time
from collections import deque
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

from .rotating_file import RotatingFile

__all__ = ["AccessLog", "Metrics", "access_log_path", "request_id"]

logger = logging.getLogger(__name__)

_GIVEN_ID = re.compile(rb"[A-Za-z0-9._-]{1,128}")
_MOST_LINES = 10_000
_MOST_OBSERVATIONS = 100_000
_PIECE = 32
"""lines or observations that are handled in one go, some 0.3 ms; all at once would hold up the event loop for longer"""
_LONGEST = 128
"""characters of a field: a request may ask for a model of any name"""
_ENCODE = json.JSONEncoder(default=float).encode  # json.dumps would make an encoder for each line
_REQUEST_S = (0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1.0, 2.0, 5.0, 10.0)
_WORK_S = (0.001, 0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1.0, 2.0, 5.0)
_BATCH_IMAGES = (1.0, 2.0, 4.0, 8.0, 16.0, 32.0, 64.0, 128.0)


def request_id(given: bytes | None) -> str:
    """The client's ``X-Request-Id`` if it is 1 to 128 of ``A-Z a-z 0-9 . _ -``, else a new one of 32 hex digits."""
    if given is not None and _GIVEN_ID.fullmatch(given):
        return given.decode("ascii")
    return secrets.token_hex(16)


class _Line(NamedTuple):
    """One request, in the order of the log's fields."""

    time: float
    request_id: str
    key: str | None
    model: str | None
    status: int
    bytes_in: int
    images: int
    queue_ms: float | None
    decode_ms: float | None
    model_ms: float | None
    total_ms: float
    client_gone: bool


class AccessLog:
    """One line of JSON for each request, in a file that is rotated; safe from any thread.

    A line never has an image or a key, only the key's name.
    """

    def __init__(
        self,
        path: Path,
        *,
        every_s: float = 0.2,
        most_lines: int = _MOST_LINES,
        file_bytes: int = 50_000_000,
        files: int = 5,
    ) -> None:
        """Lines are written every ``every_s`` seconds; up to ``most_lines`` wait for that, the others are dropped.

        The file is rotated at about ``file_bytes``, and ``files`` older ones are kept.

        Raises:
            OSError: the file cannot be opened.
        """
        path.parent.mkdir(parents=True, exist_ok=True)
        self._file = RotatingFile(path, file_bytes, files)
        self._most_lines = most_lines
        self._waiting: deque[_Line] = deque()
        self._dropped = self._told = 0
        self._is_failing = False
        self._writer = _Periodic(self._write, every_s, "access-log")

    @property
    def dropped(self) -> int:
        """Lines that were not written: too many at once, or the disk refused them."""
        return self._dropped

    def write(
        self,
        request_id: str,
        *,
        key: str | None,
        model: str | None,
        status: int,
        total_ms: float,
        bytes_in: int = 0,
        images: int = 0,
        queue_ms: float | None = None,
        decode_ms: float | None = None,
        model_ms: float | None = None,
        client_gone: bool = False,
    ) -> None:
        """Log a request that has ended.

        ``key`` is the key's name, ``model`` the version (``digits@3``); times are in milliseconds, None for a stage
        that was not reached; ``client_gone``: the client had closed the connection before the answer.
        """
        if len(self._waiting) >= self._most_lines:
            self._dropped += 1
            return
        self._waiting.append(
            _Line(
                time.time(),
                request_id,
                key,
                model,
                status,
                bytes_in,
                images,
                queue_ms,
                decode_ms,
                model_ms,
                total_ms,
                client_gone,
            )
        )

    def close(self) -> None:
        """Write what waits, and close the file."""
        self._writer.close()
        self._file.close()

    def _write(self) -> None:
        count = len(self._waiting)
        for first in range(0, count, _PIECE):  # writing lets go of the interpreter, so the event loop waits for a piece
            self._append([_formatted(self._waiting.popleft()) for _ in range(min(_PIECE, count - first))])
        dropped = self._dropped
        if dropped > self._told:
            line = json.dumps({"time": _shown_time(time.time()), "dropped_lines": dropped - self._told})
            if self._append([line], is_counted=False):
                self._told = dropped

    def _append(self, lines: list[str], *, is_counted: bool = True) -> bool:
        """Append ``lines`` to the file; whether it took them. Those that it did not take are dropped."""
        try:
            self._file.append(lines)
        except OSError as error:
            self._dropped += len(lines) * is_counted
            if not self._is_failing:
                logger.error("access log %s cannot be written (%s); free space", self._file.path, error.strerror)
            self._is_failing = True
            return False
        self._is_failing = False
        return True


class Metrics:
    """The Prometheus metrics of one model version in this process; safe from any thread.

    Without a Ray worker around it nothing is exported.
    """

    def __init__(self, model: str, version: str, *, every_s: float = 1.0) -> None:
        self._labels = {"model": model, "version": version}
        self._requests: deque[tuple[int, float, float | None]] = deque(maxlen=_MOST_OBSERVATIONS)
        self._batches: deque[tuple[int, float]] = deque(maxlen=_MOST_OBSERVATIONS)
        self._queued: int | None = None
        self._exported: _Exported | None = None
        self._folder = _Periodic(self._fold, every_s, "metrics")

    def observe(self, status: int, seconds: float, decode_s: float | None = None) -> None:
        """A request was answered with ``status`` after ``seconds``, of which decoding its images took ``decode_s``."""
        self._requests.append((status, seconds, decode_s))

    def observe_batch(self, images: int, forward_s: float) -> None:
        """A forward pass of ``images`` took ``forward_s`` seconds."""
        self._batches.append((images, forward_s))

    def queue(self, images: int) -> None:
        """``images`` wait for a batch now."""
        self._queued = images

    def close(self) -> None:
        """Export what waits, and end the thread."""
        self._folder.close()

    def _fold(self) -> None:
        requests = [self._requests.popleft() for _ in range(len(self._requests))]
        batches = [self._batches.popleft() for _ in range(len(self._batches))]
        ray = sys.modules.get("ray")
        if ray is None or not ray.is_initialized():
            return
        if self._exported is None:
            self._exported = _Exported(self._labels)
        self._exported.take(requests, batches, self._queued)


class _Exported:
    """Ray's metrics, which its agent on the node serves to Prometheus."""

    def __init__(self, labels: dict[str, str]) -> None:
        from ray.util.metrics import Counter, Gauge, Histogram

        def histogram(name: str, text: str, boundaries: tuple[float, ...]) -> Any:
            made = Histogram(f"stoker_serve_{name}", text, boundaries=list(boundaries), tag_keys=tuple(labels))
            return made.set_default_tags(labels)

        self._labels = labels
        self._requests = Counter("stoker_serve_requests", "requests answered", tag_keys=(*labels, "status"))
        self._queue = Gauge("stoker_serve_queue_images", "images that wait for a batch", tag_keys=tuple(labels))
        self._request_s = histogram("request_seconds", "from a request's head to its answer", _REQUEST_S)
        self._decode_s = histogram("decode_seconds", "decoding of a request's images", _WORK_S)
        self._forward_s = histogram("forward_seconds", "forward pass of a batch", _WORK_S)
        self._batch = histogram("batch_images", "images of a batch", _BATCH_IMAGES)

    def take(
        self, requests: list[tuple[int, float, float | None]], batches: list[tuple[int, float]], queued: int | None
    ) -> None:
        answered: dict[int, int] = {}
        for place, (status, seconds, decode_s) in enumerate(requests):
            answered[status] = answered.get(status, 0) + 1
            self._request_s.observe(seconds)
            if decode_s is not None:
                self._decode_s.observe(decode_s)
            if place % _PIECE == 0:
                time.sleep(0)  # lets go of the interpreter for the event loop
        for status, count in answered.items():
            self._requests.inc(count, {**self._labels, "status": str(status)})
        for images, forward_s in batches:
            self._batch.observe(images)
            self._forward_s.observe(forward_s)
        if queued is not None:
            self._queue.set(queued, self._labels)


class _Periodic:
    """A daemon thread that calls ``action`` every ``every_s`` seconds, and once more when it is closed."""

    def __init__(self, action: Callable[[], None], every_s: float, name: str) -> None:
        self._action = action
        self._every_s = every_s
        self._closed = threading.Event()
        self._thread = threading.Thread(target=self._run, name=name, daemon=True)
        self._thread.start()
        atexit.register(self.close)

    def close(self) -> None:
        atexit.unregister(self.close)
        self._closed.set()
        self._thread.join()

    def _run(self) -> None:
        while not self._closed.wait(self._every_s):
            self._action()
        self._action()


def access_log_path() -> Path:
    """Where this Serve replica's access log belongs: beside its own log, so that Ray's dashboard shows it."""
    from ray import serve
    from ray.serve._private.logging_utils import get_serve_logs_dir  # no public name has the folder

    replica = serve.get_replica_context()
    return Path(get_serve_logs_dir()) / f"access_{replica.app_name}_{replica.deployment}_{replica.replica_tag}.log"


def _formatted(line: _Line) -> str:
    fields: dict[str, Any] = line._asdict()
    fields["time"] = _shown_time(line.time)
    for name, value in fields.items():
        if isinstance(value, float):
            fields[name] = round(value, 3)
        elif isinstance(value, str):
            fields[name] = value[:_LONGEST]
    return _ENCODE(fields)


def _shown_time(moment: float) -> str:
    shown = datetime.datetime.fromtimestamp(moment, datetime.UTC).isoformat(timespec="milliseconds")
    return shown.replace("+00:00", "Z")
