"""Evaluation at its edges: padding, ties, losses beyond any bound, as many mistakes as are kept, and other ranks."""

from __future__ import annotations

import math
from fractions import Fraction
from pathlib import Path

import pytest
import torch
import torch.distributed as dist
from torch import Tensor, nn

from made import write_dataset
from plain_loop import alone
from stoker.dataset import Batch, SampleReader
from stoker.dataset.decode import evaluation_image
from stoker.evaluation import EvaluationResult, _Sums, evaluate, macro_accuracy, parity_samples
from stoker.models import build_model
from stoker.models.normalize import Normalize
from stoker.recipe import Recipe, parse_recipe
from stoker.storage import locate

CPU = torch.device("cpu")


def summed(logits: list[list[float]], labels: list[int], numbers: list[int] | None = None) -> EvaluationResult:
    sums = _Sums(len(logits[0]), CPU)
    sums.add(torch.tensor(logits), torch.tensor(labels), torch.tensor(numbers or list(range(len(labels)))))
    return sums.result()


# -- sums --------------------------------------------------------------------------------------------------------------


def test_rows_of_the_confusion_are_labels_and_columns_predictions() -> None:
    found = summed([[3.0, 0.0, 0.0], [3.0, 0.0, 0.0], [0.0, 0.0, 3.0], [0.0, 3.0, 0.0]], [0, 1, 1, 1])
    assert found.confusion.tolist() == [[1, 0, 0], [1, 1, 1], [0, 0, 0]]
    assert (found.metrics.samples, found.metrics.accuracy) == (4, 0.5)
    assert found.confusion.dtype == found.top5_by_class.dtype == torch.int64


def test_the_five_most_probable_classes_count_and_the_sixth_does_not() -> None:
    logits = [float(n) for n in range(8)]
    found = summed([logits] * 8, list(range(8)))
    assert found.top5_by_class.tolist() == [0, 0, 0, 1, 1, 1, 1, 1]
    assert (found.metrics.top5, found.metrics.accuracy) == (5 / 8, 1 / 8)
    assert summed([[1.0, 2.0]] * 2, [0, 1]).metrics.top5 == 1.0


def test_always_the_frequent_class_is_accurate_and_at_chance_by_class() -> None:
    """Ten samples of class 0, all right; two of class 1, one right; none of class 2; one of class 3, wrong."""
    logits = [[3.0, 0.0, 0.0, 0.0]] * 11 + [[0.0, 3.0, 0.0, 0.0], [3.0, 0.0, 0.0, 0.0]]
    found = summed(logits, [0] * 10 + [1, 1, 3])
    assert found.metrics.accuracy == 11 / 13
    assert found.metrics.macro_accuracy == 1.5 / 3


def test_macro_accuracy_is_the_mean_of_the_rows_to_the_last_bit_in_any_order_of_classes() -> None:
    confusion = torch.randint(0, 50, (300, 300), generator=torch.Generator().manual_seed(2))
    confusion[7] = 0
    rows = [(int(row[n]), int(row.sum())) for n, row in enumerate(confusion)]
    exact = sum(Fraction(correct / samples) for correct, samples in rows if samples)
    assert macro_accuracy(confusion) == float(exact) / 299
    order = torch.randperm(300, generator=torch.Generator().manual_seed(3))
    assert macro_accuracy(confusion[order][:, order]) == macro_accuracy(confusion)


def test_a_loss_is_rounded_to_its_grid_and_the_mean_is_exact() -> None:
    logits = torch.randn(50, 3, generator=torch.Generator().manual_seed(0))
    losses = [float(loss) for loss in -logits.double().log_softmax(dim=1)[:, 1]]
    assert summed(logits.tolist(), [1] * 50).metrics.loss == sum(round(loss * 2**24) for loss in losses) / 2**24 / 50


def test_a_loss_beyond_a_million_nats_counts_as_that_and_keeps_its_own_in_the_mistakes() -> None:
    found = summed([[3e7, 0.0], [0.0, 0.0]], [1, 0])
    assert found.metrics.loss == pytest.approx((2.0**20 + math.log(2)) / 2)
    assert found.mistakes[0].loss == 3e7


@pytest.mark.parametrize("logit", [math.nan, math.inf])
def test_one_loss_that_is_no_number_makes_the_mean_none_and_the_rest_still_counts(logit: float) -> None:
    found = summed([[logit, 0.0, 0.0], [0.0, 2.0, 0.0]], [1, 1])
    assert math.isnan(found.metrics.loss)
    assert found.metrics.samples == 2
    assert found.metrics.accuracy == 0.5
    assert math.isnan(summed([[0.0, math.inf]], [0]).metrics.loss)


def test_mistakes_are_the_wrong_ones_with_their_loss_and_probability() -> None:
    found = summed([[2.0, 0.0, 0.0], [0.0, 1.0, 0.0], [0.0, 0.0, 5.0]], [2, 1, 1], [70, 71, 10**12 + 1])
    first, second = found.mistakes
    assert (first.number, first.label, first.predicted) == (10**12 + 1, 1, 2)
    assert (second.number, second.label, second.predicted) == (70, 2, 0)
    share = math.exp(5) / (math.exp(5) + 2)
    assert first.probability == pytest.approx(share, rel=1e-9)
    assert first.loss == pytest.approx(math.log(math.exp(5) + 2), rel=1e-9)


def test_the_worst_mistakes_are_kept_and_of_equal_ones_the_first_numbers() -> None:
    sums = _Sums(2, CPU)
    for numbers in ([40, 3, 22, 60], list(range(100, 130))):
        sums.add(
            torch.tensor([[1.0, 0.0]]).expand(len(numbers), 2), torch.ones(len(numbers)).long(), torch.tensor(numbers)
        )
    sums.add(torch.tensor([[0.5, 0.0], [9.0, 0.0]]), torch.tensor([1, 1]), torch.tensor([1, 500]))
    kept = [mistake.number for mistake in sums.result().mistakes]
    assert kept == [500, 3, 22, 40, 60, *range(100, 119)]
    assert len(kept) == 24


def test_of_equal_logits_the_first_class_is_predicted_and_the_second_is_a_mistake() -> None:
    assert [mistake.loss for mistake in summed([[50.0, 50.0]], [1]).mistakes] == pytest.approx([math.log(2)])
    assert summed([[50.0, 50.0]], [0]).mistakes == ()


def test_a_split_without_samples_has_metrics_of_zero() -> None:
    found = _Sums(3, CPU).result()
    assert found.metrics.model_dump() == {
        "samples": 0,
        "loss": 0.0,
        "accuracy": 0.0,
        "top5": 0.0,
        "macro_accuracy": 0.0,
    }
    assert (found.confusion.shape, found.mistakes) == ((3, 3), ())


def test_other_ranks_counts_are_added_and_the_worst_of_all_are_kept(monkeypatch: pytest.MonkeyPatch) -> None:
    mine, theirs = _Sums(2, CPU), _Sums(2, CPU)
    wrong = torch.tensor([[3.0, 0.0]])
    mine.add(wrong, torch.tensor([1]), torch.tensor([5]))
    theirs.add(torch.cat((2 * wrong, wrong)), torch.tensor([1, 0]), torch.tensor([9, 10]))
    counts = {id(own): other for own, other in zip(_counts(mine), _counts(theirs), strict=True)}
    monkeypatch.setattr(dist, "all_reduce", lambda tensor: tensor.add_(counts[id(tensor)]))
    monkeypatch.setattr(dist, "get_world_size", lambda: 2)

    def gather(rows: list[Tensor], own: Tensor) -> None:
        rows[0].copy_(own)
        rows[1].copy_(theirs._worst)

    monkeypatch.setattr(dist, "all_gather", gather)
    mine.add_other_ranks()
    found = mine.result()
    assert found.confusion.tolist() == [[1, 0], [2, 0]]
    assert found.top5_by_class.tolist() == [1, 2]
    assert [mistake.number for mistake in found.mistakes] == [9, 5]


def _counts(sums: _Sums) -> tuple[Tensor, Tensor, Tensor]:
    return sums._confusion, sums._top5, sums._loss


# -- models ------------------------------------------------------------------------------------------------------------


class _Mode(nn.Module):
    """Logits that prefer class 0 in training and class 1 in evaluation; records the sizes of its batches."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(()))
        self.seen: list[int] = []

    def forward(self, images: Tensor) -> Tensor:
        self.seen.append(len(images))
        assert torch.is_inference_mode_enabled()
        return self.weight * torch.tensor([[float(self.training), float(not self.training)]]).expand(len(images), 2)


def batch(labels: list[int]) -> Batch:
    given = torch.tensor(labels)
    images = torch.zeros(len(labels), 3, 2, 2, dtype=torch.uint8)
    return Batch(images, given, torch.where(given < 0, -1, torch.arange(len(labels))), 0, 0, 0)


@pytest.mark.parametrize("was_training", [True, False])
def test_a_model_is_evaluated_without_padding_and_left_in_its_mode(was_training: bool) -> None:
    model = _Mode().train(was_training)
    batches = [batch([1, 0, -1]), batch([-1, -1, -1]), batch([-1, 1, -1])]
    found = evaluate(model, Normalize((0.0,) * 3, (1.0,) * 3), batches, 2)
    assert found.confusion.tolist() == [[0, 1], [0, 2]]
    assert model.seen == [2, 1]
    assert model.training is was_training


def test_one_rank_asks_no_other_and_two_do(monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[_Sums] = []
    monkeypatch.setattr(_Sums, "add_other_ranks", lambda sums: asked.append(sums))  # noqa: PLW0108 - binds
    arguments = _Mode(), Normalize((0.0,) * 3, (1.0,) * 3), [batch([1])], 2
    evaluate(*arguments)
    with alone():
        evaluate(*arguments)
        assert asked == []
        monkeypatch.setattr(dist, "get_world_size", lambda: 2)
        evaluate(*arguments)
        assert len(asked) == 1


# -- parity samples ----------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def recipe(tmp_path_factory: pytest.TempPathFactory) -> Recipe:
    root = tmp_path_factory.mktemp("parity")
    write_dataset(f"{root}/data", {"train": [3], "validation": [30, 41]})
    text = f"""
name: parity
storage: {root}/runs
data: {{url: {root}/data, image_size: 16}}
evaluation: {{image_size: 20, resize: 30}}
model: {{name: digitsnet}}
batch: {{total: 8, micro: 8}}
optimizer: {{lr: 0.1}}
schedule: {{epochs: 1}}
storage_timeout_s: 7
workers: {{gpus: 0, cpus: 1}}
"""
    return parse_recipe(text, "parity.yaml")


@pytest.mark.parametrize(
    ("most", "numbers"), [(4, [0, 17, 35, 53]), (1, [0]), (71, list(range(71))), (500, list(range(71)))]
)
def test_parity_samples_are_spread_over_the_split(recipe: Recipe, most: int, numbers: list[int]) -> None:
    model = build_model("digitsnet", classes=3)
    found = parity_samples(model, Normalize(recipe.data.mean, recipe.data.std), recipe, most)
    assert [sample.number for sample in found] == numbers
    assert [sample.key for sample in found] == [f"{number:06d}" for number in numbers]
    assert [sample.label for sample in found] == [number % 3 for number in numbers]


@pytest.mark.parametrize("was_training", [True, False])
def test_parity_samples_are_predicted_alone_as_evaluation_sees_them(recipe: Recipe, was_training: bool) -> None:
    torch.manual_seed(0)
    model = build_model("digitsnet", classes=3).train(was_training)
    normalize = Normalize(recipe.data.mean, recipe.data.std)
    found = parity_samples(model, normalize, recipe)
    assert len(found) == 32
    assert model.training is was_training
    (data,) = (sample.data for sample in SampleReader(locate(recipe.data.url), "validation").read([found[5].number]))
    image = evaluation_image(data, image_size=20, resize=30)
    with torch.no_grad():
        expected = model.eval()(normalize(image[None])).softmax(dim=1)[0]
    torch.testing.assert_close(torch.tensor(found[5].probabilities), expected)


def test_parity_samples_wait_for_the_store_as_long_as_the_recipe_says(
    recipe: Recipe, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    timeouts: list[float] = []

    def located(url: str, *, timeout_s: float) -> object:
        timeouts.append(timeout_s)
        return locate(url, timeout_s=timeout_s)

    monkeypatch.setattr("stoker.evaluation.locate", located)
    parity_samples(build_model("digitsnet", classes=3), Normalize(recipe.data.mean, recipe.data.std), recipe, 1)
    assert timeouts == [7.0]
