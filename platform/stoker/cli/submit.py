"""Run a command as a job on a Ray cluster and follow its log: stoker submit [OPTIONS] train RECIPE [key=value ...]

Arguments after the command's name are passed to it. The cluster is the one at --address, else at
RAY_API_SERVER_ADDRESS, else the one that stoker up keeps running in this folder. The plain `ray job submit` command is
printed before it runs. The working directory is copied to the cluster, except for
    .git .venv* .stoker __pycache__ node_modules build dist *.egg-info bench-data bench-train
    .mypy_cache .ruff_cache .pytest_cache .hypothesis .import_linter_cache
and what --exclude names. The exit status is the job's. Ctrl-C stops following; the job continues.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import shlex
import signal
import subprocess
import sys
import uuid
from pathlib import Path

from stoker.cli._ray_jobs import Jobs
from stoker.cli.commands import JOBS
from stoker.dashboard import checked_address, ray_token
from stoker.embedded import Instance, Settings
from stoker.embedded.processes import program
from stoker.embedded.ray_output import has_failed, is_accepted, readable
from stoker.errors import ClusterError, StokerError

__all__ = ["EXCLUDES", "add_arguments", "run"]

EXCLUDES = (
    *(".git", ".venv*", ".stoker", "__pycache__", "node_modules", "build", "dist", "*.egg-info"),
    *("bench-data", "bench-train", ".mypy_cache", ".ruff_cache", ".pytest_cache", ".hypothesis"),
    ".import_linter_cache",
)
"""never copied to the cluster; patterns as in .gitignore"""

_IDENTITY = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,99}")
"""it is part of URLs and the name of the log"""
_POLL_S = 1.0
_FINISH_TIMEOUT_S = 30.0


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--address", help="the cluster's dashboard, as http://127.0.0.1:8265")
    parser.add_argument("--folder", type=Path, help="state folder of stoker up (default: .stoker in this folder)")
    parser.add_argument(
        "--working-dir", type=Path, default=Path(), metavar="FOLDER", help="copied to the job (default: .)"
    )
    parser.add_argument("--exclude", action="append", default=[], metavar="PATTERN", help="not to copy; repeatable")
    parser.add_argument("--submission-id", metavar="ID", help="the job's name (default: one is drawn)")
    parser.add_argument("--no-wait", action="store_true", help="do not follow the log")
    parser.add_argument("job", choices=JOBS, metavar="JOB", help=f"one of {', '.join(JOBS)}")
    parser.add_argument("arguments", nargs=argparse.REMAINDER, metavar="...", help="the arguments of JOB")


def run(given: argparse.Namespace) -> None:
    if given.submission_id is not None and not _IDENTITY.fullmatch(given.submission_id):
        raise StokerError(
            f"--submission-id {given.submission_id!r} is not a valid name; use 1 to 100 letters, digits, dots, dashes "
            "and underscores, a letter or digit first"
        )
    working_dir = _working_dir(given)
    instance = Instance(given.folder, Settings.model_validate({}))
    address, environment = _cluster(given, instance)
    jobs = Jobs(address, environment)
    jobs.check()
    identity = given.submission_id or f"{given.job}-{uuid.uuid4().hex[:8]}"
    if given.submission_id and jobs.status(identity) is not None:
        raise ClusterError(f"--submission-id {identity}: the cluster has a job of this name already; choose another")
    command = [
        *("ray", "job", "submit", "--address", address, "--submission-id", identity),
        *("--working-dir", str(given.working_dir), "--runtime-env-json"),
        json.dumps({"excludes": [*EXCLUDES, *given.exclude]}),
        *(["--no-wait"] if given.no_wait else []),
        *("--", "python", *_entrypoint(given.job, working_dir), *given.arguments),
    ]
    print("$ " + shlex.join(command), flush=True)
    log = instance.folder.logs / "jobs" / f"{identity}.log" if _is_of(instance, address) else None
    _follow(command, environment, log, address, identity)
    if given.no_wait:
        print(f"submitted {identity}; {_how_to(identity, address)}")
        return
    status = jobs.wait(identity, timeout_s=_FINISH_TIMEOUT_S, poll_s=_POLL_S)
    if status is None:
        raise ClusterError(f"the cluster does not know the job {identity}; see ray job list --address {address}")
    if code := status.exit_code:
        where = f"; log: {log}" if log else ""
        print(f"error: job {identity} {status.state.lower()} with exit status {code}{where}", file=sys.stderr)
        raise SystemExit(code)


def _working_dir(given: argparse.Namespace) -> Path:
    folder: Path = given.working_dir
    if not folder.is_dir():
        raise StokerError(f"--working-dir {folder}: folder not found; give the folder that holds the recipe")
    if given.job == "train" and given.arguments:
        recipe = Path(given.arguments[0])
        if not recipe.is_absolute() and not given.arguments[0].startswith("-") and not (folder / recipe).is_file():
            raise StokerError(
                f"{recipe}: recipe not found in the working directory {folder.absolute()}, which is what the job sees; "
                "give a path relative to it"
            )
    return folder


def _cluster(given: argparse.Namespace, instance: Instance) -> tuple[str, dict[str, str]]:
    """The address of the dashboard, and the variables by which Ray's client is admitted."""
    environment = dict(os.environ)
    is_up = instance.folder.path.is_dir() and instance.cluster.is_healthy()
    address = given.address or os.environ.get("RAY_API_SERVER_ADDRESS")
    if address is None and not is_up:
        raise ClusterError(
            f"no cluster given, and none runs in {instance.folder.path}; give --address http://…, set "
            "RAY_API_SERVER_ADDRESS, or start one: stoker up"
        )
    if is_up and (address is None or address.rstrip("/") == instance.dashboard_url):
        environment |= instance.cluster.environment()
        address = instance.dashboard_url
    assert address is not None
    address = checked_address(address)
    if (token := ray_token(environment)) and "RAY_AUTH_TOKEN" in environment:
        environment["RAY_AUTH_TOKEN"] = token  # Ray's client would quote one with a line break in its error
    return address, environment


def _is_of(instance: Instance, address: str) -> bool:
    return instance.folder.read().get("cluster") is not None and instance.dashboard_url == address


def _entrypoint(job: str, working_dir: Path) -> list[str]:
    script = f"jobs/{job}.py"
    return [script] if (working_dir / script).is_file() else ["-m", "stoker", job]


def _follow(command: list[str], environment: dict[str, str], log: Path | None, address: str, identity: str) -> None:
    """Run ``ray job submit``, print the lines that are of use and keep all of them in ``log``.

    Raises:
        ClusterError: it failed before the cluster accepted the job.
        SystemExit: status 130, after Ctrl-C or SIGTERM.
    """
    accepted, failed, is_stopped = False, False, False
    early: list[str] = []  # printed once the job is accepted; else its last line is the error
    if log is not None:
        log.parent.mkdir(parents=True, exist_ok=True)
    with (
        open(log or os.devnull, "a", encoding="utf-8") as kept,
        subprocess.Popen(
            [program(command[0]), *command[1:]],
            env=environment | {"PYTHONUNBUFFERED": "1"},
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            errors="replace",
            start_new_session=True,  # Ctrl-C is for us
        ) as process,
    ):
        assert process.stdout is not None

        def stop(*_: object) -> None:
            nonlocal is_stopped
            is_stopped = True
            process.terminate()

        before = {number: signal.signal(number, stop) for number in (signal.SIGINT, signal.SIGTERM)}
        for line in process.stdout:
            kept.write(line)
            accepted = accepted or is_accepted(line, identity)
            failed = failed or has_failed(line, identity)  # after this line Ray repeats the end of the log
            if not failed and (plain := readable(line)) is not None:
                early.append(plain)
            if accepted and early:
                print("\n".join(early), flush=True)
                early.clear()
        for number, handler in before.items():
            signal.signal(number, handler)
    if is_stopped:
        print(f"\nno longer following {identity}; {_how_to(identity, address)}", file=sys.stderr)
        raise SystemExit(130)
    if not accepted and process.returncode:
        reason = early[-1] if early else f"ray job submit printed nothing, exit status {process.returncode}"
        raise ClusterError(f"the job was not submitted: {reason}; the command above, run by itself, prints all")
    print("".join(f"{line}\n" for line in early), end="", flush=True)


def _how_to(identity: str, address: str) -> str:
    return (
        f"follow it: ray job logs --follow --address {address} {identity}   "
        f"stop it: ray job stop --address {address} {identity}"
    )
