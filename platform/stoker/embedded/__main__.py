"""``python -m stoker.embedded up|down|status|environment``: this machine's object store and Ray cluster by hand."""

from __future__ import annotations

import argparse
import os
import shlex
import sys
from pathlib import Path

from stoker.command import run_command
from stoker.embedded.instance import Instance
from stoker.embedded.settings import Settings

_COMMANDS = {
    "up": "start what is not up already, the endpoint too if a model was published, and keep it running",
    "down": "end both and everything that runs there; the data stay",
    "status": "say what answers where; exit status 1 if something does not",
    "environment": "print shell exports for clients; THEY HOLD SECRETS (S3 key, API key): for eval, not for a log",
}


def main(arguments: list[str]) -> None:
    parser = argparse.ArgumentParser(prog="python -m stoker.embedded", description=__doc__)
    commands = parser.add_subparsers(dest="command", required=True)
    for name, text in _COMMANDS.items():
        command = commands.add_parser(name, help=text, description=text)
        command.add_argument("--folder", type=Path, help="state folder (default: .stoker in the checkout)")
        command.add_argument("--settings", type=Path, help="settings file (default: cluster/local.yaml)")
    given = parser.parse_args(arguments)
    instance = Instance(given.folder, Settings.read(given.settings))
    if given.command == "up":
        from stoker.embedded.endpoint import deploy_endpoint  # torch comes with it, which the others need not wait for

        instance.start("up")
        if deploy_endpoint(instance) is None:
            _say("nothing to serve yet: make quickstart trains and publishes a first model")
        _say(_summary(instance, given))
    elif given.command == "down":
        count = instance.stop()
        _say(f"down: {count} processes ended; the data stay in {instance.folder.path / 'store'}")
    elif given.command == "status":
        if problem := instance.problem():
            _say(f"{problem} (state folder {instance.folder.path})")
            raise SystemExit(1)
        _say(_summary(instance, given))
    else:
        instance.require()
        _say("\n".join(f"export {name}={shlex.quote(value)}" for name, value in instance.environment().items()))
        unset = [name for name in ("AWS_PROFILE", "RAY_AUTH_TOKEN") if name in os.environ]
        if unset:
            _say(f"unset {' '.join(unset)}")


def _summary(instance: Instance, given: argparse.Namespace) -> str:
    command = [sys.executable, "-m", "stoker.embedded", "environment"]
    for option in ("folder", "settings"):
        if path := getattr(given, option):
            command += [f"--{option}", str(path.absolute())]
    return "\n".join(
        (
            f"object store  {instance.store.endpoint}  bucket {instance.url}  (data: {instance.folder.path / 'store'})",
            f"Ray           {instance.dashboard_url}  (dashboard and job API; token: {instance.folder.token_path})",
            f"endpoint      {instance.serve_url}  (once deployed; key: {instance.folder.path / 'api-key'})",
            f'by hand       eval "$({shlex.join(command)})"  then: ray job submit …, serve status, ray status',
        )
    )


def _say(text: str) -> None:
    sys.stdout.write(text + "\n")
    sys.stdout.flush()


if __name__ == "__main__":
    run_command(main)
