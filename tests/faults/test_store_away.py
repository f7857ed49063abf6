"""The object store goes away in the middle of a run, for a minute, and then for longer than the run's patience."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from conftest import Store
from faults.runs import Run
from stoker.embedded import Instance, ObjectStore

_AWAY_S = 60.0


@contextmanager
def _away(store: Store) -> Iterator[None]:
    """Its processes are ended; at the block's end it starts again at the same address."""
    known = store.object_store
    port = int(known.endpoint.rpartition(":")[2])
    settings = known.settings.model_copy(update={"ports": known.settings.ports.model_copy(update={"s3": port})})
    again = ObjectStore(known.folder, settings)
    with known.folder.lock():
        known.stop()
    try:
        yield
    finally:
        with known.folder.lock():
            again.start()
        assert again.endpoint.endswith(f":{port}")


@pytest.mark.long
@pytest.mark.store
@pytest.mark.cluster
def test_a_run_waits_for_the_store_and_ends_clearly_when_its_patience_does(
    roomy: Instance, store: Store, tmp_path: Path, record_property: pytest.RecordProperty
) -> None:
    run = Run(store, tmp_path, epochs=8)
    with run.running("storage_timeout_s=300") as job:
        run.wait_for_steps(job, 0, 25)
        with _away(store):
            time.sleep(_AWAY_S)
            assert job.process.poll() is None, job.said()[-3000:]
            before = max(run.attempts()[0].steps)
        back = time.time()
        after = run.wait_for_steps(job, 0, before + 10)
        record_property(
            "store_back_to_next_step_s", min(at for step, at in after.times.items() if step > before) - back
        )
        job.process.kill()  # its workers end too, and the rest is another driver's
        job.process.wait()
    assert len(run.attempts()) == 1, "the workers were started again"

    with run.running("storage_timeout_s=10") as job:
        run.wait_for_steps(job, 1, 25)
        went = time.time()
        with _away(store):
            said = job.end(timeout_s=120)
            record_property("store_away_to_end_s", time.time() - went)
    assert job.process.returncode == 2, said[-3000:]
    assert [line for line in said.splitlines() if line.startswith("error: cannot ")], said[-3000:]

    with run.running() as job:
        said = job.end()
    assert job.process.returncode == 0, said[-3000:]
    run.must_have_seen_each_sample_once()
