"""Deploy the endpoint of the instance when a model to serve was published and nothing is deployed yet."""

from __future__ import annotations

import os
import subprocess
import sys

from stoker.bundled import bundled_file
from stoker.embedded.instance import Instance
from stoker.errors import ClusterError, ModelError
from stoker.registry import Registry
from stoker.storage import locate

__all__ = ["deploy_endpoint"]

CONFIGS = (
    ("serve/demo.yaml", ("digits@production", "imagenet-lite0@production")),
    ("serve/digits.yaml", ("digits@production",)),
)
"""Serve configs of what ``demo`` and ``quickstart`` publish, the fullest first"""


def deploy_endpoint(instance: Instance) -> str | None:
    """Deploy the models of the quickstart and of the demo that were published; returns the endpoint's URL, or None.

    If Serve has any application already, that and all others stay as their user deployed them.

    Raises:
        ClusterError: the model exists but cannot be deployed, or the cluster does not tell what is.
    """
    os.environ.update(instance.environment())
    if instance.cluster.applications():
        return instance.serve_url
    registry = Registry(locate(instance.url, timeout_s=10))
    config = next((config for config, models in CONFIGS if all(_exists(registry, model) for model in models)), None)
    if config is None:
        return None
    command = [sys.executable, "-m", "stoker", "deploy", str(bundled_file(config))]
    options = ["--storage", instance.url, "--port", str(instance.serve_port)]
    if subprocess.run([*command, *options], check=False, stdin=subprocess.DEVNULL).returncode:
        raise ClusterError(f"{config} could not be deployed; see the line above")
    return instance.serve_url


def _exists(registry: Registry, reference: str) -> bool:
    try:
        registry.resolve(reference)
    except ModelError:
        return False
    return True
