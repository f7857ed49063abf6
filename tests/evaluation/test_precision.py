"""Evaluation and prediction compute in full float32, whatever training does with the switches of the process."""

from __future__ import annotations

import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from published import finished_run
from stoker.dataset import Batch
from stoker.errors import ModelError
from stoker.evaluation import _copied, evaluate, parity_samples
from stoker.models.normalize import Normalize
from stoker.models.precision import full_float32
from stoker.predict import EvaluationTarget, Predictor, check_parity, evaluate_target
from stoker.predict.tolerances import TOLERANCES
from stoker.registry import ModelVersion, publish_run
from stoker.runs.folder import RunFolder
from stoker.runs.records import Result

Switches = tuple[str, bool, str]
IN_TRAINING: Switches = ("tf32", True, "tf32")
FULL: Switches = ("ieee", False, "ieee")


def switches() -> Switches:
    """Of convolutions on a GPU, cuDNN's autotuning, and of matrix products on a GPU."""
    backends: Any = torch.backends
    return backends.cudnn.conv.fp32_precision, backends.cudnn.benchmark, backends.cuda.matmul.fp32_precision


def set_switches(allow_tf32: bool, benchmark: bool, matmul: str) -> None:
    torch.backends.cudnn.allow_tf32, torch.backends.cudnn.benchmark = allow_tf32, benchmark
    torch.set_float32_matmul_precision(matmul)


@pytest.fixture(autouse=True)
def _training_has_set_its_switches() -> Iterator[None]:
    cudnn = torch.backends.cudnn
    before = cudnn.allow_tf32, cudnn.benchmark, torch.get_float32_matmul_precision()
    set_switches(True, True, "high")
    yield
    set_switches(*before)


@pytest.fixture
def seen(monkeypatch: pytest.MonkeyPatch) -> list[tuple[Switches, torch.dtype]]:
    """What each forward pass of a normalised batch found: the switches, and the dtype that a convolution gives."""
    found = []
    forward = Normalize.forward

    def noting(self: Normalize, images: Tensor) -> Tensor:
        there = nn.functional.conv2d(torch.ones(1, 1, 2, 2), torch.ones(1, 1, 1, 1)).dtype
        found.append((switches(), there))
        return forward(self, images)

    monkeypatch.setattr(Normalize, "forward", noting)
    return found


class Scores(nn.Module):
    """The logits are the means of the three channels."""

    def __init__(self) -> None:
        super().__init__()
        self.scale = nn.Parameter(torch.ones(3))

    def forward(self, images: Tensor) -> Tensor:
        return images.mean(dim=(2, 3)) * self.scale


def a_batch() -> Batch:
    images = torch.zeros(3, 3, 2, 2, dtype=torch.uint8)
    return Batch(images, torch.tensor([0, 1, -1]), torch.tensor([0, 1, -1]), 0, 0, 0)


@pytest.fixture(scope="module")
def published(tmp_path_factory: pytest.TempPathFactory) -> tuple[RunFolder, Result, ModelVersion]:
    """A finished run, its result, and a version of it."""
    storage = finished_run(tmp_path_factory.mktemp("published"))
    run = RunFolder(storage, "run")
    result = run.result()
    assert result is not None
    return run, result, publish_run(storage, "run", "digits", verify=lambda *_: None)


@pytest.mark.parametrize("precision", ["float32", "bfloat16", "float16"])
def test_an_evaluation_is_in_the_recipes_precision_without_tf32(
    seen: list[tuple[Switches, torch.dtype]], precision: str
) -> None:
    evaluate(Scores(), Normalize((0.5,) * 3, (0.2,) * 3), [a_batch()], 3, precision=precision)
    assert seen == [(FULL, getattr(torch, precision))]
    assert switches() == IN_TRAINING


def test_the_switches_come_back_after_an_evaluation_that_fails() -> None:
    with pytest.raises(ZeroDivisionError):
        evaluate(Scores(), Normalize((0.5,) * 3, (0.2,) * 3), (_ for _ in [1 / 0]), 3)  # type: ignore[misc]
    with pytest.raises(ZeroDivisionError), full_float32():
        _ = 1 / 0
    assert switches() == IN_TRAINING


@pytest.mark.parametrize(
    "setting",
    [
        "cuda.matmul.fp32_precision = 'tf32'",
        "fp32_precision = 'tf32'",
        "cudnn.fp32_precision = 'ieee'",
        "cudnn.conv.fp32_precision = 'ieee'",
    ],
)
def test_torchs_newer_switches_may_have_been_used_before(setting: str) -> None:
    """The older ones cannot even be read then; in a process of its own, as they stay."""
    program = (
        f"import torch; torch.backends.{setting}\n"
        "from stoker.models.precision import _places, full_float32\n"
        "before = [place.fp32_precision for place in _places()]\n"
        "with full_float32(): assert {place.fp32_precision for place in _places()} == {'ieee'}\n"
        "assert [place.fp32_precision for place in _places()] == before"
    )
    subprocess.run([sys.executable, "-c", program], check=True, timeout=120)


def test_parity_targets_and_predictions_are_in_full_float32_whatever_the_recipe_says(
    tmp_path: Path, seen: list[tuple[Switches, torch.dtype]]
) -> None:
    storage = finished_run(tmp_path)
    recipe = RunFolder(storage, "run").recipe().model_copy(update={"precision": "bfloat16"})
    seen.clear()
    parity_samples(Scores(), Normalize((0.5,) * 3, (0.2,) * 3), recipe)
    version = publish_run(storage, "run", "digits", verify=check_parity)
    Predictor(version).predict_images(torch.zeros(1, 3, 32, 32, dtype=torch.uint8))
    assert set(seen) == {(FULL, torch.float32)}
    seen.clear()
    target = EvaluationTarget.from_version(storage, "digits")
    evaluate_target(target)
    assert set(seen) == {(FULL, torch.float32)}
    seen.clear()
    in_bfloat16 = target.recipe.model_copy(update={"precision": "bfloat16"})
    evaluate_target(EvaluationTarget("digits", in_bfloat16, target.weights, target.classes))
    assert set(seen) == {(FULL, torch.bfloat16)}, "as the trainer evaluates"
    assert switches() == IN_TRAINING


def test_of_two_threads_inside_the_first_to_leave_changes_nothing_for_the_other() -> None:
    entered, may_leave, found = threading.Event(), threading.Event(), []

    def other() -> None:
        with full_float32():
            entered.set()
            may_leave.wait(60)
            found.append(switches())

    thread = threading.Thread(target=other)
    with full_float32():
        thread.start()
        assert entered.wait(60)
    found.append(switches())
    may_leave.set()
    thread.join(60)
    assert found == [FULL, FULL]
    assert switches() == IN_TRAINING


def test_the_tolerance_of_parity_is_below_what_tf32_does_and_above_rounding() -> None:
    in_float32 = {device: allowed for (device, precision), allowed in TOLERANCES.items() if precision == "float32"}
    assert in_float32.keys() == {"cpu", "cuda"}
    assert max(in_float32.values()) < 1.1e-3
    assert {precision for _, precision in TOLERANCES} == {"float32", "bfloat16", "float16"}


@pytest.mark.parametrize(
    ("device", "recorded", "differs", "is_refused"),
    [
        ("x86_64 CPU", "float32", 0.9, False),
        ("x86_64 CPU", "float32", 1.1, True),
        ("NVIDIA H100 80GB HBM3", "float32", 1.1, False),
        ("NVIDIA H100 80GB HBM3", "float32", 3.1, True),
        ("", "float32", 1.1, True),
        ("NVIDIA H100 80GB HBM3", "", 150.0, False),
        ("NVIDIA H100 80GB HBM3", "", 250.0, True),
        ("x86_64 CPU", "bfloat16", 150.0, False),
        ("x86_64 CPU", "bfloat16", 250.0, True),
        ("x86_64 CPU", "float16", 150.0, False),
        ("x86_64 CPU", "float16", 250.0, True),
        ("NVIDIA H100 80GB HBM3", "float16", 150.0, False),
        ("NVIDIA H100 80GB HBM3", "float16", 250.0, True),
        ("x86_64 CPU", "float32", float("nan"), True),
    ],
)
def test_parity_is_held_by_the_device_and_the_precision_that_the_run_recorded(
    published: tuple[RunFolder, Result, ModelVersion], device: str, recorded: str, differs: float, is_refused: bool
) -> None:
    """``differs`` in 1e-4. A run that was stored before parity was always in float32 recorded no precision."""
    run, result, version = published
    recipe = run.recipe().model_copy(update={"precision": "bfloat16"})
    first = result.parity[0]
    values = first.probabilities[0] + 1e-4 * differs, *first.probabilities[1:]
    moved = first.model_copy(update={"probabilities": values})
    changed = {"parity": (moved, *result.parity[1:]), "parity_precision": recorded, "versions": {"device": device}}
    other = result.model_copy(update=changed)
    if is_refused:
        with pytest.raises(ModelError, match=r"sample \S+ differs by .* \(allowed: "):
            check_parity(version, recipe, other)
    else:
        check_parity(version, recipe, other)


def test_a_result_that_was_stored_before_is_read_and_says_no_precision(
    published: tuple[RunFolder, Result, ModelVersion],
) -> None:
    stored = published[1].model_dump(mode="json", exclude={"parity_precision", "nondeterministic_operations"})
    read = Result.model_validate(stored)
    assert (read.parity_precision, read.nondeterministic_operations) == ("", ())


def test_samples_are_views_of_a_batch_unless_padding_is_between_them(monkeypatch: pytest.MonkeyPatch) -> None:
    seen = []
    forward = Normalize.forward
    monkeypatch.setattr(Normalize, "forward", lambda self, images: seen.append(images) or forward(self, images))
    images = torch.arange(4, dtype=torch.uint8).view(4, 1, 1, 1).expand(4, 3, 2, 2).contiguous()
    numbers = {"at the end": [5, 6, 7, -1], "between": [5, -1, 6, 7], "alone": [-1, -1, -1, -1]}
    for place, of_samples in numbers.items():
        labels = torch.tensor([-1 if n < 0 else 2 for n in of_samples])
        batch = Batch(images, labels, torch.tensor(of_samples), 0, 0, 0)
        found = evaluate(Scores(), Normalize((0.0,) * 3, (1.0,) * 3), [batch], 3)
        assert found.metrics.samples == sum(n >= 0 for n in of_samples), place
        assert {mistake.number for mistake in found.mistakes} <= {5, 6, 7}
    at_the_end, between = seen
    assert at_the_end.data_ptr() == images.data_ptr()
    assert at_the_end[:, 0, 0, 0].tolist() == [0, 1, 2]
    assert between[:, 0, 0, 0].tolist() == [0, 2, 3]


def test_to_a_gpu_a_batch_goes_from_pinned_memory_without_a_wait(monkeypatch: pytest.MonkeyPatch) -> None:
    told: list[object] = []
    monkeypatch.setattr(Tensor, "pin_memory", lambda tensor: told.append("pinned") or tensor)
    monkeypatch.setattr(Tensor, "to", lambda tensor, *given, **how: told.append((given, how)) or tensor)
    gpu = torch.device("cuda", 0)
    _copied(torch.zeros(2), gpu)
    assert told == ["pinned", ((gpu,), {"non_blocking": True})]
    told.clear()
    _copied(torch.zeros(2), torch.device("cpu"))
    assert "pinned" not in told
