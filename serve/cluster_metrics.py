"""The endpoint's own metrics from every node of the cluster, as one page in Prometheus' text format."""

from __future__ import annotations

import asyncio
import urllib.error
import urllib.request

__all__ = ["cluster_metrics", "ours"]

_TIMEOUT_S = 5.0
_MOST_BYTES = 50_000_000
_PREFIX = "ray_stoker_serve_"
_NO_PROXY = urllib.request.build_opener(urllib.request.ProxyHandler({}))


def ours(page: str) -> dict[str, list[str]]:
    """The endpoint's metrics in a node's page: the lines of each family without Ray's prefix, HELP and TYPE first."""
    found: dict[str, list[str]] = {}
    family = ""
    for line in page.splitlines():
        if line.startswith(("# HELP ", "# TYPE ")):
            family = line.split(" ", 3)[2]
        if family.startswith(_PREFIX) and (line.startswith(("# ", _PREFIX))):
            found.setdefault(family, []).append(line.replace("ray_", "", 1))
    return found


async def cluster_metrics() -> str:
    """The page; a node that does not answer is left out and named in a comment."""
    import ray

    loop = asyncio.get_running_loop()
    nodes = [node for node in await loop.run_in_executor(None, ray.nodes) if node["Alive"]]
    places = [f"{node['NodeManagerAddress']}:{node['MetricsExportPort']}" for node in nodes]
    pages = await asyncio.gather(*(loop.run_in_executor(None, _fetch, place) for place in places))
    families: dict[str, dict[str, None]] = {}
    for page in pages:
        for family, lines in ours(page).items():
            families.setdefault(family, {}).update(dict.fromkeys(lines))
    away = [f"# node {place} does not answer" for place, page in zip(places, pages, strict=True) if not page]
    return "\n".join([*(line for lines in families.values() for line in lines), *away]) + "\n"


def _fetch(place: str) -> str:
    try:
        with _NO_PROXY.open(f"http://{place}/metrics", timeout=_TIMEOUT_S) as answer:
            return str(answer.read(_MOST_BYTES).decode("utf-8", "replace"))
    except (OSError, urllib.error.URLError):
        return ""
