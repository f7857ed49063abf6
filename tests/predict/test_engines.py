"""The engine that is taken is the fastest of those that predict what eager float32 does."""

from __future__ import annotations

import logging
from collections.abc import Callable
from dataclasses import replace

import numpy as np
import pytest
import safetensors.torch
import torch
from torch import Tensor

from stoker.errors import ModelError
from stoker.models import build_model
from stoker.predict import Predictor
from stoker.predict.engine_choice import choose_engine, engine_names
from stoker.predict.engines import ENGINES, Engine, EngineKind, Forward, Network, build_engine
from stoker.predict.golden import golden_pictures
from stoker.predict.importing import Stated, import_model
from stoker.predict.tolerances import TOLERANCES
from stoker.registry import ModelVersion
from stoker.storage import locate
from stoker_serve.replica import LoadedVersion
from stoker_serve.settings import Batching, ModelSettings

EAGER = ENGINES["eager"]
TRACED = {name: ENGINES[name] for name in ("traced", "traced-bfloat16")}
AMPLE_S = 600.0


@pytest.fixture(scope="module")
def version(tmp_path_factory: pytest.TempPathFactory) -> ModelVersion:
    """A digitsnet of three classes with weights and batch statistics that are not those of a fresh model."""
    folder = tmp_path_factory.mktemp("version")
    torch.manual_seed(4)
    model = build_model("digitsnet", classes=3)
    with torch.no_grad():
        for _ in range(5):
            model(torch.randn(16, 3, 32, 32) * 2 + 1)
    safetensors.torch.save_file(model.state_dict(), folder / "w.safetensors")
    (folder / "names.txt").write_text("a\nb\nc\n")
    stated = Stated(
        weights=str(folder / "w.safetensors"),
        classes=str(folder / "names.txt"),
        image_size=32,
        mean=(0.5,) * 3,
        std=(0.25,) * 3,
        licence="MIT",
    )
    return import_model(locate(folder / "storage"), "mine", "digitsnet", stated)


@pytest.fixture
def predictor(version: ModelVersion) -> Predictor:
    return Predictor(version)


def wrong_by(change: Callable[[Tensor], Tensor]) -> EngineKind:
    """Eager, but what it predicts is changed."""

    def build(network: Network, _: object) -> Forward:
        return lambda images: change(network(images))

    return EngineKind(build)


def timed(**seconds: float) -> Callable[[Engine, Tensor], float]:
    """A pass of an image takes an engine that many seconds, whatever the clock says."""
    return lambda engine, images: seconds[engine.name.replace("-", "_")] * len(images)


def pixels(predictor: Predictor) -> Tensor:
    golden = torch.stack([predictor.preprocess(picture) for picture in golden_pictures()])
    noise = torch.randint(0, 256, (5, 3, 32, 32), dtype=torch.uint8, generator=torch.Generator().manual_seed(1))
    return torch.cat([golden, noise])


def test_of_two_engines_that_predict_the_same_the_faster_is_taken(predictor: Predictor) -> None:
    kinds = {"eager": EAGER, "other": EAGER, "third": EAGER}
    for seconds, fastest in (({"other": 0.5, "third": 2.0}, "other"), ({"other": 1.5, "third": 2.0}, "eager")):
        chosen = choose_engine(predictor, seconds=AMPLE_S, kinds=kinds, time_pass=timed(eager=1.0, **seconds))
        assert chosen.name == fastest


def test_a_single_image_and_a_large_batch_count_the_same(predictor: Predictor) -> None:
    kinds = {"eager": EAGER, "single": EAGER, "large": EAGER}

    def time_pass(engine: Engine, images: Tensor) -> float:
        gains = {"eager": (1, 1), "single": (4, 1), "large": (0.9, 3)}[engine.name]
        return 0.01 / gains[len(images) > 1]

    assert choose_engine(predictor, seconds=AMPLE_S, kinds=kinds, time_pass=time_pass).name == "single"


def test_the_choice_is_logged_in_one_line_with_every_rate(
    predictor: Predictor, caplog: pytest.LogCaptureFixture
) -> None:
    kinds = {"eager": EAGER, "fast": EAGER, "wrong": wrong_by(lambda p: p * 1.1)}
    with caplog.at_level(logging.INFO):
        choose_engine(
            predictor, batch=8, seconds=AMPLE_S, kinds=kinds, time_pass=timed(eager=0.01, fast=0.005, wrong=0.001)
        )
    (line,) = [record.getMessage() for record in caplog.records if "engine" in record.getMessage()]
    assert line.startswith("mine@1: engine fast of images/s at batch 1 / 8: eager 100 / 100; fast 200 / 200; ")
    assert "wrong left out: a probability differs by" in line


@pytest.mark.parametrize(
    "change",
    [
        lambda p: p * 1.001,
        lambda p: p.flip(1),
        lambda p: p.roll(1, 0),
        lambda p: p * torch.nan,
        lambda p: p[:1],
        lambda p: 1 / 0,
    ],
    ids=["scaled", "other classes", "other images", "nan", "one row", "fails"],
)
def test_an_engine_that_predicts_something_else_is_never_taken(
    predictor: Predictor, change: Callable[[Tensor], Tensor]
) -> None:
    kinds = {"eager": EAGER, "wrong": wrong_by(change)}
    chosen = choose_engine(predictor, seconds=AMPLE_S, kinds=kinds, time_pass=timed(eager=1.0, wrong=0.001))
    assert chosen.name == "eager"


def test_bfloat16_may_differ_more_than_float32_and_by_no_more_than_keeps_a_clear_winner(predictor: Predictor) -> None:
    inexact = wrong_by(lambda p: p + torch.tensor([0.015, -0.015, 0]))
    too_much = wrong_by(lambda p: p + torch.tensor([0.021, -0.021, 0]))
    for kind, precision, taken in (
        (inexact, "float32", "eager"),
        (inexact, "bfloat16", "inexact"),
        (too_much, "bfloat16", "eager"),
    ):
        kinds = {"eager": EAGER, "inexact": replace(kind, precision=precision)}
        times = timed(eager=1.0, inexact=0.1)
        chosen = choose_engine(predictor, precision=precision, seconds=AMPLE_S, kinds=kinds, time_pass=times)
        assert chosen.name == taken
    kinds = {"eager": EAGER, "inexact": replace(inexact, precision="bfloat16")}
    unasked = choose_engine(predictor, seconds=AMPLE_S, kinds=kinds, time_pass=timed(eager=1.0, inexact=0.1))
    assert unasked.name == "eager"
    # A class that leads by 0.05 still leads when it and the next both move by the tolerance.
    assert all(2 * allowed < 0.05 for allowed in TOLERANCES.values())


@pytest.mark.parametrize("name", TRACED)
def test_each_cpu_engine_predicts_what_eager_does_at_every_batch_size(predictor: Predictor, name: str) -> None:
    kind = ENGINES[name]
    images = pixels(predictor)
    eager = predictor.predict_images(images)
    predictor.use(build_engine(predictor.network, name, kind, (8, 3, 32, 32)))
    for count in (1, 2, 3, 8, 9):
        ours = predictor.predict_images(images[:count])
        assert (ours.dtype, ours.shape) == (np.float32, (count, 3))
        np.testing.assert_allclose(ours, eager[:count], atol=TOLERANCES["cpu", kind.precision])
    numbers, probabilities = predictor.top_classes(images[:1], 2)[0]
    assert numbers == np.argsort(-predictor.predict_images(images[:1])[0])[:2].tolist()
    assert probabilities == sorted(probabilities, reverse=True)


def test_batch_norms_are_not_rounded_to_bfloat16(predictor: Predictor) -> None:
    network = predictor.network.in_dtype(torch.bfloat16)
    kept = {name: tensor for name, tensor in network.model.state_dict().items() if tensor.dtype == torch.float32}
    assert set(kept) == {
        f"{name}.{kind}"
        for name, module in network.model.named_modules()
        if isinstance(module, torch.nn.BatchNorm2d)
        for kind in ("weight", "bias", "running_mean", "running_var")
    }
    original = predictor.network.model.state_dict()
    assert all(torch.equal(tensor, original[name]) for name, tensor in kept.items())
    assert all(tensor.dtype != torch.bfloat16 for tensor in original.values()), "the predictor's own stay as they are"


def test_an_engine_that_takes_too_long_to_build_is_not_tried(
    predictor: Predictor, caplog: pytest.LogCaptureFixture
) -> None:
    def build(network: Network, _: object) -> Forward:
        raise AssertionError("it was built")

    kinds = {"eager": EAGER, "slow": EngineKind(build, build_s=AMPLE_S)}
    with caplog.at_level(logging.INFO):
        chosen = choose_engine(predictor, seconds=5, kinds=kinds, time_pass=timed(eager=1e-3))
    assert chosen.name == "eager"
    assert "slow left out: takes some 600 s to build" in caplog.text


def test_a_name_takes_that_engine_without_a_measurement(predictor: Predictor) -> None:
    def never(engine: Engine, images: Tensor) -> float:
        raise AssertionError("it was timed")

    for name in ("eager", *TRACED):
        chosen = choose_engine(predictor, name=name, time_pass=never)
        assert (chosen.name, chosen.precision) == (name, ENGINES[name].precision)


def test_an_unknown_engine_is_refused_with_the_names_there_are(predictor: Predictor) -> None:
    names = ", ".join(("auto", *engine_names(torch.device("cpu"))))
    assert "graphs-bfloat16" not in names
    for name in ("tensorrt", "graphs-bfloat16"):
        with pytest.raises(ModelError) as refused:
            choose_engine(predictor, name=name)
        assert str(refused.value) == f"mine@1: there is no engine {name!r} on cpu; set engine to one of {names}"


def test_an_engine_that_was_named_and_cannot_run_says_why_in_one_line(predictor: Predictor) -> None:
    def build(network: Network, _: object) -> Forward:
        raise RuntimeError("no compiler\nfound")

    with pytest.raises(
        ModelError, match=r"^mine@1: engine 'broken' cannot run it here \(RuntimeError: no compiler found\); set"
    ):
        choose_engine(predictor, name="broken", kinds={"eager": EAGER, "broken": EngineKind(build)})


def settings(version: ModelVersion, **given: object) -> ModelSettings:
    storage = version.location.url.partition("/models/")[0]
    return ModelSettings.model_validate(
        {"model": "mine@1", "storage": storage, "batching": Batching(images=4), "authentication": "none", **given}
    )


def test_a_replica_checks_its_golden_predictions_by_the_engine_that_it_will_use(
    version: ModelVersion, monkeypatch: pytest.MonkeyPatch
) -> None:
    threads = torch.get_num_threads()
    for name in ("eager", *TRACED):
        assert LoadedVersion(settings(version, engine=name), version, threads).predictor.engine.name == name
    kinds = {**ENGINES, "traced": wrong_by(lambda p: p + 1e-3)}
    monkeypatch.setattr("stoker.predict.engine_choice.ENGINES", kinds)
    with pytest.raises(ModelError, match="mine@1 does not predict here what it did when it was published"):
        LoadedVersion(settings(version, engine="traced"), version, threads)
    assert LoadedVersion(settings(version), version, threads).predictor.engine.name != "traced"


def test_a_replica_refuses_an_engine_that_does_not_exist(version: ModelVersion) -> None:
    with pytest.raises(ModelError, match="there is no engine 'fast' on cpu; set engine to one of auto, eager, "):
        LoadedVersion(settings(version, engine="fast"), version, torch.get_num_threads())
