"""The demo as a user runs it: it answers about photographs, keeps running until Ctrl-C, and leaves nothing running."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import urllib.request
from pathlib import Path

import psutil
import pytest

from stoker.embedded.demo import photographs


def test_the_photographs_are_there() -> None:
    assert {path.name: what for path, what in photographs().items()} == {
        "chelsea.png": "a cat",
        "coffee.png": "a cup of coffee",
        "rocket.jpg": "a rocket",
    }


@pytest.mark.long
@pytest.mark.store
@pytest.mark.cluster
@pytest.mark.timeout(1800)
def test_the_demo_knows_a_cat_runs_until_ctrl_c_and_does_it_again(tmp_path: Path) -> None:
    free = {f"STOKER_PORT_{name}": "0" for name in ("S3", "GCS", "DASHBOARD", "SERVE")}
    environment = {**os.environ, **free, "PYTHONUNBUFFERED": "1"}
    seconds = []
    for is_again in (False, True):
        process = subprocess.Popen(
            [sys.executable, "-m", "stoker", "demo", "--folder", str(tmp_path / "state")],
            cwd=tmp_path,
            env=environment,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )
        assert process.stdout is not None
        lines = []
        for line in process.stdout:
            lines.append(line.rstrip())
            if line.startswith("running until"):
                break
        said = "\n".join(lines)
        closing = json.loads(next((line for line in reversed(lines) if line.startswith("{")), "{}"))
        assert closing.get("demo") == "ok", said
        assert closing["answers"] == {"chelsea.png": "tiger cat", "coffee.png": "espresso", "rocket.jpg": "missile"}
        assert closing["model"] == "imagenet-lite0@1"
        assert "$ curl -H" in said
        assert any("found imagenet-lite0@1, imported before" in line for line in lines) == is_again
        assert any(line.startswith("[") and "Train digits-1" in line for line in lines) != is_again
        ready = closing["url"].partition("/v1/")[0] + "/readyz"
        with urllib.request.build_opener(urllib.request.ProxyHandler({})).open(ready, timeout=30) as answer:
            assert set(json.load(answer)["models"]) == {"digits@1", "imagenet-lite0@1"}
        seconds.append(closing["seconds"]["total"])
        process.send_signal(signal.SIGINT)
        assert process.stdout.read().startswith("stopping")
        assert process.wait(timeout=120) == 0
        assert not [p for p in psutil.process_iter(["cmdline"]) if str(tmp_path) in " ".join(p.info["cmdline"] or ())]
    print("seconds of the first and of the second demo:", seconds)
