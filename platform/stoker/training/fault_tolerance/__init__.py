"""Fault tolerance: who watches whom, and what happens when something dies.

    driver      one process a run, where the job was submitted; ``training.attempts`` is its loop
      holds       the run's lease in storage (``lease``): a second driver of the same run is refused
      watches     the controller: a dead one is replaced, up to ``workers.max_failures`` times
                  SIGTERM and SIGINT: it asks the ranks through the lease to checkpoint and stop
    controller  Ray Train's actor, with parts of ours (``ray_train``)
      watches     the workers, every 0.5 s; one that does not answer for 30 s counts as dead
                  the cluster's free capacity (``capacity``), for elastic runs (``scaling``)
      decides     restart or stop, whether the failure counts, and which node the run leaves out from now on
                  (``failure_policy``, ``left_out``), by what ranks attach to their exceptions (``circumstances``)
    rank        one process a worker; a ``guard`` wraps its step loop
      watches     its progress (``watchdog``): without a heartbeat for ``workers.stall_timeout_s`` it dumps all stacks,
                  then exits
                  its losses (``non_finite``), without waiting for the device
                  the lease (rank 0), its node's drain notice (local rank 0), and SIGTERM
      agrees      with all other ranks at which step to checkpoint, stop or restart (``agreement``)

What a rank notices alone, all ranks act on after the same step. What it does not survive to report, the other ranks
notice in their next collective, the controller by its health check, and the driver if the controller is gone too.
Work since the last checkpoint is repeated, with the same samples and the same result; nothing is skipped.
"""
