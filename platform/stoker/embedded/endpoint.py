"""Deploy the endpoint of the instance when a model to serve was published."""

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

REFERENCE = "digits@production"


def deploy_endpoint(instance: Instance) -> str | None:
    """Deploy the quickstart's model, if it was published; returns the endpoint's URL, or None.

    Raises:
        ClusterError: the model exists but cannot be deployed.
    """
    os.environ.update(instance.environment())
    try:
        Registry(locate(instance.url, timeout_s=10)).resolve(REFERENCE)
    except ModelError:
        return None
    command = [sys.executable, "-m", "stoker", "deploy", str(bundled_file("serve/digits.yaml"))]
    options = ["--storage", instance.url, "--port", str(instance.serve_port)]
    if subprocess.run([*command, *options], check=False, stdin=subprocess.DEVNULL).returncode:
        raise ClusterError(f"{REFERENCE} could not be deployed; see the line above")
    return instance.serve_url
