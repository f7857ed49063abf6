"""``/openapi.json`` of a real deployment says what it answers: schemathesis asks by it, well and badly."""

from __future__ import annotations

import base64
from collections import Counter
from collections.abc import Callable, Iterator

import httpx
import hypothesis
import hypothesis.strategies as st
import pytest
import schemathesis
from schemathesis import GenerationMode
from schemathesis.specs.openapi.checks import (
    content_type_conformance,
    response_headers_conformance,
    response_schema_conformance,
    status_code_conformance,
)

from conftest import Store
from faults.endpoint import Endpoint, deployed
from stoker.embedded import Instance

pytestmark = [pytest.mark.store, pytest.mark.cluster, pytest.mark.long, pytest.mark.timeout(900)]

CHECKS = [
    status_code_conformance,
    content_type_conformance,
    response_headers_conformance,
    response_schema_conformance,
]
EXAMPLES = 20
SETTINGS = hypothesis.settings(
    max_examples=EXAMPLES,
    deadline=None,
    database=None,
    derandomize=True,
    phases=[hypothesis.Phase.generate],
    suppress_health_check=list(hypothesis.HealthCheck),
)
NAMES = st.sampled_from([None, "digits", "digits@production", "digits@1", "digits@9", "letters"])


@pytest.fixture(scope="module")
def endpoint(cluster: Instance, store: Store, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Endpoint]:
    with deployed(cluster, store, tmp_path_factory.mktemp("serve")) as found:
        yield found


@pytest.mark.parametrize("mode", list(GenerationMode))
def test_each_answer_is_one_that_the_description_declares(
    endpoint: Endpoint, mode: GenerationMode, record_property: Callable[[str, object], None]
) -> None:
    description = schemathesis.openapi.from_url(f"{endpoint.url}/openapi.json")
    got: Counter[str] = Counter()
    for result in description.get_all_operations():
        operation = result.ok()

        @SETTINGS
        @hypothesis.given(case=operation.as_strategy(generation_mode=mode), name=NAMES, has_key=st.booleans())
        def ask(case: schemathesis.Case, name: str | None, has_key: bool) -> None:
            if name is not None and "name" in case.path_parameters:
                case.path_parameters["name"] = name
            headers = {"Authorization": f"Bearer {endpoint.key}"} if has_key else {}
            answer = case.call(base_url=endpoint.url, headers=headers, timeout=60)
            got[f"{case.method} {case.path} {answer.status_code}"] += 1
            assert answer.status_code < 500 or answer.status_code in {503, 504}, answer.text
            case.validate_response(answer, checks=CHECKS)

        try:
            ask()
        except hypothesis.errors.Unsatisfiable:  # nothing of the operation can be asked badly
            assert mode is GenerationMode.NEGATIVE
    record_property("answers", dict(got))
    asked = {line.rsplit(" ", 1)[0] for line in got}
    every = {f"{found.ok().method.upper()} {found.ok().path}" for found in description.get_all_operations()}
    assert asked == every if mode is GenerationMode.POSITIVE else {"POST /v1/models/{name}/predict"} <= asked


def test_a_good_request_of_each_declared_kind_is_answered_200(endpoint: Endpoint) -> None:
    url, headers = f"{endpoint.url}/v1/models/digits/predict", {"Authorization": f"Bearer {endpoint.key}"}
    description = httpx.get(f"{endpoint.url}/openapi.json", trust_env=False).json()
    predict = description["paths"]["/v1/models/{name}/predict"]["post"]
    with httpx.Client(headers=headers, timeout=60, trust_env=False) as client:
        for kind in predict["requestBody"]["content"]:
            if kind == "multipart/form-data":
                answer = client.post(url, files={"images": ("a.jpg", endpoint.image)}, data={"top": "2"})
            elif kind == "application/json":
                answer = client.post(url, json={"images": [base64.b64encode(endpoint.image).decode()], "top": 2})
            else:
                answer = client.post(f"{url}?top=2", content=endpoint.image, headers={"Content-Type": kind})
            assert answer.status_code == 200, (kind, answer.text)
            assert len(answer.json()["predictions"][0]) == 2
