"""The parts of Ray Serve that serve/ calls, reads or relies on are as they were when serve/ was written.

Each row names a part and the file of ours to look at when a new Ray has changed it; no cluster is started.
"""

from __future__ import annotations

from typing import Any

import pytest

from contracts.signatures import must_accept, must_equal, must_have, resolve

SIGNATURES = [
    # -- the application
    ("ray.serve.ingress", "(app=None)", "serve/app.py"),
    ("ray.serve.deployment.Deployment.bind", "(self, *args, **kwargs)", "serve/app.py"),
    ("ray.serve.Application", None, "serve/app.py"),
    ("ray.serve.handle.DeploymentHandle.__getattr__", "(self, name)", "serve/app.py"),
    ("ray.serve.handle.DeploymentHandle.remote", "(self, *args, **kwargs)", "serve/app.py"),
    ("ray.serve._private.api.call_user_app_builder_with_args_if_necessary", "(builder, args)", "serve/app.py"),
    ("ray.exceptions.RayActorError", None, "serve/app.py"),
    (
        "ray.serve.exceptions.BackPressureError",
        "(num_queued_requests, max_queued_requests, status_code=503, retry_after_s=None)",
        "serve/app.py",
    ),
    ("ray.serve.exceptions.DeploymentUnavailableError", "(deployment_id)", "serve/app.py"),
    ("ray.serve._private.http_util.get_http_response_status", "(exc, request_timeout_s, request_id)", "serve/app.py"),
    # -- a replica
    ("ray.get_runtime_context", "()", "serve/model.py"),
    ("ray.runtime_context.RuntimeContext.get_assigned_resources", "(self)", "serve/model.py"),
    ("ray.serve.get_replica_context", "()", "serve/telemetry.py"),
    ("ray.serve.context.ReplicaContext.replica_tag", None, "serve/telemetry.py"),
    ("ray.serve._private.logging_utils.get_serve_logs_dir", "()", "serve/telemetry.py"),
    # -- a deployment
    (
        "ray.dashboard.modules.serve.sdk.ServeSubmissionClient",
        "(dashboard_head_address, create_cluster_if_needed=False, cookies=None, metadata=None, headers=None)",
        "serve/deploy.py",
    ),
    (
        "ray.dashboard.modules.serve.sdk.ServeSubmissionClient.deploy_applications",
        "(self, config)",
        "serve/deploy.py",
    ),
    ("ray.dashboard.modules.serve.sdk.ServeSubmissionClient.get_serve_details", "(self)", "serve/deploy.py"),
    ("ray.dashboard.modules.serve.sdk.ServeSubmissionClient.delete_applications", "(self)", "serve/deploy.py"),
    ("ray.exceptions.RayError", None, "serve/deploy.py"),
]

PARAMETERS = [
    ("ray.serve.batch", ("max_batch_size", "batch_wait_timeout_s"), "serve/model.py"),
    (
        "ray.serve.deployment.Deployment.options",
        ("name", "max_ongoing_requests", "max_queued_requests", "backpressure_config"),
        "serve/app.py",
    ),
    ("ray.serve.schema.ServeDeploySchema", ("applications", "http_options", "proxy_location"), "serve/config.py"),
    (
        "ray.serve.schema.ServeApplicationSchema",
        ("name", "import_path", "route_prefix", "args", "deployments"),
        "serve/config.py",
    ),
    ("ray.serve.schema.HTTPOptionsSchema", ("host", "port", "request_timeout_s"), "serve/config.py"),
    (
        "ray.serve.schema.DeploymentSchema",
        (
            "name",
            "num_replicas",
            "ray_actor_options",
            "max_ongoing_requests",
            "max_queued_requests",
            "backpressure_config",
            "max_surge_percent",
            "autoscaling_config",
        ),
        "serve/digits.yaml",
    ),
    ("ray.serve.config.BackpressureConfig", ("retry_after_s",), "serve/digits.yaml"),
    (
        "ray.serve.config.AutoscalingConfig",
        ("min_replicas", "max_replicas", "target_ongoing_requests", "upscale_delay_s", "downscale_delay_s"),
        "serve/digits.yaml",
    ),
    ("ray.serve.schema.ServeInstanceDetails", ("applications", "http_options"), "serve/deploy.py"),
    ("ray.serve.schema.ApplicationDetails", ("status", "message", "deployments"), "serve/deploy.py"),
    ("ray.serve.schema.DeploymentDetails", ("message",), "serve/deploy.py"),
]

VALUES = [
    ("ray.serve._private.replica.SERVE_BUILD_ASGI_APP_METHOD", "__serve_build_asgi_app__", "serve/app.py"),
    ("ray.serve.schema.ApplicationStatus.RUNNING", "RUNNING", "serve/deploy.py"),
    ("ray.serve.schema.ApplicationStatus.DEPLOY_FAILED", "DEPLOY_FAILED", "serve/deploy.py"),
]

ENVIRONMENT = [
    ("ray.serve._private.constants", "RAY_SERVE_DEFAULT_HTTP_HOST", "platform/stoker/embedded/cluster.py"),
    ("ray.serve._private.constants", "RAY_SERVE_ENABLE_HA_PROXY", "platform/stoker/embedded/cluster.py"),
    ("ray.dashboard.modules.serve.sdk", "RAY_DASHBOARD_ADDRESS", "serve/deploy.py"),
]


@pytest.mark.parametrize(("path", "signature", "used_by"), SIGNATURES, ids=lambda value: str(value)[:80])
def test_what_we_call_and_catch_exists_with_its_signature(path: str, signature: str | None, used_by: str) -> None:
    must_have(path, signature, used_by)


@pytest.mark.parametrize(("path", "parameters", "used_by"), PARAMETERS, ids=lambda value: str(value)[:80])
def test_what_we_name_in_calls_and_yaml_is_accepted(path: str, parameters: tuple[str, ...], used_by: str) -> None:
    must_accept(path, parameters, used_by)


@pytest.mark.parametrize(("path", "value", "used_by"), VALUES, ids=lambda value: str(value)[:80])
def test_what_we_compare_with_has_its_value(path: str, value: str, used_by: str) -> None:
    must_equal(path, value, used_by)


@pytest.mark.parametrize(("module", "variable", "used_by"), ENVIRONMENT, ids=lambda value: str(value)[:80])
def test_the_environment_variables_that_we_set_are_read(module: str, variable: str, used_by: str) -> None:
    source = str(getattr(resolve(module, used_by), "__file__", ""))
    with open(source, encoding="utf-8") as text:
        assert variable in text.read(), (
            f"{module} has changed: expected it to read {variable}, found none; look at {used_by}"
        )


def test_a_batched_method_can_be_given_its_size_and_wait_by_the_replica() -> None:
    from ray import serve

    class Replica:
        @serve.batch  # type: ignore[untyped-decorator]
        async def rows(self, images: Any) -> Any:
            return images

    for name in ("set_max_batch_size", "set_batch_wait_timeout_s"):
        assert callable(getattr(Replica().rows, name, None)), (
            f"ray.serve.batch has changed: expected {name} on a batched method, found none; look at serve/model.py"
        )


def test_a_class_with_its_own_application_needs_none_in_ingress() -> None:
    from ray import serve

    class Front:
        def __serve_build_asgi_app__(self) -> object:
            return object()

    front = serve.ingress()(Front)
    assert issubclass(front, Front), "ray.serve.ingress has changed: expected a subclass; look at serve/app.py"
    with pytest.raises(ValueError, match="__serve_build_asgi_app__"):
        serve.ingress()(type("Without", (), {}))


def test_an_application_is_built_with_the_model_that_its_builder_is_annotated_with() -> None:
    from ray import serve
    from ray.serve._private.api import call_user_app_builder_with_args_if_necessary

    from stoker_serve.settings import Settings

    class Front:
        pass

    given: list[object] = []

    def build(settings: Any) -> Any:
        given.append(settings)
        return serve.deployment(Front).bind()

    build.__annotations__["settings"] = Settings
    call_user_app_builder_with_args_if_necessary(build, {"models": ["digits@1"], "storage": "memory://"})
    assert isinstance(given[0], Settings), (
        "call_user_app_builder_with_args_if_necessary has changed: expected the annotated model, found "
        f"{type(given[0]).__name__}; look at serve/app.py"
    )


@pytest.mark.parametrize(
    ("error", "status"), [("BackPressureError", 503), ("DeploymentUnavailableError", 503), ("TimeoutError", 408)]
)
def test_serve_answers_its_own_errors_with_the_statuses_that_our_docs_promise(error: str, status: int) -> None:
    from ray.serve._private.common import DeploymentID
    from ray.serve._private.http_util import get_http_response_status
    from ray.serve.exceptions import BackPressureError, DeploymentUnavailableError

    errors: dict[str, Exception] = {
        "BackPressureError": BackPressureError(num_queued_requests=1, max_queued_requests=1, retry_after_s=1),
        "DeploymentUnavailableError": DeploymentUnavailableError(DeploymentID(name="digits")),
        "TimeoutError": TimeoutError(),
    }
    found = get_http_response_status(errors[error], 60.0, "request")
    assert found.code == status, (
        f"get_http_response_status has changed: expected {status} for {error}, found {found.code}; "
        "look at serve/app.py and the table of statuses in the docs"
    )
    if error == "BackPressureError":
        assert (b"retry-after", b"1") in found.headers, (
            f"get_http_response_status has changed: expected Retry-After, found {found.headers}; look at serve/app.py"
        )


def test_the_client_refuses_what_is_no_dashboard_address_with_the_words_that_we_look_for() -> None:
    from ray.dashboard.modules.serve.sdk import ServeSubmissionClient

    with pytest.raises(ValueError, match="http://"):
        ServeSubmissionClient("somewhere")
    with pytest.raises(OSError, match="onnect"):
        ServeSubmissionClient("http://127.0.0.1:9")
