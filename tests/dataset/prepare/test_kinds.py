"""A new kind of source is one module, one row of the table and one test: each row has all that users and docs need."""

import re
import sys
from argparse import ArgumentParser
from pathlib import Path

import pytest

from images import make_folder
from stoker.dataset.prepare import Options, open_source
from stoker.dataset.prepare import sources as package
from stoker.dataset.prepare.command import add_arguments
from stoker.dataset.prepare.sources import KINDS
from stoker.errors import StokerError

HERE = Path(__file__).parent
DOCS = HERE.parents[2] / "docs" / "how-to" / "prepare-sources.md"
SHARED = {"__init__", "base", "columns", "detect", "files", "layout", "parquet_labels", "readers", "tar_samples"}
"""modules of the package that are not a kind's own"""


class _Chosen(StokerError):
    """Ends the opening of a source where its kind is known."""


@pytest.mark.parametrize("kind", KINDS)
def test_a_kind_has_an_opener_in_a_module_of_its_own(kind: str) -> None:
    module = sys.modules[KINDS[kind].open.__module__]
    assert module.__name__.startswith(f"{package.__name__}.")
    assert KINDS[kind].open.__name__ == f"open_{kind}"
    assert module.__name__.rpartition(".")[2] not in SHARED


def test_every_module_of_a_source_is_in_the_table() -> None:
    modules = {path.stem for path in Path(str(package.__file__)).parent.glob("*.py")}
    assert {kind.open.__module__.rpartition(".")[2] for kind in KINDS.values()} == modules - SHARED


@pytest.mark.parametrize("kind", KINDS)
def test_the_help_names_and_describes_a_kind(kind: str) -> None:
    parser = ArgumentParser()
    add_arguments(parser)
    assert re.search(rf"^  {kind} +{re.escape(KINDS[kind].summary)}$", parser.format_help(), re.MULTILINE)
    assert parser.parse_args(["here", "there", "--kind", kind]).kind == kind


@pytest.mark.parametrize("kind", KINDS)
def test_the_docs_name_a_kind(kind: str) -> None:
    assert re.search(rf"`(--kind )?{kind}`", DOCS.read_text())


@pytest.mark.parametrize("kind", KINDS)
def test_a_kind_has_a_test(kind: str) -> None:
    assert "def test_" in (HERE / f"test_{kind}.py").read_text()


@pytest.mark.parametrize(
    ("url", "kind"),
    [
        ("torchvision://CIFAR10?root=/data", "torchvision"),
        ("s3://bucket/List.CSV", "list"),
        ("lines.ndjson", "list"),
        ("hub/train-*.parquet", "parquet"),
        ("photos.csv/", None),
    ],
)
def test_a_url_shows_at_most_one_kind(url: str, kind: str | None) -> None:
    assert [name for name, one in KINDS.items() if one.is_url(url.lower())] == ([kind] if kind else [])


@pytest.mark.parametrize(
    ("files", "kind"),
    [
        (["ILSVRC2012_img_train.tar"], "imagenet"),
        (["some-train.parquet"], "parquet"),
        (["data/train-0.parquet"], "parquet"),
        (["val/rows.parquet"], "parquet"),
        (["elsewhere/rows.parquet", "README.md"], "parquet"),
        (["deep/er/still/rows.parquet"], "parquet"),
        (["cat/0.jpg", "cat/rows.parquet"], "folder"),
        (["train-0000.tar"], "webdataset"),
        (["train/0000.tar", "validation/0000.tar"], "webdataset"),
        (["cat/0.jpg"], "folder"),
    ],
)
def test_a_folder_is_recognised_by_what_it_holds(
    files: list[str], kind: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for file in files:
        (tmp_path / file).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / file).write_bytes(b"")
    chosen: list[str] = []

    def opener(name: str) -> object:
        def opened(*_: object) -> None:
            chosen.append(name)
            raise _Chosen

        return opened

    for name, row in KINDS.items():
        monkeypatch.setitem(KINDS, name, type(row)(row.summary, opener(name), row.is_url, row.is_folder))  # type: ignore[arg-type]
    with pytest.raises(_Chosen):
        open_source(str(tmp_path), Options())
    assert chosen == [kind]


def test_a_kind_that_is_given_is_not_looked_for(tmp_path: Path) -> None:
    source = open_source(str(make_folder(tmp_path / "tars.parquet", {"cat": 2})), Options(), kind="folder")
    assert source.classes == ("cat",)
