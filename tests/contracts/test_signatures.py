"""The contract tests' own helper: it names what has changed, and where to look."""

from __future__ import annotations

import pytest

from contracts.signatures import must_accept, must_equal, must_have, signature_of


def test_a_part_that_is_as_expected_passes() -> None:
    must_have("json.decoder.JSONDecoder.raw_decode", "(self, s, idx=0)", "here.py")
    must_have("json.dumps", None, "here.py")
    must_have("stoker.recipe.Recipe.model", None, "here.py")
    must_have("stoker.dataset.Batch.labels", None, "here.py")
    must_accept("json.dumps", ("indent", "default"), "here.py")
    must_accept("stoker.recipe.Recipe", ("model",), "here.py")
    must_equal("math.tau", 6.283185307179586, "here.py")


def test_another_signature_is_reported_with_both_and_the_file_to_look_at() -> None:
    with pytest.raises(AssertionError) as caught:
        must_have("json.decoder.JSONDecoder.raw_decode", "(self, s)", "serve/deploy.py")
    assert str(caught.value) == (
        "json.decoder.JSONDecoder.raw_decode has changed: expected (self, s), found (self, s, idx=0); "
        "look at serve/deploy.py"
    )


@pytest.mark.parametrize(
    ("path", "line"),
    [
        ("json.loadz", "json.loadz has changed: expected loadz in json, found none; look at here.py"),
        ("json.gone.loads", "json.gone.loads has changed: expected gone in json, found none; look at here.py"),
        ("stoker.recipe.Recipe.modell", "expected modell in stoker.recipe.Recipe, found none; look at here.py"),
        ("nomodule.part", "nomodule cannot be imported, expected nomodule.part; look at here.py"),
    ],
)
def test_a_part_that_is_gone_is_named(path: str, line: str) -> None:
    with pytest.raises(AssertionError) as caught:
        must_have(path, None, "here.py")
    assert line in str(caught.value)


def test_a_parameter_that_is_gone_is_named() -> None:
    with pytest.raises(AssertionError, match=r"json\.dumps has changed: expected indents among .*; look at here\.py"):
        must_accept("json.dumps", ("indents", "default"), "here.py")


def test_a_function_with_the_name_of_a_module_next_to_it_is_the_function() -> None:
    must_accept("pprint.pprint", ("stream",), "here.py")
    must_have("ray.serve.ingress", "(app=None)", "here.py")
    must_have("ray.serve.deployment.Deployment.bind", "(self, *args, **kwargs)", "here.py")


def test_a_constant_of_another_value_is_named() -> None:
    with pytest.raises(AssertionError, match=r"math\.pi has changed: expected 3, found 3\.14.*; look at here\.py"):
        must_equal("math.pi", 3, "here.py")


def test_annotations_are_left_out_and_long_defaults_are_elided() -> None:
    def function(a: int, *rest: str, where: object = object(), b: float = 0.5) -> None: ...

    assert signature_of(function) == "(a, *rest, where=..., b=0.5)"
