"""Every command of docs/data.md is run as written, with only the buckets' names replaced."""

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

from conftest import Store
from images import JOB, encoded, make_folder
from sources import archives, tar_of, write_hub, write_mnist
from stoker.dataset.prepare.command import add_arguments
from stoker.storage import Location, locate

DOCS = Path(__file__).parents[3] / "docs" / "data.md"


def commands() -> list[str]:
    blocks = re.findall(r"^```\n(.*?)^```", DOCS.read_text(), re.DOTALL | re.MULTILINE)
    lines = (line for block in blocks for line in block.splitlines())
    return [line for line in lines if line.startswith(("python ", "ray job submit "))]


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory, store: Store) -> tuple[Path, Location, Location]:
    """A folder with all that the page speaks of, and the two buckets."""
    here, raw = tmp_path_factory.mktemp("docs"), locate(store.fresh("raw"))
    make_folder(here / "photos", {"cat": 20, "dog": 20})
    make_folder(here / "photos-with-flaws", {"cat": 4, "dog": 4})
    (here / "photos-with-flaws" / "cat" / "7.jpg").write_bytes(b"")
    for path in (here / "photos").rglob("*.jpg"):
        (raw / "photos" / path.parent.name / path.name).write(path.read_bytes())
    for folder, label in (("tars", "cls"), ("tars-with-names", "txt")):
        (here / folder).mkdir()
        told = [
            (f"{n}.{kind}", data) for n in range(6) for kind, data in (("jpg", encoded(n)), (label, b"01"[n % 2 :][:1]))
        ]
        (here / folder / "train-0000.tar").write_bytes(tar_of(dict(told)))
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
    return here, raw, locate(store.fresh("bucket"))


@pytest.mark.store
@pytest.mark.parametrize("command", commands())
def test_a_command_of_the_page_does_what_it_says(
    command: str,
    place: tuple[Path, Location, Location],
    monkeypatch: pytest.MonkeyPatch,
    capfd: pytest.CaptureFixture[str],
) -> None:
    here, raw, bucket = place
    monkeypatch.chdir(here)
    words = shlex.split(command.partition(" -- ")[2] or command)  # a cluster for each would take a minute
    words = [word.replace("s3://raw", raw.url).replace("s3://bucket", bucket.url) for word in words]

    if words[1] == "-m":
        monkeypatch.setattr(sys, "argv", words[2:])
        runpy.run_module(words[2], run_name="__main__")
        return
    assert words[:2] == ["python", "jobs/prepare.py"]
    monkeypatch.setattr(sys, "argv", [str(JOB), *words[2:]])
    runpy.run_path(str(JOB), run_name="__main__")

    told = json.loads(capfd.readouterr().out.splitlines()[-1])
    assert told["dataset"] == words[3]
    assert told["splits"]["train"]["samples"] > 0
    if "--limit" in command:
        assert sum(split["samples"] for split in told["splits"].values()) == 30
    if "flaws" in command:
        assert told["left_out"] == 1


def test_the_page_shows_every_option() -> None:
    text = DOCS.read_text()
    shown = set(re.findall(r"--[a-z-]+", text))
    parser = ArgumentParser()
    add_arguments(parser)
    options = {word for action in parser._actions for word in action.option_strings if word.startswith("--")}
    assert options - {"--help", "--timeout-s"} <= shown
