"""One optimiser step over a global batch, the same bits on any number of ranks.

stepper      the step: backward passes over this rank's micro-batches, the ranks' sum, the update
prefetch     micro-batches onto the device, one ahead
parallel     DistributedDataParallel with a sum of gradients, and how long the host waits for it
exact_sums   sums of gradients that have no order
batch_norm   running statistics over all micro-batches of a step
numerics     every switch that changes the numbers which kernels compute
"""
