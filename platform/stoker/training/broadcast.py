"""What rank 0 reads for all ranks: small values as JSON, tensors in pieces of bounded size; errors reach every rank.

A store then serves a checkpoint or pretrained weights once, however many ranks there are. Before the bytes of tensors
go their names, types and shapes; then buckets of at most ``BUCKET_BYTES`` on the device that the ranks' group uses, so
a rank holds no more than the tensors and one bucket. All ranks must make the same calls. With one rank there is no
collective.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import asdict
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

from stoker import errors
from stoker.errors import StorageError
from stoker.training.fault_tolerance.circumstances import Circumstances, annotate, circumstances_of

__all__ = ["BUCKET_BYTES", "from_rank_zero", "tensors_from_rank_zero"]

BUCKET_BYTES = 32 << 20


def from_rank_zero(read: Callable[[], Any], device: torch.device) -> Any:
    """What ``read()``, called on rank 0 alone, returns there: a value that JSON can hold. ``device`` is the group's.

    Raises:
        StokerError: rank 0 raised it; all ranks raise the same, with the same text.
        RuntimeError: rank 0 raised anything else (it raises that itself).
    """
    if dist.get_world_size() == 1:
        return read()
    raised: Exception | None = None
    data = b""
    if dist.get_rank() == 0:
        try:
            data = json.dumps({"value": read()}).encode()
        except Exception as error:
            annotate(error)  # the other ranks' copies tell of this node, not of theirs
            raised = error
            data = json.dumps(_described(error)).encode()
    message = json.loads(_broadcast_bytes(data, device))
    if raised is not None:
        raise raised
    if "error" in message:
        raise _rebuilt(**message)
    return message["value"]


def tensors_from_rank_zero(read: Callable[[], Mapping[str, Tensor]], device: torch.device) -> dict[str, Tensor]:
    """The tensors that ``read()``, called on rank 0 alone, returns there by name; on the CPU, the same bits.

    Raises:
        StokerError, RuntimeError: see :func:`from_rank_zero`.
    """
    read_here: dict[str, Tensor] = {}

    def described() -> list[tuple[str, str, list[int]]]:
        read_here.update((name, tensor.detach().cpu().contiguous()) for name, tensor in read().items())
        return [(name, str(t.dtype).removeprefix("torch."), list(t.shape)) for name, t in read_here.items()]

    rows = from_rank_zero(described, device)
    is_first = dist.get_rank() == 0
    tensors = read_here or {name: torch.empty(shape, dtype=getattr(torch, kind)) for name, kind, shape in rows}
    if dist.get_world_size() > 1:
        for bucket in _buckets(tensors.values()):
            sizes = [len(piece) for piece in bucket]
            shared = torch.empty(sum(sizes), dtype=torch.uint8, device=device)
            if is_first:
                shared.copy_(torch.cat(bucket))
            dist.broadcast(shared, src=0)
            if not is_first:
                for piece, received in zip(bucket, torch.split(shared.cpu(), sizes), strict=True):
                    piece.copy_(received)
    return tensors


def _buckets(tensors: Iterable[Tensor]) -> Iterator[list[Tensor]]:
    """The bytes of ``tensors`` in order: views uint8 [n], together at most ``BUCKET_BYTES`` a bucket."""
    bucket: list[Tensor] = []
    free = BUCKET_BYTES
    for tensor in tensors:
        flat = tensor.reshape(-1).view(torch.uint8)
        while len(flat):
            piece, flat = flat[:free], flat[free:]
            bucket.append(piece)
            free -= len(piece)
            if not free:
                yield bucket
                bucket, free = [], BUCKET_BYTES
    if bucket:
        yield bucket


def _broadcast_bytes(data: bytes, device: torch.device) -> bytes:
    """Rank 0's ``data``, on all ranks."""
    length = torch.tensor([len(data)], device=device)
    dist.broadcast(length, src=0)
    shared = torch.empty(int(length), dtype=torch.uint8)
    if dist.get_rank() == 0:
        shared = torch.frombuffer(bytearray(data), dtype=torch.uint8)
    shared = shared.to(device)
    dist.broadcast(shared, src=0)
    return bytes(shared.cpu().numpy())


def _described(error: Exception) -> dict[str, Any]:
    kind = next((kind.__name__ for kind in type(error).__mro__ if kind.__name__ in errors.__all__), "")
    text = str(error) if kind else f"rank 0 failed: {type(error).__name__}: {error}"
    where = circumstances_of(error) or Circumstances()
    return {"error": kind, "text": text, "url": getattr(error, "url", ""), "where": asdict(where)}


def _rebuilt(error: str, text: str, url: str, where: dict[str, Any]) -> Exception:
    kind: Any = getattr(errors, error, RuntimeError)
    made: Exception = kind(text, url=url) if issubclass(kind, StorageError) else kind(text)
    annotate(made, where=Circumstances(**where))
    return made
