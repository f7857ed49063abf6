import re
from html.parser import HTMLParser

import numpy as np
import pytest

from stoker.recipe import Recipe, as_yaml
from stoker.recipe.reading import parse_recipe
from stoker.runs.records import KINDS, EpochRecord, Goodput, History, Metrics, Mistake, Result
from stoker.training.report.charts import Series, fraction_chart, line_chart
from stoker.training.report.report import render_report

RECIPE = """
name: digits
storage: s3://bucket
data: {url: s3://bucket/digits}
model: {name: digitsnet}
batch: {total: 64, micro: 16}
optimizer: {lr: 0.1}
schedule: {epochs: 12}
"""


def recipe() -> Recipe:
    return parse_recipe(RECIPE, "test")


def history(epochs: int, *, every: int = 1) -> History:
    return History(
        epochs=tuple(
            EpochRecord(
                epoch=e,
                step=100 * (e + 1),
                seconds=12.0,
                images_per_s=1200 + 40 * np.sin(e),
                data_wait=0.05 / (e + 1),
                learning_rate=0.1 * (1 + np.cos(np.pi * e / epochs)) / 2,
                train_loss=2.3 * 0.8**e + 0.3,
                train_accuracy=1 - 0.9 * 0.7 ** (e + 1),
                world_size=2,
                validation=Metrics(samples=360, loss=2.2 * 0.75**e + 0.05, accuracy=1 - 0.8 * 0.6 ** (e + 1), top5=1.0)
                if e % every == 0
                else None,
                goodput=Goodput(
                    wall_s=13.0,
                    fractions=dict(zip(KINDS, (0.7, 0.2, 0.04, 0.03, 0.02, 0.01), strict=True)),
                    advice="data wait 20%: try this & that",
                ),
            )
            for e in range(epochs)
        )
    )


def result(classes: tuple[str, ...], *, seed: int = 0, wrong_fraction: float = 0.1) -> Result:
    draw = np.random.default_rng(seed)
    n = len(classes)
    confusion = np.zeros((n, n), int)
    for label in range(n):
        wrong = draw.binomial(50, min(1.0, wrong_fraction * draw.gamma(2.0)))
        confusion[label, label] = 50 - wrong
        np.add.at(confusion[label], (label + draw.geometric(0.4, wrong)) % n, 1)
    return Result(
        run="digits",
        checkpoint=1200,
        epochs=12,
        seconds=151.0,
        images_per_s=1234.5,
        metrics=Metrics(samples=50 * n, loss=0.0712, accuracy=float(np.trace(confusion)) / (50 * n), top5=0.998),
        confusion=tuple(map(tuple, confusion.tolist())),
        top5_by_class=tuple([49] * n),
        mistakes=tuple(
            Mistake(number=7 + i, label=i % n, predicted=(i + 1) % n, probability=0.9, loss=9.0 - i) for i in range(3)
        ),
        parity=(),
        classes=classes,
        dataset_url="s3://bucket/digits",
        dataset_fingerprint="sha256:" + "ab" * 32,
        world_size=2,
        versions={"python": "3.11.2", "torch": "2.15.0"},
    )


class _Tags(HTMLParser):
    """Count tags, and fail on one that is not closed in order."""

    def __init__(self) -> None:
        super().__init__()
        self.open: list[str] = []
        self.counts: dict[str, int] = {}

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.counts[tag] = self.counts.get(tag, 0) + 1
        if tag not in {"meta", "img", "br"}:
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.counts[tag] = self.counts.get(tag, 0) + 1

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag


def parsed(html: str) -> _Tags:
    tags = _Tags()
    tags.feed(html)
    assert tags.open == []
    return tags


DIGITS = tuple("0123456789")


PICTURES = {number: f"data:image/jpeg;base64,{number:04}" for number in (7, 8)}


def test_the_report_is_one_file_that_loads_nothing() -> None:
    html = render_report(recipe(), history(12), result(DIGITS), PICTURES)
    assert parsed(html).counts.get("script", 0) == 0
    assert not re.search(r'src="(?!data:image/jpeg;base64,)|href=|url\(|@import|https?://', html)


def test_the_worst_mistakes_are_shown_in_their_order_and_described() -> None:
    html = render_report(recipe(), history(12), result(DIGITS), PICTURES)
    shown = re.findall(r'<img src="([^"]*)"[^>]* alt="([^"]*)"', html)
    assert shown == [
        ("data:image/jpeg;base64,0007", "sample 7, label 0, predicted 1"),
        ("data:image/jpeg;base64,0008", "sample 8, label 1, predicted 2"),
    ]


def test_it_shows_where_the_time_went_and_what_to_try() -> None:
    html = render_report(recipe(), history(12), result(DIGITS))
    rows = re.findall(r'<tr><td class="whole">([a-z ]+)</td>.*?<td class="n">([\d.]+%)</td>', html, re.DOTALL)
    assert rows == [
        ("compute", "70.0%"),
        ("data wait", "20.0%"),
        ("communication", "4.0%"),
        ("checkpoint", "3.0%"),
        ("evaluation", "2.0%"),
        ("restart", "1.0%"),
    ]
    assert "data wait 20%: try this &amp; that" in html


def test_a_stacked_bar_is_as_high_as_the_chart() -> None:
    drawn = fraction_chart("title", ["a", "b <c>"], [(1, [0.25, 0.75]), (2, [1.0, 0.0])])
    heights = [float(height) for height in re.findall(r'height="([\d.]+)"/>', drawn)]
    assert heights == [pytest.approx(0.25 * 212), pytest.approx(0.75 * 212), pytest.approx(212)]
    assert "b &lt;c&gt;" in drawn
    assert fraction_chart("title", ["a"], []) == ""


def test_it_has_metrics_curves_fingerprint_versions_and_the_recipe_that_reads_back() -> None:
    made = result(DIGITS)
    html = render_report(recipe(), history(12), made)
    tags = parsed(html)
    assert tags.counts["svg"] == 5
    for words in (f"{made.metrics.accuracy * 100:.2f}%", made.dataset_fingerprint, "2.15.0", "1,234", "2 min 31 s"):
        assert words in html
    text = re.search(r"<pre>(.*?)</pre>", html, re.DOTALL)
    assert text is not None
    assert parse_recipe(text[1], "report") == recipe()
    assert text[1] == as_yaml(recipe())


def test_macro_accuracy_is_a_headline_and_a_column_unless_the_records_are_of_a_version_without_it() -> None:
    made, before = result(DIGITS), history(3)
    assert "macro accuracy" not in render_report(recipe(), before, made)
    measured = made.metrics.model_copy(update={"macro_accuracy": 0.6125})
    epochs = [
        record.model_copy(update={"validation": record.validation.model_copy(update={"macro_accuracy": 0.25 + n / 8})})
        for n, record in enumerate(before.epochs)
        if record.validation
    ]
    html = render_report(recipe(), History(epochs=tuple(epochs)), made.model_copy(update={"metrics": measured}))
    parsed(html)
    assert "<b>61.25%</b><span>macro accuracy</span>" in html
    rows = re.findall(r'<td class="n">(\d+\.\d\d%)</td><td class="n">(\d+\.\d\d%)</td><td class="n">0', html)
    assert [macro for _, macro in rows] == ["25.00%", "37.50%", "50.00%"]
    assert html.count('<th class="n">macro accuracy</th>') == 1


def test_up_to_twenty_classes_every_cell_of_the_confusion_matrix_is_shown() -> None:
    made = result(DIGITS)
    html = render_report(recipe(), history(3), made)
    cells = re.findall(r'<td class="[orx]"[^>]*>(\d+)</td>', html)
    assert [int(cell) for cell in cells] == [n for row in made.confusion for n in row]


def test_with_a_thousand_classes_the_most_confused_pairs_come_first_and_the_file_stays_small() -> None:
    made = result(tuple(f"class number {i}" for i in range(1000)))
    html = render_report(recipe(), history(90), made)
    parsed(html)
    worst = max(n for i, row in enumerate(made.confusion) for j, n in enumerate(row) if i != j)
    pairs = re.findall(r'<tr><td>class number \d+</td><td>class number \d+</td><td class="n">(\d+)</td>', html)
    assert [int(n) for n in pairs] == sorted(map(int, pairs), reverse=True)
    assert (len(pairs), int(pairs[0])) == (30, worst)
    assert all(f"<td>class number {i}</td>" in html for i in range(1000))
    assert len(html) < 500_000


def test_names_from_outside_are_text_never_markup() -> None:
    made = result(("<script>alert(1)</script>", "a & b", "c"))
    html = render_report(recipe(), history(2), made)
    assert parsed(html).counts.get("script", 0) == 0
    assert "&lt;script&gt;alert(1)" in html


@pytest.mark.parametrize("epochs", [0, 1, 2])
def test_short_runs_and_classes_without_samples_have_a_report_too(epochs: int) -> None:
    made = result(("a", "b"), wrong_fraction=0.0)
    made = made.model_copy(update={"confusion": ((50, 0), (0, 0))})
    html = render_report(recipe(), history(epochs), made)
    parsed(html)
    assert "nan" not in re.sub(r"finance|on_nan|nan_skips", "", html.lower())
    assert "None: every sample was classified correctly" in html


@pytest.mark.parametrize(
    "values", [[0.0], [5.0, 5.0], [1e-9, 2e-9], [1e7, 2e7], [-3.0, 3.0], [float("nan"), 1.0], [0.1, 0.1000001]]
)
def test_a_chart_can_show_any_values(values: list[float]) -> None:
    drawn = line_chart("title", [Series("line", list(enumerate(values)))])
    assert "nan" not in drawn
    heights = [float(y) for y in re.findall(r'cy="([-\d.]+)"', drawn)]
    assert heights
    assert all(0 <= y <= 260 for y in heights)
