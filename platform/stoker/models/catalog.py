"""The names of all models without importing torchvision, which takes a driver 9 s of processor time before it starts.

torchvision registers each builder by a decorator; the names are read from its source.
"""

from __future__ import annotations

import importlib.util
import re
from pathlib import Path

__all__ = ["known_models"]

_OURS = frozenset({"digitsnet"})
_BUILDER = re.compile(r"^@register_model\((?:name=\"(\w+)\")?\)\n(?:@.*\n)*def (\w+)\(", re.MULTILINE)


def known_models() -> frozenset[str]:
    """Names of torchvision's classification models and our own; only ours where torchvision cannot be found."""
    found = importlib.util.find_spec("torchvision")
    places = (found.submodule_search_locations or []) if found else []
    files = [file for place in places for file in (Path(place) / "models").glob("*.py")]
    matches = (match for file in files for match in _BUILDER.finditer(file.read_text(encoding="utf-8")))
    return _OURS | {match[1] or match[2] for match in matches}
