"""The HTTP protocol of a model by real HTTP: a real server, a real model and decoding processes, no cluster."""

from __future__ import annotations

import io
import re
import socket
import time

import httpx
import numpy as np
import pytest
from PIL import Image
from PIL.PngImagePlugin import PngInfo

from served import KEY, encoded, post
from stoker.predict import Predictor
from stoker.storage import Location

PATH = "/v1/models/digits/predict"


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


@pytest.mark.parametrize("name", ["digits", "digits/@production", "digits/@1", "digits/@1/"])
def test_a_model_is_found_by_name_alias_and_version(client: httpx.Client, images: list[bytes], name: str) -> None:
    assert post(client, images[0], name=name).json()["model"] == "digits@1"


def test_a_text_of_a_png_does_not_decide_over_its_pixels(client: httpx.Client) -> None:
    info = PngInfo()
    info.add_text("Comment", "x" * 2**21, zip=True)  # 2 kB, which Pillow refuses to unpack
    data = io.BytesIO()
    Image.new("RGB", (40, 40)).save(data, "PNG", pnginfo=info)
    assert post(client, data.getvalue(), "image/png").status_code == 200


JPEG = encoded()


@pytest.mark.parametrize(("query", "classes"), [("top=1", 1), ("top_k=2", 2), ("top=999", 3), ("other=1", 3)])
def test_the_query_says_how_many_classes_come(client: httpx.Client, query: str, classes: int) -> None:
    answer = client.post(f"{PATH}?{query}", content=JPEG, headers={"Content-Type": "image/jpeg"})
    assert [len(row) for row in answer.json()["predictions"]] == [classes]
    probabilities = [entry["probability"] for entry in answer.json()["predictions"][0]]
    assert probabilities == sorted(probabilities, reverse=True)


@pytest.mark.parametrize("top", ["many", "0", "-1", "1.5", "", "9" * 50, "%D9%A1"])
def test_a_count_of_classes_that_is_none_is_refused(client: httpx.Client, top: str) -> None:
    answer = client.post(f"{PATH}?top={top}", content=JPEG, headers={"Content-Type": "image/jpeg"})
    assert (answer.status_code, answer.json()["code"]) == (400, "bad_parameter")


def test_the_answer_says_where_its_time_went_and_which_request_it_was(client: httpx.Client) -> None:
    headers = {"Content-Type": "image/jpeg", "X-Request-Id": "mine-1"}
    answer = client.post(PATH, content=JPEG, headers=headers)
    timing = dict(re.findall(r"(\w+);dur=([\d.]+)", answer.headers["Server-Timing"]))
    assert set(timing) == {"queue", "decode", "model"}
    assert float(timing["decode"]) > 0
    assert float(timing["model"]) > 0
    assert answer.headers["X-Request-Id"] == "mine-1"
    other = client.post(PATH, content=JPEG, headers={**headers, "X-Request-Id": "no spaces"})
    assert re.fullmatch(r"[0-9a-f]{32}", other.headers["X-Request-Id"])


def test_a_body_without_length_is_refused_once_it_is_too_long(client: httpx.Client) -> None:
    pieces = (bytes(50_000) for _ in range(10))
    answer = client.post(PATH, content=pieces, headers={"Content-Type": "image/jpeg"})
    assert (answer.status_code, answer.json()["code"]) == (413, "body_too_large")


def raw(client: httpx.Client, text: str, wait_for: bytes) -> bytes:
    """What comes back for ``text``, up to the first answer that has ``wait_for``."""
    address = (client.base_url.host, client.base_url.port or 80)
    with socket.create_connection(address, timeout=60) as connection:
        connection.sendall(text.encode())
        received = b""
        while wait_for not in received and (piece := connection.recv(4096)):
            received += piece
        return received


def head(length: str) -> str:
    return (
        f"POST {PATH} HTTP/1.1\r\nHost: x\r\nAuthorization: Bearer {KEY}\r\n"
        f"Content-Type: image/jpeg\r\n{length}\r\n\r\n"
    )


def test_a_body_that_announces_far_too_much_is_refused_before_it_is_read(client: httpx.Client) -> None:
    assert raw(client, head("Content-Length: 10000000000"), b"}").startswith(b"HTTP/1.1 413 ")


def test_a_body_that_does_not_arrive_is_given_up(client: httpx.Client) -> None:
    answer = raw(client, head("Content-Length: 1000") + "x", b"}")
    assert answer.startswith(b"HTTP/1.1 408 ")
    assert b"(1 bytes came)" in answer


@pytest.mark.parametrize("header", [{}, {"Authorization": "Bearer wrong"}, {"Authorization": f"Basic {KEY}"}])
@pytest.mark.parametrize(("method", "path"), [("POST", PATH), ("GET", "/v1/models/digits")])
def test_without_a_good_key_nothing_is_answered(
    client: httpx.Client, header: dict[str, str], method: str, path: str
) -> None:
    answer = httpx.request(method, f"{client.base_url}{path}", headers=header, content=JPEG, trust_env=False)
    assert answer.status_code == 401
    assert answer.headers["WWW-Authenticate"].startswith("Bearer")
    assert answer.json()["code"] == "unauthorized"
    assert KEY not in answer.text


def test_a_key_for_another_model_is_forbidden(client: httpx.Client) -> None:
    answer = client.post(PATH, content=JPEG, headers={"Authorization": "Bearer other", "Content-Type": "image/jpeg"})
    assert (answer.status_code, answer.json()["code"]) == (403, "forbidden")


def test_the_model_is_described_and_says_that_it_is_ready_without_a_key(client: httpx.Client) -> None:
    entry = client.get("/v1/models/digits").json()
    assert (entry["model"], entry["reference"], entry["image_size"]) == ("digits@1", "digits@production", 32)
    assert entry["classes"] == ["class0", "class1", "class2"]
    ready = httpx.get(f"{client.base_url}/v1/models/digits/readyz", trust_env=False)
    assert (ready.status_code, ready.json()) == (200, {"status": "ready", "model": "digits@1"})


@pytest.mark.parametrize("path", ["/v1/models/digits", "/v1/models/digits/readyz"])
def test_head_is_answered_where_get_is(client: httpx.Client, path: str) -> None:
    got, told = client.get(path), client.head(path)
    assert (told.status_code, told.content) == (200, b"")
    assert told.headers["Content-Length"] == str(len(got.content))


def test_errors_of_every_kind_have_one_form(client: httpx.Client) -> None:
    unknown = post(client, JPEG, name="digits/@7")
    assert (unknown.status_code, unknown.json()["code"]) == (404, "unknown_version")
    assert unknown.json()["detail"].endswith("served: digits@production, digits@1")
    nowhere = client.get("/v1/models/digits/nowhere")
    assert (nowhere.status_code, nowhere.json()["code"]) == (404, "not_found")
    wrong = client.get(PATH)
    assert (wrong.status_code, wrong.json()["code"], wrong.headers["Allow"]) == (
        405,
        "method_not_allowed",
        "POST, OPTIONS",
    )


def test_only_pages_of_the_origins_that_are_named_may_read_an_answer(client: httpx.Client) -> None:
    asked = {"Origin": "https://shop.example", "Access-Control-Request-Method": "POST"}
    allowed = httpx.options(f"{client.base_url}{PATH}", headers=asked, trust_env=False)
    assert allowed.status_code == 204
    assert allowed.headers["Access-Control-Allow-Origin"] == "https://shop.example"
    assert "Authorization" in allowed.headers["Access-Control-Allow-Headers"]
    answered = client.post(PATH, content=JPEG, headers={"Origin": "https://shop.example", "Content-Type": "image/jpeg"})
    assert answered.headers["Access-Control-Allow-Origin"] == "https://shop.example"
    other = httpx.options(
        f"{client.base_url}{PATH}", headers={**asked, "Origin": "https://else.example"}, trust_env=False
    )
    assert "Access-Control-Allow-Origin" not in other.headers


def test_a_replica_is_as_empty_after_requests_as_before_them(client: httpx.Client) -> None:
    """More than ``held_bytes`` in total and more than ``limits.requests`` requests, refused and given up ones too."""
    body = JPEG + bytes(150_000)
    for n in range(60):
        answer = post(client, body if n % 2 else body[:-1] + b"x", "image/jpeg")
        assert answer.status_code == 200, answer.text
    for n in range(40):
        assert post(client, b"text" if n % 2 else b"", "image/jpeg").status_code in {400, 415}
    address = (client.base_url.host, client.base_url.port or 80)
    for _ in range(20):
        with socket.create_connection(address, timeout=60) as gone:
            gone.sendall(head("Content-Length: 190000").encode() + bytes(100_000))
    deadline = time.monotonic() + 60  # until it has noticed
    while (answer := post(client, body)).status_code != 200:
        assert answer.status_code == 503
        assert time.monotonic() < deadline


@pytest.mark.parametrize("path", ["predict", "2/predict", "/predict/x"])
def test_a_path_that_only_begins_like_the_models_is_not_found(client: httpx.Client, path: str) -> None:
    answer = client.post(f"/v1/models/digits{path}", content=JPEG, headers={"Content-Type": "image/jpeg"})
    assert (answer.status_code, answer.json()["code"]) == (404, "not_found")
