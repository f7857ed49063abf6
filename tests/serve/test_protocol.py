"""The HTTP protocol by real HTTP: a real server, a real model behind it, no cluster."""

from __future__ import annotations

import io
import re
import socket
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import httpx
import numpy as np
import pytest
import uvicorn
from PIL import Image
from PIL.PngImagePlugin import PngInfo

from published import finished_run
from stoker.dataset import SampleReader
from stoker.predict import Predictor, check_parity
from stoker.registry import publish_run
from stoker.storage import Location
from stoker_serve.answers import Answer, Description, Refusal, Served
from stoker_serve.keys import Keys
from stoker_serve.model import Model
from stoker_serve.protocol import ROUTES, Route, make_app
from stoker_serve.settings import Deployed, Limits, Settings

KEY = "correct horse battery staple"
LIMITS = Limits(body_bytes=200_000, pixels=1_000_000, images=3)


@contextmanager
def serving(served: Served, deployed: Deployed) -> Iterator[str]:
    """The URL of a server of its own; ``served`` is behind it."""
    settings = Settings(models=[deployed.reference], storage="memory://", limits=LIMITS)
    app = make_app(settings, [deployed], {deployed.name: served}, Keys.load({"STOKER_API_KEY": KEY}))
    with socket.create_server(("127.0.0.1", 0)) as listener:
        server = uvicorn.Server(uvicorn.Config(app, log_level="warning"))
        thread = threading.Thread(target=server.run, kwargs={"sockets": [listener]})
        thread.start()
        deadline = time.monotonic() + 60
        while not server.started:
            assert time.monotonic() < deadline
            time.sleep(0.01)
        try:
            yield f"http://127.0.0.1:{listener.getsockname()[1]}"
        finally:
            server.should_exit = True
            thread.join()


@pytest.fixture(scope="module")
def storage(tmp_path_factory: pytest.TempPathFactory) -> Location:
    storage = finished_run(tmp_path_factory.mktemp("storage"))
    publish_run(storage, "run", "digits", verify=check_parity, alias="production")
    return storage


@pytest.fixture(scope="module")
def client(storage: Location) -> Iterator[httpx.Client]:
    model = Model("digits@1", storage.url, threads=1)
    deployed = Deployed(name="digits", reference="digits@production", version="digits@1")
    headers = {"Authorization": f"Bearer {KEY}"}
    with (
        serving(model, deployed) as url,
        httpx.Client(base_url=url, headers=headers, timeout=60, trust_env=False) as client,
    ):
        yield client


@pytest.fixture(scope="module")
def images(storage: Location) -> list[bytes]:
    return [bytes(sample.data) for sample in SampleReader(storage / "data", "validation").read(range(3))]


def encoded(form: str = "JPEG", size: tuple[int, int] = (40, 40)) -> bytes:
    data = io.BytesIO()
    Image.effect_noise(size, 60).convert("RGB").save(data, form)
    return data.getvalue()


def post(client: httpx.Client, content: bytes, kind: str = "image/jpeg", name: str = "digits") -> httpx.Response:
    return client.post(f"/v1/models/{name}/predict", content=content, headers={"Content-Type": kind})


def test_an_image_gets_the_predictors_own_probabilities(
    client: httpx.Client, images: list[bytes], storage: Location
) -> None:
    predictor = Predictor.load("digits@1", storage=storage)
    expected = predictor.top(predictor.predict(images[:1]), 5)[0]
    answer = post(client, images[0])
    assert answer.status_code == 200
    assert answer.json()["model"] == "digits@1"
    rows = answer.json()["predictions"][0]
    assert [row["label"] for row in rows] == [label for label, _ in expected]
    np.testing.assert_allclose([row["probability"] for row in rows], [p for _, p in expected], atol=1e-5)


def test_files_of_a_form_are_answered_in_their_order(client: httpx.Client, images: list[bytes]) -> None:
    alone = [post(client, image).json()["predictions"][0] for image in images]
    files = [("images", (f"{n}.jpg", image, "image/jpeg")) for n, image in enumerate(images)]
    together = client.post("/v1/models/digits/predict", files=files).json()["predictions"]
    for one, other in zip(alone, together, strict=True):
        assert [row["label"] for row in one] == [row["label"] for row in other]
        np.testing.assert_allclose(
            [row["probability"] for row in one], [row["probability"] for row in other], atol=1e-5
        )


@pytest.mark.parametrize(("form", "kind"), [("PNG", "image/png"), ("WEBP", "image/webp"), ("JPEG", "image/jpeg")])
def test_each_image_type_is_answered(client: httpx.Client, form: str, kind: str) -> None:
    assert post(client, encoded(form), kind).status_code == 200


@pytest.mark.parametrize("name", ["digits", "digits@production", "digits@1"])
def test_a_model_is_found_by_name_alias_and_version(client: httpx.Client, images: list[bytes], name: str) -> None:
    assert post(client, images[0], name=name).json()["model"] == "digits@1"


def test_top_says_how_many_classes_come(client: httpx.Client, images: list[bytes]) -> None:
    answer = client.post(
        "/v1/models/digits/predict", params={"top": 1}, content=images[0], headers={"Content-Type": "image/jpeg"}
    )
    assert len(answer.json()["predictions"][0]) == 1


def too_many_pixels() -> bytes:
    data = io.BytesIO()
    Image.new("1", (1001, 1000)).save(data, "PNG")
    return data.getvalue()


def test_a_text_of_a_png_does_not_decide_over_its_pixels(client: httpx.Client) -> None:
    info = PngInfo()
    info.add_text("Comment", "x" * 2**21, zip=True)  # 2 kB, which Pillow refuses to unpack
    data = io.BytesIO()
    Image.new("RGB", (40, 40)).save(data, "PNG", pnginfo=info)
    assert post(client, data.getvalue(), "image/png").status_code == 200


JPEG = encoded()
BAD = [
    (b"", "image/jpeg", 400, "empty_body", "the body is empty; send image/jpeg"),
    (JPEG, "", 415, "unsupported_media_type", r"\(none\) is not an image type; send image/jpeg"),
    (JPEG, "application/x-www-form-urlencoded", 415, "unsupported_media_type", "send image/jpeg"),
    (b"hello, this is text", "image/jpeg", 415, "not_an_image", "not a JPEG, PNG or WebP image; send image/jpeg"),
    (b"GIF89a" + bytes(100), "image/jpeg", 415, "not_an_image", "not a JPEG, PNG or WebP image; send image/jpeg"),
    (JPEG[: len(JPEG) // 2], "image/jpeg", 422, "undecodable_image", "cannot be decoded"),
    (JPEG[:20], "image/jpeg", 422, "undecodable_image", "header is damaged or truncated"),
    (encoded("PNG")[:-40], "image/png", 422, "undecodable_image", "truncated"),
    (encoded("WEBP")[:-40], "image/webp", 422, "undecodable_image", ""),
    (too_many_pixels(), "image/png", 413, "too_many_pixels", "more than 1,000,000 pixels"),
    (JPEG + bytes(200_000), "image/jpeg", 413, "body_too_large", "longer than 200,000 bytes"),
    (b"--x\r\nnonsense", "multipart/form-data; boundary=x", 400, "bad_form", "truncated: its last boundary"),
    (b"nonsense--", "multipart/form-data; boundary=x", 400, "bad_form", "form cannot be read"),
    (b"--x--\r\n", "multipart/form-data; boundary=x", 400, "empty_body", "the form has no file"),
    (b"--x--", "multipart/form-data", 400, "bad_form", "form cannot be read"),
]


@pytest.mark.parametrize(("content", "kind", "status", "code", "message"), BAD)
def test_what_is_no_image_gets_its_status_and_one_line(
    client: httpx.Client, content: bytes, kind: str, status: int, code: str, message: str
) -> None:
    answer = post(client, content, kind)
    error = answer.json()["error"]
    assert (answer.status_code, error["code"]) == (status, code), error
    assert "\n" not in error["message"]
    assert re.search(message, error["message"])


def test_an_image_among_several_is_named_by_its_place(client: httpx.Client) -> None:
    files = [("images", ("a.jpg", JPEG)), ("images", ("b.jpg", JPEG[: len(JPEG) // 2]))]
    answer = client.post("/v1/models/digits/predict", files=files)
    assert answer.status_code == 422
    assert answer.json()["error"]["message"].startswith("image 2 of 2: ")


def test_more_images_than_allowed_and_fields_without_file_are_refused(client: httpx.Client) -> None:
    answer = client.post("/v1/models/digits/predict", files=[("images", ("a.jpg", JPEG))] * 4)
    assert (answer.status_code, answer.json()["error"]["code"]) == (413, "too_many_images")
    answer = client.post("/v1/models/digits/predict", files=[("images", (None, "text"))])
    assert (answer.status_code, answer.json()["error"]["message"][:29]) == (400, "field 'images' is not a file;")


def test_a_body_without_length_is_refused_once_it_is_too_long(client: httpx.Client) -> None:
    chunks = (bytes(50_000) for _ in range(10))
    answer = client.post("/v1/models/digits/predict", content=chunks, headers={"Content-Type": "image/jpeg"})
    assert (answer.status_code, answer.json()["error"]["code"]) == (413, "body_too_large")


def test_a_body_that_announces_far_too_much_is_refused_before_it_is_read(client: httpx.Client) -> None:
    address = (client.base_url.host, client.base_url.port or 80)
    head = (
        f"POST /v1/models/digits/predict HTTP/1.1\r\nHost: x\r\nAuthorization: Bearer {KEY}\r\n"
        "Content-Type: image/jpeg\r\nContent-Length: 10000000000\r\n\r\n"
    )
    with socket.create_connection(address, timeout=60) as connection:
        connection.sendall(head.encode())
        assert connection.recv(1000).startswith(b"HTTP/1.1 413 ")


@pytest.mark.parametrize("header", [{}, {"Authorization": "Bearer wrong"}, {"Authorization": f"Basic {KEY}"}])
@pytest.mark.parametrize("route", [route for route in ROUTES if route.needs_key], ids=lambda route: route.path)
def test_without_a_good_key_nothing_is_answered(client: httpx.Client, header: dict[str, str], route: Route) -> None:
    path = route.path.format(name="digits")
    answer = httpx.request(route.method, f"{client.base_url}{path}", headers=header, content=JPEG, trust_env=False)
    assert answer.status_code == 401
    assert answer.headers["WWW-Authenticate"] == "Bearer"
    assert answer.json()["error"]["code"] == "unauthorized"
    assert KEY not in answer.text


def test_only_health_and_readiness_need_no_key() -> None:
    assert {route.path for route in ROUTES if not route.needs_key} == {"/healthz", "/readyz"}


@pytest.mark.parametrize("path", ["/healthz", "/readyz", "/openapi.json"])
def test_health_readiness_and_schema_need_no_key(client: httpx.Client, path: str) -> None:
    assert httpx.get(f"{client.base_url}{path}", trust_env=False).status_code == 200


def test_the_models_are_listed_and_the_schema_knows_every_endpoint(client: httpx.Client) -> None:
    entry = client.get("/v1/models").json()["models"][0]
    assert (entry["model"], entry["reference"], entry["image_size"]) == ("digits@1", "digits@production", 32)
    assert entry["classes"] == ["class0", "class1", "class2"]
    schema = client.get("/openapi.json").json()
    assert {(m.upper(), path) for path, row in schema["paths"].items() for m in row} == {
        (route.method, route.path) for route in ROUTES
    }
    for route in ROUTES:
        described = schema["paths"][route.path][route.method.lower()]
        assert described["description"], f"{route.path}: give its handler a docstring"
        assert set(described["responses"]) - {"422"} == {"200", *map(str, route.errors)} - {"422"}
    body = schema["paths"]["/v1/models/{name}/predict"]["post"]["requestBody"]["content"]
    assert set(body) == {"image/jpeg", "image/png", "image/webp", "multipart/form-data"}


@pytest.mark.parametrize("route", ROUTES, ids=lambda route: route.path)
def test_each_route_is_in_a_table_of_the_docs(route: Route) -> None:
    rows = [
        (page, line)
        for page in sorted((Path(__file__).parents[2] / "docs").rglob("*.md"))
        for line in page.read_text(encoding="utf-8").splitlines()
        if line.startswith("|")
    ]
    path = re.compile(rf"[` ]{re.escape(route.path)}[`? ]")
    assert any(path.search(line) for _, line in rows), (
        f"no table below docs/ has {route.method} {route.path}; add a row where the other routes are"
    )


def test_errors_of_every_kind_have_one_form(client: httpx.Client) -> None:
    unknown = post(client, JPEG, name="letters")
    assert unknown.json()["error"]["message"].startswith("unknown model 'letters'; served here: digits, ")
    assert (unknown.status_code, unknown.json()["error"]["code"]) == (404, "unknown_model")
    assert client.get("/nowhere").json()["error"]["code"] == "not_found"
    assert client.get("/v1/models/digits/predict").json()["error"]["code"] == "method_not_allowed"
    bad = client.post("/v1/models/digits/predict?top=many", content=JPEG, headers={"Content-Type": "image/jpeg"})
    assert (bad.status_code, bad.json()["error"]["code"]) == (400, "bad_parameter")
    assert bad.json()["error"]["message"].startswith("invalid query parameter top: Input should be a valid integer")


@pytest.mark.parametrize(("code", "readiness"), [("busy", 200), ("unavailable", 503)])
def test_a_model_that_cannot_answer_now_gives_503_with_retry_after_and_is_ready_if_only_busy(
    code: str, readiness: int
) -> None:
    class Away:
        async def predict(self, images: list[bytes], top: int) -> Answer | Refusal:
            return Refusal(503, code, "come again", {"Retry-After": "1"})

        async def describe(self) -> Description:
            raise Refusal(503, code, "come again", {"Retry-After": "1"})

    with (
        serving(Away(), Deployed(name="digits", reference="digits", version="digits@1")) as url,
        httpx.Client(base_url=url, headers={"Authorization": f"Bearer {KEY}"}, trust_env=False) as client,
    ):
        answer = post(client, JPEG)
        assert (answer.status_code, answer.headers["Retry-After"]) == (503, "1")
        assert answer.json()["error"]["code"] == code
        assert client.get("/readyz").status_code == readiness
