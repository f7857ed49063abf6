"""What a run reports while it works: progress, goodput, events, metrics and curves.

Each rank has one :class:`~.recorder.Recorder`. The step loop calls it after each step and at the end of each epoch;
values leave the device at report intervals (``log_every_s``) and at epoch ends only.

```
worker ─▶ recorder ─┬─▶ goodput ─▶ advice      where each second of the epoch went, and what to do about it
 (step loop)        ├─▶ progress ─▶ job log ─▶ progress_bar (a terminal of the driver)
                    ├─▶ events ───┐
                    ├─▶ history   ├─▶ outbox ─▶ object storage
                    ├─▶ trackers ─┴ TensorBoard; MLflow and Weights & Biases by their own clients
                    └─▶ prometheus ─▶ Ray's agent of the node
```

| measured | where | on |
|---|---|---|
| seconds of data wait, checkpoint, evaluation | ``goodput.Clock.measure``, around the worker's calls | each rank |
| seconds of communication | ``step.communication``, around backward passes in ``training/step`` | each rank |
| restarts: lost time and repeated steps | ``recorder``, from the checkpoint's state and earlier events | rank 0 |
| loss, accuracy, learning rate, images/s, time left | ``progress.ProgressSnapshot`` | rank 0 |
| reads, retries, cache hits, decode time | ``stoker.dataset.Loader.metrics`` | each rank |
| the samples of each step | ``trace`` (recipe: ``trace_dir``) | each rank |

| artefact | written by |
|---|---|
| ``<run>/events/*.jsonl`` | ``events`` |
| ``<run>/history.json`` | ``recorder``, one record an epoch (``stoker.runs.records.EpochRecord``) |
| ``<run>/tensorboard/events.out.tfevents.*`` | ``tensorboard`` |
| MLflow and Weights & Biases runs | ``mlflow``, ``wandb`` |
| ``stoker_train_*`` and ``stoker_loader_*`` metrics | ``prometheus`` |
| lines in the job's log | ``progress`` |
| ``<trace_dir>/*.jsonl``, local to the node | ``trace`` |

**What never blocks the step loop:** nothing here waits for the network. Objects go through ``outbox``, a background
thread that keeps the newest content of each object and retries while the store is unavailable. Each tracker has a
thread of its own, which drops points when it falls behind and is disabled when it fails. Only closing waits, 30 s at
most for each of them. What does run in the loop: at a report interval one copy of three numbers from the device, at an
epoch's end one ``all_gather`` of a few dozen numbers, and, with ``trace_dir``, one line appended to a local file.
"""
