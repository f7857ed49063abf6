"""Raw clients of the store on the very ranges that our stream reads: bytes by the clock and by CPU time, unchecked."""

from __future__ import annotations

import json
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from bench.data.peers.sources import endpoint, key_pair, storage_options
from bench.data.place import Place
from bench.meter import Meter

__all__ = ["RANGES", "measure"]

RANGES = "ranges.json"
_THREADS = (4, 8)
_REGION = "us-east-1"

Get = Callable[[str, int, int], int]
"""(object's key, start, stop) to the bytes that came"""


def measure(place: Place, *, client: str) -> dict[str, float]:
    """MB (10^6 bytes) a second at the better of two numbers of threads; making the client is not counted."""
    make = {
        "s3fs": _s3fs,
        "obstore": _obstore,
        "boto3": _boto3,
        "http.client": _http_client,
        "pycurl": _pycurl,
    }[client]
    wanted = json.loads((Path(place.folder) / RANGES).read_text())
    prefix = f"{place.prefix}/stoker"
    jobs = [(f"{prefix}/{path}", start, stop) for path, start, stop in wanted]
    get = make(place, sorted({job[0] for job in jobs}))
    return max((_timed(get, jobs, threads) for threads in _THREADS), key=lambda found: found["mb_per_s"])


def _timed(get: Get, jobs: list[tuple[str, int, int]], threads: int) -> dict[str, float]:
    meter = Meter()
    with ThreadPoolExecutor(threads) as pool:
        came = sum(pool.map(lambda job: get(*job), jobs))
    wall_s, cpu_s = meter.stop()
    if came != sum(stop - start for _, start, stop in jobs):
        raise RuntimeError(f"{came} bytes received, which are not those requested")
    return {"mb_per_s": came / 1e6 / wall_s, "mb_per_cpu_s": came / 1e6 / cpu_s, "threads": threads}


def _s3fs(place: Place, keys: list[str]) -> Get:
    import s3fs

    filesystem = s3fs.S3FileSystem(**storage_options())
    return lambda key, start, stop: len(filesystem.cat_file(f"{place.bucket}/{key}", start=start, end=stop))


def _obstore(place: Place, keys: list[str]) -> Get:
    import obstore
    from obstore.store import S3Store

    key_id, secret = key_pair()
    store = S3Store(
        place.bucket,
        endpoint=endpoint(),
        access_key_id=key_id,
        secret_access_key=secret,
        region=_REGION,
        client_options={"allow_http": True},
    )
    return lambda key, start, stop: len(obstore.get_range(store, key, start=start, end=stop))


def _boto3(place: Place, keys: list[str]) -> Get:
    client = _boto3_client()

    def get(key: str, start: int, stop: int) -> int:
        answer = client.get_object(Bucket=place.bucket, Key=key, Range=f"bytes={start}-{stop - 1}")
        return len(answer["Body"].read())

    return get


def _boto3_client() -> Any:
    import boto3
    from botocore.config import Config

    return boto3.client(
        "s3", endpoint_url=endpoint(), region_name=_REGION, config=Config(max_pool_connections=max(_THREADS))
    )


def _signed(place: Place, keys: list[str]) -> dict[str, str]:
    client = _boto3_client()
    return {
        key: client.generate_presigned_url("get_object", Params={"Bucket": place.bucket, "Key": key}) for key in keys
    }


def _http_client(place: Place, keys: list[str]) -> Get:
    import http.client

    signed, own = _signed(place, keys), threading.local()
    host = urlsplit(endpoint()).netloc

    def get(key: str, start: int, stop: int) -> int:
        if not hasattr(own, "connection"):
            own.connection, own.buffer = http.client.HTTPConnection(host), bytearray()
        if len(own.buffer) < stop - start:
            own.buffer = bytearray(stop - start)
        url = urlsplit(signed[key])
        own.connection.request("GET", f"{url.path}?{url.query}", headers={"Range": f"bytes={start}-{stop - 1}"})
        answer, view, came = own.connection.getresponse(), memoryview(own.buffer), 0
        while read := answer.readinto(view[came : stop - start]):
            came += read
        return came

    return get


def _pycurl(place: Place, keys: list[str]) -> Get:
    import io

    import pycurl

    signed, own = _signed(place, keys), threading.local()

    def get(key: str, start: int, stop: int) -> int:
        if not hasattr(own, "handle"):
            own.handle = pycurl.Curl()
            own.handle.setopt(pycurl.BUFFERSIZE, 2**19)
        body = io.BytesIO()
        own.handle.setopt(pycurl.URL, signed[key])
        own.handle.setopt(pycurl.RANGE, f"{start}-{stop - 1}")
        own.handle.setopt(pycurl.WRITEDATA, body)
        own.handle.perform()
        return body.tell()

    return get
