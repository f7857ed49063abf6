"""Filter the output of a job: keep the job's own lines, drop those of Ray's clients and of set-up.

Only lines that Ray's programs write are left out. They begin with a time, a level and the line of Ray's source that
wrote them, as ``2026-11-26 01:13:22,390  INFO sdk.py:520 -- …``, or are one of a few whole lines. Warnings and errors
are shown, except for two that come with every job.
"""

from __future__ import annotations

import re

__all__ = ["has_failed", "is_accepted", "readable"]

_PREFIX = r"\d{4}-\d\d-\d\d \d\d:\d\d:\d\d,\d+\s+"
_NOISE = re.compile(
    rf"{_PREFIX}(?:"
    r"(?:INFO|SUCC) (?:cli|dashboard_sdk|packaging|working_dir|sdk|job_manager)\.py:\d+ -- "
    r"|INFO worker\.py:\d+ -- (?:Connect(?:ing|ed) to |Using address |Calling ray\.init)"
    r"|WARNING working_dir\.py:\d+ -- Directory .* is now ignored by default when packaging"
    r"|ERR cli\.py:\d+ -- (?:-+|Job '[^']*' failed)$)"
    r"|\((?:TrainController|PreemptionWatcher) pid="
    r"|(?:\(\w+ pid=\d+[^)]*\) )?Setting up process group for: "
    r"|Running entrypoint for job \S+: |Tailing logs until the job exits \(|Job submission server address: "
    r"|(?:Next steps|Query the (?:logs|status) of the job:|Request the job to be stopped:)$"
    r"|\s*ray job (?:logs|status|stop) \S+$|\s*-+$"
)
_COLOUR = re.compile(r"\x1b\[[0-9;]*m")
_PROCESS = re.compile(r"\((?:RayTrainWorker|[A-Za-z_]+) pid=\d+(?:, ip=[^)]*)?\)\s?")


def readable(line: str) -> str | None:
    """``line`` without colours and the name of the process that wrote it, whole; None if it is of no use to a user."""
    text = _COLOUR.sub("", line).rstrip()
    plain = _PROCESS.sub("", text)
    return None if not plain.strip() or _NOISE.match(text) else plain


def is_accepted(line: str, identity: str) -> bool:
    """Whether ``ray job submit`` says with ``line`` that the cluster has accepted the job."""
    return _says(line, "SUCC", f"Job '{identity}' submitted successfully")


def has_failed(line: str, identity: str) -> bool:
    """Whether ``ray job submit`` says with ``line`` that the job failed."""
    return _says(line, "ERR", f"Job '{identity}' failed")


def _says(line: str, level: str, text: str) -> bool:
    return bool(re.fullmatch(rf"{_PREFIX}{level} cli\.py:\d+ -- {re.escape(text)}", _COLOUR.sub("", line).rstrip()))
