"""Balanced class weights: every class counts the same, the mean weight is 1, and the weights train alike anywhere."""

from __future__ import annotations

import math
from pathlib import Path

import pytest
import torch
from torch import Tensor
from torch.nn import functional

from made import write_dataset
from plain_loop import alone, initial_model, recipe_of
from ranks import work
from stoker.errors import RunError
from stoker.models import training_loss
from stoker.recipe import Recipe, parse_recipe
from stoker.runs.folder import RunFolder
from stoker.storage import locate
from stoker.training.step.class_weights import balanced_weights, described, samples_by_class
from stoker.training.step.stepper import Stepper
from weights.ranks import train_on_ranks

CPU = torch.device("cpu")
WEIGHTS = torch.tensor([0.5, 2.0, 8.0])
RECIPE = """
name: rare
storage: {root}
data: {{url: {root}/data, image_size: 16, last_batch: pad, block_samples: 4, memory_mb: 1, decode_threads: 1}}
model: {{name: digitsnet}}
batch: {{total: 24, micro: 4}}
optimizer: {{lr: 0.05}}
schedule: {{epochs: 1}}
loss: {{class_weights: balanced, label_smoothing: 0.1}}
augmentation: {{mixup: 0.2}}
workers: {{max: 3, gpus: 0, cpus: 1}}
reproducible: true
"""


def recipe(root: Path, *overrides: str) -> Recipe:
    return parse_recipe(RECIPE.format(root=root), "rare.yaml", overrides)


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """38 of 53 training samples are of class 0, 8 of class 1 and 7 of class 2; 12, 3 and 2 of 17 in validation."""
    folder = tmp_path_factory.mktemp("rare")
    shards = {"train": [30, 23], "validation": [17]}
    write_dataset(f"{folder}/data", shards, labels=(0, 1, 0, 0, 2, 0, 0))
    return folder


# -- the weights -------------------------------------------------------------------------------------------------------


def test_each_class_has_the_same_part_of_the_weight_and_the_mean_over_samples_is_one() -> None:
    weights = balanced_weights(torch.tensor([90, 9, 1]))
    assert weights.dtype == torch.float32
    assert weights.tolist() == torch.tensor([100 / 270, 100 / 27, 100 / 3]).tolist()
    assert (weights.double() * torch.tensor([90, 9, 1])).tolist() == pytest.approx([100 / 3] * 3)
    assert balanced_weights(torch.tensor([5, 5])).tolist() == [1.0, 1.0]


def test_a_class_without_samples_weighs_nothing_and_the_mean_over_samples_stays_one() -> None:
    samples = torch.tensor([30, 0, 10, 0])
    weights = balanced_weights(samples)
    assert weights.tolist() == pytest.approx([40 / 60, 0.0, 2.0, 0.0])
    assert float((weights * samples).sum() / samples.sum()) == pytest.approx(1.0)


def test_weights_of_counts_beyond_float32_are_rounded_once_from_float64() -> None:
    samples = torch.randint(1, 2**40, (1000,), generator=torch.Generator().manual_seed(4))
    total, counts = int(samples.sum()), samples.tolist()
    assert balanced_weights(samples).tolist() == torch.tensor([total / (1000 * n) for n in counts]).tolist()


def test_the_log_names_the_lightest_and_heaviest_class_and_those_without_samples() -> None:
    names = ("cat", "dog", "lynx", *(f"bird{n}" for n in range(7)))
    assert described(torch.tensor([9000, 900, 100, 0, 0, 0, 0, 0, 0, 0]), names) == (
        "class weights (samples) from 0.37 (cat: 9,000) to 33.3 (lynx: 100); no training samples, weight 0: bird0, "
        "bird1, bird2, bird3, bird4 and 2 more"
    )
    five = described(torch.tensor([9000, 900, 100, 0, 0, 0, 0, 0]), names[:8])
    assert five.endswith("weight 0: bird0, bird1, bird2, bird3, bird4")
    assert described(torch.tensor([1, 1]), names[:2]) == "class weights (samples) from 1 (cat: 1) to 1 (cat: 1)"


# -- the loss ----------------------------------------------------------------------------------------------------------


def by_hand(logits: Tensor, targets: Tensor, smoothing: float) -> Tensor:
    mixed = (1 - smoothing) * targets + smoothing / 3
    return -(mixed * WEIGHTS * logits.log_softmax(dim=1)).sum()


@pytest.mark.parametrize("smoothing", [0.0, 0.3])
def test_the_terms_of_a_loss_are_weighted_by_class_for_labels_and_mixtures_alike(smoothing: float) -> None:
    logits = torch.randn(5, 3, generator=torch.Generator().manual_seed(1))
    labels = torch.tensor([0, 1, 2, 2, 0])
    hot = functional.one_hot(labels, 3).float()
    mixed = 0.75 * hot + 0.25 * hot.roll(1, 0)
    for targets, same in ((labels, hot), (hot, hot), (mixed, mixed)):
        found = training_loss(logits, targets, label_smoothing=smoothing, class_weights=WEIGHTS)
        torch.testing.assert_close(found, by_hand(logits, same, smoothing))


def test_auxiliary_heads_are_weighted_by_class_too() -> None:
    logits, early = torch.randn(2, 4, 3, generator=torch.Generator().manual_seed(2))
    labels = torch.tensor([0, 2, 1, 2])
    hot = functional.one_hot(labels, 3).float()
    found = training_loss((logits, early, None), labels, auxiliary_weight=0.4, class_weights=WEIGHTS)
    torch.testing.assert_close(found, by_hand(logits, hot, 0.0) + 0.4 * by_hand(early, hot, 0.0))
    alone = training_loss((logits, early), labels, class_weights=WEIGHTS)
    torch.testing.assert_close(alone, by_hand(logits, hot, 0.0))


@pytest.mark.parametrize(("case", "weights"), [("sgd-weighted", None), ("sgd", torch.ones(4))])
def test_a_step_without_the_weights_that_its_recipe_asks_for_is_refused(case: str, weights: Tensor | None) -> None:
    with pytest.raises(ValueError, match=r"^loss.class_weights is (none, but some|balanced, but none) were given"):
        Stepper(recipe_of(case, "floats"), initial_model(), CPU, 3, class_weights=weights)


# -- a run -------------------------------------------------------------------------------------------------------------


def test_weights_are_the_same_bits_on_1_and_3_ranks_and_others_than_without(root: Path, tmp_path: Path) -> None:
    recipes = [recipe(root), recipe(root, "loss.class_weights=none")]
    (balanced, plain) = train_on_ranks(recipes, (1, 3), tmp_path, steps=3)
    assert balanced[1].sha256 == balanced[3].sha256
    assert balanced[1].totals == balanced[3].totals
    assert balanced[1].sha256 != plain[1].sha256


def test_a_run_says_its_weights_records_both_accuracies_and_resumes_with_the_same_weights_only(
    root: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    chosen = recipe(root)
    run = RunFolder(locate(root), "rare")
    run.begin(chosen)
    with alone():
        work(chosen)
    printed = capsys.readouterr()
    assert "rare: class weights (samples) from 0.465 (class0: 38) to 2.52 (class2: 7)\n" in printed.out + printed.err
    result, (record,) = run.result(), run.history().epochs
    assert result is not None
    recalls = [row[n] / sum(row) for n, row in enumerate(result.confusion)]
    assert result.metrics.macro_accuracy == math.fsum(recalls) / 3
    assert record.validation == result.metrics
    run.begin(chosen)
    with pytest.raises(RunError, match=r"exists with another recipe \(loss.class_weights differ\)"):
        run.begin(recipe(root, "loss.class_weights=none"))


def test_ranks_add_up_their_counts_and_a_rank_without_shards_adds_none() -> None:
    with alone():
        assert samples_by_class([], 3, CPU).tolist() == [0, 0, 0]
        parts = [torch.tensor([1, 0, 2]).numpy(), torch.tensor([3, 0, 0]).numpy()]
        assert samples_by_class(parts, 3, CPU).tolist() == [4, 0, 2]


def test_the_log_shows_names_on_one_line_and_warns_of_large_weights() -> None:
    line = described(torch.tensor([500, 1, 0]), ("a" * 50, "b\nrank 0: fake", "c\x1b[31m"))
    assert line == (
        f"class weights (samples) from 0.501 ({'a' * 40}: 500) to 250 ('b\\nrank 0: fake': 1); no training samples, "
        "weight 0: 'c\\x1b[31m'; large ones cost bits with reproducible and range with float16"
    )
    assert "large" not in described(torch.tensor([199, 1]), ("a", "b"))
