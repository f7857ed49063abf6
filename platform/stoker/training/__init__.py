"""Training: the spine, read from top to bottom, and the rooms that it uses.

    driver           in the job: check everything, hold the lease, return the result
      attempts       start Ray Train, watch it, restart after the death of its controller
        worker       on each rank: restore, stream, step, checkpoint, evaluate, report
          checkpointing   what a checkpoint holds

    step             one optimiser step over a global batch, the same bits on any number of ranks
    optim            optimisers, learning-rate schedule, clipping, moving average
    augment          what changes pixels and labels on the device
    fault_tolerance  who watches whom, and what happens when something dies
    telemetry        progress, goodput, events, metrics, trackers
    report           result.json and report.html

Importing this package imports nothing; the driver and Ray's controller run without torch.
"""
