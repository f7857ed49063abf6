"""Read the files that the ranks of a run write to ``trace_dir`` (``stoker.training.telemetry.trace``)."""

from __future__ import annotations

import re
from pathlib import Path

__all__ = ["groups_of_workers"]

_NAME = re.compile(r"(?P<time>\d+)-(?P<pid>\d+)-of(?P<size>\d+)-rank(?P<rank>\d+)")


def groups_of_workers(folder: Path) -> list[dict[int, tuple[int, Path]]]:
    """Return the groups of workers in the order of their starts: ``{rank: (process, file)}``.

    The workers of a group start closer together than successive groups; a group that was killed early may lack ranks.
    """
    groups: list[tuple[int, dict[int, tuple[int, Path]]]] = []
    for file in sorted(folder.glob("*.jsonl"), key=lambda file: int(file.name.split("-")[0])):
        match = _NAME.fullmatch(file.stem)
        assert match, file
        size, rank = int(match["size"]), int(match["rank"])
        if not groups or groups[-1][0] != size or rank in groups[-1][1]:
            groups.append((size, {}))
        groups[-1][1][rank] = int(match["pid"]), file
    return [group for _, group in groups]
