"""CSV and JSON lines that name images."""

import csv
import json
import threading
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest

from conftest import Store
from images import encoded, make, run_here, samples
from stoker.dataset.prepare import Options
from stoker.errors import DatasetError
from stoker.storage import locate

PLAIN = Options(jpeg="original", shard_samples=4)
SKIP = Options(jpeg="original", shard_samples=4, on_bad="skip")


def write_images(folder: Path, count: int) -> list[str]:
    folder.mkdir(parents=True, exist_ok=True)
    for number in range(count):
        (folder / f"{number}.jpg").write_bytes(encoded(number))
    return [f"{number}.jpg" for number in range(count)]


def write_csv(file: Path, columns: list[str], rows: list[list[object]]) -> Path:
    with file.open("w", newline="") as text:
        csv.writer(text).writerows([columns, *rows])
    return file


def test_paths_are_relative_to_the_list_absolute_or_urls(tmp_path: Path) -> None:
    write_images(tmp_path / "a" / "pictures", 3)
    write_images(tmp_path / "b", 3)
    rows: list[list[object]] = [[f"pictures/{n}.jpg", "cat"] for n in range(2)]
    rows += [[f"../b/{n}.jpg", "dog"] for n in range(2)]
    rows += [[str(tmp_path / "a" / "pictures" / "2.jpg"), "cat"], [f"file://{tmp_path}/b/2.jpg", "dog"]]
    source = write_csv(tmp_path / "a" / "list.csv", ["path", "label"], rows)

    made = make(source, tmp_path / "data", Options(jpeg="original", validation_fraction=0))

    assert made.manifest.classes == ("cat", "dog")
    found = sorted((name, data) for _, name, data in samples(made)["train"])
    assert found == sorted([("cat", encoded(n)) for n in range(3)] + [("dog", encoded(n)) for n in range(3)])


def test_json_lines_with_splits_and_numbers_for_labels_keep_both(tmp_path: Path) -> None:
    names = write_images(tmp_path, 36)
    lines = [
        {"file_name": name, "label": number % 12, "split": "val" if number >= 24 else "train", "source": "camera"}
        for number, name in enumerate(names)
    ]
    (tmp_path / "list.jsonl").write_text("\n".join(map(json.dumps, lines)) + "\n")

    made = make(tmp_path / "list.jsonl", tmp_path / "data", PLAIN)

    assert made.manifest.classes == tuple(str(number) for number in range(12))  # not 0, 1, 10, 11, 2
    found = samples(made)
    assert {split: len(all_) for split, all_ in found.items()} == {"train": 24, "validation": 12}
    for all_ in found.values():
        assert all(encoded(int(key)) == data and int(key) % 12 == int(name) for key, name, data in all_)


def test_lines_that_cannot_be_samples_are_bad_files_each_with_its_reason(tmp_path: Path) -> None:
    write_images(tmp_path, 6)
    (tmp_path / "5.jpg").write_bytes(b"no picture")
    rows: list[list[object]] = [[f"{n}.jpg", "ab"[n % 2]] for n in range(6)]
    rows += [["gone.jpg", "a"], ["", "b"], ["0.jpg", ""], ["1.jpg", "a"], ["else/where.jpg", "b"]]
    source = write_csv(tmp_path / "list.csv", ["path", "label"], rows)

    made = make(source, tmp_path / "data", SKIP)

    reasons = {bad.path: bad.reason for bad in made.bad}
    assert set(reasons) == {"gone.jpg", "line 9", "line 10", "1.jpg", "else/where.jpg", "5.jpg"}
    assert reasons["gone.jpg"] == "no such file, although line 8 of the list names it"
    assert reasons["line 9"] == "no path"
    assert reasons["1.jpg"] == "the list names it more than once"
    assert sum(split.samples for split in made.manifest.splits.values()) == 5
    with pytest.raises(DatasetError, match=r"list\.csv: 1\.jpg and 5 more cannot be a sample"):
        make(source, tmp_path / "other", PLAIN)


def test_json_lines_that_are_none_are_bad_files(tmp_path: Path) -> None:
    write_images(tmp_path, 4)
    good = [json.dumps({"path": f"{n}.jpg", "label": "a"}) for n in range(4)]
    strange = [
        "{",
        "[1, 2]",
        json.dumps({"path": "1.jpg", "label": ["a"]}),
        '{"path": "2.jpg", "label": "a", "split": 3}',
    ]
    (tmp_path / "list.jsonl").write_text("\n".join([good[0], *strange, *good[1:]]))
    made = make(tmp_path / "list.jsonl", tmp_path / "data", SKIP)
    assert {bad.path for bad in made.bad} == {f"line {n}" for n in range(2, 6)}
    assert sum(split.samples for split in made.manifest.splits.values()) == 4


def test_columns_that_cannot_be_guessed_are_named_by_options(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    names = write_images(tmp_path, 4)
    rows: list[list[object]] = [[name, name, n % 2, n] for n, name in enumerate(names)]
    source = write_csv(tmp_path / "list.csv", ["thumb", "picture", "animal", "page"], rows)

    code, _, err = run_here(monkeypatch, capfd, source, tmp_path / "data", "--local")
    assert code == 2
    assert err.count("\n") == 1
    assert (
        "list.csv has no column that clearly names files; choose with --image-column: it has thumb, picture, animal, "
        "page" in err
    )
    code, _, err = run_here(monkeypatch, capfd, source, tmp_path / "data", "--image-column", "pictur")
    assert code == 2
    assert "--image-column pictur: " in err
    assert "which has thumb, picture, animal, page" in err

    chosen = ("--image-column", "picture", "--label-column", "animal")
    code, out, err = run_here(monkeypatch, capfd, source, tmp_path / "data", *chosen)
    assert code == 0, err
    assert json.loads(out.splitlines()[-1])["classes"] == 2


@pytest.mark.store
def test_a_list_on_the_store_names_images_there_and_of_other_places(store: Store, tmp_path: Path) -> None:
    root = locate(store.fresh("list"))
    for number in range(4):
        (root / "lists" / "pictures" / f"{number}.jpg").write(encoded(number))
        (root / "more" / f"{number}.jpg").write(encoded(10 + number))
    rows = [f"pictures/{n}.jpg,a" for n in range(4)] + [f"{root}/more/{n}.jpg,b" for n in range(2)]
    rows += [f"../more/{n}.jpg,b" for n in range(2, 4)]
    (root / "lists" / "all.csv").write("\n".join(["path,label", *rows]).encode())

    made = make(f"{root}/lists/all.csv", f"{root}/data", Options(jpeg="original", validation_fraction=0))

    found = {(name, data) for _, name, data in samples(made)["train"]}
    assert found == {("a", encoded(n)) for n in range(4)} | {("b", encoded(10 + n)) for n in range(4)}


def test_images_on_a_web_server_are_read_and_missing_ones_are_bad_files(tmp_path: Path) -> None:
    write_images(tmp_path / "site", 5)

    class Quiet(SimpleHTTPRequestHandler):
        def log_message(self, *_: object) -> None:
            pass

    with ThreadingHTTPServer(("127.0.0.1", 0), partial(Quiet, directory=tmp_path / "site")) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        site = f"http://127.0.0.1:{server.server_address[1]}"
        rows: list[list[object]] = [[f"{site}/{n}.jpg", "a"] for n in range(7)]
        source = write_csv(tmp_path / "list.csv", ["image_url", "label"], rows)
        made = make(source, tmp_path / "data", Options(jpeg="original", on_bad="skip", validation_fraction=0))
        server.shutdown()

    assert {data for _, _, data in samples(made)["train"]} == {encoded(n) for n in range(5)}
    assert [bad.path for bad in made.bad] == [f"{site}/5.jpg", f"{site}/6.jpg"]


@pytest.mark.parametrize("header", ["split", "Split", "SPLIT", " split "])
def test_the_column_of_splits_counts_in_any_case(header: str, tmp_path: Path) -> None:
    names = write_images(tmp_path, 4)
    rows: list[list[object]] = [[name, n % 2, "test" if n > 1 else "train"] for n, name in enumerate(names)]
    file = write_csv(tmp_path / "list.csv", ["Path", "Label", header], rows)
    made = make(file, tmp_path / "data", PLAIN)
    assert {name: split.samples for name, split in made.verified.manifest.splits.items()} == {"train": 2, "test": 2}
