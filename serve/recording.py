"""What a replica records of each request: a line in its access log, and its metrics."""

from __future__ import annotations

from .pipeline import Answered
from .telemetry import AccessLog, Metrics

__all__ = ["CLIENT_GONE", "Recorder"]

CLIENT_GONE = 499
"""recorded for a client that went away before its answer; it is never sent"""


class Recorder:
    """Record the requests and batches of one model version; ``log`` None: no access log."""

    def __init__(self, version: str, metrics: Metrics, log: AccessLog | None) -> None:
        self._version = version
        self._metrics = metrics
        self._log = log

    def request(
        self,
        request_id: str,
        status: int,
        seconds: float,
        *,
        key: str | None,
        bytes_in: int,
        images: int,
        answered: Answered | None,
    ) -> None:
        """A request ended with ``status`` after ``seconds``; ``key`` is the key's name."""
        self._metrics.observe(status, seconds, answered.decode_s if answered else None)
        if self._log is not None:
            queue_s, decode_s, model_s = (
                (answered.queue_s, answered.decode_s, answered.model_s)
                if answered
                else (
                    None,
                    None,
                    None,
                )
            )
            self._log.write(
                request_id,
                key=key,
                model=self._version,
                status=status,
                total_ms=seconds * 1000,
                bytes_in=bytes_in,
                images=images,
                queue_ms=_ms(queue_s),
                decode_ms=_ms(decode_s),
                model_ms=_ms(model_s),
                client_gone=status == CLIENT_GONE,
            )

    def batch(self, images: int, stage: str, seconds: float, waiting: int) -> None:
        """A group of ``images`` went through ``stage``; ``waiting`` images are not answered yet."""
        if stage == "forward":
            self._metrics.observe_batch(images, seconds)
        self._metrics.queue(waiting)

    def close(self) -> None:
        """Write and export what waits."""
        self._metrics.close()
        if self._log is not None:
            self._log.close()


def _ms(seconds: float | None) -> float | None:
    return None if seconds is None else seconds * 1000
