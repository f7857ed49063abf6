"""Nobody knocks the endpoint over: while it is abused, good clients are answered 200 and memory stays bounded."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress

import pytest

from bombs import BOMBS, lossless_webp
from conftest import Store
from faults.endpoint import PREDICT, Answer, Endpoint, beside, connections, deployed, form, request
from stoker.embedded import Instance

pytestmark = [pytest.mark.store, pytest.mark.cluster, pytest.mark.long, pytest.mark.timeout(900)]

Note = Callable[[str, object], None]
_BODY = 16_000_000
_GIVES_UP_S = 5.0
"""when nobody reads what an abuser still sends"""
_FORM = b"multipart/form-data; boundary=x0x0x"
_JSON = b"application/json"


@pytest.fixture(scope="module")
def endpoint(cluster: Instance, store: Store, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Endpoint]:
    with deployed(cluster, store, tmp_path_factory.mktemp("serve")) as found:
        yield found


# -- images ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", BOMBS)
def test_a_hostile_image_alone_and_32_of_it_in_a_form(endpoint: Endpoint, name: str, record_property: Note) -> None:
    image = BOMBS[name]()
    several = form([image] * 32)[: 2 * _BODY]
    with beside(endpoint, record_property):
        alone = endpoint.ask(request(endpoint, image, kind=b"application/octet-stream"))
        together = endpoint.ask(request(endpoint, several, kind=_FORM))
    assert alone.status in {200, 413, 415, 422}, alone
    assert together.status in {200, 413, 415, 422, 503}, together


def test_16_mb_from_32_clients_at_once(endpoint: Endpoint, record_property: Note) -> None:
    with beside(endpoint, record_property):
        got = connections(endpoint, 32, request(endpoint, bytes(_BODY)))
    assert set(got) == {415, 503}, got


def test_pictures_that_take_long_keep_out_only_each_other(endpoint: Endpoint, record_property: Note) -> None:
    image = lossless_webp()
    with beside(endpoint, record_property):
        got = connections(endpoint, 200, request(endpoint, image, kind=b"image/webp"))
    record_property("of 49 million pixels in 2 kB", dict(got))
    assert set(got) == {200, 503}, got


# -- bodies ------------------------------------------------------------------------------------------------------------

BODIES: dict[str, tuple[bytes, Callable[[], bytes], int]] = {
    "JSON: nested lists": (_JSON, lambda: b'{"images": ' + b"[" * 2000 + b"]" * 2000 + b"}", 400),
    "JSON: 16 MB of brackets": (_JSON, lambda: b"[" * (_BODY - 1), 400),
    "JSON: a number of 15 million digits": (
        _JSON,
        lambda: b'{"images": ["QQ=="], "top": %b}' % (b"9" * 15_000_000),
        400,
    ),
    "JSON: an endless exponent": (_JSON, lambda: b'{"images": ["QQ=="], "top": 1e%b}' % (b"9" * 15_000_000), 400),
    "JSON: 16 MB of escapes": (_JSON, lambda: b'{"images": ["%b"]}' % (b"\\u0041" * 2_600_000), 415),
    "JSON: 16 MB of quotes": (_JSON, lambda: b'{"images": ["%b"]}' % (b'\\"' * 7_900_000), 400),
    "JSON: 16 MB of blanks": (_JSON, lambda: b" " * (_BODY - 2) + b"{}", 400),
    "JSON: half a surrogate pair": (_JSON, lambda: b'{"images": ["\\ud800"]}', 400),
    "form: 100,000 boundaries": (_FORM, lambda: b"--x0x0x\r\n\r\n\r\n" * 100_000, 400),
    "form: 100,000 fields": (
        _FORM,
        lambda: b'--x0x0x\r\nContent-Disposition: form-data; name="a"\r\n\r\n1\r\n' * 100_000 + b"--x0x0x--",
        400,
    ),
    "form: 16 MB of half a boundary": (_FORM, lambda: b"--x0x0x" + b"\r\n--x0x0" * 1_700_000, 400),
    "form: 10 MB of blanks behind a boundary": (_FORM, lambda: b"--x0x0x" + b" " * 10_000_000, 400),
    "form: a header of backslashes": (
        _FORM,
        lambda: b'--x0x0x\r\nContent-Disposition: form-data; name="%b\r\n\r\n1\r\n--x0x0x--' % (b"\\" * 8000),
        400,
    ),
    "form: boundary= a thousand times": (b"multipart/form-data; " + b"boundary=" * 1500, lambda: b"x", 400),
}


@pytest.mark.parametrize("name", BODIES)
def test_a_body_that_costs_its_parser(endpoint: Endpoint, name: str, record_property: Note) -> None:
    kind, body, status = BODIES[name]
    data = request(endpoint, body(), kind=kind)
    with beside(endpoint, record_property):
        answer = endpoint.ask(data)
    assert answer.status == status, answer
    assert "application/problem+json" in answer.head


def test_a_chunked_body_without_an_end(endpoint: Endpoint, record_property: Note) -> None:
    head = request(endpoint, b"", b"Transfer-Encoding: chunked", length=None)
    with beside(endpoint, record_property):
        big = endpoint.ask(head + (b"10000\r\n" + bytes(65536) + b"\r\n") * 1000, _GIVES_UP_S)
        small = endpoint.ask(head + b"1\r\na\r\n" * 10_000_000, _GIVES_UP_S)
    assert (big.status, small.status) in {(413, 413), (413, 0), (0, 413), (0, 0)}  # 0: closed while it was sent


# -- connections -------------------------------------------------------------------------------------------------------


def test_1500_connections_that_say_nothing_or_a_byte_a_second(endpoint: Endpoint, record_property: Note) -> None:
    claims = request(endpoint, b"", length=_BODY)
    kinds = {
        "nothing": (1000, b"", b""),
        "headers": (250, b"POST %b HTTP/1.1\r\n" % PREDICT.encode(), b"a: b\r\n"),
        "body": (250, claims, b"x"),
    }
    got: dict[str, object] = {}

    def hold(kind: str) -> None:
        count, head, drip = kinds[kind]
        got[kind] = dict(connections(endpoint, count, head, drip=drip))

    with beside(endpoint, record_property):
        threads = [threading.Thread(target=hold, args=(kind,)) for kind in kinds]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    assert got == {kind: {408: count} for kind, (count, _, _) in kinds.items()}


def test_large_bodies_that_stop_arriving_do_not_keep_others_out(endpoint: Endpoint, record_property: Note) -> None:
    head = request(endpoint, bytes(140_000), length=_BODY)  # more than HAProxy waits for
    with beside(endpoint, record_property):
        got = connections(endpoint, 32, head, drip=b"x")
    assert set(got) == {408, 503}, got


def test_400_mb_of_request_headers(endpoint: Endpoint, record_property: Note) -> None:
    line = b"a: " + b"b" * 9995 + b"\r\n"
    with beside(endpoint, record_property), endpoint.connect() as connection:
        sent = 0
        with suppress(OSError):
            connection.sendall(b"POST %b HTTP/1.1\r\n" % PREDICT.encode())
            while sent < 400_000_000:
                connection.sendall(line * 10)
                sent += 10 * len(line)
    record_property("headers that were taken, MB", sent / 1e6)
    assert sent < 40_000_000  # what buffers on the way hold; then the connection is closed


def test_1000_pipelined_requests_are_answered_in_order(endpoint: Endpoint, record_property: Note) -> None:
    one = request(endpoint, closes=False)
    with beside(endpoint, record_property), endpoint.connect() as connection:
        sending = threading.Thread(target=connection.sendall, args=(one * 999 + request(endpoint),))
        sending.start()
        received = b""
        while piece := connection.recv(1 << 20):
            received += piece
        sending.join()
    assert received.count(b"HTTP/1.1 200 OK\r\n") == 1000


def test_clients_that_leave_at_once_are_not_computed_for(endpoint: Endpoint, record_property: Note) -> None:
    data = request(endpoint)
    with beside(endpoint, record_property):
        for _ in range(1000):
            with endpoint.connect() as connection:
                connection.sendall(data)


# -- the protocol ------------------------------------------------------------------------------------------------------


def chunked(*lines: bytes) -> Callable[[Endpoint], bytes]:
    return lambda endpoint: request(endpoint, lines[-1], b"Transfer-Encoding: chunked", *lines[:-1], length=None)


def told(*lines: bytes) -> Callable[[Endpoint], bytes]:
    """A good request with more header lines, and its own Content-Length left out if one of them is another."""
    length = None if any(line.lower().startswith(b"content-length") for line in lines) else -1
    return lambda endpoint: request(endpoint, None, *lines, length=length)


def to(target: bytes, method: bytes = b"POST") -> Callable[[Endpoint], bytes]:
    return lambda endpoint: request(endpoint, target=target, method=method)


MODEL = b"/v1/models/digits"
ODD: dict[str, tuple[Callable[[Endpoint], bytes], int]] = {
    "Content-Length: negative": (told(b"Content-Length: -5"), 400),
    "Content-Length: two that differ": (told(b"Content-Length: 5", b"Content-Length: 7"), 400),
    "Content-Length: of 20 digits": (told(b"Content-Length: 99999999999999999999"), 400),
    "Content-Length: hexadecimal": (told(b"Content-Length: 0x10"), 400),
    "Content-Length: shorter": (lambda e: request(e, length=len(e.image) - 100), 422),
    "chunked: beside Content-Length": (
        lambda e: request(e, b"5\r\nhello\r\n0\r\n\r\n", b"Transfer-Encoding: chunked"),
        415,
    ),
    "chunked: size is no number": (chunked(b"zz\r\nhello\r\n0\r\n\r\n"), 400),
    "chunked: size of 2^64 - 1": (chunked(b"ffffffffffffffff\r\nhello"), 400),
    "chunked: negative size": (chunked(b"-5\r\nhello"), 400),
    "chunked: 600 kB of trailers": (chunked(b"5\r\nhello\r\n0\r\n" + b"a: b\r\n" * 100_000 + b"\r\n"), 400),
    "Transfer-Encoding: gzip": (lambda e: request(e, None, b"Transfer-Encoding: gzip, chunked", length=None), 422),
    "HTTP/0.9": (lambda _: b"GET /healthz\r\n\r\n", 400),
    "HTTP/2 without being asked": (lambda _: b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n", 400),
    "TLS": (lambda _: bytes.fromhex("160301020001") + bytes(600), 400),
    "upgrade to WebSocket": (
        lambda e: request(
            e,
            b"",
            b"Upgrade: websocket",
            b"Connection: upgrade",
            b"Sec-WebSocket-Version: 13",
            b"Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==",
            method=b"GET",
            target=MODEL,
        ),
        200,
    ),
    "method: BREW": (to(MODEL + b"/predict", b"BREW"), 405),
    "method: TRACE": (lambda e: request(e, b"", method=b"TRACE"), 405),
    "method: CONNECT": (lambda e: request(e, b"", method=b"CONNECT", target=b"a:80"), 400),
    "target: *": (to(b"*", b"OPTIONS"), 400),
    "target: //": (to(b"//"), 405),
    "target: /../": (to(MODEL + b"/%2e%2e/"), 404),
    "target: @": (to(MODEL + b"@/predict"), 404),
    "target: @@@": (to(MODEL + b"/@@@/predict"), 404),
    "target: an encoded slash": (to(MODEL + b"%2fpredict"), 404),
    "target: an encoded NUL": (to(MODEL + b"%00/predict"), 404),
    "target: NUL": (to(MODEL + b"\0/predict"), 400),
    "target: a byte beyond ASCII": (to(MODEL + b"\xff/predict"), 400),
    "target: not UTF-8": (to(MODEL + b"/%ff%fe"), 404),
    "target: 100 kB of path": (to(MODEL + b"/" + b"a" * 100_000), 414),
    "target: 100 kB of query": (to(MODEL + b"/predict?" + b"a=b&" * 25_000), 414),
    "target: 8 kB of query": (to(MODEL + b"/predict?" + b"a=b&" * 2000), 400),
    "target: top of 4,000 digits": (to(MODEL + b"/predict?top=" + b"9" * 4000), 400),
    "key of 1 MB": (lambda e: request(e, key=b"a" * 1_000_000), 400),
    "key of 10 kB": (lambda e: request(e, key=b"a" * 10_000), 401),
    "key beyond ASCII": (lambda e: request(e, key=b"\xff\xfe"), 401),
    "JSON: top of 4,200 digits": (
        lambda e: request(e, b'{"images": ["QQ=="], "top": %b}' % (b"9" * 4200), kind=_JSON),
        415,
    ),
}
LATE: dict[str, Callable[[Endpoint], bytes]] = {
    "Content-Length: longer": lambda e: request(e, length=len(e.image) + 1),
    "Content-Length: 10^18": told(b"Content-Length: 1000000000000000000"),
    "chunked: an extension of 1 MB": chunked(b"5;" + b"a" * 1_000_000 + b"\r\nhello\r\n0\r\n\r\n"),
}


def test_a_request_that_never_ends_is_given_up(endpoint: Endpoint) -> None:
    requests = [make(endpoint) for make in LATE.values()]
    with ThreadPoolExecutor(len(requests)) as pool:
        answers = list(pool.map(endpoint.ask, requests))
    assert [answer.status for answer in answers] == [408] * len(answers)


@pytest.mark.parametrize("name", ODD)
def test_an_odd_request_is_refused_with_a_status_that_says_why(endpoint: Endpoint, name: str) -> None:
    make, status = ODD[name]
    answer = endpoint.ask(make(endpoint))
    assert answer.status == status, answer
    _answers_well(endpoint)


@pytest.mark.parametrize("value", [b"a\rSet-Cookie: x=1", b"a\n evil: 1", b"a\0b", b"<script>", b"\xff", b"a" * 5000])
def test_a_request_id_cannot_inject_a_header(endpoint: Endpoint, value: bytes) -> None:
    answer = endpoint.ask(request(endpoint, None, b"X-Request-Id: " + value))
    assert answer.status in {200, 400}
    for word in ("evil", "cookie", "script", "aaaa", "\xff"):
        assert word not in answer.head
    _answers_well(endpoint)


@pytest.mark.parametrize("value", [b"0", b"-1", b"1e-9", b"nan", b"x", b"0.001", b"99999"])
@pytest.mark.parametrize("name", [b"x-request-timeout-seconds", b"x-request-disconnect-disabled"])
def test_a_header_for_serve_changes_no_limit(endpoint: Endpoint, name: bytes, value: bytes) -> None:
    answer = endpoint.ask(request(endpoint, None, name + b": " + value))
    assert answer.status == 200, answer


def _answers_well(endpoint: Endpoint) -> Answer:
    answer = endpoint.ask(request(endpoint))
    assert answer.status == 200, answer
    return answer
