"""One optimiser step over a global batch, the same bits on any number of ranks.

stepper        the step: backward passes over this rank's micro-batches, the ranks' sum, the update
class_weights  weights of the classes in the loss
prefetch       micro-batches onto the device, one ahead
parallel       DistributedDataParallel with a sum of gradients
compilation    torch.compile: a static graph for each size
communication  how long a rank waits for the other ranks
exact_sums     order-independent sums of gradients
batch_norm     running statistics over all micro-batches of a step
determinism    operations that have no deterministic algorithm
numerics       every switch that changes the numbers which kernels compute
"""
