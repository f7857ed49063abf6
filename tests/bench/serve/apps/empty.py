"""A handler that answers at once, so that only what is around it costs: ``import_path: bench.serve.apps.empty:app``"""

from collections.abc import Awaitable, Callable, MutableMapping
from typing import Any

from ray import serve

_BODY = b'{"status":"ok"}'
_HEADERS = [(b"content-type", b"application/json"), (b"content-length", b"%d" % len(_BODY))]


class Empty:
    """An ASGI callable in a replica of its own, as stoker's models are."""

    async def __serve_build_asgi_app__(self) -> Callable[..., Awaitable[None]]:
        return _answer


async def _answer(scope: MutableMapping[str, Any], receive: Any, send: Any) -> None:
    if scope["type"] != "http":
        return
    while (await receive()).get("more_body"):
        pass
    await send({"type": "http.response.start", "status": 200, "headers": _HEADERS})
    await send({"type": "http.response.body", "body": _BODY})


def app(args: dict[str, str]) -> serve.Application:
    """Build it; ``args`` is empty."""
    deployment = serve.deployment(serve.ingress()(Empty)).options(
        name="empty",
        num_replicas=1,
        max_ongoing_requests=512,
        ray_actor_options={"num_cpus": 0.5},
        logging_config={"enable_access_log": False},
    )
    return deployment.bind()
