"""Each block of Python in the pages about the loader runs as written, against small data sets in the bucket's place."""

from __future__ import annotations

import io
import itertools
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import soundfile
import torch

from made import write_dataset, write_samples
from pages import PAGES

PAGE = "\n".join(
    PAGES[f"docs/tutorials/{name}.md"].read_text() for name in ("loader", "loader-frameworks", "loader-samples")
)


def blocks() -> list[tuple[str, str]]:
    """(heading, code) in the pages' order."""
    found = []
    for section in re.split(r"^## ", PAGE, flags=re.MULTILINE)[1:]:
        heading = section.splitlines()[0]
        found += [(heading, code) for code in re.findall(r"^```python\n(.*?)^```$", section, re.MULTILINE | re.DOTALL)]
    return found


def sessions() -> dict[str, list[str]]:
    """Blocks that are run one after another: one that begins with an import, and those that continue it."""
    found: dict[str, list[str]] = {}
    for heading, code in blocks():
        if re.match(r"(#.*\n)?(import|from) ", code):
            number = sum(name.startswith(heading) for name in found)
            found[f"{heading} ({number + 1})" if number else heading] = [code]
        else:
            found[next(reversed(found))].append(code)
    return found


@pytest.fixture(scope="module")
def bucket(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("bucket")
    write_dataset(str(folder / "photos"), {"train": [70, 30], "validation": [20]}, size=(80, 70))
    rng = np.random.default_rng(0)
    vectors = [("bin", rng.standard_normal(16).astype(np.float32).tobytes(), n % 3) for n in range(20)]
    write_samples(str(folder / "vectors"), [vectors])
    return folder


@pytest.fixture
def one_thread() -> Iterator[None]:
    """On a machine that does something else too, two threads of OpenMP are five times slower than one."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def write_sounds(folder: Path) -> None:
    rng = np.random.default_rng(0)
    sounds = []
    for n, kind in zip(range(16), itertools.cycle(["wav", "flac"])):
        file = io.BytesIO()
        soundfile.write(file, rng.integers(-9000, 9000, 14_000 + 500 * n).astype(np.int16), 16_000, format=kind.upper())
        sounds.append((kind, file.getvalue(), n % 3))
    write_samples(str(folder / "sounds"), [sounds])


def test_the_pages_have_the_blocks_that_they_speak_of() -> None:
    assert [len(codes) for codes in sessions().values()] == [3, 1, 1, 1, 1, 1, 1, 1, 1, 1]
    assert all("s3://bucket/datasets/" in codes[0] for codes in sessions().values())


@pytest.mark.usefixtures("one_thread")
@pytest.mark.parametrize("name", sessions())
def test_the_examples_run(name: str, bucket: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    code = "\n".join(sessions()[name]).replace("s3://bucket/datasets", str(bucket))
    if "AudioClips" in code:
        write_sounds(bucket)
    monkeypatch.chdir(tmp_path)
    if "torchrun" in code:
        (tmp_path / "train.py").write_text(code)
        start = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2", "train.py"]
        done = subprocess.run(start, capture_output=True, text=True, check=False, timeout=300)
        assert done.returncode == 0, done.stderr
    else:
        exec(compile(code, f"docs/tutorials, {name}", "exec"), {"__name__": "example"})
