"""What a request's body may be: every mistake gets its status and one line; forms, JSON and bare bytes are read."""

from __future__ import annotations

import base64
import io
import re
from http import HTTPStatus

import httpx
import pytest
from PIL import Image

from served import encoded, post

PATH = "/v1/models/digits/predict"


def too_many_pixels() -> bytes:
    data = io.BytesIO()
    Image.new("1", (1001, 1000)).save(data, "PNG")
    return data.getvalue()


JPEG = encoded()
FORM = "multipart/form-data; boundary=x"


def part(content: bytes, name: str = "images", file: str | None = "a.jpg", boundary: str = "x") -> bytes:
    """One part of a form, with the delimiter before it."""
    told = f'; filename="{file}"' if file is not None else ""
    head = f'--{boundary}\r\nContent-Disposition: form-data; name="{name}"{told}\r\n\r\n'
    return head.encode() + content + b"\r\n"


BAD = [
    (b"", "image/jpeg", 400, "empty_body", "the body is empty; send image/jpeg"),
    (JPEG, "", 415, "unsupported_media_type", r"\(none\) is not read; send image/jpeg"),
    (JPEG, "application/x-www-form-urlencoded", 415, "unsupported_media_type", "send image/jpeg"),
    (b"hello, this is text", "image/jpeg", 415, "not_an_image", "not a JPEG, PNG or WebP image; send image/jpeg"),
    (b"hello, this is text", "application/octet-stream", 415, "not_an_image", "not a JPEG, PNG or WebP image"),
    (b"GIF89a" + bytes(100), "image/jpeg", 415, "not_an_image", "not a JPEG, PNG or WebP image; send image/jpeg"),
    (JPEG[: len(JPEG) // 2], "image/jpeg", 422, "undecodable_image", "cannot be decoded"),
    (JPEG[:20], "image/jpeg", 422, "undecodable_image", "header is damaged or truncated"),
    (encoded("PNG")[:-40], "image/png", 422, "undecodable_image", "truncated"),
    (encoded("WEBP")[:-40], "image/webp", 422, "undecodable_image", ""),
    (too_many_pixels(), "image/png", 413, "too_many_pixels", "more than 1,000,000 pixels"),
    (JPEG + bytes(200_000), "image/jpeg", 413, "body_too_large", "longer than 200,000 bytes"),
    (b"--x\r\nnonsense", FORM, 400, "bad_form", "truncated: its last boundary is missing"),
    (b"nonsense--", FORM, 400, "bad_form", "its boundary is nowhere in it"),
    (b"--x--\r\n", FORM, 400, "empty_body", "the body has no image"),
    (b"--x--", "multipart/form-data", 400, "bad_form", "its Content-Type has no boundary"),
    (b"--xy\r\n\r\n--x--", FORM, 400, "bad_form", "a boundary is followed by something else"),
    (b"--x\r\nA: b\r\n\r\n1\r\n--x--", FORM, 400, "bad_form", "a part has no name"),
    (b"--x\r\n" + b"A: b\r\n" * 2000 + b"\r\n1\r\n--x--", FORM, 400, "bad_form", "no header, or a long one"),
    (part(b"a lot", "top", None) + part(JPEG) + b"--x--", FORM, 400, "bad_parameter", "'a lot' is not a whole number"),
    (part(b"1", "a", None) * 65 + b"--x--", FORM, 400, "bad_form", "more than 64 text fields"),
    (b"{", "application/json", 400, "bad_json", "cannot be read"),
    (b"[" * 5000, "application/json", 400, "bad_json", "more than 4096 parts"),
    (b"[" * 4000, "application/json", 400, "bad_json", "cannot be read"),
    (b'{"images": [1]}', "application/json", 400, "bad_json", "images is not a list of texts"),
    (b'{"images": []}', "application/json", 400, "empty_body", "the body has no image"),
    (b'{"images": ["?"]}', "application/json", 400, "bad_json", "image 1 is not base64"),
    (b'{"images": [""]}', "application/json", 400, "empty_body", "the image is empty"),
    (b'{"images": ["", "", "", ""]}', "application/json", 413, "too_many_images", "send at most 3"),
    (b'{"images": ["/9j/"], "top": 0}', "application/json", 400, "bad_parameter", "0 is not a whole number"),
    (b'{"images": ["/9j/"], "top": true}', "application/json", 400, "bad_parameter", "True is not a whole number"),
]


@pytest.mark.parametrize(("content", "kind", "status", "code", "message"), BAD)
def test_what_is_no_image_gets_its_status_and_one_line(
    client: httpx.Client, content: bytes, kind: str, status: int, code: str, message: str
) -> None:
    answer = post(client, content, kind)
    problem = answer.json()
    assert (answer.status_code, problem["status"], problem["code"]) == (status, status, code), problem
    assert answer.headers["Content-Type"] == "application/problem+json"
    assert (problem["type"], problem["title"]) == ("about:blank", HTTPStatus(status).phrase)
    assert "\n" not in problem["detail"]
    assert re.search(message, problem["detail"])


def test_an_image_among_several_is_named_by_its_place_and_fails_the_request_alone(client: httpx.Client) -> None:
    files = [("images", ("a.jpg", JPEG)), ("images", ("b.jpg", JPEG[: len(JPEG) // 2]))]
    answer = client.post(PATH, files=files)
    assert answer.status_code == 422
    assert answer.json()["detail"].startswith("image 2 of 2: ")
    assert post(client, JPEG).status_code == 200


def test_more_images_than_allowed_are_refused(client: httpx.Client) -> None:
    answer = client.post(PATH, files=[("images", ("a.jpg", JPEG))] * 4)
    assert (answer.status_code, answer.json()["code"]) == (413, "too_many_images")


def test_a_form_is_read_as_its_standard_says(client: httpx.Client) -> None:
    """RFC 2046, section 5.1.1: a preamble, an epilogue, blanks behind a boundary; RFC 7578: fields of text."""
    inside = b"\r\n--y\r\n".join([b"", b""])
    body = b"preamble\r\n" + part(b"ignored", "comment", None) + part(b"2", "top", None)
    body += part(JPEG).replace(b"--x\r\n", b"--x \t\r\n", 1) + part(JPEG + inside, "picture") + b"--x--\r\nepilogue --x"
    answer = post(client, body, FORM)
    assert answer.status_code == 200, answer.text
    assert [len(row) for row in answer.json()["predictions"]] == [2, 2]
    quoted = post(client, part(JPEG, boundary="a b") + b"--a b--", 'multipart/form-data; boundary="a b"')
    assert quoted.status_code == 200, quoted.text


def test_images_come_as_base64_in_json_too(client: httpx.Client, images: list[bytes]) -> None:
    texts = [base64.b64encode(image).decode() for image in images]
    texts[1] = f"data:image/jpeg;base64,{texts[1]}"
    answer = client.post(PATH, json={"images": texts, "top": 1})
    assert answer.status_code == 200, answer.text
    alone = [post(client, image).json()["predictions"][0][0]["label"] for image in images]
    assert [row[0]["label"] for row in answer.json()["predictions"]] == alone


def test_bytes_without_a_type_of_image_are_told_by_what_they_are(client: httpx.Client) -> None:
    assert post(client, encoded("PNG"), "application/octet-stream").status_code == 200
    assert post(client, encoded("WEBP"), "image/jpeg").status_code == 200


def test_an_encoded_body_is_refused_by_the_name_of_its_encoding(client: httpx.Client) -> None:
    headers = {"Content-Type": "image/jpeg", "Content-Encoding": "gzip"}
    answer = client.post(PATH, content=JPEG, headers=headers)
    assert (answer.status_code, answer.json()["code"]) == (415, "unsupported_encoding")
    assert "Content-Encoding gzip is not read" in answer.json()["detail"]
