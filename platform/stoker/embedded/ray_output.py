"""Filter the output of a job: keep the job's own lines, drop those of Ray's clients and of set-up."""

from __future__ import annotations

import re

__all__ = ["readable"]

_NOISE = re.compile(
    r"Job submission server|Next steps|Query the |Request the job|Tailing logs until|ray job (logs|status|stop)"
    r"|^\s*-+\s*$"
    r"|submitted successfully|^Job '[^']*' succeeded$|Connecting to existing Ray|Connected to Ray cluster"
    r"|View the dashboard|Setting up process group|TrainController pid|PreemptionWatcher|Uploading package"
    r"|Creating a file package|Running entrypoint for job|Runtime env is setting up"
    r"|ignored by default when packaging|WebSocket (closed|error)"
    r"|(INFO|WARNING|ERR|SUCC) (cli|worker|dashboard_sdk|packaging|working_dir|sdk|job_manager)(\.py)?\b"
)
_COLOUR = re.compile(r"\x1b\[[0-9;]*m")
_PROCESS = re.compile(r"\((?:RayTrainWorker|[A-Za-z_]+) pid=\d+(?:, ip=[^)]*)?\)\s?")


def readable(line: str) -> str | None:
    """``line`` without colours and the name of the process that wrote it, whole; None if it is of no use to a user."""
    plain = _PROCESS.sub("", _COLOUR.sub("", line)).rstrip()
    return None if not plain.strip() or _NOISE.search(line) else plain
