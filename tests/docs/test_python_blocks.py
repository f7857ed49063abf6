"""Each block of Python outside the pages about the loader runs as written, with folders in the buckets' place."""

from __future__ import annotations

import re
import shutil
from pathlib import Path

import pytest

from made import write_dataset
from pages import MARK, PAGES
from published import finished_run
from stoker.predict import check_parity
from stoker.registry import publish_run
from stoker.storage import locate

BLOCK = re.compile(r"(<!--[^\n]*-->\n)?^```python\n(.*?)^```$", re.MULTILINE | re.DOTALL)
BLOCKS = [
    pytest.param(block[2], id=f"{page} ({number})")
    for page in PAGES
    if not page.startswith("docs/tutorials/loader")  # test_loader_examples.py runs these
    for number, block in enumerate(BLOCK.finditer(PAGES[page].read_text(encoding="utf-8")), 1)
    if MARK not in (block[1] or "")
]


@pytest.fixture(scope="module")
def buckets(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """``bucket`` with data sets, and ``stoker`` with the model digits, whose alias production is set."""
    folder = tmp_path_factory.mktemp("buckets")
    write_dataset(str(folder / "bucket" / "digits"), {"train": [4], "validation": [4]})
    (locate(folder / "bucket/datasets/photos/train") / "000000.tar").write(bytes(2_000_000))
    storage = finished_run(folder / "stoker")
    publish_run(storage, "run", "digits", verify=check_parity, alias="production")
    return folder


def test_there_are_blocks() -> None:
    assert len(BLOCKS) == 4


@pytest.mark.parametrize("code", BLOCKS)
def test_a_block_runs(code: str, buckets: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from PIL import Image

    monkeypatch.chdir(tmp_path)
    Image.new("RGB", (32, 32), (200, 10, 10)).save("seven.jpg")
    code = code.replace("s3://", f"{buckets}/").replace("/mnt/nvme", str(tmp_path))
    exec(compile(code, "docs", "exec"), {"__name__": "example"})
    shutil.rmtree(tmp_path)
