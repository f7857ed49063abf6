"""Behind the S3 API, SeaweedFS's own servers refuse whoever has no secret of the store's."""

from __future__ import annotations

import http.client
import re
import tempfile
from collections.abc import Iterator
from pathlib import Path

import grpc  # type: ignore[import-untyped]
import pytest

from conftest import environment_with
from stoker.embedded import ObjectStore, Settings, StateFolder, inner_doors
from stoker.storage import locate

pytestmark = pytest.mark.store

WEIGHTS = bytes(range(256)) * 12_000
FILER, MASTER = "/filer_pb.SeaweedFiler", "/master_pb.Seaweed"
GRPC = {
    "filer-grpc": f"{FILER}/LookupDirectoryEntry",
    "master-grpc": f"{MASTER}/Assign",
    "volume-grpc": "/volume_server_pb.VolumeServer/VolumeServerStatus",
    "s3-grpc": "/messaging_pb.SeaweedS3IamCache/ListIdentities",
}


@pytest.fixture(scope="module")
def own(settings: Settings) -> Iterator[ObjectStore]:
    with tempfile.TemporaryDirectory(prefix="stoker-test-") as folder:
        store = ObjectStore(StateFolder(Path(folder) / "state"), settings)
        try:
            store.start()
            with environment_with(store.environment()):
                locate(f"{store.url}/models/weights").write(WEIGHTS)
            yield store
        finally:
            store.stop()


def port(store: ObjectStore, name: str) -> int:
    return int(store.folder.read()["store"]["ports"][name])


def answer(store: ObjectStore, name: str, method: str, path: str) -> tuple[int, bytes]:
    connection = http.client.HTTPConnection("127.0.0.1", port(store, name), timeout=60)
    try:
        connection.request(method, path, body=b"forged" if method in {"PUT", "POST"} else None)
        response = connection.getresponse()
        return response.status, response.read()
    finally:
        connection.close()


def text(field: int, value: str) -> bytes:
    """A text field of a protobuf message."""
    return bytes([field << 3 | 2, len(value)]) + value.encode()


def call(target: str, method: str, credentials: grpc.ChannelCredentials | None, request: bytes = b"") -> bytes:
    channel = grpc.secure_channel(target, credentials) if credentials else grpc.insecure_channel(target)
    with channel:
        return bytes(channel.unary_unary(method)(request, timeout=60))


def own_credentials(store: ObjectStore) -> grpc.ChannelCredentials:
    folder = store.folder.path / inner_doors.FOLDER
    certificate = (folder / "grpc.crt").read_bytes()
    return grpc.ssl_channel_credentials(certificate, (folder / "grpc.key").read_bytes(), certificate)


def file_id(store: ObjectStore) -> str:
    """Where the volume server keeps the first bytes of the weights, as only the store itself can ask."""
    request = text(1, f"/buckets/{store.settings.bucket}/models") + text(2, "weights")
    entry = call(f"127.0.0.1:{port(store, 'filer-grpc')}", GRPC["filer-grpc"], own_credentials(store), request)
    found = re.search(rb"\d+,[0-9a-f]{9,}", entry)
    assert found is not None, entry
    return found[0].decode()


def is_as_written(store: ObjectStore) -> bool:
    with environment_with(store.environment()):
        return locate(f"{store.url}/models/weights").read() == WEIGHTS


@pytest.mark.parametrize("method", ["GET", "HEAD", "PUT", "POST", "DELETE"])
def test_the_filer_neither_gives_nor_takes_nor_deletes_an_object(own: ObjectStore, method: str) -> None:
    for path in (f"/buckets/{own.settings.bucket}/models/weights", f"/buckets/{own.settings.bucket}/models/", "/"):
        status, body = answer(own, "filer", method, path)
        assert status in {401, 403, 404, 405}
        assert b"weights" not in body
    assert is_as_written(own)


@pytest.mark.parametrize("method", ["GET", "HEAD", "PUT", "POST", "DELETE"])
def test_the_volume_server_neither_gives_nor_takes_nor_deletes_bytes(own: ObjectStore, method: str) -> None:
    assert answer(own, "volume", method, f"/{file_id(own)}")[0] == 401
    assert is_as_written(own)


@pytest.mark.parametrize(
    "path",
    ["/dir/assign", "/dir/lookup?volumeId=1", "/dir/lookup?fileId={fid}", "/dir/lookup?fileId={fid}&read=yes",
     "/dir/status", "/vol/status", "/vol/grow?count=1&collection=stoker", "/vol/vacuum",
     "/col/delete?collection=stoker", "/submit", "/{fid}"],
)  # fmt: skip
def test_the_master_gives_no_token_and_takes_no_order(own: ObjectStore, path: str) -> None:
    for method in ("GET", "POST"):
        assert answer(own, "master", method, path.format(fid=file_id(own)))[0] in {401, 403, 404, 405}
    assert is_as_written(own)


@pytest.mark.parametrize("name", GRPC)
def test_no_grpc_port_answers_who_has_not_the_stores_certificate(own: ObjectStore, name: str) -> None:
    folder = own.folder.path / inner_doors.FOLDER
    trusting = (folder / "grpc.crt").read_bytes()
    certificate, key = inner_doors.new_certificate()
    strangers = [
        None,
        grpc.ssl_channel_credentials(trusting),
        grpc.ssl_channel_credentials(trusting, key.encode(), certificate.encode()),
    ]
    targets = [f"127.0.0.1:{port(own, name)}", f"unix:/tmp/seaweedfs-{name}-{port(own, name)}.sock"]
    assert Path(targets[1].removeprefix("unix:")).is_socket()
    for target in targets:
        for stranger in strangers:
            with pytest.raises(grpc.RpcError) as caught:
                call(target, GRPC[name], stranger)
            assert caught.value.code() == grpc.StatusCode.UNAVAILABLE  # the connection is refused, not the call


@pytest.mark.parametrize("name", GRPC)
def test_a_grpc_port_takes_the_stores_own_certificate(own: ObjectStore, name: str) -> None:
    """So the refusals above are for what is missing, not for a wrong port."""
    channel = grpc.secure_channel(f"127.0.0.1:{port(own, name)}", own_credentials(own))
    with channel:
        grpc.channel_ready_future(channel).result(timeout=60)


@pytest.mark.parametrize(
    ("name", "path"),
    [("master", "/"), ("master", "/ui/index.html"), ("master", "/cluster/status"), ("volume", "/status")],
)
def test_the_pages_that_stay_open_tell_no_names_of_objects(own: ObjectStore, name: str, path: str) -> None:
    status, body = answer(own, name, "GET", path)
    assert status == 200
    assert b"weights" not in body
    assert all(token not in body for token in tokens(own))


def tokens(store: ObjectStore) -> list[bytes]:
    text = (store.folder.path / inner_doors.FOLDER / "security.toml").read_bytes()
    return re.findall(rb'^key = "([\w-]{40,})"$', text, re.MULTILINE)


def test_s3_asks_for_the_keys(own: ObjectStore) -> None:
    path = f"/{own.settings.bucket}/models/weights"
    assert [answer(own, "s3", method, path)[0] for method in ("GET", "PUT", "DELETE")] == [403, 403, 403]
    assert is_as_written(own)


def test_the_secrets_are_their_owners_and_each_start_makes_new_ones(tmp_path: Path) -> None:
    folder = StateFolder(tmp_path / "state")
    folder.prepare()
    made = []
    for _ in range(2):
        inner_doors.write_secrets(folder)
        files = sorted((folder.path / inner_doors.FOLDER).iterdir())
        assert [path.name for path in files] == ["grpc.crt", "grpc.key", "security.toml"]
        assert {path.stat().st_mode & 0o777 for path in files} == {0o600}
        made.append([path.read_bytes() for path in files])
    assert (folder.path / inner_doors.FOLDER).stat().st_mode & 0o777 == 0o700
    assert all(one != other for one, other in zip(*made, strict=True))


class OfBefore(ObjectStore):
    """As stoker 0.1.0 started it: everything open."""

    def _arguments(self, ports: dict[str, int], data: Path) -> Iterator[str]:
        given = super()._arguments(ports, data)
        return (word for word in given if word != "-disableHttp" and not word.startswith("-config_dir="))


def test_a_state_folder_of_before_is_closed_at_the_next_start_and_keeps_its_data(
    tmp_path: Path, settings: Settings
) -> None:
    folder = StateFolder(tmp_path / "state")
    before, store = OfBefore(folder, settings), ObjectStore(folder, settings)
    object_path = f"/buckets/{settings.bucket}/models/weights"
    try:
        before.start()
        with environment_with(before.environment()):
            locate(f"{before.url}/models/weights").write(WEIGHTS)
        assert answer(before, "filer", "GET", object_path) == (200, WEIGHTS)  # what this is about
        before.stop()
        for _ in range(2):
            store.start()
            assert is_as_written(store)
            assert answer(store, "filer", "GET", object_path)[0] == 404
            store.stop()
    finally:
        store.stop()
