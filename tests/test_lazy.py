"""Packages that import their names when they are asked for."""

from __future__ import annotations

import importlib

import pytest


@pytest.mark.parametrize("package", ["stoker.dataset", "stoker.dataset.prepare", "stoker.models", "stoker.predict"])
def test_each_public_name_is_found_once_and_no_other(package: str) -> None:
    module = importlib.import_module(package)
    assert set(module._HOMES) == set(module.__all__)
    for name in module.__all__:
        assert getattr(module, name) is getattr(module, name)
        assert name in vars(module)
    with pytest.raises(AttributeError, match=f"module '{package}' has no attribute 'nothing'"):
        _ = module.nothing
