"""The endpoint of the instance: deployed when there is a model to serve."""

from __future__ import annotations

import os
import subprocess
import sys

from stoker.embedded.instance import Instance
from stoker.embedded.settings import CHECKOUT
from stoker.errors import ClusterError, ModelError
from stoker.registry import Registry
from stoker.storage import locate

__all__ = ["deploy_endpoint"]

REFERENCE = "digits@production"
CONFIG = "serve/digits.yaml"


def deploy_endpoint(instance: Instance) -> str | None:
    """Deploy the quickstart's model as ``make quickstart`` does, if it was published; the URL, or None.

    Raises:
        ClusterError: it is there but cannot be deployed.
    """
    os.environ.update(instance.environment())
    try:
        Registry(locate(instance.url, timeout_s=10)).resolve(REFERENCE)
    except ModelError:
        return None
    command = [sys.executable, "-m", "stoker_serve.deploy", CONFIG]
    options = ["--storage", instance.url, "--port", str(instance.serve_port)]
    if subprocess.run([*command, *options], cwd=CHECKOUT, check=False, stdin=subprocess.DEVNULL).returncode:
        raise ClusterError(f"{REFERENCE} could not be deployed; the line above says why")
    return instance.serve_url
