"""Progress of a run, in a log and on a terminal."""

from __future__ import annotations

import io
import sys

import pytest

from stoker.recipe import parse_recipe
from stoker.runs.records import EpochRecord, Metrics
from stoker.training.telemetry.progress import Progress
from stoker.training.telemetry.progress_bar import progress_bar, with_terminal_interval

RECIPE = parse_recipe(
    """
name: digits
storage: s3://bucket
data: {url: s3://bucket/digits}
model: {name: digitsnet}
batch: {total: 64, micro: 16}
optimizer: {lr: 0.1}
schedule: {epochs: 4}
log_every_s: 30
""",
    "test",
)


class Terminal(io.StringIO):
    """A terminal that shows what was written to it."""

    encoding = "utf-8"

    def isatty(self) -> bool:
        return True

    @property
    def screen(self) -> list[str]:
        return [line.rpartition("\r\x1b[K")[2] for line in self.getvalue().split("\n")]


def terminal_of(monkeypatch: pytest.MonkeyPatch, columns: int = 120) -> Terminal:
    """In place of this process's output from now on; as a fixture, pytest's own capture would come after it."""
    made = Terminal()
    monkeypatch.setattr(sys, "stdout", made)
    monkeypatch.setattr(sys, "stderr", made)
    monkeypatch.setenv("COLUMNS", str(columns))
    return made


def test_a_line_has_epoch_step_loss_accuracy_rate_speed_data_wait_and_time_left() -> None:
    lines: list[str] = []
    progress = Progress(RECIPE, 20, first_step=10, print_line=lines.append)
    assert not progress.is_due
    progress._last -= 8.0
    progress._began -= 8.0
    snapshot = progress.step(15, 0.25, 0.9, 0.05, waited_s=2.0, more={"bits": 20})
    assert (snapshot.images_per_s, snapshot.data_wait) == (pytest.approx(40, rel=0.05), pytest.approx(0.25, rel=0.05))
    assert snapshot.as_dict()["bits"] == 20
    assert lines == [
        "digits: epoch 1/4 step 15/20 loss 0.2500 accuracy 90.0% rate 0.05 40 images/s data wait 25%, 1:44 left"
    ]


@pytest.mark.parametrize(("macro", "shown"), [(0.625, " macro accuracy 62.50%"), (None, "")])
def test_the_line_of_an_epoch_has_the_accuracy_of_the_classes(macro: float | None, shown: str) -> None:
    lines: list[str] = []
    validation = Metrics(samples=9, loss=0.25, accuracy=0.875, top5=1.0, macro_accuracy=macro)
    Progress(RECIPE, 20, first_step=0, print_line=lines.append).epoch(
        EpochRecord(
            epoch=0,
            step=20,
            seconds=10.0,
            images_per_s=100.0,
            data_wait=0.1,
            learning_rate=0.1,
            train_loss=0.5,
            train_accuracy=0.75,
            world_size=1,
            validation=validation,
        )
    )
    assert f"| validation loss 0.2500 accuracy 87.50%{shown} of 9, " in lines[0]


def test_on_a_terminal_progress_is_a_bar_below_all_other_lines(monkeypatch: pytest.MonkeyPatch) -> None:
    terminal = terminal_of(monkeypatch)
    with progress_bar("digits"):
        print("first")
        print("\x1b[36m(RayTrainWorker pid=7)\x1b[0m digits: epoch 2/4 step 10/20 loss 0.5, 1:00 left")
        assert terminal.screen == ["first", "█████████░░░░░░░░░░░░░░░  38% epoch 2/4 loss 0.5, 1:00 left"]
        print("a warning", file=sys.stderr)
        print("digits: epoch 4/4 step 20/20 loss 0.1, 0:00 left")
        assert terminal.screen == ["first", "a warning", "████████████████████████ 100% epoch 4/4 loss 0.1, 0:00 left"]
    print("last")
    assert terminal.screen == ["first", "a warning", "last", ""]
    assert sys.stdout is terminal


def test_a_bar_is_never_wider_than_the_terminal(monkeypatch: pytest.MonkeyPatch) -> None:
    terminal = terminal_of(monkeypatch, 40)
    with progress_bar("digits"):
        print("digits: epoch 2/4 step 10/20 loss 0.5000 accuracy 90.0%, 1:00 left")
        assert len(terminal.screen[-1]) == 39


def test_without_a_terminal_lines_stay_lines(capsys: pytest.CaptureFixture[str]) -> None:
    line = "digits: epoch 2/4 step 10/20 loss 0.5, 1:00 left\n"
    with progress_bar("digits"):
        sys.stdout.write(line)
    assert capsys.readouterr().out == line
    assert with_terminal_interval(RECIPE) is RECIPE


def test_on_a_terminal_progress_comes_more_often(monkeypatch: pytest.MonkeyPatch) -> None:
    terminal_of(monkeypatch)
    assert with_terminal_interval(RECIPE).log_every_s == 2.0
