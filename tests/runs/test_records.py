"""Records are stored under the same names from version to version."""

from __future__ import annotations

import json

from stoker.runs.records import KINDS, EpochRecord, Goodput, History, Metrics

FRACTIONS = dict.fromkeys(KINDS, 0.0) | {"compute": 0.75, "restart": 0.25}
RECORD = EpochRecord(
    epoch=0,
    step=8,
    seconds=10.0,
    images_per_s=100.0,
    data_wait=0.1,
    learning_rate=0.1,
    train_loss=0.5,
    train_accuracy=0.75,
    world_size=1,
    goodput=Goodput(wall_s=12.0, fractions=FRACTIONS),
)


def test_goodput_is_stored_as_shares_and_read_back_in_history_checkpoints_and_events() -> None:
    history = History(epochs=(RECORD,))
    stored = json.loads(history.model_dump_json())
    assert stored["epochs"][0]["goodput"]["shares"] == FRACTIONS
    assert "fractions" not in stored["epochs"][0]["goodput"]
    assert RECORD.model_dump(mode="json", exclude={"reads"})["goodput"]["shares"] == FRACTIONS
    assert History.model_validate(stored) == history
    assert EpochRecord.model_validate(RECORD.model_dump(mode="json")) == RECORD


def test_metrics_of_a_version_without_macro_accuracy_read_back_and_have_none() -> None:
    before = Metrics.model_validate_json('{"samples": 9, "loss": 0.5, "accuracy": 0.75, "top5": 1.0}')
    assert before.macro_accuracy is None
    assert before.figures() == {"loss": 0.5, "accuracy": 0.75, "top5": 1.0}
    after = before.model_copy(update={"macro_accuracy": 0.625})
    assert Metrics.model_validate_json(after.model_dump_json()) == after
