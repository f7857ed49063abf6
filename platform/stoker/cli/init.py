"""Create a project folder with a recipe, a Serve config and a README: stoker init FOLDER

The folder must not exist or be empty. --with copies files that come with stoker into it, next to the project's own:
recipes, Serve configs, cluster files; --list prints their names.
"""

from __future__ import annotations

import argparse
import re
import shlex
import shutil
from pathlib import Path

from stoker.bundled import bundled_file, bundled_files
from stoker.errors import StokerError

__all__ = ["add_arguments", "run"]

_TEMPLATES = Path(__file__).parent / "project"
_IGNORED = "/.stoker/\n/images/\n"
"""the project's .gitignore, which Ray follows too when it copies a working directory"""
_LONGEST_NAME = 100
_RESERVED = "front"
"""a deployment of every Serve config, so not a model"""
_NOT_TEXT = re.compile(r"[0-9].*|true|false|yes|no|on|off|null|y|n")
"""names that YAML may read as a number, date, boolean or null"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("folder", metavar="FOLDER", type=Path, nargs="?", help="the folder to create")
    parser.add_argument(
        "--with", dest="extra", action="append", default=[], metavar="NAME", help="copy recipes/fine-tune.yaml, …, too"
    )
    parser.add_argument("--list", action="store_true", help="print the names that --with takes")


def run(given: argparse.Namespace) -> None:
    if given.list:
        print("\n".join(bundled_files()))
        return
    if given.folder is None:
        raise StokerError("stoker init: which folder is missing; write stoker init FOLDER, or --list")
    written = create_project(given.folder, given.extra)
    print(f"created {given.folder}: {', '.join(written)}")
    for name in given.extra:
        if "file_mounts:" in bundled_file(name).read_text(encoding="utf-8"):
            print(f"note: {name} copies folders of a checkout of stoker to the nodes; type ray up in one")
    print(f"next: cd {shlex.quote(str(given.folder))}, and follow README.md")


def create_project(folder: Path, extra: list[str]) -> list[str]:
    """Write a project into ``folder`` and copy the bundled files ``extra``; returns the files' names.

    Raises:
        StokerError: the folder is not empty or cannot be written, or a bundled file is unknown.
    """
    copies = {name: bundled_file(name) for name in extra}
    name = _name_of(folder)
    texts = {path.name: _named(path.read_text(encoding="utf-8"), "NAME", name) for path in _TEMPLATES.iterdir()}
    texts |= {"serve.yaml": _serve_config(name), ".gitignore": _IGNORED}
    try:
        if folder.exists() and any(folder.iterdir()):
            raise StokerError(f"{folder}: the folder is not empty; choose another")
        folder.mkdir(parents=True, exist_ok=True)
        for file, text in texts.items():
            (folder / file).write_text(text, encoding="utf-8")
        for file, source in copies.items():
            (folder / file).parent.mkdir(exist_ok=True)
            shutil.copyfile(source, folder / file)
    except OSError as error:
        raise StokerError(f"{folder}: cannot be written ({error.strerror}); choose another folder") from None
    return sorted([*texts, *copies])


def _name_of(folder: Path) -> str:
    """A run's and model's name made of the folder's: letters, digits and dashes."""
    name = re.sub(r"[^a-z0-9]+", "-", folder.absolute().name.lower())[:_LONGEST_NAME].strip("-") or "photos"
    return f"{name}-model" if name == _RESERVED else name


def _named(text: str, placeholder: str, name: str) -> str:
    """``text`` with ``placeholder`` replaced by ``name``, in quotes where YAML would not read it as text."""
    quoted = f'"{name}"' if _NOT_TEXT.fullmatch(name) else name
    return text.replace(f"name: {placeholder}", f"name: {quoted}").replace(placeholder, name)


def _serve_config(name: str) -> str:
    """The quickstart's Serve config for the model ``name``."""
    lines = bundled_file("serve/digits.yaml").read_text(encoding="utf-8").splitlines()
    body = _named("\n".join(line for line in lines if not line.startswith("#")), "digits", name)
    return f"# The endpoint of {name}: stoker deploy serve.yaml. The format is Ray Serve's (serve deploy).\n{body}\n"
