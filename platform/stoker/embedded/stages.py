"""Stages of a program that types a user's commands: each command is printed before it runs, and all is logged."""

from __future__ import annotations

import contextlib
import os
import shlex
import subprocess
import sys
import time
import uuid
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO

from stoker.embedded.instance import Instance, Owner
from stoker.embedded.processes import program, shown_path, shown_program
from stoker.embedded.ray_output import readable
from stoker.errors import ClusterError

__all__ = ["Shell", "Stages"]


@dataclass
class Stages:
    """Seconds by stage of the program ``name``, and everything that it prints; ``count`` of them, if that is known."""

    name: Owner
    log: IO[str]
    count: int | None = None
    seconds: dict[str, float] = field(default_factory=dict)

    def say(self, line: str) -> None:
        print(line, flush=True)  # noqa: T201
        self.log.write(line + "\n")
        self.log.flush()

    @contextlib.contextmanager
    def running(self, instance: Instance) -> Iterator[None]:
        """Store and cluster run inside the block, started in a first stage; afterwards they stop, unless ``up`` keeps
        them.

        Raises:
            ClusterError: one of them cannot be started, or another demo or quickstart runs in the same folder.
        """
        with contextlib.ExitStack() as running:
            running.enter_context(instance.folder.held(self.name))
            with self.stage("start", "An object store and a Ray cluster on this machine"):
                if instance.owner not in (None, "up"):  # it was killed: its job may still train under our run's name
                    self.say(f"  stopping what an interrupted {instance.owner} left: {instance.stop()} processes")
                running.enter_context(instance.started(self.name))
                self.say(f"  store {instance.store.endpoint}, Ray {instance.dashboard_url}")
            os.environ.update(instance.environment())
            yield

    @contextlib.contextmanager
    def stage(self, name: str, what: str) -> Iterator[None]:
        of = "" if self.count is None else f"/{self.count}"
        self.say(f"\n[{len(self.seconds) + 1}{of}] {what}")
        began = time.monotonic()
        yield
        self.seconds[name] = round(time.monotonic() - began, 1)


@dataclass(frozen=True)
class Shell:
    """Runs the commands that a user would type."""

    stages: Stages

    def run(self, *command: str) -> list[str]:
        """Run a command whose first word is a program next to this Python; returns the output's lines.

        Raises:
            ClusterError: the command failed; its last line is in the message.
        """
        name, *arguments = command
        self.stages.say("  $ " + shlex.join([shown_program(name), *arguments]))
        programs = str(Path(sys.executable).parent)
        path = programs + os.pathsep + os.environ.get("PATH", "")
        lines: list[str] = []
        with subprocess.Popen(
            [sys.executable if name == "python" else program(name), *arguments],
            env=os.environ | {"PATH": path, "PYTHONUNBUFFERED": "1"},
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            errors="replace",
        ) as process:
            assert process.stdout is not None
            try:
                for line in process.stdout:
                    self._show(line.rstrip(), lines)
            except BaseException:
                process.terminate()
                raise
        if process.returncode:
            reason = next((line for line in reversed(lines) if "error" in line.lower()), lines[-1] if lines else "")
            raise ClusterError(f"{command[0]} {command[1]} failed: {reason.strip()} (log: {self.stages.log.name})")
        return lines

    def submit(self, instance: Instance, folder: Path, *job: str) -> list[str]:
        """``stoker submit`` of ``job``, in the working directory ``folder``; the job is stopped when we are."""
        identity = f"{self.stages.name}-{uuid.uuid4().hex[:8]}"
        state = instance.folder.path
        elsewhere = () if state == Path(".stoker").absolute() else ("--folder", str(state))
        try:
            return self.run(
                *("stoker", "submit", *elsewhere, "--submission-id", identity, "--working-dir", shown_path(folder)),
                *job,
            )
        except BaseException:
            with contextlib.suppress(ClusterError, KeyboardInterrupt):
                self.run("ray", "job", "stop", "--no-wait", identity)
            raise

    def _show(self, line: str, lines: list[str]) -> None:
        self.stages.log.write(line + "\n")
        plain = readable(line)
        if plain is not None:
            lines.append(plain)
            print("  | " + plain, flush=True)  # noqa: T201
