"""DistributedDataParallel with a sum, not a mean, of the ranks' gradients."""

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch._C._distributed_c10d import GradBucket
from torch.nn.parallel import DistributedDataParallel

from stoker.recipe import Recipe
from stoker.training.step.communication import CommunicationTimer
from stoker.training.step.compilation import compiled
from stoker.training.step.exact_sums import ExactSums

__all__ = ["data_parallel"]


def data_parallel(
    model: nn.Module,
    recipe: Recipe,
    device: torch.device,
    exact: ExactSums | None,
    timer: CommunicationTimer,
) -> DistributedDataParallel:
    """Wrap ``model``, compiled if the recipe says so, so that gradients are summed over ranks as the recipe says.

    ``timer`` is told when each all-reduce begins. The graph is static where each rank has one micro-batch a step, and
    always the same one: without ``no_sync`` and without a rank that runs out of samples.
    """
    one_each = recipe.workers.min == recipe.workers.max == recipe.batch.micro_batches
    parallel = DistributedDataParallel(
        compiled(model, recipe) if recipe.compile else model,
        device_ids=[device] if device.type == "cuda" else None,
        forward_sync_buffers=False,
        gradient_as_bucket_view=True,
        static_graph=one_each and recipe.data.last_batch == "drop",
    )
    plain = _sum_in_bfloat16 if recipe.gradient_compression == "bfloat16" else _sum
    hook = plain if exact is None else exact.hook

    def timed(state: object, bucket: GradBucket) -> torch.futures.Future[Tensor]:
        begun = hook(state, bucket)
        timer.start()
        return begun

    parallel.register_comm_hook(None, timed)
    return parallel


def _sum(_: object, bucket: GradBucket) -> torch.futures.Future[Tensor]:
    work = dist.all_reduce(bucket.buffer(), op=dist.ReduceOp.SUM, async_op=True)
    return work.get_future().then(lambda done: done.value()[0])


def _sum_in_bfloat16(_: object, bucket: GradBucket) -> torch.futures.Future[Tensor]:
    """All-reduce in bfloat16: half the bytes, with 8 bits of each rank's sum instead of 24."""
    buffer = bucket.buffer()
    work = dist.all_reduce(buffer.to(torch.bfloat16), op=dist.ReduceOp.SUM, async_op=True)
    return work.get_future().then(lambda done: buffer.copy_(done.value()[0]))
