"""The description is complete in itself; tests/faults/test_endpoint_description.py holds it to what is answered."""

from __future__ import annotations

import json
import re
from typing import Any

import pytest

from stoker_serve.directory import Directory
from stoker_serve.front import ROUTES, Front, make_front
from stoker_serve.settings import FrontSettings


async def _no_metrics() -> str:
    return ""


@pytest.fixture(scope="module")
def description() -> dict[str, Any]:
    return make_front(FrontSettings(storage="file:///nowhere"), Front(Directory(), _no_metrics, None), None).openapi()


def test_each_reference_of_the_description_resolves(description: dict[str, Any]) -> None:
    names = set(re.findall(r'"#/components/schemas/(\w+)"', json.dumps(description)))
    assert names
    assert names <= set(description["components"]["schemas"])


def test_each_route_is_described_with_head_beside_get(description: dict[str, Any]) -> None:
    for route in ROUTES:
        operations = description["paths"][route.path]
        assert route.method.lower() in operations
        assert ("head" in operations) == ("get" in operations)
        assert ("options" in operations) == route.path.startswith("/v1/models/{name}")


def test_each_error_is_declared_as_a_problem(description: dict[str, Any]) -> None:
    for operations in description["paths"].values():
        for method, operation in operations.items():
            errors = {status: row for status, row in operation["responses"].items() if int(status) >= 400}
            assert {"400", "405", "408", "414", "503"} <= set(errors)
            for status, row in errors.items():
                assert method == "head" or "application/problem+json" in row["content"], (method, status)


def test_no_parameter_is_declared_that_nothing_reads(description: dict[str, Any]) -> None:
    declared = {
        (path, parameter["in"], parameter["name"])
        for path, operations in description["paths"].items()
        for operation in operations.values()
        for parameter in operation["parameters"]
    }
    assert {name for _, where, name in declared if where == "query"} == {"top"}
    assert {path for path, where, _ in declared if where == "query"} == {"/v1/models/{name}/predict"}
    assert {path for path, where, _ in declared if where == "path"} == {
        row for row in description["paths"] if "{" in row
    }
