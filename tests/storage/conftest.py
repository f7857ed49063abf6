from __future__ import annotations

from collections.abc import Iterator

import pytest

from storage.answers import Answers


@pytest.fixture
def server() -> Iterator[Answers]:
    server = Answers()
    yield server
    server.close()


@pytest.fixture
def s3(server: Answers, monkeypatch: pytest.MonkeyPatch) -> Answers:
    """The server, as the S3 store of the environment."""
    for name in ("AWS_REGION", "AWS_DEFAULT_REGION", "AWS_PROFILE", "AWS_REQUEST_PAYER"):
        monkeypatch.delenv(name, raising=False)
    keys = {"AWS_ACCESS_KEY_ID": "key", "AWS_SECRET_ACCESS_KEY": "secret", "AWS_CONFIG_FILE": "/dev/null"}
    for name, value in (keys | {"AWS_ENDPOINT_URL": server.url}).items():
        monkeypatch.setenv(name, value)
    return server
