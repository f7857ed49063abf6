"""Every command of the pages about preparing is run as written, with only the buckets' names replaced.

``stoker prepare``, ``stoker submit prepare`` and ``ray job submit … jobs/prepare.py`` are the same code, which runs
here in this process: a cluster for each would take a minute.
"""

import csv
import json
import re
import runpy
import shlex
import sys
from argparse import ArgumentParser
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image

from conftest import Store
from images import JOB, encoded, make_folder
from pages import PAGES, commands_of
from sources import archives, tar_of, write_hub, write_mnist
from stoker.dataset.prepare.command import add_arguments
from stoker.embedded.digits import write_digits
from stoker.storage import Location, locate

FOLDER = "docs/how-to/"
BEGIN = ("stoker prepare ", "stoker submit prepare ", "ray job submit --working-dir . -- python jobs/prepare.py ")
DIGITS = "python -m stoker.embedded.digits "
TEXTS = {page: PAGES[page].read_text() for page in PAGES if page.startswith(f"{FOLDER}prepare")}


def commands() -> list[str]:
    return [command.text for page in TEXTS for command in commands_of(page) if not command.is_inline]


def test_the_pages_show_only_commands_that_run_here() -> None:
    assert len(commands()) > 20
    assert all(command.startswith((*BEGIN, DIGITS)) for command in commands())


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory, store: Store) -> tuple[Path, Location, Location]:
    """A folder with all that the page speaks of, and the two buckets."""
    here, raw = tmp_path_factory.mktemp("docs"), locate(store.fresh("raw"))
    make_folder(here / "photos", {"cat": 20, "dog": 20})
    make_folder(here / "photos-with-flaws", {"cat": 4, "dog": 4})
    (here / "photos-with-flaws" / "cat" / "7.jpg").write_bytes(b"")
    for n, kind in enumerate("ab" * 3):
        (here / "drawings" / kind).mkdir(parents=True, exist_ok=True)
        Image.new("RGBA", (48, 36), (200, 30, 30, 40 * n)).save(here / "drawings" / kind / f"{n}.png")
    make_folder(here / "vehicles", {"bus": 3, "car/new": 3, "train/steam": 3})
    make_folder(here / "extended", {f"{split}/{name}": 3 for split in ("train", "dev", "extra") for name in "ab"})
    for path in (here / "photos").rglob("*.jpg"):
        (raw / "photos" / path.parent.name / path.name).write(path.read_bytes())
    for folder, label in (("tars", "cls"), ("tars-with-names", "txt")):
        (here / folder).mkdir()
        reported = [
            (f"{n}.{kind}", data) for n in range(6) for kind, data in (("jpg", encoded(n)), (label, b"01"[n % 2 :][:1]))
        ]
        (here / folder / "train-0000.tar").write_bytes(tar_of(dict(reported)))
    (here / "names.txt").write_text("cat\ndog\n")
    (here / "imagenet").mkdir()
    for name, data in archives().items():
        (here / "imagenet" / name).write_bytes(data)
    write_hub(here / "hub" / "data" / "train-00000-of-00001.parquet", range(20))
    write_hub(here / "hub" / "data" / "validation-00000-of-00001.parquet", range(20, 26))
    rows: dict[str, list[Any]] = {name: [encoded(n) for n in range(6)] for name in ("photo", "thumbnail")}
    pq.write_table(pa.table(rows | {"kind": ["a", "b"] * 3, "id": list(range(6))}), here / "animals.parquet")
    paths = [str(path.relative_to(here)) for path in sorted((here / "photos").rglob("*.jpg"))]
    with (here / "list.csv").open("w", newline="") as text:
        csv.writer(text).writerows([("path", "label"), *((path, path.split("/")[1]) for path in paths)])
    lines = [json.dumps({"path": path, "animal": path.split("/")[1]}) for path in paths]
    (here / "list.jsonl").write_text("\n".join(lines))
    write_mnist(here / "sets")
    write_digits(here / "digits")
    return here, raw, locate(store.fresh("bucket"))


@pytest.mark.store
@pytest.mark.parametrize("command", commands())
def test_a_command_of_the_page_does_what_it_says(
    command: str,
    place: tuple[Path, Location, Location],
    monkeypatch: pytest.MonkeyPatch,
    capfd: pytest.CaptureFixture[str],
    tmp_path: Path,
) -> None:
    here, raw, bucket = place
    is_digits = command.startswith(DIGITS)
    monkeypatch.chdir(tmp_path if is_digits else here)
    begin = next(start for start in (*BEGIN, DIGITS) if command.startswith(start))
    words = shlex.split(command.removeprefix(begin))
    words = [word.replace("s3://raw", raw.url).replace("s3://bucket", bucket.url) for word in words]

    monkeypatch.setattr(sys, "argv", [str(JOB), *words])
    if is_digits:
        runpy.run_module("stoker.embedded.digits", run_name="__main__")
        assert len(list(tmp_path.rglob("*.jpg"))) == 1797
        return
    runpy.run_path(str(JOB), run_name="__main__")

    reported = json.loads(capfd.readouterr().out.splitlines()[-1])
    assert reported["dataset"] == words[1]
    assert reported["splits"]["train"]["samples"] > 0
    if "--limit" in command:
        assert sum(split["samples"] for split in reported["splits"].values()) == 30
    if "flaws" in command:
        assert reported["left_out"] == 1
    if "--background" in command:
        assert reported["transparent"] == 6


def test_the_pages_show_every_option() -> None:
    shown = set(re.findall(r"--[a-z-]+", "\n".join(TEXTS.values())))
    parser = ArgumentParser()
    add_arguments(parser)
    options = {word for action in parser._actions for word in action.option_strings if word.startswith("--")}
    assert options - {"--help", "--timeout-s"} <= shown
