"""Cases in fresh processes, A B C, A B C, …, so that what the machine does meanwhile meets all alike."""

from __future__ import annotations

import json
import logging
import shutil
import subprocess
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from bench.data.cases import Case
from bench.data.environments import Environments, child_environment
from bench.data.place import Place
from bench.report import Measures

__all__ = ["Outcome", "run_rounds"]

logger = logging.getLogger(__name__)

_TIMEOUT_S = 900.0
_TRIES = 2  # some peers crash now and then


@dataclass
class Outcome:
    """The result of a case: its measures by round, or the reason why there are none."""

    case: Case
    rounds: list[Measures] = field(default_factory=list)
    absent: str = ""
    failed: str = ""


def run_rounds(
    cases: Sequence[Case],
    place: Place,
    environments: Environments,
    store: dict[str, str],
    *,
    rounds: int,
    on_result: Callable[[Case, int, Measures], None],
) -> list[Outcome]:
    """Run each case ``rounds`` times; ``on_result`` is called after each. A case that fails is not repeated."""
    outcomes = [Outcome(case) for case in cases]
    for number in range(rounds):
        for outcome in outcomes:
            if outcome.absent or outcome.failed:
                continue
            _run(outcome, place, environments, child_environment(store))
            if not outcome.absent and not outcome.failed:
                on_result(outcome.case, number, outcome.rounds[-1])
    return outcomes


def _run(outcome: Outcome, place: Place, environments: Environments, environment: dict[str, str]) -> None:
    case = outcome.case
    python = environments.python.get(case.environment)
    if python is None:
        outcome.absent = f"the environment {case.environment} is not installed"
        return
    command = [python, "-m", "bench.data.child", case.measure, place.to_json(), json.dumps(case.arguments)]
    log = Path(place.folder) / "logs" / f"{''.join(c if c.isalnum() else '-' for c in case.name)}.log"
    log.parent.mkdir(exist_ok=True)
    for _ in range(_TRIES):
        shutil.rmtree(place.scratch, ignore_errors=True)
        Path(place.scratch).mkdir(parents=True)
        began = time.monotonic()
        result, outcome.failed = _call(command, environment, log)
        logger.info("%s: %.0f s", case.name, time.monotonic() - began)
        if not outcome.failed:
            break
    outcome.absent = str(result.get("absent", ""))
    if "measures" in result:
        outcome.rounds.append({name: float(value) for name, value in result["measures"].items()})
    shutil.rmtree(place.scratch, ignore_errors=True)


def _call(command: list[str], environment: dict[str, str], log: Path) -> tuple[dict[str, dict[str, float]], str]:
    """(result, "") or ({}, what went wrong)."""
    with log.open("w") as file:
        try:
            done = subprocess.run(
                command, env=environment, stdout=subprocess.PIPE, stderr=file, text=True, check=False,
                timeout=_TIMEOUT_S,
            )  # fmt: skip
        except subprocess.TimeoutExpired:
            return {}, f"took longer than {_TIMEOUT_S:.0f} s; see {log}"
    lines = done.stdout.splitlines()
    if done.returncode or not lines:
        said = [line for line in log.read_text().splitlines() if line.strip()]
        return {}, f"exit status {done.returncode} ({(said or ['no output'])[-1][:200]}); see {log}"
    return json.loads(lines[-1]), ""
